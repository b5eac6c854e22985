"""GRU and LSTM by hand: one step of one row at a time, weights laid out as torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Cell = dict[str, Tensor]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def tanh(x: Tensor) -> Tensor:
    return 1 - 2 / (torch.exp(2 * x) + 1)


def gru(memory: Any, x: Tensor, state: Cell) -> Cell:
    """One step of (I,) input from (H,) `state`, with the weights of `memory`."""
    h = state["h"]
    n = len(h)
    from_x = memory.input_gates.weight @ x + memory.input_gates.bias
    from_h = memory.hidden_gates.weight @ h + memory.hidden_gates.bias
    reset = sigmoid(from_x[:n] + from_h[:n])
    update = sigmoid(from_x[n : 2 * n] + from_h[n : 2 * n])
    candidate = tanh(from_x[2 * n :] + reset * from_h[2 * n :])
    return {"h": (1 - update) * candidate + update * h}


def lstm(memory: Any, x: Tensor, state: Cell) -> Cell:
    n = len(state["h"])
    gates = memory.input_gates.weight @ x + memory.input_gates.bias
    gates = gates + memory.hidden_gates.weight @ state["h"] + memory.hidden_gates.bias
    write, keep, show = (sigmoid(gates[k * n : (k + 1) * n]) for k in (0, 1, 3))
    c = keep * state["c"] + write * tanh(gates[2 * n : 3 * n])
    return {"h": show * tanh(c), "c": c}


CELLS = {"use_gru": gru, "use_lstm": lstm}
