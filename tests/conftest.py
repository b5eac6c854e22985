"""One Ray for the whole test session, and algorithms that end with their test."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

TESTS = Path(__file__).parent
# Test modules share the fakes of the unit tests.
sys.path.insert(0, str(TESTS / "unit"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs, without dashboard, whose workers can import what the tests define."""
    path = os.pathsep.join(
        [str(TESTS / "integration"), str(TESTS / "unit"), os.environ.get("PYTHONPATH", "")]
    )
    ray.init(
        "local",  # not a cluster that happens to run on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def stopping() -> Iterator[list[Any]]:
    """Algorithms to stop even if the test fails: their learners hold CPUs."""
    algorithms: list[Any] = []
    yield algorithms
    for algo in algorithms:
        algo.stop()


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """As it was, whatever a command that ran in this process made of it."""
    logger = logging.getLogger("rllib_haml")
    before = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate, logger.level, logger.handlers = before
