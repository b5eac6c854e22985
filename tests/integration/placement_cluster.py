"""A cluster of three nodes on this machine: who is placed where. Run as a script; it prints JSON.

A head without CPUs, a node for env runners, one with what counts as a GPU.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group, placement_group_table, remove_placement_group
from torch.distributed import is_nccl_available

from rllib_haml import HAPPOConfig
from rllib_haml.config import load_experiments

EXAMPLE = Path(__file__).parents[2] / "tuned_examples/happo/cluster_halfcheetah_2x3.yaml"


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=6, resources={"env_runner": 6, "kind_cpu": 1})
    cluster.add_node(num_cpus=6, num_gpus=1, resources={"kind_gpu": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    kinds = {
        node["NodeID"]: next((name for name in node["Resources"] if name.startswith("kind")), "head")
        for node in ray.nodes()
    }
    found = {
        "example": places(example_bundles(), kinds),
        "control": places([bundle | {"env_runner": 0} for bundle in example_bundles()], kinds),
        "running": running(kinds),
        "refused": refused(config().env_runners(num_env_runners=7)),
        "without cuda": without_cuda(),
    }
    print(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def example_bundles() -> list[dict[str, float]]:
    """What Tune asks for by the tuned example: the algorithm, five env runners, a learner."""
    (experiment,) = load_experiments(EXAMPLE)
    request = experiment.algorithm_class.default_resource_request(experiment.config.to_dict())
    assert request.strategy == "PACK"
    return request.bundles


def places(bundles: list[dict[str, float]], kinds: dict[str, str]) -> list[str]:
    """The kind of node on which Ray puts each of the bundles."""
    group = placement_group(bundles)
    assert group.wait(30)
    nodes = placement_group_table(group)["bundles_to_node_id"]
    remove_placement_group(group)
    return [kinds[nodes[i]] for i in range(len(bundles))]


def config() -> HAPPOConfig:
    return (
        HAPPOConfig()
        .environment("matrix_game", env_config={"game": "climbing"})
        .env_runners(num_env_runners=1, custom_resources_per_env_runner={"env_runner": 1})
        .training(train_batch_size_per_learner=32)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )


def running(kinds: dict[str, str]) -> dict[str, list[str]]:
    """On what kinds of nodes actors run that have trained for an iteration."""
    # A learner that has a GPU looks for CUDA: here it asks for what only the node with the GPU has.
    algo: Any = config().learners(num_learners=1, custom_resources_per_learner={"kind_gpu": 1}).build_algo()
    algo.train()
    node = lambda actor: kinds[ray.get_runtime_context().get_node_id()]  # noqa: E731
    runners = algo.env_runner_group.foreach_env_runner(node, local_env_runner=False)
    learners = [answer.get() for answer in algo.learner_group.foreach_learner(node)]
    algo.stop()
    return {"env runners": runners, "learners": learners}


def without_cuda() -> dict[str, Any]:
    """What is said where the node with a GPU has a torch that cannot use it; nothing where torch can."""
    return {} if is_nccl_available() else refused(config().learners(num_learners=1, num_gpus_per_learner=1))


def refused(config: HAPPOConfig) -> dict[str, Any]:
    """What is said, and after how many seconds, when the algorithm does not start."""
    start = time.monotonic()
    try:
        config.build_algo()
    except ValueError as error:
        return {"says": str(error), "seconds": time.monotonic() - start}
    raise AssertionError("it started")


if __name__ == "__main__":
    main()
