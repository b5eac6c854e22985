"""Images in observations and states, against convolutions written as loops."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import tree
from fragments import make_fragment
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import nn

from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.connector import JointBatchConnector, state_images, state_size
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.critic import IMAGES, Critic
from rllib_haml.modules.encoders import flat_size, flatten_rows
from rllib_haml.modules.images import ImageEncoder, convolutions, default_filters, find_images
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.sampling.team import Team

STATE_IN = Columns.STATE_IN
BYTES = spaces.Box(0, 255, (9, 7, 2), np.uint8)
REAL = spaces.Box(-1, 1, (8, 12, 1), np.float32)
SPEED = spaces.Box(-1, 1, (3,), np.float32)
SCENE = spaces.Dict(
    {"speed": SPEED, "left": BYTES, "gear": spaces.Discrete(3), "pair": spaces.Tuple([REAL, BYTES])}
)


def naive_convolution(image: np.ndarray, layer: nn.Conv2d, stride: tuple[int, int]) -> np.ndarray:
    """(height, width, channels) → relu of the "same" convolution, by four loops."""
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()  # type: ignore
    out_channels, _, kernel_h, kernel_w = weight.shape
    size = [-(-side // s) for side, s in zip(image.shape[:2], stride, strict=True)]
    before = [
        max((n - 1) * s + k - side, 0) // 2
        for n, s, k, side in zip(size, stride, (kernel_h, kernel_w), image.shape[:2], strict=True)
    ]
    out = np.zeros((*size, out_channels))
    for y, x, o in itertools.product(range(size[0]), range(size[1]), range(out_channels)):
        total = bias[o]
        for i, j in itertools.product(range(kernel_h), range(kernel_w)):
            row, column = y * stride[0] - before[0] + i, x * stride[1] - before[1] + j
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += weight[o, :, i, j] @ image[row, column]
        out[y, x, o] = max(total, 0)
    return out


@pytest.mark.parametrize("filters", [[[3, 4, 2]], [[2, 3, 1], [4, [4, 2], [3, 2]]], [[2, 5, 4]]])
def test_convolutions_equal_loops(filters: list[Any]) -> None:
    torch.manual_seed(0)
    layers, size = convolutions((9, 7, 2), filters, orthogonal_init=False)
    image = np.random.default_rng(0).normal(size=(9, 7, 2))
    expected = image
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    for layer, (_, _, stride) in zip(convs, filters, strict=True):
        pair = (stride, stride) if isinstance(stride, int) else tuple(stride)
        expected = naive_convolution(expected, layer, pair)
    got = layers.double()(torch.as_tensor(image).movedim(-1, 0)[None])[0]
    np.testing.assert_allclose(got.detach().movedim(0, -1), expected, rtol=1e-10, atol=1e-12)
    assert got.numel() == size


@pytest.mark.parametrize(
    "shape, sides",
    [((84, 84, 3), [42, 21, 11, 6]), ((7, 7, 3), [4]), ((6, 5, 1), []), ((10, 40, 1), [20, 10, 5])],
)
def test_default_filters_halve_an_image_until_it_is_small(shape: Any, sides: list[int]) -> None:
    filters = default_filters(shape)
    assert filters == [[min(64, 16 * 2**i), 4, 2] for i in range(len(sides))]
    layers, _ = convolutions(shape, filters, orthogonal_init=True)
    x = torch.zeros(1, shape[2], *shape[:2])
    found = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            found.append(max(x.shape[2:]))
    assert found == sides


def rows_of(space: spaces.Space, count: int) -> Any:
    def batched(part: spaces.Space, rows: list[Any]) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: batched(sub, [row[key] for row in rows]) for key, sub in part.items()}
        if isinstance(part, spaces.Tuple):
            return tuple(batched(sub, [row[i] for row in rows]) for i, sub in enumerate(part))
        return torch.as_tensor(np.stack(rows))

    space.seed(0)
    return batched(space, [space.sample() for _ in range(count)])


def test_images_are_found_where_the_vectors_have_them() -> None:
    rows = rows_of(SCENE, 4)
    flat = flatten_rows(SCENE, rows)
    left, real, last = find_images(SCENE)
    for image, wanted in ((left, rows["left"]), (real, rows["pair"][0]), (last, rows["pair"][1])):
        torch.testing.assert_close(flat[:, image.start : image.stop].view(4, *image.shape), wanted.float())
    assert [i.scale for i in (left, real, last)] == [1 / 255, 1.0, 1 / 255]
    assert find_images(spaces.Box(0, 255, (4, 4, 1), np.float32))[0].scale == 1 / 255
    assert find_images(SPEED) == find_images(spaces.Box(0, 1, (4, 4))) == []


def test_the_encoder_keeps_all_else_and_shows_each_image_to_its_convolutions() -> None:
    torch.manual_seed(0)
    rows = rows_of(SCENE, 4)
    encoder = ImageEncoder(flat_size(SCENE), find_images(SCENE), ModelConfig(conv_filters=[[2, 3, 2]]))
    out = encoder(flatten_rows(SCENE, rows))
    assert out.shape == (4, encoder.out_features)
    of_bytes, of_real = encoder.convolutions

    def seen(layers: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return layers(images.movedim(-1, 1)).flatten(1)

    others = torch.cat([nn.functional.one_hot(rows["gear"], 3), rows["speed"]], -1)
    wanted = [
        others,  # the Dict's order is gear, left, pair, speed
        seen(of_bytes, rows["left"] / 255),
        seen(of_bytes, rows["pair"][1] / 255),
        seen(of_real, rows["pair"][0]),
    ]
    torch.testing.assert_close(out, torch.cat(wanted, -1))
    in_time = encoder(flatten_rows(SCENE, rows).view(2, 2, -1))
    torch.testing.assert_close(in_time, out.view(2, 2, -1))
    assert encoder(torch.zeros(0, flat_size(SCENE))).shape == (0, encoder.out_features)


def build(kind: type, obs: spaces.Space, **model_config: Any) -> Any:
    torch.manual_seed(0)
    settings = {"fcnet_hiddens": [8], "head_gain": 1.0, **model_config}
    return RLModuleSpec(kind, obs, spaces.Discrete(3), model_config=settings).build()


@pytest.mark.parametrize("space", [BYTES, SCENE], ids=["image", "beside others"])
def test_an_actor_learns_from_images_and_loads_exactly(space: spaces.Space) -> None:
    actor, other = build(Actor, space), build(Actor, space)
    out = actor.forward_train({Columns.OBS: rows_of(space, 5)})[Columns.ACTION_DIST_INPUTS]
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.network.parameters())
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other.set_state(actor.get_state())
    batch = {Columns.OBS: rows_of(space, 5)}
    results = [m.forward_inference(batch)[Columns.ACTION_DIST_INPUTS] for m in (actor, other)]
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="not of this network"):
        build(Actor, space, conv_filters=[[5, 3, 2]]).set_state(actor.get_state())


def test_an_actor_that_remembers_sees_images_too() -> None:
    """A sequence of three is three steps of one."""
    actor = build(Actor, SCENE, use_gru=True, lstm_cell_size=4)
    rows, state = rows_of(SCENE, 3), {k: v[None] for k, v in actor.get_initial_state().items()}
    whole = actor.forward_train({Columns.OBS: tree.map_structure(lambda x: x[None], rows), STATE_IN: state})
    for t in range(3):
        now = tree.map_structure(lambda x, t=t: x[None, t : t + 1], rows)
        step = actor.forward_train({Columns.OBS: now, STATE_IN: state})
        state = step[Columns.STATE_OUT]
        torch.testing.assert_close(
            step[Columns.ACTION_DIST_INPUTS][:, 0], whole[Columns.ACTION_DIST_INPUTS][:, t]
        )


def test_without_images_nothing_changes() -> None:
    assert "network.0.weight" in build(Actor, SPEED).state_dict()
    assert not any(isinstance(m, ImageEncoder) for m in build(Actor, SPEED).modules())
    assert any(isinstance(m, ImageEncoder) for m in build(Actor, BYTES).modules()), "control"


def test_an_image_may_be_flattened() -> None:
    encoder = ImageEncoder(flat_size(BYTES), find_images(BYTES), ModelConfig(conv_filters=[]))
    rows = rows_of(BYTES, 3)
    wanted = (rows / 255).movedim(-1, 1).flatten(1)
    torch.testing.assert_close(encoder(flatten_rows(BYTES, rows)), wanted)


def test_a_filter_has_three_numbers() -> None:
    with pytest.raises(ValueError, match=r"\[16, 4\].*\[channels, kernel, stride\]"):
        ModelConfig(conv_filters=[[16, 4]])


def team_of(state: spaces.Space | None) -> Team:
    agents = ("eye", "ear", "eyes")
    return Team(
        agents=agents,
        observation_spaces={"eye": BYTES, "ear": SPEED, "eyes": SCENE},
        action_spaces=dict.fromkeys(agents, spaces.Discrete(3)),
        state_space=state,
        module_of={a: a for a in agents},
    )


@pytest.mark.parametrize("state", [None, spaces.Box(0, 255, (9, 7, 2), np.float32)], ids=["joint", "state"])
def test_the_critic_sees_the_images_of_the_state_or_of_everyone(state: spaces.Space | None) -> None:
    team = team_of(state)
    fragment = make_fragment(5, team=team, present=0.6)
    if state is not None:
        images = np.random.default_rng(0).integers(256, size=(6, 9, 7, 2)).astype(np.float32)
        fragment = dataclasses.replace(fragment, state=images)
    connector = JointBatchConnector(team, "shared", "cpu", "arena")
    states = JointBatch.of(connector(rl_module=None, batch={}, episodes=[fragment])).states
    found = state_images(team)
    if fragment.state is not None:
        wanted = [fragment.state]
    else:
        wanted = [fragment.obs["eye"], fragment.obs["eyes"]["left"], *fragment.obs["eyes"]["pair"]]
    assert len(found) == len(wanted)
    for image, rows in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(states[:, image.start : image.stop].view(6, *image.shape), rows)
    width = spaces.Box(-np.inf, np.inf, (state_size(team),), np.float32)
    critic = build(Critic, width, **{IMAGES: found})
    values = critic.normalised_values(states)
    assert values.shape == (6,)
    values.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.network[0].parameters())


def test_a_critic_that_remembers_sees_images_too() -> None:
    """A sequence of three is three steps of one, and the images count."""
    images = state_images(team_of(None))
    width = state_size(team_of(None))
    config = {IMAGES: images, "use_gru": True, "lstm_cell_size": 4}
    critic = build(Critic, spaces.Box(-np.inf, np.inf, (width,), np.float32), **config)
    generator = torch.Generator().manual_seed(0)
    states = torch.rand(1, 3, width, generator=generator) * 255
    state = {part: zeros[None] for part, zeros in critic.get_initial_state().items()}
    whole, after = critic.unroll(states, state)
    for t in range(3):
        value, state = critic.unroll(states[:, t : t + 1], state)
        torch.testing.assert_close(value[:, 0], whole[:, t])
    torch.testing.assert_close(state, after)
    changed = states.clone()
    changed[0, 0, images[0].start : images[0].stop] = 0
    others, _ = critic.unroll(
        changed, {part: zeros[None] for part, zeros in critic.get_initial_state().items()}
    )
    assert (others - whole).abs().min() > 1e-6, "what was seen first is forgotten"
