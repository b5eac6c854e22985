"""One stacked forward pass acts as each agent's own module would."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import tree
from gymnasium import spaces
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from scipy import stats

from rllib_haml.modules.actor import ACTION_MASK, Actor
from rllib_haml.modules.team import TeamAction, TeamModule

ROWS = 6
BOX3, BOX5 = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (5,), np.float32)
BOX90 = spaces.Box(-1, 1, (90,), np.float32)
PUSH, PULL = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
BYTES = spaces.Box(0, 255, (3,), np.uint8)
TREE = spaces.Dict({"cell": spaces.Discrete(4), "view": BOX3})
CHOICE = spaces.Discrete(4)
IMAGE = spaces.Box(0, 255, (9, 7, 2), np.uint8)
SCENE = spaces.Dict({"left": IMAGE, "speed": BOX3, "wide": spaces.Box(-1, 1, (8, 12, 1), np.float32)})

TEAMS: dict[str, tuple[dict[str, tuple[gym.Space, gym.Space]], int]] = {
    "three alike": ({"a": (BOX3, PUSH), "b": (BOX3, PUSH), "c": (BOX3, PUSH)}, 1),
    "two choosers": ({"a": (BOX3, CHOICE), "b": (BOX3, CHOICE)}, 1),
    "all different": ({"a": (BOX3, PUSH), "b": (BOX5, PUSH), "c": (BOX3, PULL), "d": (BOX3, CHOICE)}, 3),
    "unequal lengths": ({"a": (BOX5, PUSH), "b": (BOX3, PUSH), "c": (BOX90, PUSH), "d": (BOX5, PUSH)}, 2),
    "bytes": ({"a": (BYTES, PUSH), "b": (BYTES, PUSH), "c": (BOX5, PUSH)}, 1),
    "images": ({"a": (IMAGE, PUSH), "b": (IMAGE, PUSH), "c": (SCENE, CHOICE), "d": (SCENE, CHOICE)}, 2),
    "mixed": ({"a": (BOX3, CHOICE), "b": (TREE, CHOICE), "c": (BOX3, CHOICE), "d": (TREE, PUSH)}, 2),
}


def team(
    players: dict[str, tuple[gym.Space, gym.Space]],
    module_of: dict[str, str] | None = None,
    kind: type = Actor,
    **model_config: Any,
) -> TeamModule:
    """Built, shaken (so that no two policies are alike) and grouped."""
    torch.manual_seed(0)
    module_of = module_of or {name: name for name in players}
    settings = {"fcnet_hiddens": [8, 6], "head_gain": 1.0} | model_config
    specs = {
        module_of[name]: RLModuleSpec(kind, *players[name], model_config=settings)  # pyright: ignore
        for name in players
    }
    module: Any = MultiRLModuleSpec(multi_rl_module_class=TeamModule, rl_module_specs=specs).build()
    shake(module)
    module.refresh(module_of)
    return module


def shake(module: TeamModule) -> None:
    with torch.no_grad():
        for parameter in (p for part in module.values() for p in part.parameters()):
            parameter += 0.3 * torch.randn_like(parameter)


def observations(players: dict[str, tuple[gym.Space, gym.Space]], rows: int = ROWS) -> dict[str, Any]:
    seen = {}
    for i, (name, (space, _)) in enumerate(players.items()):
        batch = gym.vector.utils.batch_space(space, rows)
        batch.seed(i)
        seen[name] = batch.sample()
    return seen


def act(
    module: TeamModule, obs: dict[str, Any], mask: Any = None, seed: int = 0, explore: bool = True
) -> TeamAction:
    generator = torch.Generator().manual_seed(seed)
    return module.act(obs, mask or {}, {}, generator=generator, explore=explore)


def tensors(value: Any) -> Any:
    return tree.map_structure(torch.as_tensor, value)


def own_distribution(module: Any, obs: Any, forward: str = "forward_train", **columns: Any) -> Any:
    with torch.no_grad():
        out = getattr(module, forward)({Columns.OBS: tensors(obs), **tensors(columns)})
    return module.get_train_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])


@pytest.mark.parametrize("name", TEAMS)
def test_as_many_stacks_as_there_are_shapes(name: str) -> None:
    players, stacks = TEAMS[name]
    assert len(team(players)._stacks) == stacks


@pytest.mark.parametrize("name", TEAMS)
def test_modes_are_each_modules_own(name: str) -> None:
    players, _ = TEAMS[name]
    module, obs = team(players), observations(players)
    action = act(module, obs, explore=False)
    for agent in players:
        own = own_distribution(module[agent], obs[agent], "forward_inference")
        mode = own.to_deterministic().sample()
        np.testing.assert_allclose(action.actions[agent], mode, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(action.logp[agent], own.logp(mode), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TEAMS)
def test_log_probabilities_are_those_that_the_learner_computes(name: str) -> None:
    players, _ = TEAMS[name]
    module, obs = team(players), observations(players)
    action = act(module, obs)
    for agent, (_, space) in players.items():
        taken = torch.as_tensor(action.actions[agent])
        assert taken.shape == (ROWS, *(space.shape or ()))
        own = own_distribution(module[agent], obs[agent]).logp(taken)
        np.testing.assert_allclose(action.logp[agent], own, rtol=1e-5, atol=1e-5)
    first, second = list(players)[:2]
    if players[first] == players[second]:
        other = own_distribution(module[second], obs[first]).logp(torch.as_tensor(action.actions[first]))
        assert np.abs(action.logp[first] - other.numpy()).max() > 1e-2, "control: another agent's policy"


@pytest.mark.parametrize("feature_layer_norm", [True, False])
def test_what_follows_a_short_observation_is_not_seen(feature_layer_norm: bool) -> None:
    players = {"long": (BOX5, PUSH), "short": (BOX3, PUSH)}
    module = team(players, feature_layer_norm=feature_layer_norm)
    assert len(module._stacks) == 1
    obs = {agent: 9 * x + 4 for agent, x in observations(players).items()}
    action = act(module, obs, explore=False)
    for agent in players:
        own = own_distribution(module[agent], obs[agent]).to_deterministic().sample()
        np.testing.assert_allclose(action.actions[agent], own, rtol=1e-5, atol=1e-5)
    short = torch.as_tensor(obs["short"])
    followed = torch.layer_norm(torch.nn.functional.pad(short, (0, 2)), (5,))[:, :3]
    assert (followed - torch.layer_norm(short, (3,))).abs().max() > 0.1, "control: a norm that counts zeros"


def test_gaussian_samples_follow_their_distribution() -> None:
    players, _ = TEAMS["three alike"]
    module = team(players)
    obs = {name: np.repeat(x[:1], 4000, axis=0) for name, x in observations(players).items()}
    action = act(module, obs)
    for agent in players:
        inputs = module[agent].forward_train({Columns.OBS: torch.as_tensor(obs[agent][:1])})
        mean, log_std = inputs[Columns.ACTION_DIST_INPUTS].detach().double().numpy().reshape(2, 2)
        standard = (action.actions[agent] - mean) / np.exp(log_std)
        assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in standard.T)
        assert stats.kstest(1.2 * standard[:, 0], "norm").pvalue < 1e-3, "control: the test sees a wrong std"
        assert abs(np.corrcoef(standard.T)[0, 1]) < 0.06
    across = np.corrcoef(action.actions["a"][:, 0], action.actions["b"][:, 0])[0, 1]
    assert abs(across) < 0.06, "agents draw independently"


def test_choices_follow_their_distribution() -> None:
    players, _ = TEAMS["two choosers"]
    module = team(players)
    obs = {name: np.repeat(x[:1], 4000, axis=0) for name, x in observations(players).items()}
    action = act(module, obs)
    for agent, other in (("a", "b"), ("b", "a")):
        counts = np.bincount(action.actions[agent], minlength=4)
        expected, wrong = (
            4000 * own_distribution(module[who], obs[agent][:4]).logp(torch.arange(4)).double().exp().numpy()
            for who in (agent, other)
        )
        assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
        assert stats.chisquare(counts, wrong * counts.sum() / wrong.sum()).pvalue < 1e-3


@pytest.mark.parametrize("name", TEAMS)
def test_the_generator_alone_decides(name: str) -> None:
    players, _ = TEAMS[name]
    module, obs = team(players), observations(players)
    torch.manual_seed(1)
    first = act(module, obs, seed=7)
    torch.manual_seed(2)
    same, other = act(module, obs, seed=7), act(module, obs, seed=8)
    for agent in players:
        np.testing.assert_array_equal(first.actions[agent], same.actions[agent])
        np.testing.assert_array_equal(first.logp[agent], same.logp[agent])
    assert any((first.actions[a] != other.actions[a]).any() for a in players)


def test_new_weights_act_after_a_refresh() -> None:
    players, _ = TEAMS["mixed"]
    module, obs = team(players), observations(players)
    old = act(module, obs, explore=False)
    shake(module)
    stale = act(module, obs, explore=False)
    np.testing.assert_array_equal(stale.logp["d"], old.logp["d"])
    module.refresh({name: name for name in players})
    new = act(module, obs, explore=False)
    for agent in players:
        own = own_distribution(module[agent], obs[agent])
        np.testing.assert_allclose(
            new.logp[agent], own.logp(torch.as_tensor(new.actions[agent])), rtol=1e-5, atol=1e-5
        )
        assert (new.logp[agent] != old.logp[agent]).any()


def test_agents_may_share_a_module() -> None:
    players = {"a": (BOX3, PUSH), "b": (BOX3, PUSH), "c": (BOX3, PUSH)}
    module = team(players, {"a": "pair", "b": "pair", "c": "alone"})
    assert sorted(module.keys()) == ["alone", "pair"]
    obs = observations(players)
    obs["b"] = obs["c"] = obs["a"]
    modes = act(module, obs, explore=False).actions
    np.testing.assert_array_equal(modes["a"], modes["b"])
    assert np.abs(modes["a"] - modes["c"]).max() > 1e-2
    sampled = act(module, obs).actions
    assert (sampled["a"] != sampled["b"]).all(), "one policy, but draws of their own"


def test_masked_actions_are_never_taken() -> None:
    players = {"a": (BOX3, CHOICE), "b": (BOX3, CHOICE), "c": (BOX3, CHOICE)}
    module = team(players)
    obs = observations(players, rows=400)
    mask = {name: np.random.default_rng(i).random((400, 4)) < 0.4 for i, name in enumerate("ab")}
    for allowed in mask.values():
        allowed[:, 1] = True
    for explore in (True, False):
        action = act(module, obs, mask, explore=explore)  # c has no mask, and may do anything
        for agent, allowed in mask.items():
            assert allowed[np.arange(400), action.actions[agent]].all()
            own = own_distribution(module[agent], obs[agent], **{ACTION_MASK: allowed})
            logp = own.logp(torch.as_tensor(action.actions[agent]))
            np.testing.assert_allclose(action.logp[agent], logp, rtol=1e-5, atol=1e-5)
        free = own_distribution(module["c"], obs["c"]).logp(torch.as_tensor(action.actions["c"]))
        np.testing.assert_allclose(action.logp["c"], free, rtol=1e-5, atol=1e-5)
    unmasked = act(module, obs)
    assert not mask["a"][np.arange(400), unmasked.actions["a"]].all(), "control: without the mask it happens"


class Stubborn(TorchRLModule):
    """Gives actions with their log-probabilities, and no distribution."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        count = len(batch[Columns.OBS])
        return {Columns.ACTIONS: torch.full((count, 2), 0.5), Columns.ACTION_LOGP: torch.full((count,), -2.0)}


class Mute(TorchRLModule):
    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {}


class NoLogp(TorchRLModule):
    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: batch[Columns.OBS]}


@pytest.mark.parametrize("space", [PUSH, CHOICE], ids=["gaussian", "categorical"])
def test_rllibs_own_ppo_module_is_an_actor(space: gym.Space) -> None:
    players = {"a": (BOX3, space)}
    config = DefaultModelConfig(fcnet_hiddens=[8])
    spec = RLModuleSpec(DefaultPPOTorchRLModule, BOX3, space, model_config=config)
    built = MultiRLModuleSpec(multi_rl_module_class=TeamModule, rl_module_specs={"a": spec}).build()
    assert isinstance(built, TeamModule)
    built.refresh({"a": "a"})
    obs = observations(players)
    torch.manual_seed(0)
    sampled, modes = act(built, obs), act(built, obs, explore=False)
    for action in (sampled, modes):
        own = own_distribution(built["a"], obs["a"])
        np.testing.assert_allclose(
            action.logp["a"], own.logp(torch.as_tensor(action.actions["a"])), rtol=1e-5, atol=1e-5
        )
    mode = own_distribution(built["a"], obs["a"]).to_deterministic().sample()
    np.testing.assert_allclose(modes.actions["a"], mode, rtol=1e-6)


def test_a_module_may_give_actions_instead_of_a_distribution() -> None:
    players = {"a": (BOX3, PUSH)}
    action = act(team(players, kind=Stubborn), observations(players))
    np.testing.assert_array_equal(action.actions["a"], np.full((ROWS, 2), 0.5))
    np.testing.assert_array_equal(action.logp["a"], np.full(ROWS, -2.0))


@pytest.mark.parametrize(
    "kind, message", [(Mute, "Mute returned.*expected"), (NoLogp, "without `action_logp`")]
)
def test_a_module_that_does_not_act_is_named(kind: type, message: str) -> None:
    players = {"a": (BOX3, PUSH)}
    with pytest.raises(ValueError, match=message):
        act(team(players, kind=kind), observations(players))
