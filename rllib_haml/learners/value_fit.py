"""The critic's epochs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rllib_haml.haml import JointRows
from rllib_haml.haml.neighbourhood import descend
from rllib_haml.learners import diagnostics
from rllib_haml.learners.state_values import StateValues


def fit_critic(
    values: StateValues,
    optimizer: torch.optim.Optimizer,
    advantage: Tensor,
    rows: JointRows,
    config: Any,
    key: tuple[int | str, ...],
) -> dict[str, Tensor]:
    """Regresses V on Â + V, with its own epochs and minibatches.

    On every row, also where no agent acts: the values before it are bootstrapped from there.

    Args:
        values: The critic on the batch's states.
        advantage: (S,) Â in units of the reward.
        config: The critic's: `critic_num_epochs`, `critic_minibatch_size`, `vf_clip_param`, ...
        key: What the minibatches depend on.

    Returns:
        `vf_loss`, `vf_explained_var` of the values before the update, and the last `grad_norm`.
    """
    critic, joint = values.critic, values.joint
    before = values.before[~joint.last]
    expected = critic.denormalise(before)
    returns = advantage + expected
    if critic.value_norm is not None:
        critic.value_norm.update(returns, rows.all_reduce)
    target = critic.normalise(returns)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loss = norm = torch.zeros((), device=before.device)
    for epoch in range(config.critic_num_epochs):
        for part in rows.minibatches(config.critic_minibatch_size, *key, epoch):
            error = value_loss(
                values.of_steps(part), before[part], target[part], config.vf_clip_param, config.huber_delta
            )
            loss = rows.mean(config.vf_loss_coeff * error, rows=part)
            bearing = [(parameters, loss.new_tensor(len(error)))]
            norm = descend(loss, parameters, optimizer, config.grad_clip, rows, bearing)
    return {
        "vf_loss": rows.all_reduce(loss.detach().clone()),
        "vf_explained_var": diagnostics.explained_variance(returns, expected, rows),
        "grad_norm": norm,
    }


def value_loss(
    value: Tensor, before: Tensor, target: Tensor, clip: float | None, huber_delta: float | None
) -> Tensor:
    """(R,) Huber (or half squared) error; with `clip`, the larger of the plain and the clipped value's.

    All on the normaliser's scale, `clip` and `huber_delta` too. The clipped value moves at most `clip`
    away from the value `before` the update.
    """

    def error(v: Tensor) -> Tensor:
        if huber_delta is None:
            return 0.5 * (v - target).square()
        return torch.nn.functional.huber_loss(v, target, reduction="none", delta=huber_delta)

    plain = error(value)
    if clip is None:
        return plain
    return torch.maximum(plain, error(before + (value - before).clamp(-clip, clip)))
