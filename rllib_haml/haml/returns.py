"""Advantage estimation. Pure functions of time-major tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    *,
    gamma: float,
    lambda_: float,
    trace: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Â_t = δ_t + γλ (1 - ended_t) Â_{t+1},  δ_t = r_t + γ (1 - terminated_t) V(s_{t+1}) - V(s_t).

    A time limit or a cut of the data ends a column's sum but keeps the value of the state that
    followed; only a terminal state is worth nothing.

    With `trace`, the preceding-agent off-policy correction (A2PO, Wang et al. 2023, arXiv 2302.06205, eq. 2):
    Â_t = δ_t + Σ_{k≥1} γ^k (Π_{j=1…k} λ trace_{t+j}) δ_{t+k}.

    Args:
        reward: (T, B).
        value: (T, B) V(s_t), in the reward's units.
        next_value: (T, B) V(s_{t+1}); at the end of an episode, of its last state.
        terminated: (T, B) bool, s_{t+1} is terminal.
        ended: (T, B) bool, nothing of this column follows row t. Rows after it are padding, and may hold
            anything.
        trace: (T, B) min(1, compound ratio of the agents that have moved) at row t, or None for ones.

    Returns:
        (T, B), Â_t.

    Raises:
        ValueError: If the shapes differ.
    """
    columns = (reward, value, next_value, terminated, ended, reward if trace is None else trace)
    shapes = {tuple(x.shape) for x in columns}
    if len(shapes) != 1 or reward.dim() != 2:
        raise ValueError(f"gae expects tensors of one shape (T, B), got {sorted(shapes)}.")
    delta = reward + gamma * torch.where(terminated, 0, next_value) - value
    advantage = torch.empty_like(delta)
    following = delta.new_zeros(delta.shape[1])
    for t in reversed(range(len(delta))):
        following = delta[t] + gamma * lambda_ * torch.where(ended[t], 0, following)
        advantage[t] = following
        if trace is not None:
            following = trace[t] * following
    return advantage
