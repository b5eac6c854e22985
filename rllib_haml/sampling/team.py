"""Who plays: agents, spaces, each agent's policy, and the team's one reward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np

from rllib_haml._typing import AgentID
from rllib_haml.sampling.vector_env import VectorTeamEnv

TeamReward = Literal["shared", "mean", "sum"]


@dataclass(frozen=True)
class Team:
    """The agents of an environment, in its declared order, with the policy that each one follows.

    Attributes:
        agents: All agents that can ever appear.
        observation_spaces, action_spaces: One of each per agent, as its policy reads and acts.
        state_space: Of the environment's global state, or None.
        module_of: Each agent's policy.
    """

    agents: tuple[AgentID, ...]
    observation_spaces: Mapping[AgentID, gym.Space]
    action_spaces: Mapping[AgentID, gym.Space]
    state_space: gym.Space | None
    module_of: Mapping[AgentID, str]

    @classmethod
    def of(
        cls,
        env: VectorTeamEnv,
        policy_mapping_fn: Callable[..., str] | None = None,
        observation_spaces: Mapping[AgentID, gym.Space] | None = None,
    ) -> Team:
        """Reads the team from an environment; without a mapping, each agent has a policy of its own.

        Args:
            observation_spaces: What policies see, if it is not what the environment gives.

        Raises:
            ValueError: Agents that share a policy have different spaces.
        """
        mapping = policy_mapping_fn or (lambda agent, episode, **kwargs: str(agent))
        module_of = {agent: mapping(agent, None) for agent in env.agents}
        seen = observation_spaces or env.observation_spaces
        team = cls(env.agents, seen, env.action_spaces, env.state_space, module_of)
        for module_id, (first, *others) in team.members().items():
            for other in others:
                team._check_same_spaces(module_id, first, other)
        return team

    def members(self) -> dict[str, list[AgentID]]:
        """The agents of each policy, policies sorted by name."""
        names = sorted(set(self.module_of.values()))
        return {name: [a for a in self.agents if self.module_of[a] == name] for name in names}

    def reduced_to(self, agent: AgentID) -> Team:
        """The team of this one agent, who sees no state."""
        return Team(
            (agent,),
            {agent: self.observation_spaces[agent]},
            {agent: self.action_spaces[agent]},
            None,
            {agent: self.module_of[agent]},
        )

    def _check_same_spaces(self, module_id: str, first: AgentID, other: AgentID) -> None:
        for spaces in (self.observation_spaces, self.action_spaces):
            if spaces[first] != spaces[other]:
                raise ValueError(
                    f"Agents {first!r} and {other!r} share the policy {module_id!r} but have different "
                    f"spaces, {spaces[first]} and {spaces[other]}: give them policies of their own "
                    f"(leave `policies` and `policy_mapping_fn` unset)."
                )


def team_reward(reward: np.ndarray, active: np.ndarray, rule: TeamReward) -> np.ndarray:
    """The team's reward per joint step.

    Args:
        reward: (T, N) of every agent.
        active: (T, N) bool, who acted.
        rule: `shared` takes the number that all acting agents got (all agents, where none acted);
            `sum` adds over all agents; `mean` divides that by N, which is the same in every step.

    Returns:
        (T,) float64.

    Raises:
        UnequalRewards: If `shared` finds different rewards.
    """
    if rule == "sum":
        return reward.sum(-1)
    if rule == "mean":
        return reward.mean(-1)
    counted = active | ~active.any(-1, keepdims=True)
    low = np.where(counted, reward, np.inf).min(-1)
    high = np.where(counted, reward, -np.inf).max(-1)
    unequal = high - low > 1e-6 * np.maximum(1.0, np.abs(high))
    if unequal.any():
        row = int(unequal.argmax())
        raise UnequalRewards(row, reward[row], counted[row])
    return high


class UnequalRewards(ValueError):
    """`team_reward: shared` met a step in which agents were rewarded differently.

    Attributes:
        row: The first such row.
        rewards: (N,) the agents' rewards there.
        counted: (N,) bool, whose rewards had to be equal: those who acted.
    """

    def __init__(self, row: int, rewards: np.ndarray, counted: np.ndarray):
        super().__init__(row, rewards, counted)
        self.row, self.rewards, self.counted = row, rewards, counted

    def cause(self, agents: Iterable[AgentID]) -> str:
        """What to tell the user; `agents` in the order of `rewards`."""
        each = zip(agents, self.rewards.tolist(), self.counted.tolist(), strict=True)
        told = {agent: reward for agent, reward, counted in each if counted}
        return (
            f"agents were rewarded differently, {told}, but `team_reward: shared` expects one reward for "
            f"all: set `team_reward` to `mean` or `sum`"
        )
