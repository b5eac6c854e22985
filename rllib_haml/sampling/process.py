"""What Ray says about the process that this runs in."""

from __future__ import annotations

import ray
from ray._private.worker import WORKER_MODE, global_worker


def is_ray_worker() -> bool:
    """Whether Ray started this process; else it is the user's own."""
    return global_worker.mode == WORKER_MODE


def was_restarted() -> bool:
    """Whether this process's actor had died and Ray has started it again."""
    return is_ray_worker() and bool(ray.get_runtime_context().was_current_actor_reconstructed)
