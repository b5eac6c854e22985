"""The on-policy update, piece by piece, against float64 loops; no Ray process is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import ScriptedMultiAgentEnv
from fragments import make_fragment
from ray.tune.registry import register_env
from torch import Tensor

from rllib_haml import HAPPOConfig
from rllib_haml.haml import JointRows
from rllib_haml.learners import diagnostics, on_policy
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.connector import JointBatchConnector
from rllib_haml.learners.on_policy import OnPolicyTeamLearner
from rllib_haml.learners.value_fit import value_loss
from rllib_haml.sampling.fragment import JointFragment, in_batch_order

GAMMA, LAMBDA = 0.9, 0.8
LENGTHS = (5, 1, 8, 3)


def make_learner(model: dict[str, Any] | None = None, seed: int | None = 1, **training: Any) -> Any:
    register_env("scripted_learner", lambda env_config: ScriptedMultiAgentEnv(equal_rewards=True))
    settings: dict[str, Any] = {
        "gamma": GAMMA,
        "lambda_": LAMBDA,
        "num_epochs": 2,
        "critic_num_epochs": 2,
        "minibatch_size": 7,
        "critic_minibatch_size": 7,
        "lr": 1e-2,
        "critic_lr": 1e-2,
    }
    of_agents = ("policies_to_train", "algorithm_config_overrides_per_module")
    multi_agent = {key: training.pop(key) for key in of_agents if key in training}
    config = (
        HAPPOConfig()
        .environment("scripted_learner")
        .training(**settings | training)
        .rl_module(model_config={"fcnet_hiddens": [8]} | (model or {}))
        .multi_agent(**multi_agent)
        .debugging(seed=seed)
    )
    config.validate()
    torch.manual_seed(0)
    return config.build_learner()


@pytest.fixture(scope="module")
def learner() -> Any:
    return make_learner()


def fragments(team: Any, present: float = 0.8) -> list[JointFragment]:
    """The first ends in a terminal state, the second by a time limit; the others are cut."""
    return in_batch_order(
        [
            make_fragment(
                n, i, team=team, present=present, source=(0, i), terminated=i == 0, truncated=i == 1
            )
            for i, n in enumerate(LENGTHS)
        ]
    )


def columns_of(learner: Any, made: list[JointFragment]) -> dict[str, Any]:
    connector = JointBatchConnector(learner.config.team, "shared", "cpu", "arena")
    return connector(rl_module=None, batch={}, episodes=made)


def naive_advantages(
    made: list[JointFragment], values: np.ndarray, terminal: Callable[[JointFragment], bool]
) -> list[float]:
    """Σ_l (γλ)^l δ_{t+l} per fragment, as a double loop; `values` of its T rows and the one after them."""
    found, start = [], 0
    for f in made:
        value = values[start : start + len(f) + 1]
        start += len(f) + 1
        for t in range(len(f)):
            total = 0.0
            for later in range(t, len(f)):
                follows = 0.0 if terminal(f) and later == len(f) - 1 else value[later + 1]
                delta = f.reward[later, 0] + GAMMA * follows - value[later]
                total += (GAMMA * LAMBDA) ** (later - t) * delta
            found.append(total)
    return found


def test_advantages_are_the_teams_gae(learner: Any) -> None:
    """Deaths cut nothing; a terminal state is worth 0; after a time limit or a cut the value goes on."""
    critic = learner.module["critic"]
    critic.value_norm.update(torch.tensor([-3.0, 9.0]))
    made = fragments(learner.config.team)
    joint = JointBatch.of(columns_of(learner, made))
    with torch.no_grad():
        normalised = critic.normalised_values(joint.states).double().numpy()
    values = normalised * 6.0 + 3.0
    expected, estimated = learner._critics["critic"].estimate(joint, whole(joint))
    advantage = estimated.plain
    np.testing.assert_allclose(expected.before, normalised, rtol=1e-5)
    np.testing.assert_allclose(
        advantage, naive_advantages(made, values, lambda f: f.terminated), rtol=1e-4, atol=1e-4
    )
    for wrong in (lambda f: f.terminated or f.truncated, lambda f: False, lambda f: True):
        other = np.array(naive_advantages(made, values, wrong))
        assert np.abs(advantage.numpy() - other).max() > 0.1, "control: a wrong end must show"


def test_a_learner_without_rows_has_no_advantages(learner: Any) -> None:
    joint = JointBatch.of(columns_of(learner, []))
    values, advantage = learner._critics["critic"].estimate(joint, whole(joint))
    assert values.before.shape == advantage.plain.shape == advantage(torch.zeros(0)).shape == (0,)


def test_advantages_are_normalised_over_rows_in_which_anyone_acted(learner: Any) -> None:
    joint = JointBatch.of(columns_of(learner, fragments(learner.config.team, present=0.3)))
    _, estimated = learner._critics["critic"].estimate(joint, whole(joint))
    counted = joint.any_active
    assert not counted.all()
    advantage = estimated.plain.double().numpy()
    rows = advantage[counted]
    got = estimated(torch.zeros(len(counted)))
    np.testing.assert_allclose(got, (advantage - rows.mean()) / (rows.std() + 1e-5), rtol=1e-4, atol=1e-4)
    assert abs(got.mean().item()) > 1e-3, "control: over all rows it is not centred"


@pytest.mark.parametrize("clip", [None, 0.2, 1.5])
@pytest.mark.parametrize("delta", [None, 0.3, 10.0])
def test_the_value_loss(clip: float | None, delta: float | None) -> None:
    rng = np.random.default_rng(0)
    value, before, target = rng.normal(size=(3, 200))

    def error(v: float, goal: float) -> float:
        off = abs(v - goal)
        return off**2 / 2 if delta is None or off <= delta else delta * (off - delta / 2)

    expected = []
    for v, old, goal in zip(value, before, target, strict=True):
        near = v if clip is None else min(max(v, old - clip), old + clip)
        expected.append(max(error(v, goal), error(near, goal)))
    got = value_loss(*map(torch.as_tensor, (value, before, target)), clip, delta)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    if clip == 0.2:
        plain = value_loss(*map(torch.as_tensor, (value, before, target)), None, delta)
        assert (got >= plain).all()
        assert (got > plain + 1e-3).any(), "control: the clip matters"


def test_value_targets_enter_the_normaliser_also_where_nobody_acted() -> None:
    learner = make_learner(critic_num_epochs=0)
    made = fragments(learner.config.team, present=0.3)
    joint = JointBatch.of(columns_of(learner, made))
    assert not joint.any_active.all()
    values, estimated = learner._critics["critic"].estimate(joint, whole(joint))
    advantage, before = estimated.plain, values.before[~joint.last]
    learner._fit_later("critic", values, estimated)
    report = learner.fit_critics()["critic"]
    assert float(report["vf_loss"]) == float(report["grad_norm"]) == 0, "no epoch, no loss"
    scale = 0.1  # root of the variance floor: the unit of values before the first update
    returns = (advantage + scale * before).double().numpy()
    mean, variance = learner.module["critic"].value_norm.mean_var()
    np.testing.assert_allclose(mean, returns.mean(), rtol=1e-5)
    np.testing.assert_allclose(variance, returns.var(), rtol=1e-4)


def whole(joint: JointBatch) -> JointRows:
    return JointRows.whole(len(joint.row))


def weights(learner: Any) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().clone()
        for name, module in learner.module.items()
        for key, value in module.state_dict().items()
    }


def moved(learner: Any, before: dict[str, Tensor]) -> set[str]:
    return {
        key.split("/")[0] for key, value in weights(learner).items() if not torch.equal(value, before[key])
    }


def test_an_update_moves_the_trained_policies_and_the_critic() -> None:
    names = ["scout", "carrier", "anchor"]
    for to_train in (names, ["carrier"]):
        learner = make_learner(policies_to_train=to_train)
        before = weights(learner)
        learner._update(columns_of(learner, fragments(learner.config.team)))
        learner.fit_critics()
        assert moved(learner, before) == {*to_train, "critic"}


def test_rows_in_which_nobody_acts_move_the_critic_alone() -> None:
    """It learns the values there; policies keep still, whatever momentum and weight decay they have."""
    learner = make_learner(weight_decay=0.1)
    for present, expected in ((0.8, {"scout", "carrier", "anchor", "critic"}), (0.0, {"critic"})):
        before = weights(learner)
        learner._update(columns_of(learner, fragments(learner.config.team, present)))
        learner.fit_critics()
        assert moved(learner, before) == expected


def test_policies_move_in_the_configured_order() -> None:
    names = ["anchor", "scout", "carrier"]
    learner = make_learner(order=names)
    learner._update(columns_of(learner, fragments(learner.config.team)))
    places = {name: learner.metrics.peek((name, "order")) for name in names}
    assert places == {"anchor": 0, "scout": 1, "carrier": 2}


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Callable[[bool], None]]:
    """Records what rank 0's collectives give, then replays it to rank 1, which has no rows."""
    log: list[Tensor] = []
    replaying = False

    def collective(tensor: Tensor) -> Tensor:
        if not replaying:
            log.append(tensor.detach().clone())
            return tensor
        shared = log.pop(0)
        assert shared.shape == tensor.shape
        with torch.no_grad():
            return tensor.copy_(shared)

    def summed(tensor: Tensor) -> Tensor:
        if replaying:
            assert not tensor.any(), "a rank without rows adds nothing"
        return collective(tensor)

    monkeypatch.setattr(on_policy, "all_reduce", summed)
    monkeypatch.setattr(diagnostics, "all_maximum", collective)

    def replay(value: bool) -> None:
        nonlocal replaying
        replaying = value

    return log, replay


def test_a_rank_without_rows_joins_every_collective_and_ends_with_equal_weights(two_ranks: Any) -> None:
    log, replay = two_ranks
    first, second = make_learner(entropy_coeff=0.01), make_learner(entropy_coeff=0.01)
    start = weights(first)
    first._update(columns_of(first, fragments(first.config.team)))
    first.fit_critics()
    calls = len(log)
    assert calls > 20
    replay(True)
    second._update(columns_of(second, []))
    second.fit_critics()
    assert log == [], "both ranks issue the same collectives"
    for key, value in weights(first).items():
        assert torch.equal(value, weights(second)[key]), key
    assert moved(first, start) == {"scout", "carrier", "anchor", "critic"}


def test_the_learners_objective_is_the_sweeps() -> None:
    with pytest.raises(NotImplementedError, match="_update"):
        OnPolicyTeamLearner.compute_loss_for_module(object())  # pyright: ignore[reportArgumentType]


def test_an_adaptive_drift_hears_the_mean_kl_of_what_its_policy_does() -> None:
    """KL(before ‖ after) in nats over the rows in which the agent acted, a loop over its distributions."""
    learner = make_learner(drift={"type": "rllib_haml.algorithms.hakl:AdaptiveKLDrift"})
    told: dict[str, float] = {}
    for name, drift in learner._drifts.items():
        drift.adapt = lambda kl, name=name: told.update({name: kl})
    batch = columns_of(learner, fragments(learner.config.team, present=0.6))

    def distributions(name: str) -> np.ndarray:
        with torch.no_grad():
            out = learner.module[name].forward_train({"obs": batch[name]["obs"].flatten(0, 1).float()})
        return out["action_dist_inputs"].double().numpy()

    before = {name: distributions(name) for name in learner._drifts}
    learner._update(batch)
    for name in learner._drifts:
        acted = batch[name]["active"].flatten().numpy()
        both = zip(before[name][acted], distributions(name)[acted], strict=True)
        kls = [gaussian_kl(p, q) if name == "carrier" else categorical_kl(p, q) for p, q in both]
        assert 0 < len(kls) < sum(LENGTHS)
        assert told[name] == pytest.approx(np.mean(kls), rel=1e-3)


def categorical_kl(p: np.ndarray, q: np.ndarray) -> float:
    p, q = (np.exp(x) / np.exp(x).sum() for x in (p, q))
    return float((p * np.log(p / q)).sum())


def gaussian_kl(p: np.ndarray, q: np.ndarray) -> float:
    (m, s), (n, t) = p.reshape(2, -1), q.reshape(2, -1)
    return float((t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5).sum())


def test_the_entropy_bonus_follows_its_schedule() -> None:
    """By the env steps sampled so far, and each policy by its own schedule."""
    learner = make_learner(
        entropy_coeff=[[0, 0.4], [100, 0.0]],
        algorithm_config_overrides_per_module={"carrier": {"entropy_coeff": [[0, 0.1], [200, 0.3]]}},
    )
    batch = columns_of(learner, fragments(learner.config.team))
    for steps, team, carrier in ((0, 0.4, 0.1), (25, 0.3, 0.125), (50, 0.2, 0.15), (1000, 0.0, 0.3)):
        learner.before_gradient_based_update(timesteps={"num_env_steps_sampled_lifetime": steps})
        learner._update(batch)
        for name, expected in {"scout": team, "carrier": carrier, "anchor": team}.items():
            assert float(learner.metrics.peek((name, "entropy_coeff"))) == pytest.approx(expected)


def test_the_entropy_bonus_raises_entropy() -> None:
    """The scheduled weight reaches the update: the same batch with and without it."""
    entropies = []
    for schedule in ([[0, 0.0], [10, 5.0]], [[0, 5.0], [10, 0.0]]):
        learner = make_learner(entropy_coeff=schedule, num_epochs=10)
        learner.before_gradient_based_update(timesteps={"num_env_steps_sampled_lifetime": 10})
        learner._update(columns_of(learner, fragments(learner.config.team)))
        entropies.append(float(learner.metrics.peek(("anchor", "entropy"))))
    assert entropies[0] > entropies[1] + 0.01


def test_a_sampler_that_knows_other_probabilities_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Only of the policies that it concerns, and not of what rounding makes."""
    learner = make_learner()
    batch = columns_of(learner, fragments(learner.config.team))
    for name, off in (("scout", 0.0), ("carrier", 1e-2), ("anchor", 1e-6)):
        policy = learner._policy(name, batch[name], JointBatch.of(batch))
        with torch.no_grad():
            batch[name]["action_logp"] = policy.evaluate(slice(None)).log_prob.T + off
    learner._update(batch)
    told = [record.getMessage() for record in caplog.records if "log-probabilities" in record.getMessage()]
    assert len(told) == 1
    assert "Policy carrier" in told[0]
    assert "0.01" in told[0]


def test_a_state_that_is_taken_up_ends_what_was_not_finished() -> None:
    """The critic's epochs that an update left for later are not those of the restored critic."""
    learner = make_learner()
    state = learner.get_state()
    learner._update(columns_of(learner, fragments(learner.config.team)))
    learner.set_state(state)
    before = weights(learner)
    learner.fit_critics()
    assert moved(learner, before) == set()
