"""`squash_actions`: what is drawn is recorded, and its tanh reaches the environment, on every way there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tree
from gymnasium import spaces
from lora_teams import learnt, make_actor
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space, unsquash_action
from ray.tune.registry import register_env

from rllib_haml import HAPPOConfig
from rllib_haml.learners.connector import JointBatchConnector
from rllib_haml.learners.module_policy import ModulePolicy
from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.joint_env_runner import JointEnvRunner

SPACES: dict[str, spaces.Space] = {
    "arm": spaces.Box(np.float32([2, -1]), np.float32([7, 1]), dtype=np.float32),
    "dial": spaces.Box(-3, 5, (), np.float32),
    "hand": spaces.Dict({"grip": spaces.Box(0, 3, (2, 1), np.float32), "say": spaces.Discrete(3)}),
}
SEEN = spaces.Box(-1, 1, (2,), np.float32)


class Watching(MultiAgentEnv):
    """Keeps what it is given; raises on what is not in its spaces."""

    given: list[dict[str, Any]]

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.possible_agents = self.agents = list(SPACES)
        self.observation_spaces, self.action_spaces = dict.fromkeys(SPACES, SEEN), dict(SPACES)
        self.rng = np.random.default_rng(0)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self._see(), {}

    def step(self, action_dict: Any) -> Any:
        assert all(SPACES[agent].contains(action) for agent, action in action_dict.items())
        Watching.given.append(action_dict)
        return self._see(), dict.fromkeys(SPACES, 1.0), {"__all__": False}, {"__all__": False}, {}

    def _see(self) -> dict[str, Any]:
        return {agent: self.rng.uniform(-1, 1, 2).astype(np.float32) for agent in SPACES}


def runner(kind: type, squash: bool = True, gain: float = 12.0, **environment: Any) -> Any:
    register_env("watching", Watching)
    Watching.given = []
    config: Any = (
        HAPPOConfig()
        .environment("watching", disable_env_checking=True, **environment)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1, env_runner_cls=kind)
        # Some means lie far beyond where tanh is 1 in floating point.
        .rl_module(model_config={"squash_actions": squash, "head_gain": gain, "fcnet_hiddens": [4]})
        .debugging(seed=2)
    )
    config.validate()
    return kind(config=config)


def sampled(sampler: Any, **keys: Any) -> tuple[Any, list[dict[str, Any]]]:
    """One fragment, and what the environment was given meanwhile."""
    Watching.given = []
    (fragment,) = as_fragments(sampler.sample(num_timesteps=40, **keys), sampler.config)
    return fragment, Watching.given


def on_the_way(agent: str, drawn: Any) -> Any:
    """What the environment is given of one draw: tanh of real numbers, scaled as RLlib scales."""
    done = tree.map_structure(lambda x: np.tanh(x) if x.dtype.kind == "f" else x, drawn)
    return unsquash_action(done, get_base_struct_from_space(SPACES[agent]))


def numbers(fragment: Any) -> np.ndarray:
    leaves = [x for x in tree.flatten(fragment.actions) if x.dtype.kind == "f"]
    return np.concatenate([x.reshape(-1) for x in leaves])


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("kind", [JointEnvRunner, MultiAgentEnvRunner])
def test_draws_are_recorded_and_squashed_on_the_way(kind: type, explore: bool) -> None:
    fragment, given = sampled(runner(kind), explore=explore)
    for t, actions in enumerate(given):
        for agent, action in actions.items():
            drawn = tree.map_structure(lambda x, t=t: x[t], fragment.actions[agent])
            wanted = on_the_way(agent, drawn)
            tree.map_structure(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), action, wanted)
    found = numbers(fragment)
    assert (np.abs(found) > 9.1).any(), "beyond what tanh could tell of"
    assert (np.abs(found) < 8).any()
    plain, control = sampled(runner(kind, squash=False, gain=1.0), explore=explore)
    drawn = plain.actions["arm"]
    assert np.abs([a["arm"] for a in control] - np.stack([on_the_way("arm", x) for x in drawn])).max() > 0.1


@pytest.mark.parametrize("kind", [JointEnvRunner, MultiAgentEnvRunner])
def test_the_learner_finds_the_samplers_log_probabilities(kind: type) -> None:
    """Saturated ones, too; not of actions as they were done."""
    sampler = runner(kind)
    fragment, _ = sampled(sampler, explore=True)
    trained: Any = sampler.config.get_multi_rl_module_spec().build()
    connector = JointBatchConnector(sampler.config.team, "shared", "cpu", "watching")
    columns: Any = connector(rl_module=None, batch={}, episodes=[fragment])
    for agent in SPACES:
        trained[agent].set_state(sampler.module[agent].get_state())
        policy = ModulePolicy(trained[agent], columns[agent], [], None)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            found = policy.evaluate(slice(None)).log_prob
            torch.testing.assert_close(found, policy.behaviour_logp, rtol=1e-4, atol=1e-4)
            family: Any = policy.family
            policy.actions = family.executed(policy.actions)
            assert (policy.evaluate(slice(None)).log_prob - found).abs().max() > 1, "control"


@pytest.mark.parametrize("kind", [JointEnvRunner, MultiAgentEnvRunner])
def test_who_acts_with_a_policy_does_what_the_sampler_does(kind: type) -> None:
    """A loop of one's own: forward, distribution, sample; then RLlib's `unsquash_action`."""
    sampler = runner(kind)
    fragment, given = sampled(sampler, explore=False)
    for agent, space in SPACES.items():
        policy = sampler.module[agent]
        for t in (0, 7, 30):
            out = policy.forward_inference({"obs": torch.from_numpy(fragment.obs[agent][t])[None]})
            dist = policy.get_inference_action_dist_cls().from_logits(out["action_dist_inputs"])
            action = tree.map_structure(lambda x: x[0].numpy(), dist.to_deterministic().sample())
            assert all(np.abs(x).max() <= 1 for x in tree.flatten(action) if x.dtype.kind == "f")
            action = unsquash_action(action, get_base_struct_from_space(space))
            tree.map_structure(
                lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), action, given[t][agent]
            )


def test_random_actions_are_uniform_where_the_environment_sees_them() -> None:
    """And recorded as draws that come to the same."""
    fragment, given = sampled(runner(JointEnvRunner), random_actions=True)
    arm = np.array([actions["arm"] for actions in given])
    np.testing.assert_allclose(arm, [on_the_way("arm", x) for x in fragment.actions["arm"]], atol=1e-5)
    inner = np.abs(arm[:, 1]) < 0.5
    assert 0.25 < inner.mean() < 0.75
    assert np.abs(fragment.actions["arm"]).max() > 1.5, "control: they are draws"


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", [JointEnvRunner, MultiAgentEnvRunner])
def test_without_scaling_the_tanh_itself_is_given(
    kind: type, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent in list(SPACES):
        monkeypatch.setitem(SPACES, agent, spaces.Box(-1, 1, (2,), np.float32))
    fragment, given = sampled(runner(kind, normalize_actions=False, clip_actions=clip), explore=True)
    np.testing.assert_allclose([a["arm"] for a in given], np.tanh(fragment.actions["arm"]), atol=1e-6)
    assert np.abs(fragment.actions["arm"]).max() > 1.5, "control"


def test_the_distributions_of_a_policy() -> None:
    """Exploration and training speak of draws, inference of actions and of their draws' log-probability."""
    for policy in (make_actor("box", "squashed"), learnt(make_actor("box", "squashed"))):
        torch.manual_seed(1)
        parameters = -0.5 + 0.3 * torch.randn(6, policy.action_dist_cls.family.size)
        draws = policy.get_exploration_action_dist_cls().from_logits(parameters)
        acts = policy.get_inference_action_dist_cls().from_logits(parameters)
        assert policy.get_train_action_dist_cls() is type(draws)
        torch.manual_seed(0)
        drawn = draws.sample(sample_shape=(50,))
        torch.manual_seed(0)
        done = acts.sample(sample_shape=(50,))
        assert torch.equal(drawn.tanh(), done)
        torch.testing.assert_close(acts.logp(done), draws.logp(drawn), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(acts.entropy(), draws.entropy())
        assert drawn.abs().max() > 1, "control"
        assert torch.equal(acts.to_deterministic().sample(), draws.to_deterministic().sample().tanh())
    plain = make_actor("box")
    parameters = torch.zeros(3, plain.action_dist_cls.family.size)
    for kind in (plain.get_inference_action_dist_cls(), plain.get_exploration_action_dist_cls()):
        torch.manual_seed(0)
        assert kind.from_logits(parameters).sample(sample_shape=(500,)).abs().max() > 1, "control"


def test_a_policy_with_rllibs_distribution_is_not_squashed() -> None:
    sampler = runner(JointEnvRunner)
    sampler.module["arm"].action_dist_cls = TorchDiagGaussian
    sampler.module.refresh(sampler.config.team.module_of)
    assert set(sampler.module.squashing) == {"dial", "hand"}
