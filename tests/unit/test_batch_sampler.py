"""What comes too late is dropped and counted, and does not shorten the batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fragments import make_fragment
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED, WEIGHTS_SEQ_NO

from rllib_haml import HAPPO, HAPPOConfig
from rllib_haml.sampling.parallel import BatchSampler
from rllib_haml.sampling.restarts import NUM_ENV_STEPS_DISCARDED


class Group:
    """A local env runner that answers what it is told, one answer at a time."""

    def __init__(self, *answers: tuple[int, int, int]):
        self._answers = list(answers)
        self.local_env_runner = self

    def num_remote_workers(self) -> int:
        return 0

    def set_state(self, state: Any) -> None:
        self.given = state

    def sample(self) -> Any:
        steps, _, self._weights_seq_no = self._answers[0]
        return [make_fragment(steps)]

    def get_metrics(self) -> Any:
        steps, discarded, _ = self._answers.pop(0)
        return {NUM_ENV_STEPS_SAMPLED: steps, NUM_ENV_STEPS_DISCARDED: discarded}


def collected(*answers: tuple[int, int, int], size: int = 20, version: int = 3) -> tuple[list[int], int, int]:
    """What answers (steps, discarded, version) come to: lengths of fragments, stale steps, answers taken."""
    group = Group(*answers)
    config: Any = SimpleNamespace(
        total_train_batch_size=size, acting_modules=lambda: ["a"], restart_failed_env_runners=False
    )
    sampler = BatchSampler(group, config, lambda: [])
    state = {COMPONENT_RL_MODULE: {"a": {}}, WEIGHTS_SEQ_NO: version, "optimizer": "stays"}
    sampler.take_weights(SimpleNamespace(get_state=lambda **_: {COMPONENT_LEARNER: state}))
    assert group.given == {COMPONENT_RL_MODULE: {"a": {}}, WEIGHTS_SEQ_NO: version}
    sample = sampler.collect()
    return [len(f) for f in sample.fragments], sample.stale_steps, len(sample.results)


@pytest.mark.parametrize(
    "answers, fragments, stale",
    [
        ([(20, 0, 3)], [20], 0),
        ([(12, 0, 3), (12, 0, 3)], [12, 12], 0),
        ([(20, 0, 2), (20, 0, 3)], [20], 20),
        ([(20, 0, 4), (20, 0, 3)], [20], 20),
        ([(15, 5, 3)], [15], 0),
        ([(15, 5, 2), (15, 5, 3)], [15], 15),
    ],
    ids=["enough", "two rounds", "stale", "of before a restore", "some discarded", "stale and discarded"],
)
def test_a_batch_is_of_the_present_weights_and_whole(
    answers: list[tuple[int, int, int]], fragments: list[int], stale: int
) -> None:
    assert collected(*answers) == (fragments, stale, len(answers))


def test_of_dead_env_runners_that_have_no_room_it_is_said_what_they_wait_for() -> None:
    """They are not said to be silent; the control is one that says what it died of."""

    def cause(*replies: Any) -> str:
        manager = SimpleNamespace(foreach_actor=lambda *args, **kwargs: replies)
        return BatchSampler(SimpleNamespace(_worker_manager=manager), None, lambda: [])._cause()

    waiting = cause()
    assert "Ray has not started them again yet" in waiting
    assert "room for all of them" in waiting
    assert "`placement_strategy: SPREAD`" in waiting
    assert "not answer" not in waiting
    dead = SimpleNamespace(ok=False, actor_id=2, get=lambda: "its node died")
    assert cause(dead) == "Env runner 2: its node died"


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD"])
def test_the_setting_that_spreads_env_runners_reaches_ray(strategy: str) -> None:
    config = HAPPOConfig().environment("matrix_game", env_config={"game": "climbing"})
    config.env_runners(num_env_runners=2).resources(placement_strategy=strategy)
    request: Any = HAPPO.default_resource_request(config.to_dict())  # pyright: ignore[reportArgumentType]
    assert request.strategy == strategy
