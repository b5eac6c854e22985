"""A learner whose settings are its config's: a checkpoint brings what was learnt, not how to learn on."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.learner.learner import LR_KEY
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.typing import StateDict

NUM_ENV_STEPS_BEFORE = "num_env_steps_sampled_before_this_batch"
_POLICIES_TO_TRAIN = "should_module_be_updated"


class ConfiguredLearner(TorchLearner):
    """Trains with the config's learning rates, Adam's settings and `policies_to_train`, also once restored.

    RLlib sets a learning rate after each update for the next one, and takes the optimizers' settings from
    the checkpoint: what the user gives with one counts late, or never. Here every update begins by setting
    the rates to their schedules' values at `timesteps[NUM_ENV_STEPS_BEFORE]`, and logs these.
    """

    @override(TorchLearner)
    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        # Who drives a learner by hand may know only the steps that RLlib asks for.
        steps = timesteps.get(NUM_ENV_STEPS_BEFORE, timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))
        for name, optimizer in self._named_optimizers.items():
            schedule = self._optimizer_lr_schedules.get(optimizer)
            if schedule is not None:
                self._set_optimizer_lr(optimizer, schedule.update(timestep=steps))
            module_id = self._optimizer_name_to_module[name]
            key = f"{name.removeprefix(f'{module_id}_')}_{LR_KEY}"
            self.metrics.log_value((module_id, key), self._get_optimizer_lr(optimizer), window=1)

    @override(TorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Leaves the learning rates alone: the next update begins by setting its own."""

    @override(TorchLearner)
    def set_state(self, state: StateDict) -> None:
        super().set_state({key: value for key, value in state.items() if key != _POLICIES_TO_TRAIN})

    @override(TorchLearner)
    def _set_optimizer_state(self, state: StateDict) -> None:
        for name, saved in state.items():
            if name in self._named_optimizers:
                own = self._named_optimizers[name].state_dict()["param_groups"]
                groups = zip(own, saved["state"]["param_groups"], strict=True)
                settings = [group | {"params": other["params"]} for group, other in groups]
                saved = saved | {"state": saved["state"] | {"param_groups": settings}}
            super()._set_optimizer_state({name: saved})
