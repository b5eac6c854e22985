"""A stand-in for StarCraft II behind SMAC's interface, as strict as the real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

UNITS, ENEMIES, LIMIT = 3, 2, 6
ACTIONS = 6 + ENEMIES
STOP = 1


class StarCraft2Env:
    """`smac.env.StarCraft2Env`, with battles that go as `script` says.

    Args:
        seed: What the battle's numbers start from.
        deaths: Unit -> step in which it dies.
        won: Step in which the enemies are dead.
        crash: Step in which StarCraft II crashes.
    """

    made: ClassVar[list[StarCraft2Env]] = []

    def __init__(
        self,
        map_name: str = "8m",
        seed: int | None = None,
        deaths: Mapping[int, int] | None = None,
        won: int | None = None,
        crash: int | None = None,
    ) -> None:
        self.map_name, self.given_seed = map_name, seed
        self._deaths, self._won, self._crash = deaths or {}, won, crash
        self._time: int | None = None
        self.battles, self.closed = 0, False
        self.taken: list[list[int]] = []
        StarCraft2Env.made.append(self)

    def get_env_info(self) -> dict[str, int]:
        sizes = {"state_shape": 2, "obs_shape": 3, "n_actions": ACTIONS}
        return {**sizes, "n_agents": UNITS, "episode_limit": LIMIT}

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        assert not self.closed
        self._time = 0
        self.battles += 1
        return self.get_obs(), self.get_state()

    def step(self, actions: list[int]) -> tuple[float, bool, dict[str, Any]]:
        assert self._time is not None, "step before reset, or after the end"
        assert len(actions) == UNITS
        for unit, action in enumerate(actions):
            assert type(action) is int
            assert self.get_avail_agent_actions(unit)[action] == 1, f"unit {unit} cannot do {action}"
        self.taken.append(list(actions))
        self._time += 1
        if self._time == self._crash:
            self._time = None
            return 0, True, {}
        dead = sum(not self._lives(unit) for unit in range(UNITS))
        won, lost = self._time == self._won, dead == UNITS
        over = won or lost or self._time >= LIMIT
        info = {"battle_won": won, "dead_allies": dead, "dead_enemies": ENEMIES * won}
        self._last, reward = self._time, 0.5 + 10 * won
        if over:
            self._time = None
        return reward, over, info

    def get_obs(self) -> list[np.ndarray]:
        return [np.array([unit, self._now(), self.battles]) * self._lives(unit) for unit in range(UNITS)]

    def get_state(self) -> np.ndarray:
        return np.array([self._now(), self.given_seed or 0], np.float64)

    def get_avail_agent_actions(self, unit: int) -> list[int]:
        if not self._lives(unit):
            return [1] + [0] * (ACTIONS - 1)
        return [0, 1, 1, 1, 1, 1, 1, self._now() % 2]

    def get_avail_actions(self) -> Any:
        raise ValueError("too many values to unpack")  # as SMACv2's wrapper has it

    def close(self) -> None:
        self.closed = True

    def _now(self) -> int:
        """The present step; after the end of a battle its last, after a crash none."""
        if self._time is None and self.taken and len(self.taken) == self._crash:
            raise ConnectionError("StarCraft II is gone")
        return self._last if self._time is None else self._time

    def _lives(self, unit: int) -> bool:
        return self._now() < self._deaths.get(unit, LIMIT + 1)


class StarCraftCapabilityEnvWrapper(StarCraft2Env):
    """`smacv2.env.starcraft2.wrapper.StarCraftCapabilityEnvWrapper`."""

    def __init__(self, capability_config: dict[str, Any], conic_fov: bool = False, **kwargs: Any) -> None:
        self.settings = {
            key: kwargs.pop(key) for key in ("obs_own_pos", "use_unit_ranges", "min_attack_range")
        }
        super().__init__(**kwargs)
        for key in ("team_gen", "start_positions"):
            assert "env_key" not in capability_config[key], "somebody else's description"
            capability_config[key]["env_key"] = key
        self.capability_config = capability_config

    def reset(self) -> Any:
        super().reset()  # nothing comes back where it had to try twice
