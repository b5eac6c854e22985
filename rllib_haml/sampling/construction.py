"""What the constructor of a remote env runner raised: RLlib logs it, and fails of something else."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError
from ray.rllib.env.env_runner_group import EnvRunnerGroup


@contextmanager
def constructors_errors_first() -> Iterator[None]:
    """Where RLlib fails because its first remote env runner has died, raises what that one died of."""
    try:
        yield
    except IndexError as error:  # of the list of answers, which is empty
        for frame, _ in traceback.walk_tb(error.__traceback__):
            group = frame.f_locals.get("self")
            if isinstance(group, EnvRunnerGroup):
                raise_constructor_error(group)
                raise RuntimeError(
                    "The first remote env runner's process died while it was made; its log, in Ray's session "
                    "directory (/tmp/ray/session_latest/logs), tells of what."
                ) from error
        raise


def raise_constructor_error(group: EnvRunnerGroup | None) -> None:
    """Raises what the constructor of a remote env runner of `group` raised, if one did, as itself."""
    if group is None:
        return
    manager: Any = group._worker_manager
    dead = [i for i in manager.actor_ids() if i not in manager.healthy_actor_ids()]
    for reply in manager.foreach_actor(
        lambda env_runner: env_runner.ping(), remote_actor_ids=dead, healthy_only=False, timeout_seconds=10.0
    ):
        error = None if reply.ok else reply.get()
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise error.args[0].args[2]
