"""SMAX, the StarCraft-like battles of JaxMARL: all sub-environments in one compiled step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rllib_haml._typing import AgentID
from rllib_haml.envs.extras import import_extra
from rllib_haml.envs.jax_setup import set_up_jax
from rllib_haml.nearest import did_you_mean
from rllib_haml.sampling.batched_team_env import BatchedTeamEnv
from rllib_haml.sampling.vector_env import TeamStep


def make(scenario: str = "3m", **kwargs: Any) -> BatchedTeamEnv:
    """A team of allied units against JaxMARL's heuristic enemy (Rutherford et al. 2023, arXiv 2311.10090).

    Its physics is not StarCraft's: win rates do not compare with SMAC's under the same map names.

    Args:
        scenario: A map of SMAC ("3m", "2s3z", "5m_vs_6m", ...) or "smacv2_5_units", "smacv2_10_units",
            "smacv2_20_units", whose units and places are drawn anew for each episode.
        **kwargs: Go to JaxMARL's `HeuristicEnemySMAX`: `max_steps`, `enemy_shoots`, `attack_mode`,
            `see_enemy_actions`, `walls_cause_death`, `won_battle_bonus`, ...

    Raises:
        ValueError: There is no such scenario, or `action_type` is not discrete.
        ModuleNotFoundError: The extra `smax` is not installed (it needs Python 3.11).
    """
    return BatchedTeamEnv(functools.partial(SMAX, scenario=scenario, **kwargs))


class SMAX:
    """E battles, a `VectorTeamEnv`.

    Agents are the allied units "ally_0", "ally_1", ... Each observes {"observations": (D,) in [-1, 1],
    "action_mask": (n,) of 0 and 1}; its actions are to go up, right, down or left, to stop, and to
    attack enemy 0, 1, ... A unit that dies is inactive from then on and its team plays on; the reward
    is the team's and stands in every unit's column. An episode terminates when one side is dead and is
    truncated when `max_steps` have left both alive. Its outcome is {"win": 1.0} where the enemies alone are
    all dead, which is where JaxMARL pays its bonus for a win, else {"win": 0.0}.

    The state is JaxMARL's `world_state`, which is not normalised, with places divided by the map's
    size, cooldowns by that of the unit's type (a weapon that is ready has 0) and types by their
    highest number: all within [0, 1]. Per unit, allies first: health, x, y, cooldown, type one-hot,
    zeros once it is dead; then every unit's team, then every unit's type.

    A row's randomness comes from a key of its own, which its seed sets and its resets continue.
    """

    has_state = True

    def __init__(self, num_envs: int, scenario: str = "3m", **kwargs: Any) -> None:
        self.num_envs = num_envs
        self._rules = _rules(scenario, **kwargs)
        game = self._rules.game
        self.agents: tuple[AgentID, ...] = tuple(game.agents)
        actions = int(game.action_spaces[game.agents[0]].n)
        observation = gym.spaces.Dict(
            {
                "observations": gym.spaces.Box(-1.0, 1.0, (game.obs_size,), np.float32),
                "action_mask": gym.spaces.Box(0, 1, (actions,), np.int8),
            }
        )
        self.observation_spaces: dict[AgentID, gym.Space] = dict.fromkeys(self.agents, observation)
        self.action_spaces: dict[AgentID, gym.Space] = dict.fromkeys(
            self.agents, gym.spaces.Discrete(actions)
        )
        self.state_space: gym.Space | None = gym.spaces.Box(0.0, 1.0, (game.state_size,), np.float32)

    @functools.cached_property
    def _battles(self) -> Battle:
        """The E battles; before the first reset, blanks with keys from the system's entropy."""
        keys = np.random.default_rng().integers(2**32, size=(self.num_envs, 2), dtype=np.uint32)
        shapes = self._rules.shapes(keys)
        return self._rules.map(lambda s: np.zeros(s.shape, s.dtype), shapes)._replace(key=keys)

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None]) -> TeamStep:
        """See `VectorTeamEnv.reset`."""
        fresh, seeded = np.zeros((2, self.num_envs), bool)
        keys = np.zeros((self.num_envs, 2), np.uint32)
        for row, seed in zip(rows, seeds, strict=True):
            fresh[row], seeded[row] = True, seed is not None
            keys[row] = divmod(seed or 0, 2**32)
        if fresh.any():
            self._battles = self._rules.start(self._battles, fresh, seeded, keys)
        return self._look()

    def step(self, actions: Mapping[AgentID, Any]) -> TeamStep:
        """See `VectorTeamEnv.step`."""
        chosen = np.stack([np.asarray(actions[agent], np.int32) for agent in self.agents], axis=-1)
        self._battles = self._rules.advance(self._battles, chosen)
        return self._look()

    def close(self) -> None: ...

    def get_state(self) -> list[np.ndarray]:
        """The battles as plain arrays (E, ...), in the order of JaxMARL's state."""
        return [np.array(leaf) for leaf in self._rules.leaves(self._battles)]

    def set_state(self, state: Sequence[np.ndarray]) -> TeamStep:
        """Continues from what `get_state` gave; returns the step that was current then.

        Raises:
            ValueError: `state` is of another number of sub-environments or another scenario.
        """
        blank = self._rules.leaves(self._battles)
        given, expected = ([np.shape(leaf) for leaf in leaves] for leaves in (state, blank))
        if given != expected:
            raise ValueError(f"the state's arrays have shapes {given}, these battles' {expected}")
        self._battles = self._rules.unflatten(self._battles, state)
        return self._look()

    def _look(self) -> TeamStep:
        seen = self._battles.seen
        # Copies: JAX's own arrays are read-only.
        obs, legal, free = np.array(seen.obs), np.array(seen.legal), np.array(seen.free)
        reward = np.asarray(seen.reward, np.float64)[:, None]
        return TeamStep(
            obs={a: {"observations": obs[i], "action_mask": legal[i]} for i, a in enumerate(self.agents)},
            active=np.array(seen.alive),
            reward=np.repeat(reward, len(self.agents), axis=1),
            terminated=np.array(seen.terminated),
            truncated=np.array(seen.truncated),
            action_mask={a: free[i] for i, a in enumerate(self.agents)},
            state=np.array(seen.state),
            outcome={"win": np.asarray(seen.terminated & seen.alive.any(-1), np.float64)},
        )


class Seen(NamedTuple):
    """What E teams of N units see.

    Attributes:
        obs: (N, E, D) float32; zeros of the dead.
        legal: (N, E, n) int8; zeros of the dead.
        free: (N, E, n) bool; the same, but all True for the dead.
        alive: (E, N) bool.
        state: (E, S) float32.
        reward: (E,) float32.
        terminated: (E,) bool.
        truncated: (E,) bool.
    """

    obs: Any
    legal: Any
    free: Any
    alive: Any
    state: Any
    reward: Any
    terminated: Any
    truncated: Any


_AXES = Seen(obs=1, legal=1, free=1, alive=0, state=0, reward=0, terminated=0, truncated=0)


class Battle(NamedTuple):
    """E battles: the keys (E, 2) of their randomness, JaxMARL's state, and what is seen of it."""

    key: Any
    game: Any
    seen: Seen


class Rules:
    """JaxMARL's functions of one battle as compiled functions of E battles.

    Attributes:
        game: JaxMARL's environment.
    """

    def __init__(self, game: Any) -> None:
        self.game = game
        jax = self._jax = import_extra("jax", extra="smax")
        self._jnp = jax.numpy
        axes = Battle(key=0, game=0, seen=_AXES)
        self._begin = jax.vmap(self._begin_one, out_axes=axes)
        self.start = jax.jit(jax.vmap(self._start_one, in_axes=(axes, 0, 0, 0), out_axes=axes))
        self.advance = jax.jit(jax.vmap(self._advance_one, in_axes=(axes, 0), out_axes=axes))
        self.map, self.leaves = jax.tree.map, jax.tree.leaves

    def shapes(self, keys: Any) -> Battle:
        """Shapes and types of the battles that begin with `keys` (E, 2)."""
        return self._jax.eval_shape(self._begin, keys)

    def unflatten(self, like: Battle, leaves: Sequence[Any]) -> Battle:
        """Inverse of `leaves`."""
        return self._jax.tree.unflatten(self._jax.tree.structure(like), leaves)

    def _begin_one(self, key: Any) -> Battle:
        key, draw = self._jax.random.split(key)
        obs, state = self.game.reset(draw)
        return self._strict(Battle(key, state, self._see(obs, state, self._jnp.float32(0))))

    def _start_one(self, battle: Battle, fresh: Any, seeded: Any, key: Any) -> Battle:
        begun = self._begin_one(self._jnp.where(seeded, key, battle.key))
        return self._choose(fresh, begun, battle)

    def _advance_one(self, battle: Battle, actions: Any) -> Battle:
        """One step; a battle that is over stays as it is, without reward."""
        seen = battle.seen
        key, draw = self._jax.random.split(battle.key)
        stop = self.game.num_movement_actions - 1
        chosen = dict(zip(self.game.agents, self._jnp.where(seen.alive, actions, stop), strict=True))
        obs, state, rewards, _, _ = self.game.step_env(draw, battle.game, chosen)
        after = Battle(key, state, self._see(obs, state, rewards[self.game.agents[0]]))
        stays = battle._replace(seen=seen._replace(reward=self._jnp.zeros_like(seen.reward)))
        return self._choose(seen.terminated | seen.truncated, stays, self._strict(after))

    def _see(self, obs: Mapping[str, Any], state: Any, reward: Any) -> Seen:
        game, jnp = self.game, self._jnp
        allies = game.num_allies
        alive, enemies = state.state.unit_alive[:allies], state.state.unit_alive[allies:]
        masks = game.get_avail_actions(state)
        legal = jnp.stack([masks[agent] for agent in game.agents]).astype(bool)
        decided = ~(alive.any() & enemies.any())
        return Seen(
            obs=jnp.stack([obs[agent] for agent in game.agents]),
            legal=(legal & alive[:, None]).astype(jnp.int8),
            free=legal | ~alive[:, None],
            alive=alive,
            state=self._scaled(obs["world_state"], state.state),
            reward=reward,
            terminated=decided,
            truncated=(state.state.step >= game.max_steps) & ~decided,
        )

    def _scaled(self, world: Any, state: Any) -> Any:
        """JaxMARL's `world_state` (S,) within [0, 1]; see `SMAX`."""
        game, jnp = self.game, self._jnp
        units, features = len(state.unit_types), len(game.own_features)
        block = world[: units * features].reshape(units, features)
        full = game.unit_type_weapon_cooldowns[state.unit_types]
        # The cooldown of a weapon that is ready falls on below zero; a fresh one may exceed its type's.
        block = block.at[:, 3].set(jnp.clip(block[:, 3] / full, 0.0, 1.0))
        block = block.at[:, 1:3].divide(jnp.array([game.map_width, game.map_height], jnp.float32))
        teams, types = jnp.split(world[units * features :], 2)
        return jnp.concatenate([block.reshape(-1), teams, types / (game.unit_type_bits - 1)])

    def _choose(self, condition: Any, one: Battle, other: Battle) -> Battle:
        return self._jax.tree.map(lambda x, y: self._jnp.where(condition, x, y), one, other)

    def _strict(self, battle: Battle) -> Battle:
        """Without JAX's weak types, which would have every function compiled twice."""
        return self._jax.tree.map(lambda x: self._jax.lax.convert_element_type(x, x.dtype), battle)


@functools.cache
def _rules(scenario: str, **kwargs: Any) -> Rules:
    """One for all environments of a process: each would compile its own."""
    if kwargs.get("action_type", "discrete") != "discrete":
        raise ValueError(
            f"action_type is {kwargs['action_type']!r}; SMAX here has discrete actions: leave it out"
        )
    set_up_jax()
    smax = import_extra("jaxmarl.environments.smax.smax_env", extra="smax")
    known = smax.MAP_NAME_TO_SCENARIO
    if scenario not in known:
        hint = did_you_mean(scenario, known)
        raise ValueError(f"unknown SMAX scenario {scenario!r}. {hint}There are: {', '.join(known)}")
    module = import_extra("jaxmarl.environments.smax", extra="smax")
    return Rules(module.HeuristicEnemySMAX(scenario=known[scenario], **kwargs))
