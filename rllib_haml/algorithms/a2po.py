"""A2PO: agent-by-agent policy optimisation.

Wang et al. 2023 (ICLR, arXiv 2302.06205). The sweep of HAML with four ingredients, each a key of its own: the
joint ratio is clipped, the compound one within it too; the advantage is estimated anew for each mover; the
order is half greedy; later movers may go further. Its guarantee is the paper's own, per agent: joint clipping
is a drift only while the compound ratio stays within the clip.

Two things differ. The critic is fitted once, after the sweep, on the team's plain GAE; the authors fit it
with each agent. The order is scored by the root mean square of each policy's own gradient; the paper scores
by the mean of |Â / V|, which one value function and one advantage make the same for all agents.
"""

from __future__ import annotations

from typing import Any, Literal

from rllib_haml.algorithms.haml import HAML
from rllib_haml.algorithms.haml_config import HAMLConfig


class A2POConfig(HAMLConfig):
    """Config of A2PO; see `HAMLConfig`.

    `clip_param` is the ε of the last of n movers, (1 + 1 / n) / 2 of it that of the first.
    """

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or A2PO)
        self.drift: Any = {"type": "joint_clip", "position_weight": 0.5}
        self.compound_clip: float | Literal["half"] | None = "half"
        self.preceding_agent_correction = True
        self.order: Any = "semi_greedy"


class A2PO(HAML):
    """A2PO on RLlib. Build it with `A2POConfig().environment(...).build_algo()`."""

    @classmethod
    def get_default_config(cls) -> A2POConfig:
        return A2POConfig()
