"""HAPPO: heterogeneous-agent proximal policy optimisation.

Kuba et al. 2022 (ICLR, arXiv 2109.11251), Zhong et al. 2024 (JMLR 25(32), algorithm 4). As an instance of
HAML: the clipping drift, no bound on the neighbourhood.
"""

from __future__ import annotations

from typing import Any

from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.haml_config import HAMLConfig


class HAPPOConfig(HAMLConfig):
    """Config of HAPPO; see `HAMLConfig`. `clip_param` is the drift's ε."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or HAPPO)
        self.drift: Any = "clip"


class HAPPO(HAML):
    """HAPPO on RLlib. Build it with `HAPPOConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> HAPPOConfig:
        return HAPPOConfig()
