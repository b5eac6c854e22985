"""A natively batched environment as an RLlib environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_envs import ScriptedMultiAgentEnv

from rllib_haml.sampling.batched_team_env import BatchedTeamEnv
from rllib_haml.sampling.make_vector import make_vector_team_env


def test_who_left_does_the_same_in_every_run() -> None:
    """Else a seeded environment that looks at it would tell another story each time."""
    script = {"deaths": {"scout": 1, "carrier": 1}, "length": 3}
    env = BatchedTeamEnv(lambda n: make_vector_team_env(lambda: ScriptedMultiAgentEnv(**script), n))
    row: Any = env._row
    given, step = [], row.step
    row.step = lambda actions: given.append(actions) or step(actions)
    env.reset(seed=1)
    for acting in (["scout", "carrier", "anchor"], ["anchor"], ["anchor"]):
        env.step({agent: env.action_spaces[agent].sample() for agent in acting})
    for actions in given[1:]:
        np.testing.assert_array_equal(actions["scout"], [0])
        np.testing.assert_array_equal(actions["carrier"], np.zeros((1, 1), np.float32))
        assert actions["carrier"].dtype == np.float32
