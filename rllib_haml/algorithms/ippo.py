"""IPPO: every agent runs PPO by itself, on the team's reward. The control without any centralised part.

de Witt et al. 2020 (arXiv 2011.09533). HAPPO's networks, batches and epochs, all policies at once, and for
each a critic of its own that sees what its agent sees. In the paper agents may share one network; here each
has its own, and MAPPO with `share_parameters: true` is the control that shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.happo import HAPPOConfig
from rllib_haml.learners.independent import IndependentLearner
from rllib_haml.modules.critic import own_critic
from rllib_haml.sampling.team import Team


class IPPOConfig(HAPPOConfig):
    """Config of IPPO; see `HAMLConfig`. A policy's critic is the module `<policy>_critic`."""

    refused_keys: ClassVar[dict[str, str]] = HAPPOConfig.refused_keys | {
        key: "its agents move at once and know nothing of each other: use HAPPO"
        for key in ("update_scheme", "order", "compound_clip", "preceding_agent_correction")
    }

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or IPPO)
        self.update_scheme = "simultaneous"

    def get_default_learner_class(self) -> type:
        return IndependentLearner

    def resolve_team(self) -> Team:
        """As `TeamConfig`'s, without the environment's state, which no single agent sees.

        Raises:
            ValueError: Also if several agents share a policy.
        """
        team = super().resolve_team()
        for policy, agents in team.members().items():
            if len(agents) > 1:
                raise ValueError(
                    f"policy_mapping_fn gives {policy!r} to the agents {agents}: IPPO needs a policy for "
                    f"each agent. Leave it unset, or use MAPPO with share_parameters: true."
                )
        self.team = replace(team, state_space=None)
        return self.team

    def own_modules(self, policies: Iterable[str]) -> list[str]:
        return [*super().own_modules(policies), *map(own_critic, policies)]

    def critic_specs(self, team: Team, model_config: dict[str, Any]) -> dict[str, RLModuleSpec]:
        return {
            own_critic(policy): self.critic_spec(team.reduced_to(agent), model_config)
            for agent, policy in team.module_of.items()
        }


class IPPO(HAML):
    """IPPO on RLlib. Build it with `IPPOConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> IPPOConfig:
        return IPPOConfig()
