"""Encoders, heads, actors and critics against gymnasium, scipy and closed forms."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from scipy import stats
from torch import nn

from rllib_haml.modules.actor import ACTION_MASK, Actor
from rllib_haml.modules.critic import Critic
from rllib_haml.modules.distributions import distribution_class
from rllib_haml.modules.encoders import ACTIVATIONS, flat_size, flatten_rows, mlp
from rllib_haml.modules.heads import GaussianHead, Head, make_head
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.modules.state import load_exactly

SPACES: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "number": spaces.Box(-1, 1, (), np.float32),
    "image": spaces.Box(0, 255, (2, 3, 2), np.uint8),
    "integers": spaces.Box(-5, 5, (2, 2), np.int64),
    "discrete": spaces.Discrete(4),
    "discrete from 2": spaces.Discrete(4, start=2),
    "discrete from -3": spaces.Discrete(4, start=-3),
    "multi discrete": spaces.MultiDiscrete([2, 5, 3]),
    "multi discrete table": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multi discrete shifted": spaces.MultiDiscrete([2, 3], start=[1, -1]),
    "multi binary": spaces.MultiBinary(4),
    "multi binary table": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict({"z": spaces.Box(-1, 1, (2,)), "a": spaces.Discrete(3)}),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2, 2))]),
    "nested": spaces.Dict(
        {"t": spaces.Tuple([spaces.MultiBinary(2), spaces.Dict({"i": spaces.Discrete(3)})])}
    ),
}


def batched(space: spaces.Space, rows: list[Any]) -> Any:
    """Elements of `space` as one tree of tensors."""
    if isinstance(space, spaces.Dict):
        return {key: batched(part, [row[key] for row in rows]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(batched(part, [row[i] for row in rows]) for i, part in enumerate(space))
    return torch.as_tensor(np.stack(rows))


@pytest.mark.parametrize("name", SPACES)
def test_rows_are_flattened_as_gymnasium_does(name: str) -> None:
    space = SPACES[name]
    space.seed(3)
    rows = [space.sample() for _ in range(7)]
    flat = flatten_rows(space, batched(space, rows))
    assert flat.is_floating_point()
    assert flat.shape == (7, flat_size(space))
    np.testing.assert_array_equal(flat.numpy(), np.stack([spaces.flatten(space, row) for row in rows]))
    assert len(np.unique(flat.numpy(), axis=0)) > 1, "the rows must differ for this to say anything"


def test_flattening_keeps_float64() -> None:
    space = spaces.Box(-1, 1, (2,), np.float64)
    assert flatten_rows(space, torch.zeros(3, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", ["discrete from 2", "multi discrete shifted"])
def test_an_absent_agents_zeros_can_be_flattened(name: str) -> None:
    """0 is no element of these spaces, but it is what the rows of an absent agent hold."""
    space = SPACES[name]
    shape = (4, *(space.shape or ()))
    assert flatten_rows(space, torch.zeros(shape, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Dict({"a": spaces.Tuple([spaces.Text(3)])})])
def test_an_unsupported_observation_space_names_the_ways_out(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"Text.*rl_module_spec.*in the environment"):
        flat_size(space)


def kinds(network: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in network]


def make_mlp(**changes: Any) -> nn.Sequential:
    settings: dict[str, Any] = {
        "activation": "relu",
        "feature_layer_norm": True,
        "hidden_layer_norm": True,
        "orthogonal_init": True,
        "head_gain": 0.01,
    }
    return mlp(6, [8, 4], 3, **settings | changes)


def test_the_layout_of_the_mlp() -> None:
    block = ["Linear", "ReLU", "LayerNorm"]
    assert kinds(make_mlp()) == ["LayerNorm", *block, *block, "Linear"]
    assert kinds(make_mlp(feature_layer_norm=False)) == [*block, *block, "Linear"]
    bare = make_mlp(feature_layer_norm=False, hidden_layer_norm=False, activation="tanh")
    assert kinds(bare) == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert kinds(
        mlp(
            2,
            [],
            1,
            **dict.fromkeys(("feature_layer_norm", "hidden_layer_norm"), False),
            activation="relu",
            orthogonal_init=True,
            head_gain=1.0,
        )
    ) == ["Linear"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_are_orthogonal_with_the_activations_gain(activation: str) -> None:
    gains = {"relu": math.sqrt(2), "tanh": 5 / 3}
    linears = [layer for layer in make_mlp(activation=activation) if isinstance(layer, nn.Linear)]
    gain = gains.get(activation, 1.0)
    for layer, expected in zip(linears, (gain, gain, 0.01), strict=True):
        weight = layer.weight.detach().double().numpy()
        singular = np.linalg.svd(weight, compute_uv=False)
        np.testing.assert_allclose(singular, expected, rtol=1e-5)
        assert not layer.bias.detach().any()


def test_control_torchs_own_initialisation_is_not_orthogonal() -> None:
    layer = make_mlp(orthogonal_init=False)[1]
    assert isinstance(layer, nn.Linear)
    assert np.ptp(np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)) > 0.05
    assert layer.bias.detach().any()


def test_an_unknown_activation_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'rleu' is unknown.*'relu'"):
        make_mlp(activation="rleu")


PARAMETRISATIONS = [
    ModelConfig(),
    ModelConfig(max_std=2.0, initial_std=0.25),
    ModelConfig(std_parametrisation="exp", initial_std=0.7),
    ModelConfig(std_parametrisation="exp", initial_std=1.5),
]


@pytest.mark.parametrize("config", PARAMETRISATIONS, ids=lambda c: f"{c.std_parametrisation}-{c.initial_std}")
def test_a_gaussian_head_starts_at_initial_std_and_has_its_density(config: ModelConfig) -> None:
    head = GaussianHead(spaces.Box(-3, 3, (4,)), config)
    np.testing.assert_allclose(head.log_scale().exp().detach(), config.initial_std, rtol=1e-6)
    with torch.no_grad():
        head.log_std += torch.tensor([-1.0, 0.0, 0.5, 2.0])
    generator = np.random.default_rng(0)
    means, actions = generator.normal(size=(2, 5, 4))
    raw = head.log_std.detach().double().numpy()
    bounded = config.std_parametrisation == "bounded"
    std = config.max_std / (1 + np.exp(-raw)) if bounded else np.exp(raw)
    kind = distribution_class(head.family)
    distribution = kind.from_logits(head(torch.as_tensor(means).float()))
    got = distribution.logp(torch.as_tensor(actions).float()).detach()
    np.testing.assert_allclose(got, stats.norm.logpdf(actions, means, std).sum(-1), rtol=2e-5)
    entropy = stats.norm.entropy(scale=std).sum()
    np.testing.assert_allclose(distribution.entropy().detach(), entropy, rtol=1e-5)


def test_a_bounded_std_stays_below_max_std() -> None:
    bounded, free = (
        GaussianHead(spaces.Box(-1, 1, (1,)), ModelConfig(std_parametrisation=p)) for p in ("bounded", "exp")
    )
    with torch.no_grad():
        for head in (bounded, free):
            head.log_std += 50
    assert bounded.log_scale().exp().item() <= 0.5 + 1e-6
    assert free.log_scale().exp().item() > 1e10, "control: `exp` has no bound"


def probabilities_of(head: Head, logits: torch.Tensor) -> torch.Tensor:
    distribution = distribution_class(head.family).from_logits(logits)
    choices = [torch.full((len(logits),), choice) for choice in range(head.size)]
    return torch.stack([distribution.logp(choice) for choice in choices], dim=-1).exp()


def test_masked_choices_have_probability_zero_and_the_others_sum_to_one() -> None:
    head = make_head(spaces.Discrete(4), ModelConfig())
    logits = torch.tensor([[5.0, 1.0, -2.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    for given in (mask, mask.to(torch.int8)):
        probabilities = probabilities_of(head, head(logits, given))
        assert (probabilities[~mask] == 0).all()
        expected = logits.double().exp() * mask
        expected /= expected.sum(-1, keepdim=True)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    unmasked = probabilities_of(head, head(logits))
    assert (unmasked[~mask] > 0).all(), "control: without a mask they can be chosen"


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (2, 2), np.int32), spaces.Discrete(3, start=1), spaces.Text(3)],
    ids=str,
)
def test_an_unsupported_action_space_names_the_ways_out(space: gym.Space) -> None:
    with pytest.raises(ValueError, match=r"has no head.*environment.*rl_module_spec"):
        make_head(space, ModelConfig())


def test_model_config_is_strict() -> None:
    with pytest.raises(ValueError, match=r"'fcnet_hidens'.*Did you mean 'fcnet_hiddens'"):
        ModelConfig.from_dict({"fcnet_hidens": [3]})
    with pytest.raises(ValueError, match=r"no key 'zzz'.*Known keys"):
        ModelConfig.from_dict({"zzz": 3})
    with pytest.raises(ValueError, match=r'std_parametrisation: given "softplus".*bounded. or .exp'):
        ModelConfig(std_parametrisation="softplus")  # pyright: ignore[reportArgumentType]
    for wrong in (0.0, -1.0, 0.5, 0.6):
        with pytest.raises(ValueError, match="initial_std"):
            ModelConfig(initial_std=wrong)
    assert ModelConfig(initial_std=0.6, std_parametrisation="exp").initial_std == 0.6
    config = ModelConfig(fcnet_hiddens=[3], head_gain=0.1)
    assert ModelConfig.from_dict(asdict(config)) == config


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def actor(obs: gym.Space, action: gym.Space, **model_config: Any) -> Actor:
    torch.manual_seed(1)
    spec = RLModuleSpec(Actor, obs, action, model_config={"fcnet_hiddens": [8], **model_config})
    return spec.build()  # pyright: ignore[reportReturnType]


MASKED = spaces.Dict({"observations": spaces.Box(-1, 1, (3,)), ACTION_MASK: spaces.MultiBinary(4)})


def test_an_actors_mask_may_lie_in_the_observation_or_beside_it() -> None:
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.int8)
    inside = actor(MASKED, spaces.Discrete(4))
    beside = actor(spaces.Box(-1, 1, (3,)), spaces.Discrete(4))
    obs = randn(2, 3)
    batches = {
        inside: {Columns.OBS: {"observations": obs, ACTION_MASK: mask}},
        beside: {Columns.OBS: obs, ACTION_MASK: mask.bool()},
    }
    for module, batch in batches.items():
        for forward in (module.forward_train, module.forward_inference, module.forward_exploration):
            logits = forward(batch)[Columns.ACTION_DIST_INPUTS]
            assert (logits.softmax(-1)[mask == 0] == 0).all()
            assert (logits.softmax(-1)[mask == 1] > 0).all()


def test_the_first_policy_is_central() -> None:
    """The last layer's small gain keeps the first means near 0."""
    obs = {Columns.OBS: randn(64, 3)}
    box = spaces.Box(-1, 1, (3,))
    small, large = actor(box, box), actor(box, box, head_gain=1.0)
    means = [
        module.forward_train(obs)[Columns.ACTION_DIST_INPUTS][:, :3].abs().max() for module in (small, large)
    ]
    assert means[0] < 0.05 < means[1]


def critic(**model_config: Any) -> Critic:
    torch.manual_seed(1)
    spec = RLModuleSpec(
        Critic,
        spaces.Box(-1, 1, (3,)),
        spaces.Discrete(1),
        model_config={"fcnet_hiddens": [8], **model_config},
    )
    return spec.build()  # pyright: ignore[reportReturnType]


def test_a_critic_never_leaves_the_learner() -> None:
    module = critic()
    assert module.learner_only
    assert module.get_state(inference_only=True) == {}
    assert module.get_state(), "control: a checkpoint does hold it"


def test_a_critics_values_are_denormalised() -> None:
    module = critic()
    assert module.value_norm is not None
    module.value_norm.update(torch.tensor([10.0, 30.0]))
    states = randn(5, 3)
    raw = module.normalised_values(states).detach().double()
    values = module.forward_train({Columns.OBS: states})[Columns.VF_PREDS].detach()
    np.testing.assert_allclose(values, raw * 10 + 20, rtol=1e-5)
    np.testing.assert_allclose(module.normalise(values), raw, rtol=1e-4, atol=1e-5)
    plain = critic(use_value_norm=False)
    same = plain.forward_train({Columns.OBS: states})[Columns.VF_PREDS]
    assert torch.equal(same, plain.normalised_values(states))


def test_a_critic_may_have_widths_of_its_own() -> None:
    widths = [
        layer.out_features
        for layer in critic(critic_fcnet_hiddens=[5]).network
        if isinstance(layer, nn.Linear)
    ]
    assert widths == [5, 1]


def test_weights_load_bit_for_bit() -> None:
    """The normaliser's float64 statistics too, which RLlib's own way rounds to float32."""
    module, other = critic(), critic()
    assert module.value_norm is not None
    assert other.value_norm is not None
    module.value_norm.update(torch.tensor([1 / 3, 1e3 / 7], dtype=torch.float64))
    other.set_state(module.get_state())
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
        assert value.dtype == other.state_dict()[name].dtype
    rounded = module.value_norm.mean_sum.float().double()
    assert not torch.equal(rounded, module.value_norm.mean_sum), "control: float32 would lose digits"


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_of_another_architecture_are_refused(change: str) -> None:
    module = critic()
    state = dict(module.get_state())
    name = next(iter(state))
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state["stranger"] = np.zeros(2)
    else:
        state[name] = np.zeros((7, 7), np.float32)
    with pytest.raises(ValueError, match=r"not of this network \(Critic\).*model_config"):
        load_exactly(module, state)
