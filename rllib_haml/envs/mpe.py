"""The cooperative multi-agent particle environments (mpe2)."""

from __future__ import annotations

import copy
import os
from typing import Any

from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper

from rllib_haml.envs.extras import import_extra
from rllib_haml.nearest import nearest

COOPERATIVE = (
    "simple_spread_v3",
    "simple_reference_v3",
    "simple_speaker_listener_v4",
    "simple_formation_v1",
    "simple_line_v1",
)
"""Scenarios whose agents want the same. In mpe2's others, teams play against each other."""

# All that a running episode has beyond its generator; the world holds places, speeds and words.
_EPISODE = (
    "world",
    "steps",
    "agents",
    "rewards",
    "_cumulative_rewards",
    "terminations",
    "truncations",
    "infos",
    "agent_selection",
    "current_actions",
    "original_cam_range",
)


def make(scenario: str = "simple_spread_v3", **kwargs: Any) -> ParallelEnv:
    """A particle team.

    Rewards are as mpe2 gives them. In spread and reference each agent's own share is `local_ratio`
    (0.5 unless told otherwise), so rewards are unequal and `team_reward` must say how to combine
    them; `local_ratio: 0.0` makes them equal.

    Args:
        scenario: One of `COOPERATIVE`, also without version or "simple_".
        **kwargs: Go to mpe2: `continuous_actions`, `local_ratio`, `max_cycles`, `render_mode`, ...

    Raises:
        ValueError: There is no such scenario.
        ModuleNotFoundError: The extra `mpe` is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    module = import_extra(f"mpe2.{full_name(scenario)}", extra="mpe")
    return MPE(module.parallel_env(**kwargs))


def full_name(scenario: str) -> str:
    """The name with which mpe2 knows `scenario`: "spread" is "simple_spread_v3".

    Raises:
        ValueError: There is no such scenario; the message names the nearest.
    """
    short = {name.removeprefix("simple_").rsplit("_", 1)[0]: name for name in COOPERATIVE}
    known = {name: name for name in COOPERATIVE}
    known |= {f"simple_{key}": name for key, name in short.items()} | short
    if scenario in known:
        return known[scenario]
    near = nearest(scenario, known)
    hint = f"Did you mean {known[near]!r}? " if near else ""
    raise ValueError(
        f"unknown MPE scenario {scenario!r}. {hint}There are: {', '.join(COOPERATIVE)}. mpe2's "
        'competitive ones can be named by path: env: "mpe2.simple_tag_v3:parallel_env"'
    )


class MPE(BaseParallelWrapper):
    """A particle environment that can be saved and continued bit for bit."""

    def get_state(self) -> dict[str, Any]:
        """All that `set_state` needs, also in another process."""
        raw: Any = self.unwrapped
        return {
            # In one copy: agents of the world point to its landmarks and to each other.
            "episode": copy.deepcopy({name: getattr(raw, name) for name in _EPISODE}),
            "generator": raw.np_random.bit_generator.state,
            "alive": list(self.agents),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state` of an environment made with the same arguments."""
        self.reset()  # tells the wrappers that an episode is running
        raw: Any = self.unwrapped
        for name, value in copy.deepcopy(state["episode"]).items():
            setattr(raw, name, value)
        raw._agent_selector.reinit(raw.possible_agents)
        raw._agent_selector.reset()
        raw.np_random.bit_generator.state = state["generator"]
        inner: Any = self.env
        inner.agents = list(state["alive"])  # this wrapper's own `agents` look there
