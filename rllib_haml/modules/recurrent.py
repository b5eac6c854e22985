"""Recurrent networks: GRU and LSTM cells, and where they stand in a network."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from rllib_haml.modules.encoders import linear
from rllib_haml.modules.model_config import ModelConfig

State = dict[str, Tensor]


class Memory(nn.Module):
    """A recurrent layer, with a LayerNorm on what it puts out.

    Made of plain operations: these have second derivatives on every device, which cuDNN's kernels have
    not, and `modules.stacked` batches them over agents. Weights and gates are laid out as torch's.

    Args:
        inputs: Width of what it reads.
        size: H, of its state and output.
        layer_norm: Normalise the output.
        orthogonal_init: Orthogonal weights and zero biases, else torch's default for linear layers.
    """

    gates: ClassVar[int]
    parts: ClassVar[tuple[str, ...]]

    def __init__(self, inputs: int, size: int, *, layer_norm: bool, orthogonal_init: bool):
        super().__init__()
        self.size = size
        gain = 1.0 if orthogonal_init else None
        self.input_gates = linear(inputs, self.gates * size, gain)
        self.hidden_gates = linear(size, self.gates * size, gain)
        self.norm = nn.LayerNorm(size) if layer_norm else nn.Identity()

    def initial_state(self) -> State:
        """Zeros (H,), one for each part."""
        return {part: torch.zeros(self.size) for part in self.parts}

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads B sequences of T steps.

        Args:
            x: (B, T, inputs).
            state: Before the first step, (B, H) each part.

        Returns:
            (B, T, H), and the state after the last step.
        """
        gates, seen = self.input_gates(x), []
        for now in gates.unbind(1):
            state = self.step(now, self.hidden_gates(state["h"]), state)
            seen.append(state["h"])
        return self.norm(torch.stack(seen, 1)), state

    @staticmethod
    def step(inputs: Tensor, hidden: Tensor, state: State) -> State:
        """One time step: (..., gates · H) of the input and of the last output → the next state."""
        raise NotImplementedError("Every kind of memory defines its own step.")


class GRU(Memory):
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078); the reset gate acts after the product."""

    gates, parts = 3, ("h",)

    @staticmethod
    def step(inputs: Tensor, hidden: Tensor, state: State) -> State:
        """r, z = σ(x + h); n = tanh(x + r ⊙ h); (1 - z) ⊙ n + z ⊙ h."""
        (x_r, x_z, x_n), (h_r, h_z, h_n) = inputs.chunk(3, -1), hidden.chunk(3, -1)
        candidate = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return {"h": torch.lerp(candidate, state["h"], (x_z + h_z).sigmoid())}


class LSTM(Memory):
    """Long short-term memory with a forget gate (Gers et al. 2000)."""

    gates, parts = 4, ("h", "c")

    @staticmethod
    def step(inputs: Tensor, hidden: Tensor, state: State) -> State:
        """i, f, o = σ(x + h); c' = f ⊙ c + i ⊙ tanh(x + h); h' = o ⊙ tanh(c')."""
        write, keep, candidate, show = (inputs + hidden).chunk(4, -1)
        cell = keep.sigmoid() * state["c"] + write.sigmoid() * candidate.tanh()
        return {"h": show.sigmoid() * cell.tanh(), "c": cell}


def with_memory(
    network: nn.Sequential, config: ModelConfig, head_gain: float
) -> tuple[nn.Sequential, Memory | None, nn.Linear | None]:
    """Puts the memory that `config` asks for before the last layer of a network of `encoders.mlp`.

    Args:
        head_gain: Gain of the new last layer, if orthogonal.

    Returns:
        The layers before it, the memory, and the layer after it; the network as it is, and None, if
        `config` asks for no memory.
    """
    if not config.is_recurrent:
        return network, None, None
    *trunk, last = network
    assert isinstance(last, nn.Linear)
    kind, size, orthogonal = LSTM if config.use_lstm else GRU, config.lstm_cell_size, config.orthogonal_init
    memory = kind(last.in_features, size, layer_norm=config.hidden_layer_norm, orthogonal_init=orthogonal)
    return nn.Sequential(*trunk), memory, linear(size, last.out_features, head_gain if orthogonal else None)
