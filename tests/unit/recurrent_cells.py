"""GRU and LSTM by hand: one numpy step at a time, weights laid out as torch's."""

from __future__ import annotations

import numpy as np

Cell = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru(x: np.ndarray, state: Cell, w: np.ndarray, u: np.ndarray, b: np.ndarray, d: np.ndarray) -> Cell:
    """One step of (I,) input; w (3H, I), u (3H, H), b and d (3H,)."""
    h = state["h"]
    n = len(h)
    from_x, from_h = w @ x + b, u @ h + d
    reset = sigmoid(from_x[:n] + from_h[:n])
    update = sigmoid(from_x[n : 2 * n] + from_h[n : 2 * n])
    candidate = np.tanh(from_x[2 * n :] + reset * from_h[2 * n :])
    return {"h": (1 - update) * candidate + update * h}


def lstm(x: np.ndarray, state: Cell, w: np.ndarray, u: np.ndarray, b: np.ndarray, d: np.ndarray) -> Cell:
    """One step of (I,) input; w (4H, I), u (4H, H), b and d (4H,)."""
    n = len(state["h"])
    gates = w @ x + b + u @ state["h"] + d
    write, keep, show = (sigmoid(gates[k * n : (k + 1) * n]) for k in (0, 1, 3))
    c = keep * state["c"] + write * np.tanh(gates[2 * n : 3 * n])
    return {"h": show * np.tanh(c), "c": c}


CELLS = {"use_gru": gru, "use_lstm": lstm}
