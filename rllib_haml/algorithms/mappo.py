"""MAPPO: PPO with a centralised critic, all policies updated at once. The control for HAPPO.

Yu et al. 2022 (NeurIPS, arXiv 2103.01955). HAPPO's code with `update_scheme: simultaneous`; in the paper
all agents share one network (`share_parameters: true`), here separate ones are the default.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.policy.policy import PolicySpec

from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.happo import HAPPOConfig
from rllib_haml.sampling.team import Team

SHARED_POLICY = "shared"


class MAPPOConfig(HAPPOConfig):
    """Config of MAPPO; see `HAMLConfig`."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or MAPPO)
        self.update_scheme = "simultaneous"
        self.share_parameters = False

    def training(self, *, share_parameters: bool | None = NotProvided, **kwargs: Any) -> MAPPOConfig:  # type: ignore
        """Sets the training configuration; other keys are `HAMLConfig`'s.

        Args:
            share_parameters: One policy for all agents, which then need equal spaces.
        """
        super().training(**kwargs)
        if share_parameters is not NotProvided:
            self.share_parameters = share_parameters
        return self

    def resolve_team(self) -> Team:
        if self.share_parameters and not self._user_policies():
            self.multi_agent(policies={SHARED_POLICY: PolicySpec()}, policy_mapping_fn=shared_policy)
        return super().resolve_team()


def shared_policy(agent_id: Any, episode: Any = None, **kwargs: Any) -> str:
    """Every agent's policy is the same one."""
    return SHARED_POLICY


class MAPPO(HAML):
    """MAPPO on RLlib. Build it with `MAPPOConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> MAPPOConfig:  # type: ignore[override]
        return MAPPOConfig()
