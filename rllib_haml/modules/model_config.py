"""What `model_config` may say: the keys of actor and critic networks, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rllib_haml.annotations import COUNT, NON_NEGATIVE, POSITIVE, check_fields
from rllib_haml.modules.encoders import ACTIVATIONS
from rllib_haml.nearest import did_you_mean


@dataclass(frozen=True)
class ModelConfig:
    """Networks of the default actors and of the critic.

    Attributes:
        fcnet_hiddens: Widths of the hidden layers.
        fcnet_activation: After each hidden layer: relu, tanh, elu, silu (swish) or gelu.
        feature_layer_norm: LayerNorm on the flattened observation.
        hidden_layer_norm: LayerNorm after each activation, and after an LSTM or GRU.
        orthogonal_init: Orthogonal weights and zero biases, else torch's default.
        head_gain: Gain of the actor's last layer, if orthogonal. Small: the first policy is central.
        std_parametrisation: Of Gaussian actions, independent of the observation. `bounded`:
            max_std · sigmoid(log_std); `exp`: exp(log_std).
        max_std: Upper bound of `bounded`, on the policy's scale [-1, 1].
        initial_std: Standard deviation at the start.
        conv_filters: Layers [channels, kernel, stride] that read images (boxes of rank 3, channels last;
            bytes are scaled to [0, 1]); kernel and stride are a number or a pair. None: 16, 32, then 64
            channels, each layer halving the image, until no side is longer than 6. []: images are
            flattened. The critic reads those of the state, or of the joint observation, likewise.
        squash_actions: Gaussian actions go through tanh, so that no probability lies beyond the bounds. What
            is recorded, with its log-probability, is the number before it.
        critic_fcnet_hiddens: Widths of the critic; None takes `fcnet_hiddens`.
        use_lstm: An LSTM after the hidden layers, which makes policies recurrent.
        use_gru: A GRU instead.
        lstm_cell_size: Width of either.
        max_seq_len: Joint steps of truncated backpropagation through time. States are exact beyond them:
            only gradients are cut.
        critic_is_recurrent: Whether the critic is recurrent where the actors are. It need not be where the
            environment's state tells everything.
    """

    fcnet_hiddens: list[COUNT] = field(default_factory=lambda: [128, 128])
    fcnet_activation: str = "relu"
    feature_layer_norm: bool = True
    hidden_layer_norm: bool = True
    orthogonal_init: bool = True
    head_gain: NON_NEGATIVE = 0.01
    std_parametrisation: Literal["bounded", "exp"] = "bounded"
    max_std: POSITIVE = 0.5
    initial_std: POSITIVE = 0.3655
    conv_filters: list[list[int | list[int]]] | None = None
    squash_actions: bool = False
    critic_fcnet_hiddens: list[COUNT] | None = None
    use_lstm: bool = False
    use_gru: bool = False
    lstm_cell_size: COUNT = 128
    max_seq_len: COUNT = 20
    critic_is_recurrent: bool = True

    @property
    def is_recurrent(self) -> bool:
        return self.use_lstm or self.use_gru

    def __post_init__(self):
        check_fields(self)
        for layer in self.conv_filters or []:
            if len(layer) != 3:
                raise ValueError(f"conv_filters has a layer {layer!r}: expected [channels, kernel, stride].")
        if self.fcnet_activation not in ACTIVATIONS:
            raise ValueError(
                f"fcnet_activation={self.fcnet_activation!r} is unknown: use one of {sorted(ACTIVATIONS)}."
            )
        if self.use_lstm and self.use_gru:
            raise ValueError("use_lstm and use_gru are both set: choose one of them.")
        bound = self.max_std if self.std_parametrisation == "bounded" else float("inf")
        if not 0 < self.initial_std < bound:
            raise ValueError(f"initial_std={self.initial_std} is not between 0 and {bound} (max_std).")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Strict: an unknown key is an error.

        Raises:
            ValueError: Names the unknown key and the nearest known one, or the value that is wrong.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known)
                raise ValueError(f"model_config has no key {key!r}. {hint}Known keys: {', '.join(known)}.")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"model_config: {error}") from error
