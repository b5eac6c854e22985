"""HAA2C: heterogeneous-agent advantage actor-critic.

Zhong et al. 2024 (JMLR 25(32), algorithm 5). As an instance of HAML: no drift, no bound on the neighbourhood;
what keeps a policy near is the number of its gradient steps alone.
"""

from __future__ import annotations

from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.haml_config import HAMLConfig


class HAA2CConfig(HAMLConfig):
    """Config of HAA2C; see `HAMLConfig`."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or HAA2C)


class HAA2C(HAML):
    """HAA2C on RLlib. Build it with `HAA2CConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> HAA2CConfig:
        return HAA2CConfig()
