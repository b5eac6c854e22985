"""Logistics in grid worlds: the robotic warehouse (rware) and level-based foraging (lbforaging)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from pettingzoo import ParallelEnv

from rllib_haml.envs.extras import import_extra
from rllib_haml.nearest import did_you_mean


def make_rware(task: str = "tiny-2ag", **kwargs: Any) -> Warehouse:
    """Robots that bring requested shelves to the goals (Papoudakis et al. 2021, arXiv 2006.07869).

    Everyone receives 1 for each delivery of the team; rware's own default pays the robot that made
    it. Rewards are rare: untrained teams deliver nothing in most episodes.

    Args:
        task: Size, number of robots and difficulty, "tiny-2ag", "small-4ag-hard", ...: an id of rware,
            "rware-tiny-2ag-v2", with or without its first and last part.
        **kwargs: Go to rware's `Warehouse`: `max_steps` (500), `sensor_range`, `request_queue_size`,
            `normalised_coordinates`, ...

    Raises:
        ValueError: There is no such task.
        ModuleNotFoundError: The extra `warehouse` is not installed.
    """
    rware = import_extra("rware", extra="warehouse")
    return Warehouse(_make("rware-", task, "-v2", reward_type=rware.RewardType.GLOBAL, **kwargs))


def make_lbf(task: str = "8x8-2p-2f-coop", **kwargs: Any) -> Foraging:
    """Players that lift food together if their levels suffice (Papoudakis et al. 2021, arXiv 2006.07869).

    Everyone receives the sum of what lbforaging pays the players, so that the team's return is the
    share of the food that it found, at most 1.

    Args:
        task: Field, players, food and further words, "8x8-2p-2f-coop", "10x10-3p-3f-2s", ...: an id of
            lbforaging, "Foraging-8x8-2p-2f-coop-v3", with or without its first and last part.
        **kwargs: Go to lbforaging's `ForagingEnv`: `max_episode_steps` (50), `sight`, `penalty`, ...

    Raises:
        ValueError: There is no such task.
        ModuleNotFoundError: The extra `warehouse` is not installed.
    """
    import_extra("lbforaging", extra="warehouse")
    return Foraging(_make("Foraging-", task, "-v3", **kwargs))


class GridTeam(ParallelEnv):
    """A game in which observations, actions and rewards are sequences, one entry per agent.

    It gives no `state()`: the critic reads the joint observation, as in the papers.

    Attributes:
        game: The game itself.
    """

    def __init__(self, game: Any) -> None:
        self.game = game
        self.metadata = {**game.metadata, "name": game.spec.id}
        self.render_mode = game.render_mode
        self.possible_agents = [f"agent_{i}" for i in range(game.n_agents)]
        self.agents: list[str] = []
        self.observation_spaces = dict(zip(self.possible_agents, game.observation_space, strict=True))
        self.action_spaces = dict(zip(self.possible_agents, game.action_space, strict=True))

    def observation_space(self, agent: str) -> gym.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        obs, _ = self.game.reset(seed=seed, options=options)
        self.agents = self.possible_agents.copy()
        return self._each(obs), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        team = self.possible_agents
        obs, rewards, over, _, _ = self.game.step([actions[agent] for agent in team])
        truncated = over and self.out_of_time()
        if over:
            self.agents = []
        return (
            self._each(obs),
            dict.fromkeys(team, self.team_reward(rewards)),
            dict.fromkeys(team, over and not truncated),
            dict.fromkeys(team, truncated),
            {agent: {} for agent in team},
        )

    def team_reward(self, rewards: Sequence[float]) -> float:
        """What everyone receives, from what the game pays each."""
        raise NotImplementedError(f"{type(self).__name__} defines no team_reward")

    def out_of_time(self) -> bool:
        """Whether a game that is over was cut by its time limit: it reports both ends alike."""
        raise NotImplementedError(f"{type(self).__name__} defines no out_of_time")

    def render(self) -> Any:
        return self.game.render(mode=self.render_mode)

    def close(self) -> None:
        self.game.close()

    def _each(self, rows: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.possible_agents, rows, strict=True))


class Warehouse(GridTeam):
    """rware with a reward for all; it ends by its time limit, or terminates after `max_inactivity_steps`."""

    # All that a running episode has beyond its generator.
    _EPISODE = ("agents", "shelfs", "request_queue", "grid", "_cur_steps", "_cur_inactive_steps")

    def team_reward(self, rewards: Sequence[float]) -> float:
        return float(rewards[0])

    def out_of_time(self) -> bool:
        return bool(self.game.max_steps) and self.game._cur_steps >= self.game.max_steps

    def get_state(self) -> dict[str, Any]:
        """All that `set_state` needs to continue bit for bit, also in another process."""
        return {
            # In one copy: robots carry shelves, and the queue holds some of them.
            "episode": copy.deepcopy({name: getattr(self.game, name) for name in self._EPISODE}),
            "generator": self.game.np_random.bit_generator.state,
            "alive": self.agents.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state` of the same task."""
        for name, value in copy.deepcopy(state["episode"]).items():
            setattr(self.game, name, value)
        self.game.np_random.bit_generator.state = state["generator"]
        self.agents = list(state["alive"])


class Foraging(GridTeam):
    """lbforaging with the sum of its rewards for all; it terminates when no food is left."""

    def __init__(self, game: Any) -> None:
        super().__init__(game)
        # The game goes through sets of players, whose order would depend on memory addresses: with
        # hashes of their own, equal seeds give equal episodes in every process.
        kind = type("Player", (type(game.players[0]),), {"__hash__": lambda player: player.number})
        for number, player in enumerate(game.players):
            player.number, player.__class__ = number, kind

    def team_reward(self, rewards: Sequence[float]) -> float:
        return float(sum(rewards))

    def out_of_time(self) -> bool:
        return bool(self.game.field.any())

    def get_state(self) -> dict[str, Any]:
        """All that `set_state` needs to continue bit for bit, also in another process."""
        game = self.game
        return {
            "players": copy.deepcopy([vars(player) for player in game.players]),
            "field": game.field.copy(),
            "food": game._food_spawned,
            "step": game.current_step,
            "over": game.game_over,
            "generator": game.np_random.bit_generator.state,
            "alive": self.agents.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state` of the same task."""
        game = self.game
        for player, values in zip(game.players, copy.deepcopy(state["players"]), strict=True):
            vars(player).update(values)
        game.field, game._food_spawned = state["field"].copy(), state["food"]
        game.current_step, game._game_over = state["step"], state["over"]
        game._gen_valid_moves()
        game.np_random.bit_generator.state = state["generator"]
        self.agents = list(state["alive"])


def _make(prefix: str, task: str, suffix: str, **kwargs: Any) -> Any:
    """The game of a registered id."""
    short = str(task).removeprefix(prefix).removesuffix(suffix)
    name = prefix + short + suffix
    known = [key for key in gym.registry if key.startswith(prefix) and key.endswith(suffix)]
    if name not in known:
        others = [key.removeprefix(prefix).removesuffix(suffix) for key in known]
        raise ValueError(f"unknown task {task!r}: there is no {name}. {did_you_mean(short, others)}".strip())
    spec = gym.spec(name)
    # Not gym.make: it wraps, keeps max_episode_steps to itself, and checks for single agents.
    game = load_env_creator(str(spec.entry_point))(**{**spec.kwargs, **kwargs})
    game.spec = spec
    return game
