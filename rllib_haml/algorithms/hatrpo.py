"""HATRPO: heterogeneous-agent trust region policy optimisation.

Kuba et al. 2022 (ICLR, arXiv 2109.11251, algorithm 1), Zhong et al. 2024 (JMLR 25(32), algorithm 3). As an
instance of HAML: no drift, the ball of mean KL divergence δ as neighbourhood.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.haml_config import HAMLConfig

_NO_ASCENT = "a policy's step follows from the ball: `neighbourhood: {{type: kl_ball, radius: 0.01}}`{0}"


class HATRPOConfig(HAMLConfig):
    """Config of HATRPO; see `HAMLConfig`.

    `neighbourhood` holds the ball's settings (`KLBall`): `radius` δ, `cg_iterations`, `cg_damping`,
    `max_backtracks`, `backtrack_coeff`, `accept_ratio`.
    """

    refused_keys: ClassVar[dict[str, str]] = HAMLConfig.refused_keys | {
        "lr": _NO_ASCENT.format("; the critic has `critic_lr`"),
        "num_epochs": _NO_ASCENT.format("; the critic has `critic_num_epochs`"),
        "minibatch_size": _NO_ASCENT.format("; the critic has `critic_minibatch_size`"),
    }

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or HATRPO)
        self.neighbourhood: Any = {"type": "kl_ball", "radius": 0.01}


class HATRPO(HAML):
    """HATRPO on RLlib. Build it with `HATRPOConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> HATRPOConfig:
        return HATRPOConfig()
