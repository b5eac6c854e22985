"""Whether the checkpoints that runs are to begin with exist."""

from __future__ import annotations

from collections.abc import Sequence

from rllib_haml.algorithms.lorasa_config import LoRASAConfig
from rllib_haml.algorithms.warm_start import missing_start
from rllib_haml.config.errors import ConfigError, Problem
from rllib_haml.config.experiment import Experiment


def check_starts(experiments: Sequence[Experiment]) -> None:
    """Not part of a config's `validate`: a run that goes on from a checkpoint of its own needs them no more.

    Raises:
        ConfigError: One does not exist; it names the experiment and the key.
    """
    missing = {
        experiment.name: missing_start(experiment.config)
        for experiment in experiments
        if isinstance(experiment.config, LoRASAConfig) and experiment.restore is None
    }
    problems = [Problem(name, "", text) for name, text in missing.items() if text]
    if problems:
        raise ConfigError(problems)
