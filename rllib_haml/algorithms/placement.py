"""Whether a cluster's nodes can hold what an algorithm asks for; Ray itself would wait in silence."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.utils import _get_env_runner_bundles, _get_learner_bundles
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import get_current_placement_group

from rllib_haml.algorithms.autoscaler import autoscaler_is_on

logger = logging.getLogger("rllib_haml")

# Amounts by resource: a bundle is what one actor asks for, which has to be on one node.
Resources = Mapping[str, float]

_LINE_EVERY_S = 30.0
_HINTS = {
    "CPU": "Lower `num_env_runners` (one CPU each), or give Ray more: more nodes, or --ray-num-cpus N.",
    "GPU": "Set `num_gpus_per_learner: 0`, or start Ray on nodes with GPUs.",
}
_CUSTOM_HINT = "Start nodes that have it (ray start --resources='{{\"{0}\": N}}'), or do not ask for it."


def check_placement(config: AlgorithmConfig) -> None:
    """Sees to it that an algorithm's actors can start; waits for an autoscaler, with a line now and then.

    Inside a placement group, which Tune makes for every trial, their resources have been granted already.

    Raises:
        ValueError: The nodes cannot hold them and no autoscaler is on, or this process is to learn on a GPU
            and sees none.
    """
    if config.num_gpus_per_learner and not config.num_learners and not torch.cuda.is_available():
        raise ValueError(
            f"num_gpus_per_learner={config.num_gpus_per_learner}, but this process sees no GPU: set it to 0, "
            f"or put the learner on a GPU node with num_learners=1."
        )
    bundles = actor_bundles(config)
    if not bundles or get_current_placement_group() is not None:
        return
    missing = shortage(bundles, alive_nodes(), "the algorithm")
    if missing and not autoscaler_is_on():
        raise ValueError(missing)
    if missing:
        _wait_for_nodes(bundles)


def actor_bundles(config: AlgorithmConfig) -> list[dict[str, float]]:
    """What each actor beside the algorithm itself asks for: env runners, those of evaluation, learners."""
    evaluation = config.get_evaluation_config_object()
    runners = [*_get_env_runner_bundles(config), *_get_env_runner_bundles(evaluation)]
    return [asked for bundle in [*runners, *_get_learner_bundles(config)] if (asked := _positive(bundle))]


def alive_nodes() -> list[dict[str, float]]:
    """What each node of the running Ray has, in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def shortage(bundles: Sequence[Resources], nodes: Sequence[Resources], who: str) -> str | None:
    """What `bundles` ask for beyond what `nodes` have in all, in words; None if nothing is found missing.

    Whatever is found is missing for sure. Bundles of unequal shapes may still fail to fit side by side.

    Args:
        who: Who asks, for the text.
    """
    for name, asked in total(bundles).items():
        there = total(nodes).get(name, 0)
        if asked > there:
            hint = _HINTS.get(name, _CUSTOM_HINT.format(name))
            return f"{who} asks for {asked:g} {name}, and Ray has {there:g} ({_shapes(nodes)}). {hint}"
    for shape, copies in Counter(tuple(sorted(_positive(b).items())) for b in bundles).items():
        room = sum(_copies(dict(shape), node) for node in nodes) if shape else copies
        if copies > room:
            return (
                f"{who} asks for {copies} x {_text(dict(shape))}, each on one node, and the nodes have room "
                f"for {room} ({_shapes(nodes)})."
            )
    return None


def total(bundles: Sequence[Resources]) -> dict[str, float]:
    """The sum of `bundles`, without what is zero."""
    names = dict.fromkeys(name for bundle in bundles for name in bundle)
    return _positive({name: sum(bundle.get(name, 0) for bundle in bundles) for name in names})


def _wait_for_nodes(bundles: list[dict[str, float]]) -> None:
    """Asks the autoscaler for room for `bundles`, and returns once it is there."""
    room = placement_group(bundles)
    try:
        while not room.wait(_LINE_EVERY_S):
            missing = shortage(bundles, alive_nodes(), "the algorithm")
            logger.warning("Waiting for nodes: %s", missing or "what is there is in use by others.")
    finally:
        remove_placement_group(room)


def _copies(bundle: Resources, node: Resources) -> int:
    """How often `bundle` fits on an empty `node`; with a hair's breadth for sums of fractions."""
    return min(int(node.get(name, 0) / asked + 1e-6) for name, asked in bundle.items())


def _positive(bundle: Resources) -> dict[str, float]:
    return {name: amount for name, amount in bundle.items() if amount > 0}


def _shapes(nodes: Sequence[Resources]) -> str:
    """What kinds of nodes there are: `2 nodes of 2 CPU, 1 node of 4 CPU + 1 GPU`."""
    kinds = Counter(_text(node) for node in nodes)
    return ", ".join(f"{n} node{'s' if n > 1 else ''} of {kind}" for kind, n in kinds.items()) or "no nodes"


def _text(resources: Resources) -> str:
    told = {name: n for name, n in _positive(resources).items() if not name.startswith("node:")}
    amounts = [f"{n:g} {name}" for name, n in sorted(told.items()) if "memory" not in name]
    return " + ".join(amounts) or "nothing"
