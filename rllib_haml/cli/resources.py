"""Whether the cluster can ever give an experiment what it asks for; Tune would wait in silence."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.tune import PlacementGroupFactory

from rllib_haml.config.experiment import Experiment

# What to change when a resource is short.
_KEYS = {
    "CPU": "Lower `num_env_runners` (one CPU each, and one for the algorithm), or --ray-num-cpus N.",
    "GPU": "Set `num_gpus_per_learner: 0`, or go where a GPU is.",
}


def shortage(experiment: Experiment) -> str | None:
    """What one trial of `experiment` asks of the running Ray beyond what there is, else None."""
    request = experiment.algorithm_class.default_resource_request(experiment.config.to_dict())
    assert isinstance(request, PlacementGroupFactory)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return unsatisfied(request.required_resources, request.bundles, nodes)


def unsatisfied(
    total: Mapping[str, float],
    bundles: list[dict[str, float]],
    nodes: list[dict[str, float]],
) -> str | None:
    """The first resource of which the nodes have too little, in words.

    Args:
        total: What a trial asks for altogether.
        bundles: The parts of it, each of which has to fit on one node.
        nodes: What each node has.
    """
    for name, asked in total.items():
        there = sum(node.get(name, 0) for node in nodes)
        if asked > there:
            text = f"a trial asks for {asked:g} {name}, and Ray has {there:g}."
            return f"{text} {_KEYS.get(name, '')}".strip()
    for bundle in bundles:
        if not any(_fits(bundle, node) for node in nodes):
            return f"no single node has {bundle}; the largest parts of a trial must fit on one."
    return None


def _fits(bundle: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= asked for name, asked in bundle.items())
