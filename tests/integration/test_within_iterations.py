"""An iteration that lasts long shows how far it is, wherever it is sampled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from malformed_envs import Creeps
from ray import tune
from ray.experimental.internal_kv import _internal_kv_list

from rllib_haml import HAPPOConfig
from rllib_haml.cli import long_iterations

BATCH = 120


def told_by_trials() -> set[bytes]:
    """What trials' own processes have left in Ray's store."""
    return {key for key in _internal_kv_list("rllib_haml/under_way/") if key.endswith(b"/0")}


def test_steps_of_the_batch_are_told_within_the_first_iteration(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sampled in the trial's own process, and in an env runner's."""
    monkeypatch.setattr(long_iterations, "LINE_EVERY_S", 0.5)
    before = told_by_trials()
    config = (
        HAPPOConfig()
        .environment(Creeps)
        .env_runners(
            num_env_runners=tune.grid_search([0, 1]),  # pyright: ignore[reportArgumentType]
            num_envs_per_env_runner=1,
            num_cpus_per_env_runner=0.3,
        )
        .training(train_batch_size_per_learner=BATCH, num_epochs=1, critic_num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )
    run = tune.RunConfig(
        name="slow",
        storage_path=str(tmp_path),
        stop={"training_iteration": 1},
        callbacks=[long_iterations.LongIterations("slow", 2)],
        verbose=0,
    )
    results = tune.Tuner("HAPPO", param_space=config, run_config=run).fit()
    assert not results.errors
    lines = capsys.readouterr().out
    for trial in ("slow#00000", "slow#00001"):
        found = re.findall(
            rf"{trial}  iteration 1, [\d.]+s: (\d+) / {BATCH} steps of its batch sampled .*left", lines
        )
        steps = [int(n) for n in found]
        assert steps == sorted(steps)
        assert 0 < steps[-1] < BATCH, lines
    # An env runner of its own may have told of the next batch once more.
    assert told_by_trials() == before
