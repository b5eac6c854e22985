"""What an environment's constructor raises in a remote env runner is what the user reads."""

from __future__ import annotations

from typing import Any

import pytest
from malformed_envs import Sound

from rllib_haml import HAPPOConfig
from rllib_haml.sampling.faults import EnvironmentFault


class OnlyElsewhere(Sound):
    """Cannot be made by the env runners that `env_config` names."""

    def __init__(self, config: Any = None) -> None:
        if config is not None and config.worker_index in config["not_in"]:
            raise OSError("port 8813 is taken")
        super().__init__()


def config(*not_in: int) -> HAPPOConfig:
    return (
        HAPPOConfig()
        .environment(OnlyElsewhere, env_config={"not_in": not_in})
        .env_runners(num_env_runners=2, num_envs_per_env_runner=1, num_cpus_per_env_runner=0.5)
        .training(train_batch_size_per_learner=20, num_epochs=1)
    )


@pytest.mark.parametrize("not_in", [(1, 2), (2,)], ids=["all of them", "one of them"])
def test_training_ends_with_the_environments_own_error(ray_cluster: Any, not_in: tuple[int, ...]) -> None:
    """RLlib would fail of having no first env runner, or go on without the other."""
    with pytest.raises(EnvironmentFault, match="port 8813 is taken"):
        config(*not_in).build_algo()


def test_so_does_evaluation(ray_cluster: Any) -> None:
    settings = config(1).env_runners(num_env_runners=0).evaluation(evaluation_num_env_runners=1)
    with pytest.raises(EnvironmentFault, match="port 8813 is taken"):
        settings.build_algo()


def test_control_others_are_made(ray_cluster: Any, stopping: list[Any]) -> None:
    stopping.append(config(3).build_algo())
    assert stopping[0].train()["training_iteration"] == 1
