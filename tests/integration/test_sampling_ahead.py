"""Remote env runners sample the next batch while the critic is fitted; nothing else may come of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rllib_haml import HAPPOConfig
from rllib_haml.learners.on_policy import OnPolicyTeamLearner
from rllib_haml.sampling.parallel import BatchSampler

STEPS = 100


def build() -> Any:
    return (
        HAPPOConfig()
        .environment("mpe", env_config={"scenario": "simple_spread_v3", "local_ratio": 0.0})
        .env_runners(num_env_runners=1, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=STEPS, num_epochs=2, critic_num_epochs=2)
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .debugging(seed=3)
        .build_algo()
    )


def weights(algo: Any) -> dict[str, np.ndarray]:
    modules = algo.learner_group._learner.module.items()
    return {f"{m}/{k}": v.numpy().copy() for m, module in modules for k, v in module.state_dict().items()}


@pytest.fixture
def ahead(ray_cluster: None) -> Iterator[Any]:
    algo = build()
    yield algo
    algo.stop()


def test_nothing_but_time_is_won(ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, returns and counters of three iterations are those of the plain order, bit for bit."""
    results = [ahead.train() for _ in range(3)]
    found = weights(ahead)
    begin = BatchSampler.begin
    calls: list[str] = []

    def only_when_asked_for(sampler: BatchSampler) -> None:
        """`collect` begins what was not begun."""
        if calls and calls[-1] == "fit":
            calls.append("refused")
        else:
            begin(sampler)

    monkeypatch.setattr(BatchSampler, "begin", only_when_asked_for)
    plain = build()
    learner = plain.learner_group._learner
    end = learner._sweep

    def sweep(*args: Any) -> Any:
        """The next call of `begin` comes before the critic's epochs."""
        calls.append("fit")
        return end(*args)

    monkeypatch.setattr(learner, "_sweep", sweep)
    expected = []
    for _ in range(3):
        expected.append(plain.train())
    plain.stop()
    assert calls == ["fit", "refused"] * 3, "control: this one did not begin ahead"
    plain_weights = weights(plain)
    assert found.keys() == plain_weights.keys()
    for key, value in found.items():
        np.testing.assert_array_equal(value, plain_weights[key], err_msg=key)
    for one, other in zip(results, expected, strict=True):
        for key in ("team_return_mean", "num_env_steps_sampled_lifetime"):
            np.testing.assert_equal(one["env_runners"].get(key), other["env_runners"].get(key))
        assert one["num_env_steps_stale_lifetime"] == 0


def test_env_runners_work_while_the_critic_is_fitted(ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its epochs begin, requests are under way; and they are asked for once per iteration."""
    under_way = []
    fit = OnPolicyTeamLearner.fit_critics

    def watched(learner: Any) -> Any:
        under_way.append(ahead.sampler.under_way)
        return fit(learner)

    monkeypatch.setattr(OnPolicyTeamLearner, "fit_critics", watched)
    result = [ahead.train() for _ in range(3)][-1]
    assert under_way == [1, 1, 1]
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 3 * STEPS


def test_what_was_begun_before_a_restore_is_dropped(ahead: Any, tmp_path: Any) -> None:
    checkpoint = ahead.save_to_path(str(tmp_path / "checkpoint"))
    for _ in range(3):
        ahead.train()
    assert ahead.sampler.under_way == 1
    ahead.restore_from_path(checkpoint)
    assert ahead.sampler.under_way == 0
    # Its answer was waited for: one that came later would be counted.
    assert ahead.train()["num_env_steps_stale_lifetime"] == 0
