"""Env runners run on nodes for sampling and learners where a GPU is, on a cluster of several nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import is_nccl_available


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the script saw on a cluster of its own."""
    script = Path(__file__).with_name("placement_cluster.py")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_tuned_example_samples_on_cpu_nodes_and_learns_on_the_gpu_node(found: dict[str, Any]) -> None:
    _, *env_runners, learner = found["example"]
    assert (env_runners, learner) == (["kind_cpu"] * 5, "kind_gpu")


def test_without_its_custom_resource_env_runners_would_fill_the_gpu_node(found: dict[str, Any]) -> None:
    _, *env_runners, learner = found["control"]
    assert learner == "kind_gpu"
    assert "kind_gpu" in env_runners


def test_actors_train_on_the_nodes_that_they_ask_for(found: dict[str, Any]) -> None:
    assert found["running"] == {"env runners": ["kind_cpu"], "learners": ["kind_gpu"]}


def test_too_many_env_runners_are_refused_within_seconds(found: dict[str, Any]) -> None:
    assert "asks for 7 env_runner, and Ray has 6" in found["refused"]["says"]
    assert "1 node of 6 CPU + 6 env_runner + 1 kind_cpu" in found["refused"]["says"]
    assert found["refused"]["seconds"] < 15


@pytest.mark.skipif(is_nccl_available(), reason="this torch has CUDA")
def test_a_gpu_node_whose_torch_has_no_cuda_is_named_as_the_cause(found: dict[str, Any]) -> None:
    assert "a build without CUDA: install one with CUDA there" in found["without cuda"]["says"]
