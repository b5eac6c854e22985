"""MAPPO: PPO with a centralised critic, all policies updated at once. The control for HAPPO.

Yu et al. 2022 (NeurIPS, arXiv 2103.01955). HAPPO's code with `update_scheme: simultaneous`; in the paper
all agents share one network (`share_parameters: true`), here separate ones are the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rllib_haml._typing import NotProvided
from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.happo import HAPPOConfig

if TYPE_CHECKING:
    from typing_extensions import Self
from rllib_haml.algorithms.team_config import shared_policy


class MAPPOConfig(HAPPOConfig):
    """Config of MAPPO; see `HAMLConfig`."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or MAPPO)
        self.update_scheme = "simultaneous"
        self.share_parameters = False

    def training(self, *, share_parameters: bool = NotProvided, **kwargs: Any) -> Self:
        """Sets the training configuration; other keys are `HAMLConfig`'s.

        Args:
            share_parameters: One policy for all agents, which then need equal spaces.
        """
        super().training(**kwargs)
        if share_parameters is not NotProvided:
            self.share_parameters = share_parameters
        return self

    def default_policy_mapping_fn(self) -> Callable[..., str]:
        return shared_policy if self.share_parameters else super().default_policy_mapping_fn()


class MAPPO(HAML):
    """MAPPO on RLlib. Build it with `MAPPOConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> MAPPOConfig:
        return MAPPOConfig()
