"""Env runners that die or hang: the others go on, counters stay true, nothing torn or stale is trained on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_envs import Faulty

from rllib_haml import HAPPOConfig
from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.sampling.faults import EnvironmentFault, EnvRunnerError
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.parallel import EnvRunnersLost

STEPS = 200


def config(orders: Path | None = None, runners: int = 2, **faults: Any) -> HAPPOConfig:
    return (
        HAPPOConfig()
        .environment(Faulty, env_config={"orders": orders})
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.5)
        .training(train_batch_size_per_learner=STEPS, num_epochs=1, critic_num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .fault_tolerance(**{"restart_failed_env_runners": True} | faults)
        .debugging(seed=3)
    )


class Watched:
    """An algorithm, and all that it was given to train on."""

    def __init__(self, settings: HAPPOConfig):
        self.algo = settings.build_algo()
        self.batches: list[list[JointFragment]] = []
        collect = self.algo.sampler.collect

        def watched() -> Any:
            sample = collect()
            self.batches.append(sample.fragments)
            return sample

        self.algo.sampler.collect = watched

    def train(self) -> dict[str, Any]:
        result = self.algo.train()
        for fragment in self.batches[-1]:
            assert fragment.weights_seq_no == self.algo.iteration - 1, "stale"
            assert np.isfinite(fragment.obs["right"]).all()
            assert len(fragment.obs["left"]) == len(fragment) + 1, "torn"
        trained = sum(len(f) for batch in self.batches for f in batch)
        lifetime = result["env_runners"]["num_env_steps_sampled_lifetime"]
        assert trained + result["num_env_steps_stale_lifetime"] == lifetime, "counters"
        return result

    def until(self, happened: Any, seconds: float = 90.0) -> dict[str, Any]:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            result = self.train()
            if happened(result):
                return result
        raise AssertionError(f"not within {seconds:g} s")

    def pids(self) -> dict[int, int]:
        return self._ask(lambda env_runner: os.getpid())

    def seeds(self) -> dict[int, int]:
        return self._ask(lambda env_runner: env_runner._generator.initial_seed())

    def _ask(self, question: Any) -> dict[int, int]:
        replies = self.algo.env_runner_group._worker_manager.foreach_actor(question)
        return {reply.actor_id: reply.get() for reply in replies if reply.ok}


@pytest.fixture
def watch(ray_cluster: None) -> Iterator[Any]:
    made: list[Watched] = []

    def make(settings: HAPPOConfig) -> Watched:
        made.append(Watched(settings))
        return made[-1]

    yield make
    for watched in made:
        watched.algo.stop()


def test_one_killed_while_it_samples(watch: Any, tmp_path: Path) -> None:
    team = watch(config(tmp_path))
    victim, before = team.pids()[2], team.seeds()
    assert team.train()["num_healthy_env_runners"] == 2
    hold = tmp_path / "hold"
    hold.touch()

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)
        hold.unlink()

    threading.Timer(3.0, kill).start()
    team.until(lambda result: result["num_healthy_env_runners"] == 1)
    assert {f.source[0] for f in team.batches[-1]} == {1}
    assert sum(map(len, team.batches[-1])) >= STEPS, "the other one samples the whole batch"
    back = team.until(lambda result: result["num_healthy_env_runners"] == 2)
    assert back["num_env_runner_restarts_lifetime"] == 1
    team.train()
    assert {f.source[0] for f in team.batches[-1]} == {1, 2}
    assert team.pids()[2] != victim
    after = team.seeds()
    assert after[1] == before[1]
    assert after[2] not in before.values(), "it draws anew, neither what another does nor what it began with"


def test_one_whose_environment_hangs(watch: Any, tmp_path: Path) -> None:
    team = watch(config(tmp_path, env_step_timeout_s=2.0).env_runners(sample_timeout_s=1.0))
    team.train()
    before = team.pids()
    (tmp_path / "stall").touch()
    result = team.until(lambda result: result["num_env_runner_restarts_lifetime"] == 1)
    assert result["num_healthy_env_runners"] == 2
    assert sorted(set(before.values()) & set(team.pids().values())), "one of them went on all the time"
    assert not (set(before.values()) >= set(team.pids().values()))


def test_what_was_begun_before_another_state_counts_is_dropped_whenever_it_comes(
    watch: Any, tmp_path: Path
) -> None:
    """As after a restore or a new adapter: its version may be that of the weights that count now."""
    team = watch(config(tmp_path).env_runners(sample_timeout_s=1.0))
    team.train()
    (tmp_path / "hold").touch()
    team.algo.sampler.begin()
    team.algo.sampler.forget()
    (tmp_path / "hold").unlink()
    result = team.until(lambda result: result["num_env_steps_stale_lifetime"] > 0)
    assert result["num_env_steps_stale_lifetime"] <= STEPS
    assert sum(map(len, team.batches[-1])) >= STEPS, "it does not shorten the batch"


def test_an_environment_that_fails_in_an_env_runner(watch: Any, tmp_path: Path) -> None:
    team = watch(config(tmp_path, restart_failed_sub_environments=True))
    pids = team.pids()
    for fault in ("raise@3", "nan@4", "shape@5"):
        (tmp_path / fault).touch()
    result = team.until(lambda result: result["env_runners"].get("num_env_step_failures") == 3)
    assert result["env_runners"]["num_env_steps_discarded_lifetime"] == 3 + 4 + 5
    assert team.pids() == pids, "no process had to end for it"
    assert team.train()["env_runners"]["num_env_step_failures"] == 3, "and so it goes on"
    assert result["num_env_runner_restarts_lifetime"] == 0


def test_what_rllibs_own_env_runner_raises_ends_training_with_its_text(watch: Any, tmp_path: Path) -> None:
    team = watch(config(tmp_path).multi_agent(count_steps_by="agent_steps"))
    assert not issubclass(team.algo.config.env_runner_cls, JointEnvRunner)
    team.algo.train()
    pids = team.pids()
    (tmp_path / "raise@3").touch()
    with pytest.raises(EnvRunnerError, match=r"raised OSError: the simulator lost its licence\nTraceback"):
        deque((team.algo.train() for _ in range(5)), maxlen=0)
    assert team.pids() == pids


def test_dying_whenever_it_samples_is_dead(watch: Any, tmp_path: Path) -> None:
    """Ray starts it again each time; the clock runs on until one has given samples."""
    team = watch(config(tmp_path, runners=1, env_runner_restore_timeout_s=12.0))
    team.train()
    for number in range(50):
        (tmp_path / f"die@1@{number}").touch()
    start = time.monotonic()
    with pytest.raises(EnvRunnersLost, match=r"within 12 s.*The last one died of: "):
        team.until(lambda result: False)
    assert time.monotonic() - start > 12.0
    assert len(list(tmp_path.iterdir())) < 49, "it was started again and died again"


def test_all_dead_for_a_stated_time_is_an_error_with_the_cause(watch: Any) -> None:
    team = watch(config(max_num_env_runner_restarts=0, env_runner_restore_timeout_s=2.0))
    team.train()
    for pid in team.pids().values():
        os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(EnvRunnersLost, match=r"All 2 env runners are dead.*within 2 s.*Env runner 1: "):
        team.until(lambda result: False)
    assert time.monotonic() - start > 2.0


def test_all_killed_and_started_again(watch: Any) -> None:
    team = watch(config())
    team.train()
    for pid in team.pids().values():
        os.kill(pid, signal.SIGKILL)
    team.until(lambda result: result["num_env_runner_restarts_lifetime"] >= 1)
    assert sum(map(len, team.batches[-1])) >= STEPS


def test_without_leave_a_loss_ends_the_run(watch: Any) -> None:
    team = watch(config(restart_failed_env_runners=False))
    team.train()
    os.kill(team.pids()[1], signal.SIGKILL)
    with pytest.raises(Exception, match=r"actor died|ActorDied|died unexpectedly|unavailable"):
        team.until(lambda result: False)


def evaluating(orders: Path, **faults: Any) -> HAPPOConfig:
    return config(runners=0, **faults).evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=1,
        evaluation_duration=2,
        evaluation_sample_timeout_s=5.0,
        evaluation_config={"env_config": {"orders": orders}},
    )


def test_an_environment_that_fails_in_evaluation_ends_training_with_its_place(
    watch: Any, tmp_path: Path
) -> None:
    team = watch(evaluating(tmp_path))
    assert team.train()["evaluation"]["env_runners"]["num_episodes"] == 2
    (tmp_path / "raise@3").touch()
    with pytest.raises(EnvironmentFault, match=r"in step\(\), sub-environment \d, step 3 .*lost its licence"):
        team.train()


def test_an_evaluation_that_gives_nothing_is_said_and_comes_back(
    watch: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    team = watch(evaluating(tmp_path, delay_between_env_runner_restarts_s=0.1))
    (tmp_path / "die").touch()
    team.train()
    assert "evaluation gave nothing" in caplog.text
    team.until(lambda result: result["evaluation"].get("env_runners", {}).get("num_episodes") == 2)


def test_what_a_learner_raises_in_the_critics_epochs_is_the_error(watch: Any) -> None:
    team = watch(config(runners=0).learners(num_learners=1, num_cpus_per_learner=0.5))

    def out_of_memory() -> None:
        raise RuntimeError("out of memory in the critic")

    def sabotage(learner: Any) -> None:
        learner.fit_critics = out_of_memory

    on_every_learner(team.algo, sabotage)
    with pytest.raises(Exception, match="out of memory in the critic"):
        team.train()


def test_a_learner_killed_in_the_critics_epochs_is_an_error_and_no_hang(watch: Any) -> None:
    settings = config(runners=0).learners(num_learners=2, num_cpus_per_learner=0.5)
    team = watch(settings.training(critic_num_epochs=5000))
    victim, _ = on_every_learner(team.algo, lambda learner: os.getpid())
    threading.Timer(2.0, os.kill, (victim, signal.SIGKILL)).start()
    with pytest.raises(Exception, match=r"died|Connection closed|Connection reset"):
        team.train()


def test_a_lost_env_runner_costs_the_others_little_in_each_iteration(watch: Any, tmp_path: Path) -> None:
    team = watch(config(tmp_path, max_num_env_runner_restarts=0))
    team.train()
    os.kill(team.pids()[2], signal.SIGKILL)
    team.until(lambda result: result["num_healthy_env_runners"] == 1)
    for _ in range(8):
        team.train()
    assert 0.0 < team.algo.metrics.peek(("timers", "restore_env_runners"), default=0.0) < 0.5


def test_a_learner_killed_in_its_update_is_an_error_and_no_hang(watch: Any) -> None:
    settings = config(runners=0).learners(num_learners=2, num_cpus_per_learner=0.5)
    team = watch(settings.training(num_epochs=2000, critic_num_epochs=1))
    [victim, _] = [a.get() for a in team.algo.learner_group.foreach_learner(lambda learner: os.getpid())]
    threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
    start = time.monotonic()
    with pytest.raises(Exception, match=r"died|Connection closed|Connection reset"):
        team.train()
    assert time.monotonic() - start < 240, "the learners' own time-out is half an hour"
