"""HAKL: a KL penalty whose weight follows how far policies go. Also an example: a new instance of HAML.

PPO's adaptive penalty (Schulman et al. 2017, arXiv 1707.06347, section 4) as a drift: it is 0 at the present
policy, has no gradient there and is never negative, so HAML's guarantee holds in every update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.haml_config import HAMLConfig
from rllib_haml.haml import Move


class AdaptiveKLDrift(torch.nn.Module):
    """β KL(present ‖ candidate); β is halved or doubled to keep the mean KL of an update near `target`."""

    coeff: Tensor

    def __init__(self, coeff: float = 1.0, target: float = 0.01):
        super().__init__()
        self.target = target
        self.register_buffer("coeff", torch.tensor(coeff))

    def forward(self, move: Move) -> Tensor:
        return self.coeff * move.kl()

    def adapt(self, kl: float) -> None:
        if not self.target / 1.5 <= kl <= self.target * 1.5:
            self.coeff.mul_(2.0 if kl > self.target else 0.5).clamp_(1e-6, 1e6)


class HAKLConfig(HAMLConfig):
    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or HAKL)
        self.drift = {"type": f"{__name__}:AdaptiveKLDrift", "target": 0.01}


class HAKL(HAML):
    @classmethod
    def get_default_config(cls) -> HAKLConfig:
        return HAKLConfig()
