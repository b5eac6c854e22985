"""Cooperative multi-agent reinforcement learning on Ray RLlib.

Importing the package registers its algorithms and environments with Ray, so that `tune.Tuner("HAPPO")` and
`environment("mamujoco")` work; the optional environments themselves are imported when they are made.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_haml.algorithms.a2po import A2PO, A2POConfig
    from rllib_haml.algorithms.haa2c import HAA2C, HAA2CConfig
    from rllib_haml.algorithms.hakl import HAKL, HAKLConfig
    from rllib_haml.algorithms.haml import HAML
    from rllib_haml.algorithms.haml_config import HAMLConfig
    from rllib_haml.algorithms.happo import HAPPO, HAPPOConfig
    from rllib_haml.algorithms.hatrpo import HATRPO, HATRPOConfig
    from rllib_haml.algorithms.ippo import IPPO, IPPOConfig
    from rllib_haml.algorithms.lorasa import LoRASA
    from rllib_haml.algorithms.lorasa_config import LoRASAConfig
    from rllib_haml.algorithms.mappo import MAPPO, MAPPOConfig

ALGORITHMS = ("A2PO", "HAA2C", "HAKL", "HAML", "HAPPO", "HATRPO", "IPPO", "LoRASA", "MAPPO")
_PUBLIC = {name: f"rllib_haml.algorithms.{name.lower()}" for name in ALGORITHMS}
_PUBLIC |= {f"{name}Config": module for name, module in _PUBLIC.items()}
_PUBLIC |= {f"{name}Config": f"rllib_haml.algorithms.{name.lower()}_config" for name in ("HAML", "LoRASA")}

__all__ = [
    "A2PO",
    "ALGORITHMS",
    "HAA2C",
    "HAKL",
    "HAML",
    "HAPPO",
    "HATRPO",
    "IPPO",
    "MAPPO",
    "A2POConfig",
    "HAA2CConfig",
    "HAKLConfig",
    "HAMLConfig",
    "HAPPOConfig",
    "HATRPOConfig",
    "IPPOConfig",
    "LoRASA",
    "LoRASAConfig",
    "MAPPOConfig",
    "register",
]

try:
    __version__ = version("rllib-haml")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Makes the algorithms and environments known to Ray by name. May be called any number of times."""
    from ray.tune.registry import register_trainable

    from rllib_haml.envs.registry import register_envs

    for name in ALGORITHMS:
        register_trainable(name, __getattr__(name))
    register_envs()


def _sign_worker_logs() -> None:
    """Tells readers of Ray's merged worker logs, the `rllib` command among them, whose lines these are."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("rllib_haml: %(levelname)s %(message)s"))
    logger = logging.getLogger("rllib_haml")
    logger.handlers, logger.propagate = [handler], False


_program = Path(sys.argv[0] if sys.argv else "")
if _program.name == "default_worker.py":
    _sign_worker_logs()
# The `rllib` command answers `--help` before it loads Ray, and registers when it needs to.
if _program.stem != "rllib":
    register()
