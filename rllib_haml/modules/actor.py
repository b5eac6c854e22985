"""The default policy of one agent."""

from __future__ import annotations

from typing import Any

import tree
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from rllib_haml.modules.distributions import distribution_class
from rllib_haml.modules.encoders import flat_size, flatten_rows, mlp
from rllib_haml.modules.heads import make_head
from rllib_haml.modules.images import find_images, image_layers
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.modules.recurrent import Memory, with_memory
from rllib_haml.modules.state import load_exactly

ACTION_MASK = "action_mask"


class Actor(TorchRLModule):
    """An MLP from the agent's own observation to its action distribution; no value branch.

    Images in the observation go through convolutions before it (`ImageEncoder`).

    `model_config` holds the keys of `ModelConfig`. With `use_lstm` or `use_gru` it is recurrent, and follows
    RLlib's protocol of such modules: observations (B, T, ...) and the state before them under `state_in`,
    the state after them under `state_out`.

    Raises:
        ValueError: (when built) if the observation or action space is not supported.
    """

    def setup(self) -> None:
        config = ModelConfig.from_dict(self.model_config)
        self.head = make_head(self.action_space, config)
        self.action_dist_cls = distribution_class(self.head.family)
        self._executed_dist_cls = distribution_class(self.head.family, executed=True)
        eyes, width = image_layers(
            flat_size(self.observation_space), find_images(self.observation_space), config
        )
        layers = mlp(
            width,
            config.fcnet_hiddens,
            self.head.size,
            activation=config.fcnet_activation,
            feature_layer_norm=config.feature_layer_norm,
            hidden_layer_norm=config.hidden_layer_norm,
            orthogonal_init=config.orthogonal_init,
            head_gain=config.head_gain,
        )
        self.network, self.memory, self.output = with_memory(
            nn.Sequential(*eyes, *layers), config, config.head_gain
        )

    def get_inference_action_dist_cls(self) -> Any:
        """For who acts with the policy: samples are actions, where those of the other two are draws."""
        return self._executed_dist_cls

    def get_exploration_action_dist_cls(self) -> Any:
        return self.action_dist_cls

    def get_train_action_dist_cls(self) -> Any:
        return self.action_dist_cls

    def get_initial_state(self) -> dict[str, Tensor]:
        return {} if self.memory is None else self.memory.initial_state()

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if self.memory is not None and self.output is not None:
            return self._forward_in_time(batch, self.memory, self.output)
        features = self.network(flatten_rows(self.observation_space, batch[Columns.OBS]))
        return {Columns.ACTION_DIST_INPUTS: self.head(features, self.action_mask(batch))}

    def _forward_in_time(self, batch: dict[str, Any], memory: Memory, output: nn.Linear) -> dict[str, Any]:
        obs = batch[Columns.OBS]
        times = tree.flatten(obs)[0].shape[:2]
        rows = flatten_rows(self.observation_space, tree.map_structure(lambda x: x.flatten(0, 1), obs))
        remembered, state = memory(self.network(rows).unflatten(0, times), batch[Columns.STATE_IN])
        parameters = self.head(output(remembered), self.action_mask(batch))
        return {Columns.ACTION_DIST_INPUTS: parameters, Columns.STATE_OUT: state}

    def set_state(self, state: dict[str, Any]) -> None:
        load_exactly(self, state)

    def action_mask(self, batch: dict[str, Any]) -> Tensor | None:
        """(..., n) bool of the legal actions: given beside the observation, or in it under `action_mask`."""
        if ACTION_MASK in batch:
            return batch[ACTION_MASK]
        space = self.observation_space
        in_observation = isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces
        return batch[Columns.OBS][ACTION_MASK] if in_observation else None
