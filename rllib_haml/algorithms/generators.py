"""Random numbers of a restored algorithm: the checkpoint's go on, or a seed that the user gives counts."""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.utils.debug import update_global_seed_if_necessary

from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.sampling.resumable import begin_anew

logger = logging.getLogger("rllib_haml")


def generators() -> dict[str, Any]:
    """The states of this process's own."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state().numpy(),
    }


def restore_generators(algorithm: Any, saved: dict[str, Any]) -> None:
    """Ends the restoring of `algorithm`, whose learners and local env runners have the checkpoint's state.

    If its config has a seed, and another than the checkpoint was made with, everything random begins anew
    from that seed, and so do all episodes. Otherwise all goes on, but for remote env runners, whose episodes
    and generators are in no checkpoint.

    Args:
        saved: `generators` as of the checkpoint.
    """
    seed = algorithm.config.seed
    before, version = on_every_learner(
        algorithm, lambda learner: (learner.sweep_seed, learner._weights_seq_no)
    )[0]
    anew = partial(begin_anew, version=version)
    if seed is not None and int(seed) != before:
        logger.info("Random numbers and episodes begin anew, from seed=%s.", seed)
        on_every_learner(algorithm, partial(_seed_learner, seed=int(seed)))
        for group in (algorithm.env_runner_group, algorithm.eval_env_runner_group):
            if group is not None:
                group.foreach_env_runner(anew)
        update_global_seed_if_necessary("torch", int(seed))
        return
    if algorithm.config.num_env_runners:
        logger.warning(
            "Restored without the running episodes: those of %d env runners start anew.",
            algorithm.config.num_env_runners,
        )
        algorithm.env_runner_group.foreach_env_runner(anew, local_env_runner=False)
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(torch.from_numpy(np.array(saved["torch"])))


def _seed_learner(learner: Any, seed: int) -> None:
    update_global_seed_if_necessary("torch", seed)
    learner.sweep_seed = seed
