"""Importing the package is cheap, and loads no environment that is optional."""

from __future__ import annotations

import json
import os
import subprocess
import sys

RAY = "import ray.rllib.algorithms.ppo"
PACKAGE = "import ray.rllib.algorithms.ppo, rllib_haml"
# Not jax: RLlib itself imports it where it is installed.
OPTIONAL = {"mujoco", "gymnasium_robotics", "mpe2", "pygame", "supersuit", "matplotlib", "dm_control"}
OPTIONAL |= {"jaxmarl", "rware", "lbforaging", "smac", "smacv2"}

SCRIPT = """
import json, sys, time
start = time.process_time()
{}
seconds = time.process_time() - start
print(json.dumps([seconds, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def imported(statement: str) -> tuple[float, set[str]]:
    """CPU seconds of the statement in a fresh interpreter, and the packages that are loaded then."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT.format(statement)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds, packages = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(packages)


def test_importing_the_package_adds_at_most_half_a_second_to_rllib() -> None:
    """CPU time, so that other work on the machine counts little; the least difference of repeats by turns."""
    pairs = [(imported(RAY)[0], imported(PACKAGE)[0]) for _ in range(3)]
    assert min(both - alone for alone, both in pairs) < 0.5, pairs


def test_importing_the_package_loads_no_optional_environment() -> None:
    loaded = imported("import rllib_haml")[1]
    assert {"rllib_haml", "ray", "torch"} <= loaded
    assert loaded.isdisjoint(OPTIONAL)


def test_control_making_an_environment_does_load_it() -> None:
    make = "import rllib_haml.envs.mpe as mpe; mpe.make()"
    assert {"mpe2", "pygame"} <= imported(make)[1]
