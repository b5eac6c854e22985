"""Looks at the environment of a config: who plays, what each policy sees, and who follows which."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray.rllib.env.env_context import EnvContext
from ray.rllib.policy.policy import PolicySpec
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID

from rllib_haml._typing import AgentID
from rllib_haml.algorithms.user_modules import specs_by_module
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.policy_mapping import DecidedMapping, check_agents, check_policies, decide
from rllib_haml.sampling.seen import Connected
from rllib_haml.sampling.spaces import holds_action_mask
from rllib_haml.sampling.team import Team
from rllib_haml.sampling.vector_env import VectorTeamEnv

logger = logging.getLogger("rllib_haml")


def find_team(config: Any) -> Team:
    """The team of a `TeamConfig`, which from then on holds the decided mapping and the policies.

    Raises:
        ValueError: See `TeamConfig.resolve_team`.
    """
    with _environment(config) as env:
        mapping = _decided(config, env.agents)
        _name_policies(config, mapping)
        config.policy_mapping_fn = mapping
        if not config.changes_observations:
            config.team = Team.of(env, mapping)
            return config.team
        with _connected(config) as connected:
            config.team = Team.of(env, mapping, connected.spaces())
            _tell_of_hidden_masks(env, config.team)
            connected.try_out()
    return config.team


def decide_for_evaluation(config: Any) -> None:
    """Evaluation may have another environment, and another mapping to the policies that are trained.

    Raises:
        ValueError: See `TeamConfig.resolve_team`.
    """
    with _environment(config) as env:
        mapping = _decided(config, env.agents)
    _refuse_unknown(config, mapping.module_of.values())
    config.policy_mapping_fn = mapping


@contextmanager
def _environment(config: Any) -> Iterator[VectorTeamEnv]:
    """One copy of it, to be looked at."""
    env = make_vector_team_env(partial(config.env_creator(), _context(config)), 1)
    try:
        yield env
    finally:
        env.close()


@contextmanager
def _connected(config: Any) -> Iterator[Connected]:
    """One copy of it behind the user's connectors."""
    connected = Connected(config, partial(config.env_creator(), _context(config)))
    try:
        yield connected
    finally:
        connected.close()


def _context(config: Any) -> EnvContext:
    return EnvContext(config.env_config, worker_index=0)


def _decided(config: Any, agents: Sequence[AgentID]) -> DecidedMapping:
    """Who follows which policy, from now on and everywhere."""
    check_agents(agents)
    given = config.given_mapping()
    key = "policy_mapping_fn" if given else config.default_mapping_key
    return DecidedMapping(decide(given or config.mapping_for(agents), agents, key), given)


def _name_policies(config: Any, mapping: DecidedMapping) -> None:
    """Takes the policies that `mapping` names, where the user has named none."""
    names = sorted(set(mapping.module_of.values()))
    derived = set(config.policies) in ({DEFAULT_POLICY_ID}, config._derived_policies)
    given = {*([] if derived else config.policies), *specs_by_module(config._rl_module_spec)}
    check_policies({*names, *given}, config.own_modules(names), mapping.module_of)
    if derived:
        config.multi_agent(policies={name: PolicySpec() for name in names})
        config._derived_policies = set(names)
    _refuse_unknown(config, names)


def _refuse_unknown(config: Any, names: Iterable[str]) -> None:
    if unknown := set(names) - set(config.policies):
        raise ValueError(
            f"policy_mapping_fn names {sorted(unknown)}, but `policies` are {sorted(config.policies)}. "
            f"Leave both unset for one policy per agent."
        )


def _tell_of_hidden_masks(env: VectorTeamEnv, team: Team) -> None:
    """Masks are obeyed where the default actors find them in an observation."""
    for agent in team.agents:
        actions = team.action_spaces[agent]
        given, seen = env.observation_spaces[agent], team.observation_spaces[agent]
        if holds_action_mask(given, actions) and not holds_action_mask(seen, actions):
            logger.warning(
                "env_to_module_connector: agent %r has no `action_mask` in what its policy sees, so that "
                "forbidden actions are drawn, too.",
                agent,
            )
