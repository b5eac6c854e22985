"""The team's centralised value function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn
from torch.func import functional_call

from rllib_haml.haml import ValueNorm
from rllib_haml.modules.encoders import flat_size, mlp
from rllib_haml.modules.images import image_layers
from rllib_haml.modules.lora import LoRA
from rllib_haml.modules.lora_config import LoRAConfig
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.modules.recurrent import State, with_memory
from rllib_haml.modules.state import load_exactly

CRITIC = "critic"
IMAGES, LORA = "images", "lora"


def own_critic(policy: str) -> str:
    """The name of a policy's own critic, where there is no common one."""
    return f"{policy}_critic"


class Critic(TorchRLModule, InferenceOnlyAPI):
    """V(s) on the environment's state or on the joint observation; it never leaves the learner.

    The network predicts normalised values; the normaliser's statistics are buffers of this module, so
    that they travel with its checkpoint. `use_value_norm: False` in `model_config` leaves values as they
    are; `images` tells where in the states images lie; `lora` holds the keys of `LoRAConfig` for a low-rank
    difference of the network, zero at first. The other keys are those of `ModelConfig`.
    """

    value_norm: ValueNorm | None

    def __init__(self, *args: Any, **kwargs: Any):
        # RLlib forgets the flag of the spec when it builds or copies a module.
        super().__init__(*args, **{**kwargs, "learner_only": True})

    def setup(self) -> None:
        values = dict(self.model_config)
        use_value_norm = values.pop("use_value_norm", True)
        images = values.pop(IMAGES, ())
        lora = values.pop(LORA, None)
        config = ModelConfig.from_dict(values)
        if not config.critic_is_recurrent:
            config = replace(config, use_lstm=False, use_gru=False)
        hiddens = config.critic_fcnet_hiddens
        eyes, width = image_layers(flat_size(self.observation_space), images, config)
        layers = mlp(
            width,
            config.fcnet_hiddens if hiddens is None else hiddens,
            1,
            activation=config.fcnet_activation,
            feature_layer_norm=config.feature_layer_norm,
            hidden_layer_norm=config.hidden_layer_norm,
            orthogonal_init=config.orthogonal_init,
            head_gain=1.0,
        )
        self.network, self.memory, self.output = with_memory(nn.Sequential(*eyes, *layers), config, 1.0)
        self.value_norm = ValueNorm() if use_value_norm else None
        self.lora = None if lora is None else LoRA(self, LoRAConfig.from_dict(lora))

    def get_non_inference_attributes(self) -> list[str]:
        return ["network", "memory", "output", "value_norm", "lora"]

    def get_initial_state(self) -> State:
        return {} if self.memory is None else self.memory.initial_state()

    def set_state(self, state: dict[str, Any]) -> None:
        load_exactly(self, state)

    def normalised_values(self, state: Tensor) -> Tensor:
        """(R, S) states → (R,) values on the normaliser's scale; differentiable. Of one without memory."""
        return self._through("network", state).squeeze(-1)

    def unroll(self, states: Tensor, before: State) -> tuple[Tensor, State]:
        """The same of a recurrent critic: (B, T, S) states → (B, T) values.

        Args:
            before: Its recurrent state before the first step, (B, H) each part.

        Returns:
            The values, and the recurrent state after the last step.
        """
        remembered, after = self._through("memory", self._through("network", states), before)
        return self._through("output", remembered).squeeze(-1), after

    def _through(self, part: str, *inputs: Any) -> Any:
        """One part of the network, with its difference if there is one."""
        module = self.get_submodule(part)
        if self.lora is None:
            return module(*inputs)
        return functional_call(module, self.lora.effective_part(part, module), inputs)

    def normalise(self, returns: Tensor) -> Tensor:
        return returns if self.value_norm is None else self.value_norm.normalise(returns)

    def denormalise(self, values: Tensor) -> Tensor:
        return values if self.value_norm is None else self.value_norm.denormalise(values)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if self.memory is None:
            return {Columns.VF_PREDS: self.denormalise(self.normalised_values(batch[Columns.OBS]))}
        values, state = self.unroll(batch[Columns.OBS], batch[Columns.STATE_IN])
        return {Columns.VF_PREDS: self.denormalise(values), Columns.STATE_OUT: state}
