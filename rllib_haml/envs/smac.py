"""SMAC and SMACv2: the StarCraft multi-agent challenges, for a game that the user has installed."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from rllib_haml.envs.legal import check_legal
from rllib_haml.sampling.outcomes import OUTCOME

NO_OP = 0
UNITS: dict[str, tuple[dict[str, float], list[str]]] = {
    "terran": ({"marine": 0.45, "marauder": 0.45, "medivac": 0.1}, ["medivac"]),
    "protoss": ({"stalker": 0.45, "zealot": 0.45, "colossus": 0.1}, []),
    "zerg": ({"zergling": 0.45, "baneling": 0.1, "hydralisk": 0.45}, ["baneling"]),
}
"""Per race how often SMACv2's authors draw each unit, and of which a whole team cannot consist."""


def make_smac(map_name: str = "3m", **kwargs: Any) -> SMAC:
    """A map of SMAC (Samvelyan et al. 2019, arXiv 1902.04043).

    Args:
        map_name: "3m", "2s3z", "MMM2", ...
        **kwargs: Go to `smac.env.StarCraft2Env`: `difficulty`, `reward_sparse`, `obs_last_action`, ...

    Raises:
        ModuleNotFoundError: SMAC is not installed.
    """
    game = _import("smac", "smac.env").StarCraft2Env
    return SMAC(map_name, lambda seed: game(map_name=map_name, seed=seed, **kwargs))


def make_smacv2(
    race: str = "terran",
    units: int = 5,
    enemies: int = 5,
    capability_config: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> SMAC:
    """A map of SMACv2, whose units and places are drawn anew for each episode (Ellis et al. 2023,
    arXiv 2212.07489). It draws them from generators that no seed reaches.

    Args:
        race: A key of `UNITS`.
        units: Of the team.
        enemies: Of the other one.
        capability_config: SMACv2's own description of how teams are drawn, in place of its authors'.
        **kwargs: Go to `StarCraftCapabilityEnvWrapper`: `conic_fov`, `difficulty`, `map_name`, ...

    Raises:
        ValueError: There is no such race.
        ModuleNotFoundError: SMACv2 is not installed.
    """
    if race not in UNITS:
        raise ValueError(f"unknown race {race!r}; expected one of: {', '.join(UNITS)}")
    game = _import("smacv2", "smacv2.env.starcraft2.wrapper").StarCraftCapabilityEnvWrapper
    drawn = capability_config or _drawn(race, units, enemies)
    settings = {
        "map_name": f"10gen_{race}",
        "obs_own_pos": True,
        "use_unit_ranges": True,
        "min_attack_range": 2,
        **kwargs,
    }
    # A copy for each: SMACv2 writes into it.
    return SMAC(
        settings["map_name"],
        lambda seed: game(capability_config=copy.deepcopy(dict(drawn)), seed=seed, **settings),
    )


class SMAC(ParallelEnv):
    """The allied units of a StarCraft II battle, "ally_0", "ally_1", ...

    Each observes {"observations": (D,), "action_mask": (n,)}. Dead units leave the team, and the game
    gets a no-op for them; the reward is the team's. An episode is truncated where its time limit, or a
    crash of the game, leaves both sides alive; after a crash the last observations stand for those
    that the game did not give. Every info tells `battle_won`, those of the last step the outcome
    {"win": 1.0} or {"win": 0.0}: a time-out is no win, a crash has no outcome.

    The game is told its seed when it is made, so a reset with a seed makes it anew, which takes some
    seconds.

    Args:
        name: The environment's name.
        make_game: Makes the game with a seed (None: random), without starting it.
    """

    render_mode = None

    def __init__(self, name: str, make_game: Callable[[int | None], Any]) -> None:
        self.metadata = {"name": name, "render_modes": []}
        self._make_game = make_game
        self._game = make_game(None)
        about = self._game.get_env_info()
        self.possible_agents = [f"ally_{i}" for i in range(about["n_agents"])]
        self.agents: list[str] = []
        observation = gym.spaces.Dict(
            {
                "observations": gym.spaces.Box(-np.inf, np.inf, (about["obs_shape"],), np.float32),
                "action_mask": gym.spaces.Box(0, 1, (about["n_actions"],), np.int8),
            }
        )
        self.observation_spaces = dict.fromkeys(self.possible_agents, observation)
        self.action_spaces = dict.fromkeys(self.possible_agents, gym.spaces.Discrete(about["n_actions"]))
        self.state_space = gym.spaces.Box(-np.inf, np.inf, (about["state_shape"],), np.float32)
        self._limit, self._steps = about["episode_limit"], 0

    def observation_space(self, agent: str) -> gym.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        if seed is not None:
            self._game.close()
            self._game = self._make_game(seed)
        # Not what it returns: SMACv2's returns nothing when it had to try twice.
        self._game.reset()
        self._steps = 0
        self._look()
        self.agents = self._alive()
        return self._told(self.agents), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Raises a `ValueError` on an action that the mask forbids."""
        before = self.agents
        masks = dict(zip(self.possible_agents, self._masks, strict=True))
        for agent, action in actions.items():
            check_legal(agent, int(action), masks[agent])
        reward, over, info = self._game.step([int(actions.get(a, NO_OP)) for a in self.possible_agents])
        self._steps += 1
        crashed = over and "battle_won" not in info
        if not crashed:
            self._look()
        alive = self._alive()
        won = bool(info.get("battle_won", False))
        truncated = crashed or (over and self._steps >= self._limit and not won and bool(alive))
        self.agents = [] if over else alive
        outcome = {OUTCOME: {"win": float(won)}} if over and not crashed else {}
        return (
            self._told(before),
            dict.fromkeys(before, float(reward)),
            {a: a not in alive or (over and not truncated) for a in before},
            {a: a in alive and truncated for a in before},
            {a: {"battle_won": won, **outcome} for a in before},
        )

    def state(self) -> np.ndarray:
        return self._state

    def render(self) -> None:
        """The game shows itself where StarCraft II has a window."""

    def close(self) -> None:
        self._game.close()

    def _look(self) -> None:
        """Takes down what the game tells: after a crash it tells nothing."""
        team = range(len(self.possible_agents))
        self._obs = np.array(self._game.get_obs(), np.float32)
        # Not get_avail_actions(): SMACv2's wrapper cannot unpack what it returns.
        self._masks = np.array([self._game.get_avail_agent_actions(i) for i in team], np.int8)
        self._state = np.array(self._game.get_state(), np.float32)

    def _alive(self) -> list[str]:
        """Only the dead may, and must, choose the no-op."""
        return [a for a, mask in zip(self.possible_agents, self._masks, strict=True) if not mask[NO_OP]]

    def _told(self, agents: list[str]) -> dict[str, Any]:
        rows = dict(zip(self.possible_agents, zip(self._obs, self._masks, strict=True), strict=True))
        return {a: {"observations": rows[a][0], "action_mask": rows[a][1]} for a in agents}


def _drawn(race: str, units: int, enemies: int) -> dict[str, Any]:
    """How the authors draw teams and places."""
    weights, never_alone = UNITS[race]
    return {
        "n_units": units,
        "n_enemies": enemies,
        "team_gen": {
            "dist_type": "weighted_teams",
            "unit_types": list(weights),
            "weights": list(weights.values()),
            "exception_unit_types": never_alone,
            "observe": True,
        },
        "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
    }


def _import(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this environment needs {package}, which is not installed ({error}): pip install "
            f"git+https://github.com/oxwhirl/{package}.git (PyPI's `smac` is another project), and install "
            f"StarCraft II with its maps in the folder that the variable SC2PATH names",
            name=error.name,
        ) from error
