"""Random fragments of a made-up team, with every kind of column, and plain loops over them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium import spaces

from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.team import Team

VIEW = spaces.Dict({"cell": spaces.Discrete(3, start=1), "view": spaces.Box(-1, 1, (2,), np.float32)})
BOX = spaces.Box(-1, 1, (2,), np.float32)
# Neither in alphabetical order nor alike; `left` and `right` follow one policy.
TEAM = Team(
    agents=("zed", "left", "right", "boss"),
    observation_spaces={"zed": spaces.Discrete(4), "left": VIEW, "right": VIEW, "boss": BOX},
    action_spaces={"zed": BOX, "left": spaces.Discrete(3), "right": spaces.Discrete(3), "boss": BOX},
    state_space=None,
    module_of={"zed": "zed", "left": "hands", "right": "hands", "boss": "boss"},
)
STATE_SPACE = spaces.Box(-1, 1, (2, 2), np.float32)
MASKED = ("left", "right")


def rows_of(space: gym.Space, count: int, rng: np.random.Generator) -> Any:
    batch = gym.vector.utils.batch_space(space, count)
    batch.seed(int(rng.integers(2**31)))
    return batch.sample()


def make_fragment(
    length: int,
    seed: int = 0,
    *,
    team: Team = TEAM,
    present: float = 0.7,
    equal_rewards: bool = True,
    masked: tuple[str, ...] = (),
    state: bool = False,
    **fields: Any,
) -> JointFragment:
    """Random rows; each agent acts with probability `present`, and its other rows are zeros."""
    rng = np.random.default_rng((seed, length))
    active = {a: rng.random(length + 1) < present for a in team.agents}

    def only_active(agent: Any, value: Any) -> Any:
        def zero(x: np.ndarray) -> np.ndarray:
            x = x.copy()
            x[~active[agent][: len(x)]] = 0
            return x

        return tree.map_structure(zero, value)

    obs = {a: only_active(a, rows_of(team.observation_spaces[a], length + 1, rng)) for a in team.agents}
    actions = {a: only_active(a, rows_of(team.action_spaces[a], length, rng)) for a in team.agents}
    logp = {a: only_active(a, rng.normal(size=length).astype(np.float32)) for a in team.agents}
    reward = rng.normal(size=(length, 1 if equal_rewards else len(team.agents)))
    about: dict[str, Any] = {
        "terminated": False,
        "truncated": False,
        "episode_id": f"e{seed}",
        "env_t": 0,
        "source": (0, 0),
        "weights_seq_no": 0,
    }
    return JointFragment(
        obs=obs,
        actions=actions,
        logp=logp,
        active=active,
        action_mask={a: rng.random((length + 1, 3)) < 0.7 for a in masked},
        state=rng.normal(size=(length + 1, 2, 2)).astype(np.float32) if state else None,
        reward=np.broadcast_to(reward, (length, len(team.agents))).copy(),
        **about | fields,
    )


def assert_equal(a: JointFragment, b: JointFragment) -> None:
    """Field by field, bit for bit."""
    for name, value in vars(a).items():
        other = getattr(b, name)
        tree.assert_same_structure(value, other)
        for x, y in zip(tree.flatten(value), tree.flatten(other), strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
