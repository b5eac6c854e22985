"""Two learners of RLlib's group compute what one learner computes; here HAPPO, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import NAMES, ScriptedMultiAgentEnv
from learner_teams import data, distance, fragments, weights
from ray.tune.registry import register_env

from rllib_haml import HAPPOConfig
from rllib_haml.learners.on_policy import OnPolicyTeamLearner
from rllib_haml.sampling.fragment import JointFragment

ENV = ScriptedMultiAgentEnv(equal_rewards=True)


class Float64Learner(OnPolicyTeamLearner):
    """The product's learner with networks in double precision."""

    def _make_module(self) -> Any:
        module = super()._make_module()
        for part in module.values():
            part.double()
        return module


def config(num_learners: int, learner_class: type, **training: Any) -> HAPPOConfig:
    register_env("scripted", lambda env_config: ENV)
    settings = {"num_epochs": 2, "minibatch_size": 37, "critic_minibatch_size": 37, "entropy_coeff": 0.01}
    return (
        HAPPOConfig()
        .environment("scripted")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1)
        .learners(num_learners=num_learners)
        .training(**settings | training, learner_class=learner_class, train_batch_size_per_learner=40)
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .debugging(seed=5)
    )


def trained(
    num_learners: int,
    updates: int,
    learner_class: type = Float64Learner,
    model: dict[str, Any] | None = None,
    ends_updates: bool = True,
    made: Callable[..., list[JointFragment]] = fragments,
    **training: Any,
) -> Any:
    settings = config(num_learners, learner_class, **training)
    algo = settings.rl_module(model_config={**settings.model_config, **(model or {})}).build_algo()
    results = None
    for update in range(updates):
        results = algo.learner_group.update(
            training_data=data(made(update, ENV)),
            timesteps={"num_env_steps_sampled_lifetime": 109 * update},
        )
        if ends_updates or update == updates - 1:
            algo.learner_group.foreach_learner(lambda learner: learner.fit_critics())
    every = algo.learner_group.foreach_learner(lambda learner: weights(learner))
    algo.stop()
    return [answer.get() for answer in every], results


@pytest.fixture(scope="module")
def one(ray_cluster: Any) -> Any:
    return trained(0, updates=5)


def test_two_learners_equal_one_in_float64(one: Any) -> None:
    (alone,), _ = one
    both, _ = trained(2, updates=5)
    assert len(both) == 2
    assert distance(both[0], both[1]) == 0.0, "ranks must agree bit for bit"
    assert distance(both[0], alone) < 1e-9
    start, _ = trained(0, updates=0)
    assert distance(alone, start[0]) > 1e-2, "the updates must have moved the weights"


def test_control_what_the_critic_remembers_matters(ray_cluster: Any) -> None:
    """Episodes go on from update to update, and are dealt to the other learner."""
    memory = {"use_gru": True, "lstm_cell_size": 8, "max_seq_len": 6}
    (alone,), _ = trained(0, updates=4, model=memory)
    (forgetful,), _ = trained(0, updates=4, model=memory, learner_class=ForgetfulLearner)
    assert distance(forgetful, alone) > 1e-4


class ForgetfulLearner(Float64Learner):
    """Control: its critic begins every fragment as if it began an episode."""

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        for critic in self._critics.values():
            critic.memory._known.clear()
        return super()._update(batch, **kwargs)


def test_an_update_that_was_not_ended_is_before_the_next(one: Any) -> None:
    """Whoever drives the learners and knows nothing of `fit_critics` gets the same weights."""
    (alone,), _ = one
    (late,), _ = trained(0, updates=5, ends_updates=False)
    assert distance(late, alone) == 0.0


@pytest.mark.timeout(120)
def test_a_learner_without_rows_keeps_nobody_waiting(ray_cluster: Any) -> None:
    def one_fragment(update: int, env: Any) -> list[JointFragment]:
        return fragments(update, env)[:1]

    (alone,), _ = trained(0, updates=2, made=one_fragment)
    both, _ = trained(2, updates=2, made=one_fragment)
    assert distance(both[0], both[1]) == 0.0
    assert distance(both[0], alone) < 1e-9


def test_a_remote_learner_equals_the_local_one(one: Any) -> None:
    (alone,), _ = one
    (remote,), _ = trained(1, updates=5)
    assert distance(remote, alone) < 1e-12


class LonelyLearner(Float64Learner):
    """Control: every learner believes that it is alone."""

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        from unittest import mock

        import rllib_haml.learners.on_policy as on_policy

        with mock.patch.object(on_policy, "all_reduce", lambda tensor: tensor):
            return super()._update(batch, **kwargs)


def test_control_learners_that_do_not_talk_disagree(one: Any) -> None:
    (alone,), _ = one
    both, _ = trained(
        2, updates=1, learner_class=LonelyLearner, minibatch_size=None, critic_minibatch_size=None
    )
    assert distance(both[0], both[1]) > 1e-4
    del alone


class RecordingLearner(OnPolicyTeamLearner):
    """The product's learner, in float32, that keeps the first gradient each optimizer is given."""

    def build(self) -> None:
        super().build()
        self.first: dict[str, np.ndarray] = {}
        for name, optimizer in self._named_optimizers.items():
            optimizer.register_step_pre_hook(lambda opt, args, kwargs, name=name: self._keep(name, opt))

    def _keep(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        if name not in self.first:
            gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
            self.first[name] = torch.cat(gradients).cpu().numpy().copy()


def first_gradients(num_learners: int) -> list[dict[str, np.ndarray]]:
    whole = {"minibatch_size": None, "critic_minibatch_size": None, "grad_clip": None, "num_epochs": 1}
    algo = config(num_learners, RecordingLearner, **whole).build_algo()
    batch = data(fragments(0, ENV))
    algo.learner_group.update(training_data=batch, timesteps={"num_env_steps_sampled_lifetime": 0})
    algo.learner_group.foreach_learner(lambda learner: learner.fit_critics())
    kept = [answer.get() for answer in algo.learner_group.foreach_learner(lambda learner: learner.first)]
    algo.stop()
    return kept


def test_first_gradients_of_two_learners_equal_those_of_one_in_float32(ray_cluster: Any) -> None:
    (alone,), both = first_gradients(0), first_gradients(2)
    assert len(alone) == len(NAMES) + 1
    for name, gradient in alone.items():
        np.testing.assert_array_equal(both[0][name], both[1][name])
        error = np.linalg.norm(both[0][name] - gradient) / np.linalg.norm(gradient)
        print(f"{name}: relative difference of the reduced gradient {error:.1e}")
        assert error < 1e-5


def test_a_seedless_run_agrees_on_its_weights_and_order(ray_cluster: Any) -> None:
    algo = config(2, OnPolicyTeamLearner).debugging(seed=None).build_algo()
    algo.train()
    first, second = (a.get() for a in algo.learner_group.foreach_learner(lambda learner: weights(learner)))
    assert distance(first, second) == 0.0
    algo.stop()
