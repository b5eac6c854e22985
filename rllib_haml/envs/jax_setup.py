"""How JAX runs inside an env runner: on the CPU, on one thread, with its compilations kept."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from rllib_haml.envs.extras import import_extra


def set_up_jax() -> None:
    """Settings for a JAX that has not computed anything yet; what the user has set stays.

    - `JAX_PLATFORMS=cpu`: JAX would otherwise reserve most of a GPU that belongs to the learner.
    - `XLA_FLAGS`: one thread, as env runners share a machine by their number.
    - `JAX_COMPILATION_CACHE_DIR`: compiling takes 10 to 40 s, loading what was compiled about 2 s.

    They are set through JAX itself, since RLlib imports it, where it is installed, before this runs.
    """
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    config = import_extra("jax", extra="smax").config
    if not config.jax_platforms:
        config.update("jax_platforms", "cpu")
    if not config.jax_compilation_cache_dir:
        config.update("jax_compilation_cache_dir", str(cache_directory()))


def cache_directory() -> Path:
    """The user's cache directory for this kind of CPU.

    Machine code of one CPU may crash on another, and home directories are shared between machines.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "rllib_haml" / f"jax-{_cpu()}"


def _cpu() -> str:
    """A short name of what this CPU can execute."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
