"""A2PO on the learner: what each mover faces, against double loops over the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import NAMES, ScriptedMultiAgentEnv
from fragments import make_fragment
from ray.tune.registry import register_env

from rllib_haml import A2POConfig
from rllib_haml.haml import SweepResult, sweep
from rllib_haml.learners import on_policy
from rllib_haml.learners.batch import JointBatch
from rllib_haml.sampling.fragment import JointFragment, in_batch_order

GAMMA, LAMBDA, CLIP = 0.9, 0.8, 0.1
ORDER = ["carrier", "scout", "anchor"]


def updated(monkeypatch: pytest.MonkeyPatch) -> tuple[SweepResult, list[JointFragment], np.ndarray]:
    """A sweep, its batch, and V of every state of it in order, (S + F,)."""
    register_env("scripted_a2po", lambda _: ScriptedMultiAgentEnv(agents=NAMES, equal_rewards=True))
    config = A2POConfig().environment("scripted_a2po").debugging(seed=1)
    config.training(gamma=GAMMA, lambda_=LAMBDA, clip_param=CLIP, lr=3e-2, num_epochs=4, order=ORDER)
    config.rl_module(model_config={"fcnet_hiddens": [8], "head_gain": 1.0}).validate()
    torch.manual_seed(0)
    learner: Any = config.build_learner()
    for module in learner.module.values():
        module.double()
    fragments = in_batch_order(
        [
            make_fragment(n, i, team=config.team, present=0.8, source=(0, i), terminated=i == 0)
            for i, n in enumerate((9, 1, 12))
        ]
    )
    columns = config.build_learner_connector(None, None)[0](rl_module=None, batch={}, episodes=fragments)
    critic = learner.module["critic"]
    with torch.no_grad():
        states = JointBatch.of(columns).states.double()
        values = critic.denormalise(critic.normalised_values(states)).numpy()
    found: list[SweepResult] = []

    def kept(*args: Any, **kwargs: Any) -> SweepResult:
        found.append(sweep(*args, **kwargs))
        return found[0]

    monkeypatch.setattr(on_policy, "sweep", kept)
    learner._update(columns)
    return found[0], fragments, values


def corrected(fragments: list[JointFragment], values: np.ndarray, trace: np.ndarray) -> np.ndarray:
    """Â_t = δ_t + Σ_k γ^k (Π_j λ c_{t+j}) δ_{t+k} of each row (equation 2), normalised over who acted."""
    found, counted, at = [], [], 0
    for number, f in enumerate(fragments):
        value, c = values[at + number : at + number + len(f) + 1], trace[at : at + len(f)]
        at += len(f)
        for t in range(len(f)):
            total, weight = 0.0, 1.0
            for later in range(t, len(f)):
                if later > t:
                    weight *= GAMMA * LAMBDA * c[later]
                last = f.terminated and later == len(f) - 1
                delta = f.reward[later, 0] + GAMMA * (0.0 if last else value[later + 1]) - value[later]
                total += weight * delta
            found.append(total)
            counted.append(any(f.active[name][t] for name in NAMES))
    rows, some = np.array(found), np.array(counted)
    return ((rows - rows[some].mean()) / (rows[some].std() + 1e-5))[some]


def test_each_mover_faces_the_corrected_advantage_and_the_clipped_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, fragments, values = updated(monkeypatch)
    counted = np.concatenate([np.any([f.active[n][:-1] for n in NAMES], axis=0) for f in fragments])
    assert result.order == ORDER
    log_factor = np.zeros(len(counted))
    for place, name in enumerate(ORDER):
        step, ratio = result.steps[name], np.exp(log_factor)
        advantage = corrected(fragments, values, np.minimum(1, ratio))
        np.testing.assert_allclose(step.advantage.numpy()[counted], advantage, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(step.factor, np.clip(ratio, 1 - CLIP / 2, 1 + CLIP / 2), rtol=1e-9)
        assert step.place == (place + 1) / 3
        if place:
            # Controls: what each ingredient changes here.
            plain = corrected(fragments, values, np.ones_like(ratio))
            uncut = corrected(fragments, values, ratio)
            assert np.abs(advantage - plain).max() > 1e-2
            assert np.abs(advantage - uncut).max() > 1e-2
            assert np.abs(np.log(ratio)).max() > CLIP
        active = np.concatenate([f.active[name][:-1] for f in fragments])
        change = (result.after[name].log_prob - step.before.log_prob)[0].numpy()
        log_factor += np.where(active, change, 0)
