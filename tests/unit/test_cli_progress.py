"""The progress line tells how far, how good, how fast and how long; errors say why."""

from __future__ import annotations

import time

from rllib_haml.cli.progress import _Start, progress_line
from rllib_haml.cli.report import cause

RESULT = {
    "num_env_steps_sampled_lifetime": 3000,
    "env_runners/num_env_steps_sampled": 1000,
    "env_runners/episode_return_mean": 12.0,
    "training_iteration": 3,
    "time_this_iter_s": 2.0,
}


def test_the_line_measures_steps():
    start = _Start(when=time.time() - 20, done=1000)
    line = progress_line(RESULT, {"num_env_steps_sampled_lifetime": 10000}, start)
    # 2,000 steps took 20 s, 7,000 are left.
    for part in ("3,000 / 10,000 steps", "30.0%", "team return 12.00", "500 steps/s", "1m10s left"):
        assert part in line


def test_the_teams_own_return_goes_before_the_sum_over_agents():
    result = RESULT | {"env_runners/team_return_mean": 6.0}
    assert "team return 6.00" in progress_line(result, {}, _Start(time.time(), 0))


def test_without_steps_asked_iterations_are_measured():
    line = progress_line(RESULT, {"training_iteration": 4}, _Start(time.time() - 30, 0))
    assert "3 / 4 iterations" in line
    assert "3,000 steps" in line
    assert "0m10s left" in line or "0m09s left" in line


def test_before_the_first_episode_ends_there_is_no_return():
    result = {k: v for k, v in RESULT.items() if "return" not in k}
    assert "no episode ended" in progress_line(result, {}, _Start(time.time(), 0))


def test_the_cause_is_the_first_exception_of_the_chain():
    trace = """\
ray::PPO.train() (pid=1)
  File "env.py", line 6, in step
    raise RuntimeError("the pole broke")
RuntimeError: the pole broke

The above exception was the direct cause of the following exception:

ray::PPO.train() (pid=1)
  File "env_runner.py", line 2, in sample
    raise RuntimeError from e
RuntimeError"""
    assert cause(RuntimeError(trace)) == "RuntimeError: the pole broke"
