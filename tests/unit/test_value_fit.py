"""The critic's regression against numbers worked out in float64; no Ray process is started."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_on_policy_learner import columns_of, fragments, make_learner, naive_advantages

from rllib_haml.learners.batch import JointBatch

EARLIER = np.array([-300.0, 100.0, 80.0, 250.0])


def moments(batches: list[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation over equally weighted batches: with β this close to 1 they are."""
    mean = np.mean([b.mean() for b in batches])
    return mean, np.sqrt(np.mean([(b**2).mean() for b in batches]) - mean**2)


@pytest.mark.parametrize("coeff", [1.0, 0.25])
def test_returns_are_made_with_the_old_statistics_and_predicted_on_the_scale_of_the_new(coeff: float) -> None:
    """One pass over the whole batch, so that the loss it reports is that of the values before it."""
    learner: Any = make_learner(critic_num_epochs=1, critic_minibatch_size=None, vf_loss_coeff=coeff,
                                vf_clip_param=None, huber_delta=None)  # fmt: skip
    critic = learner.module["critic"]
    critic.value_norm.update(torch.as_tensor(EARLIER))
    made = fragments(learner.config.team)
    batch = columns_of(learner, made)
    joint = JointBatch.of(batch)
    with torch.no_grad():
        predicted = critic.normalised_values(joint.states).double().numpy()
    steps = ~joint.last.numpy()

    def figures(old: tuple[float, float], new: tuple[float, float] | None) -> tuple[float, float]:
        values = predicted * old[1] + old[0]
        returns = naive_advantages(made, values, lambda f: f.terminated) + values[steps]
        mean, deviation = new or moments([EARLIER, returns])
        errors = predicted[steps] - (returns - mean) / deviation
        return coeff * (errors**2).mean() / 2, 1 - (returns - values[steps]).var() / returns.var()

    before = moments([EARLIER])
    loss, explained = figures(before, None)
    learner._update(batch)
    report = learner.fit_critics()["critic"]
    assert float(report["vf_loss"]) == pytest.approx(loss, rel=1e-3)
    assert float(report["vf_explained_var"]) == pytest.approx(explained, abs=1e-3)
    after = tuple(float(x) for x in critic.value_norm.mean_var())
    for wrong in (figures(before, before), figures((after[0], after[1] ** 0.5), None)):
        assert wrong[0] != pytest.approx(loss, rel=0.05), "control: the moment of each scale matters"
