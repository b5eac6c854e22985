"""The mathematics stands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "rllib_haml"

# The parent package is stood in for, since it registers with Ray; what is judged is `haml` itself.
SCRIPT = """
import importlib, json, pkgutil, sys, types
parent = types.ModuleType("rllib_haml")
parent.__path__ = [sys.argv[1]]
sys.modules["rllib_haml"] = parent
package = importlib.import_module("rllib_haml." + sys.argv[2])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded(subpackage: str) -> set[str]:
    """Modules in a fresh interpreter once every module of the subpackage is imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(PACKAGE), subpackage], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_haml_imports_neither_ray_nor_other_rooms() -> None:
    """Every module of `haml` loads with no Ray, no environment library and nothing else of this package."""
    modules = loaded("haml")
    assert {"rllib_haml.haml.sweep", "torch"} <= modules
    roots = {name.partition(".")[0] for name in modules}
    assert roots.isdisjoint({"ray", "gymnasium", "pettingzoo", "supersuit", "mujoco"})
    rooms = {name.split(".")[1] for name in modules if name.startswith("rllib_haml.")}
    assert rooms == {"haml"}
