"""Learners in processes that stay: the same updates by one learner and by several, and batches for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
import torch.distributed as dist
from fake_envs import ScriptedMultiAgentEnv

from rllib_haml.haml.rows import alone
from rllib_haml.learners.collectives import world_size
from rllib_haml.sampling.fragment import JointFragment, JointTrainingData, in_batch_order

# Unequal, and an odd number of them; the fourth alone outweighs all that a second learner gets.
LENGTHS = (7, 31, 5, 64, 2)
ABSENT = "anchor"


class ChoosingEnv(ScriptedMultiAgentEnv):
    """The scripted team, but all choose, so that they can share a network.

    Args:
        wider: By how many numbers and choices an agent's spaces are wider than those of the agent before.
    """

    def __init__(self, wider: int) -> None:
        super().__init__(equal_rewards=True)
        for i, name in enumerate(self.possible_agents):
            self.observation_spaces[name] = gym.spaces.Box(-1e6, 1e6, (3 + wider * i,), np.float64)
            self.action_spaces[name] = gym.spaces.Discrete(3 + wider * i)


def fragments(seed: int, env: Any) -> list[JointFragment]:
    """Random ones: the first is terminal, the second cut by a time limit, `ABSENT` is absent from some.

    The others go on in the next update, with the lengths in another order.
    """
    rng = np.random.default_rng(seed)
    names, made = env.possible_agents, []
    for index, length in enumerate(lengths(seed)):
        active = {name: np.ones(length + 1, bool) for name in names}
        active[ABSENT] = rng.random(length + 1) < (0.0 if index == 2 else 0.7)
        made.append(
            JointFragment(
                obs={n: rows(rng, env.observation_spaces[n], length + 1, active[n]) for n in names},
                actions={n: rows(rng, env.action_spaces[n], length, active[n][:-1]) for n in names},
                logp={n: np.zeros(length, np.float32) for n in names},
                active=active,
                action_mask={},
                state=None,
                reward=np.repeat(rng.normal(size=(length, 1)), len(names), axis=1),
                terminated=index == 0,
                truncated=index == 1,
                episode_id=f"e{index}",
                env_t=sum(lengths(earlier)[index] for earlier in range(seed)) if index > 1 else 0,
                source=(0, index),
                weights_seq_no=0,
            )
        )
    return made


def lengths(seed: int) -> list[int]:
    return [*LENGTHS[:2], *np.roll(LENGTHS[2:], seed).tolist()]


def rows(rng: np.random.Generator, space: gym.Space, length: int, present: np.ndarray) -> np.ndarray:
    if isinstance(space, gym.spaces.Discrete):
        values = rng.integers(space.n, size=length)
    else:
        values = rng.normal(size=(length, *(space.shape or ()))).astype(np.float32)
    values[~present] = 0
    return values


def data(made: Sequence[JointFragment]) -> JointTrainingData:
    return JointTrainingData(episodes=in_batch_order(made))


def without(fragment: JointFragment, *agents: str) -> JointFragment:
    """The same, but these agents never act in it."""
    none = {agent: np.zeros_like(fragment.active[agent]) for agent in agents}
    return dataclasses.replace(fragment, active=fragment.active | none)


def trained(
    config: Any,
    batches: Sequence[JointTrainingData],
    adapters_at: int | None = None,
    change: Callable[[Any], None] | None = None,
) -> list[dict[str, np.ndarray]]:
    """The weights of this process's learner after an update with its share of each batch; float64.

    Args:
        adapters_at: The update with which the adapters begin.
        change: What makes a control of the learner.
    """
    learner = config.build_learner()
    for module in learner.module.values():
        module.double()
    if change is not None:
        change(learner)
    after = []
    for number, batch in enumerate(batches):
        if number == adapters_at:
            learner.begin_adapters()
        share, _ = batch.shard(world_size())[dist.get_rank() if world_size() > 1 else 0]
        learner.update(training_data=share, timesteps={"num_env_steps_sampled_lifetime": 109 * number})
        learner.fit_critics()
        after.append(weights(learner))
    return after


def lonely(learner: Any) -> None:
    """Control: sums nothing over the learners."""
    rows_of = learner._rows
    learner._rows = lambda joint: dataclasses.replace(rows_of(joint), all_reduce=alone)


def weights(learner: Any) -> dict[str, np.ndarray]:
    return {
        f"{name}/{key}": value.detach().cpu().numpy().copy()
        for name, module in learner.module.items()
        for key, value in module.state_dict().items()
    }


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key] - b[key]).max()) for key in a)


@ray.remote(num_cpus=1)
class Seat:
    """A process with a rank, in which learners follow each other."""

    def __init__(self, rank: int, size: int, meeting: Path):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)

    def do(self, what: Callable[..., Any], *args: Any) -> Any:
        return what(*args)


class Pair:
    """Two seats. If one waits for ever, so that the other's call fails in time, both are replaced.

    Args:
        directory: Where they find each other.
    """

    def __init__(self, directory: Path):
        self._directory, self._seats, self._taken = directory, [], 0

    def __call__(self, what: Callable[..., Any], *args: Any, seconds: float = 60) -> list[Any]:
        """What each of the two returns.

        Raises:
            ray.exceptions.GetTimeoutError: They did not both answer in time.
        """
        if not self._seats:
            meeting = self._directory / f"meeting_{self._taken}"
            self._seats = [Seat.remote(rank, 2, meeting) for rank in range(2)]
            ray.get([seat.do.remote(world_size) for seat in self._seats], timeout=120)
            self._taken += 1
        try:
            return ray.get([seat.do.remote(what, *args) for seat in self._seats], timeout=seconds)
        except ray.exceptions.RayError:
            self.leave()
            raise

    def leave(self) -> None:
        for seat in self._seats:
            ray.kill(seat)
        self._seats = []
