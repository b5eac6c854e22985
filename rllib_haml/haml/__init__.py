"""Heterogeneous-agent mirror learning (HAML) on tensors: no Ray, no environment, no network.

Sources: Kuba et al. 2022 (arXiv 2208.01682), Zhong et al. 2024 (JMLR 25(32)). `sweep.py` is the
algorithm; the other files hold what it is composed of.

Shapes, everywhere in this package: S joint steps of a train batch (R of them in a minibatch), K agents
that share one policy (K = 1 unless parameters are shared), T time, B columns.
"""

from rllib_haml.haml.check_drift import DriftCheck, check_drift
from rllib_haml.haml.drift import AdaptiveDrift, ClipDrift, Drift, JointClipDrift, KLDrift, Move, NoDrift
from rllib_haml.haml.families import ActionFamily, Bernoulli, Categorical, Family, Gaussian, SquashedGaussian
from rllib_haml.haml.finite import NotFinite
from rllib_haml.haml.kl_ball import KLBall
from rllib_haml.haml.neighbourhood import Everywhere, Neighbourhood
from rllib_haml.haml.order import FixedOrder, Order, RandomOrder, Scores, SemiGreedyOrder
from rllib_haml.haml.products import MultiCategorical, Product
from rllib_haml.haml.returns import gae
from rllib_haml.haml.rows import JointRows, generator
from rllib_haml.haml.sweep import Evaluation, MirrorStep, Player, Policy, SweepResult, sweep
from rllib_haml.haml.value_norm import ValueNorm

__all__ = [
    "ActionFamily",
    "AdaptiveDrift",
    "Bernoulli",
    "Categorical",
    "ClipDrift",
    "Drift",
    "DriftCheck",
    "Evaluation",
    "Everywhere",
    "Family",
    "FixedOrder",
    "Gaussian",
    "JointClipDrift",
    "JointRows",
    "KLBall",
    "KLDrift",
    "MirrorStep",
    "Move",
    "MultiCategorical",
    "Neighbourhood",
    "NoDrift",
    "NotFinite",
    "Order",
    "Player",
    "Policy",
    "Product",
    "RandomOrder",
    "Scores",
    "SemiGreedyOrder",
    "SquashedGaussian",
    "SweepResult",
    "ValueNorm",
    "check_drift",
    "gae",
    "generator",
    "sweep",
]
