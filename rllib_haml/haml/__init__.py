"""Heterogeneous-agent mirror learning (HAML) on tensors: no Ray, no environment, no network.

Sources: Kuba et al. 2022 (arXiv 2208.01682), Zhong et al. 2024 (JMLR 25(32)). `sweep.py` is the
algorithm; the other files hold what it is composed of.

Shapes, everywhere in this package: S joint steps of a train batch (R of them in a minibatch), K agents
that share one policy (K = 1 unless parameters are shared), T time, B columns.
"""

from rllib_haml.haml.drift import ClipDrift, Drift, NoDrift
from rllib_haml.haml.neighbourhood import Everywhere, Neighbourhood
from rllib_haml.haml.order import FixedOrder, Order, RandomOrder
from rllib_haml.haml.returns import gae
from rllib_haml.haml.rows import JointRows, generator
from rllib_haml.haml.sweep import Evaluation, MirrorStep, Player, Policy, SweepResult, sweep
from rllib_haml.haml.value_norm import ValueNorm

__all__ = [
    "ClipDrift",
    "Drift",
    "Evaluation",
    "Everywhere",
    "FixedOrder",
    "JointRows",
    "MirrorStep",
    "Neighbourhood",
    "NoDrift",
    "Order",
    "Player",
    "Policy",
    "RandomOrder",
    "SweepResult",
    "ValueNorm",
    "gae",
    "generator",
    "sweep",
]
