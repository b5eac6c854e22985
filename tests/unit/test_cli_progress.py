"""The progress line tells how far, how good, how fast and how long; errors say why."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from rllib_haml.cli.logs import show_worker_logs_of_this_package
from rllib_haml.cli.progress import ProgressLines, _Start, progress_line
from rllib_haml.cli.report import cause
from rllib_haml.sampling.faults import EnvironmentFault

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
    assert cause(trace) == "RuntimeError: the pole broke"


def raised_by_ray(wrap: bool, message: str) -> str:
    """The trace that Ray prints of an environment's fault, as the driver gets it."""
    try:
        try:
            {}["lever"]
        except KeyError as error:
            raise EnvironmentFault(message, environment="Poles", method="step", sub_env=3, step=12) from error
    except EnvironmentFault as fault:
        text = traceback.format_exc()
        if not wrap:
            return str(RayTaskError("HAPPO.train", text, fault))
    try:
        raise ValueError("what came of it") from RayTaskError("sample", text, None)  # type: ignore[arg-type]
    except ValueError as error:
        return str(RayTaskError("HAPPO.train", traceback.format_exc(), error))


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("message", ["it raised KeyError: 'lever'", "it raised KeyError:\n  'lever'"])
def test_an_environments_fault_is_the_cause_with_its_place(wrap: bool, message: str):
    trace = raised_by_ray(wrap, message)
    assert trace.index("KeyError: 'lever'") < trace.index("EnvironmentFault: ")
    said = (
        "environment Poles, in step(), sub-environment 3, step 12 of its episode: it raised KeyError: 'lever'"
    )
    assert cause(trace) == said


@pytest.mark.parametrize(
    "allowed, saved, words",
    [
        (3, True, "failure 2 of 3, goes on from its last checkpoint: ValueError: the second"),
        (-1, False, "failure 2, goes on from its beginning: ValueError: the second"),
    ],
)
def test_a_restart_says_which_and_why(
    allowed: int, saved: bool, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Tune adds every failure's trace to one file."""
    traces = [f'  File "env.py", line 6, in step\nValueError: the {n}\n' for n in ("first", "second")]
    file = tmp_path / "error.txt"
    file.write_text("".join(f"Failure # {n} (occurred at noon)\n{t}" for n, t in enumerate(traces, 1)))
    trial: Any = SimpleNamespace(
        trial_id="ab_00001",
        max_failures=allowed,
        num_failures=2,
        error_file=str(file),
        has_checkpoint=lambda: saved,
    )
    ProgressLines("team", 2).on_trial_recover(1, [trial], trial)
    assert capsys.readouterr().err == f"team#00001: {words}\n"


def test_what_workers_say_together_is_shown_once_and_what_happens_again_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    handlers, now = {}, [0.0]
    monkeypatch.setattr(dispatcher, "remove_handler", lambda name: None)
    monkeypatch.setattr(dispatcher, "add_handler", handlers.__setitem__)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    show_worker_logs_of_this_package()
    line = "rllib_haml: WARNING sub-environment 3 failed"
    for second in (0.0, 0.1, 4.0, 100.0):
        now[0] = second
        handlers["rllib_haml"]({"lines": [line, "somebody else's", line]})
    assert capsys.readouterr().err.splitlines() == ["WARNING sub-environment 3 failed"] * 2
