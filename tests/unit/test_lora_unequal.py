"""Adapters of agents whose spaces are narrower than the backbone's: the leading part of it, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from lora_teams import NETWORKS, outputs, perturb
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from test_lora_adapter import bytes_of

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import BACKBONE, Adapter
from rllib_haml.modules.adapter_drift import audit_adapters
from rllib_haml.modules.adapter_files import export_adapter, import_adapter
from rllib_haml.modules.adapter_fit import trimmed
from rllib_haml.modules.leading import is_leading, leading, widest
from rllib_haml.modules.lora_config import LoRAConfig
from rllib_haml.modules.team import TeamModule

OBS_WIDTHS, SIZES = (7, 4, 7), (2, 3, 5)


def box(width: int, high: float = 1.0) -> spaces.Box:
    return spaces.Box(-high, high, (width,), np.float32)


def action_space(head: str, size: int) -> spaces.Space:
    return box(size) if head == "box" else spaces.Discrete(size)


def whole(head: str = "box", network: str = "mlp", **changes: Any) -> Actor:
    torch.manual_seed(0)
    config = {"fcnet_hiddens": [10, 9], "head_gain": 1.0} | NETWORKS[network] | changes
    return Actor(
        observation_space=box(max(OBS_WIDTHS)),
        action_space=action_space(head, max(SIZES)),
        model_config=config,
    )


def adapter(backbone: Actor, i: int, moved: bool = True, **changes: Any) -> Adapter:
    """That of agent i."""
    torch.manual_seed(i)
    head = "box" if isinstance(backbone.action_space, spaces.Box) else "discrete"
    made = Adapter.over(
        backbone,
        LoRAConfig(r=2, lora_alpha=3),
        observation_space=box(OBS_WIDTHS[i]),
        action_space=action_space(head, SIZES[i]),
        **changes,
    )
    if moved:
        perturb(made, i)
    return made


def batch(module: Any, rows: int = 6) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    time = (5,) if module.is_stateful() else ()
    made: dict[str, Any] = {
        Columns.OBS: torch.randn(rows, *time, *module.observation_space.shape, generator=generator)
    }
    if time:
        state = module.get_initial_state()
        made[Columns.STATE_IN] = {
            part: torch.randn(rows, *zeros.shape, generator=generator) for part, zeros in state.items()
        }
    return made


def by_hand(backbone: Actor, narrow: Adapter) -> Actor:
    """The agent's own network, its every number copied by numpy from the corner of the backbone's."""
    actor = Actor(
        observation_space=narrow.observation_space,
        action_space=narrow.action_space,
        model_config=backbone.model_config,
    )
    big = {name: x.numpy() for name, x in backbone.state_dict().items()}
    state = {}
    for name, x in actor.state_dict().items():
        corner = np.zeros(tuple(x.shape), np.float32)
        for index in np.ndindex(*corner.shape):
            corner[index] = big[name][index]
        state[name] = corner
    actor.set_state(state)
    return actor


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("head", ["box", "discrete"])
def test_an_adapter_that_is_zero_is_the_leading_part(head: str, network: str) -> None:
    backbone = whole(head, network)
    for i in range(3):
        narrow = adapter(backbone, i, moved=False)
        inputs, alone = batch(narrow), by_hand(backbone, narrow)
        assert torch.equal(outputs(narrow, inputs), outputs(alone, inputs))
        perturb(narrow, i)
        assert (outputs(narrow, inputs) - outputs(alone, inputs)).abs().max() > 1e-2, "control: it moved"


def test_what_lies_beyond_the_leading_part_does_not_matter() -> None:
    backbone = whole()
    narrow = adapter(backbone, 1)
    inputs = batch(narrow)
    before = outputs(narrow, inputs).detach()
    first, last = backbone.network[1].weight, backbone.network[7].weight
    with torch.no_grad():
        first[:, 4:] += 1
        last[3:] += 1
    assert torch.equal(outputs(narrow, inputs), before)
    with torch.no_grad():
        first[0, 3] += 1
    assert not torch.equal(outputs(narrow, inputs), before), "control: within it, it does"


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_a_merged_policy_is_an_actor_in_the_agents_own_spaces(network: str) -> None:
    backbone = whole("discrete", network)
    narrow = adapter(backbone, 1)
    merged, inputs = narrow.merged(), batch(narrow)
    assert type(merged) is Actor
    assert (merged.observation_space, merged.action_space) == (box(4), spaces.Discrete(3))
    torch.testing.assert_close(outputs(merged, inputs), outputs(narrow, inputs), rtol=1e-6, atol=1e-6)
    expected = outputs(merged, inputs).detach()
    perturb(backbone, 5)
    assert torch.equal(outputs(merged, inputs), expected), "it shares nothing with the backbone"


@pytest.mark.parametrize("moved", [False, True], ids=["zero", "moved"])
def test_gradients_reach_the_leading_part_alone_and_only_if_it_trains(moved: bool) -> None:
    backbone = whole()
    resting, before = adapter(backbone, 1, moved), bytes_of(backbone)
    own, inputs = bytes_of(resting), batch(resting)
    optimizer = torch.optim.AdamW(resting.parameters(), lr=0.05, weight_decay=0.1)
    outputs(resting, inputs).square().sum().backward()
    optimizer.step()
    assert (bytes_of(backbone) == before, bytes_of(resting) == own) == (True, False)
    assert all(p.grad is None for p in backbone.parameters())
    training = adapter(backbone, 1, moved, train_backbone=True)
    outputs(training, inputs).square().sum().backward()
    shapes = {name: p.shape for name, p in training.base_weights().items()}
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        outside = parameter.grad.clone()
        inside = leading(outside, shapes[name])
        assert inside.any(), name
        inside.zero_()
        assert not outside.any(), name


def test_equal_spaces_give_the_backbones_own_tensors() -> None:
    backbone = whole()
    plain = Adapter.over(backbone, LoRAConfig(r=2), train_backbone=True)
    assert not plain.is_narrow
    assert all(plain.base_weights()[name] is p for name, p in backbone.named_parameters())
    assert adapter(backbone, 0).is_narrow, "control"
    views = adapter(backbone, 1, train_backbone=True).base_weights()
    assert all(views[name].data_ptr() == p.data_ptr() for name, p in backbone.named_parameters()), "no copies"


@pytest.mark.parametrize(
    "observation_space, action, changes",
    [
        (box(8), box(2), {}),
        (box(4), box(6), {}),
        (box(4), spaces.Discrete(2), {}),
        (spaces.Dict({"a": box(4)}), box(2), {}),
        (spaces.Box(-1, 1, (2, 2), np.float32), box(2), {}),
        (box(4), box(2), {"fcnet_hiddens": [10, 12]}),
        (box(4), box(2), {"fcnet_activation": "tanh"}),
    ],
)
def test_it_is_bound_only_to_what_it_is_a_part_of(observation_space: Any, action: Any, changes: Any) -> None:
    made = Adapter(
        observation_space=observation_space,
        action_space=action,
        model_config={"fcnet_hiddens": [10, 9], "head_gain": 1.0, "lora": {"r": 2}},
    )
    with pytest.raises(ValueError, match=r"made for another backbone.*wider spaces"):
        made.bind(whole(**changes))


@pytest.mark.parametrize("head", ["box", "discrete"])
def test_the_team_acts_as_its_adapters_do(head: str) -> None:
    """Merged and stacked, as the sampler has it: each agent's modes are those of its own forward."""
    config = {"fcnet_hiddens": [10, 9], "head_gain": 1.0}
    specs = {
        f"agent_{i}": RLModuleSpec(
            Adapter,
            box(OBS_WIDTHS[i]),
            action_space(head, SIZES[i]),
            model_config={**config, "lora": {"r": 2}},
        )
        for i in range(3)
    }
    specs[BACKBONE] = RLModuleSpec(Actor, box(7), action_space(head, 5), model_config=config)
    team: Any = MultiRLModuleSpec(multi_rl_module_class=TeamModule, rl_module_specs=specs).build()
    for seed, module in enumerate(team.values()):
        perturb(module, seed)
    agents = [name for name in specs if name != BACKBONE]
    team.refresh({name: name for name in agents})
    obs = {name: batch(team[name])[Columns.OBS].numpy() for name in agents}
    acted = team.act(obs, {}, {}, generator=torch.Generator(), explore=False)
    for name in agents:
        parameters = outputs(team[name], batch(team[name])).detach()
        mode, _ = team[name].get_inference_action_dist_cls().family.mode(parameters)
        np.testing.assert_allclose(acted.actions[name], mode.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_its_files_hold_the_part(tmp_path: Path, i: int) -> None:
    backbone = whole()
    narrow = adapter(backbone, i)
    inputs = batch(narrow)
    export_adapter(narrow, tmp_path)
    back = import_adapter(tmp_path, backbone, like=adapter(backbone, i))
    torch.testing.assert_close(outputs(back, inputs), outputs(narrow, inputs), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="does not hold what"):
        import_adapter(tmp_path, backbone, like=adapter(backbone, (i + 1) % 3))


def test_the_audit_compares_them_as_differences_of_the_backbone() -> None:
    backbone = whole()
    agents = {str(i): adapter(backbone, i) for i in range(3)}
    audit = audit_adapters(agents)
    vectors = []
    for i, narrow in enumerate(agents.values()):
        parts = []
        for name, parameter in backbone.named_parameters():
            padded = np.zeros(tuple(parameter.shape))
            delta = narrow.lora.deltas().get(name)
            if delta is not None:
                padded[tuple(slice(n) for n in delta.shape)] = delta.detach().numpy()
                if padded.ndim == 2:
                    own = parameter.detach().numpy()[tuple(slice(n) for n in delta.shape)]
                    ratio = np.linalg.norm(delta.detach().numpy()) / np.linalg.norm(own)
                    found = audit.relative_norm[i, audit.layers.index(name)]
                    assert found == pytest.approx(ratio, rel=1e-5)
            parts.append(padded.ravel())
        vectors.append(np.concatenate(parts))
    unit = np.stack([v / np.linalg.norm(v) for v in vectors])
    np.testing.assert_allclose(audit.cosine, unit @ unit.T, atol=1e-6)


@pytest.mark.parametrize("train_backbone", [False, True])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_what_is_trimmed_has_the_same_spaces_and_settings(i: int, train_backbone: bool) -> None:
    made = adapter(whole("discrete"), i, train_backbone=train_backbone)
    target = made.lora.targets[1]
    made.lora.truncate(target, 1)
    small = trimmed(made)
    assert small is not made
    assert (small.observation_space, small.action_space) == (made.observation_space, made.action_space)
    assert small.train_backbone == train_backbone
    assert {t.name: t.rank for t in small.lora.targets}[target.name] == 1
    batch = {Columns.OBS: torch.rand(4, OBS_WIDTHS[i])}
    torch.testing.assert_close(outputs(small, batch), outputs(made, batch))


def test_joining_agents_take_over_only_what_fits() -> None:
    backbone = whole()
    one, other = adapter(backbone, 0), adapter(backbone, 1)
    for how in ("copy", "mean"):
        with pytest.raises(ValueError, match=r"different parameters: head.log_std, network.1.weight"):
            one.start_from(how, [other])  # pyright: ignore[reportArgumentType]


def test_which_spaces_lead_which() -> None:
    assert widest([box(2), box(5), box(5, high=2.0)]) == box(5)
    assert widest([spaces.Discrete(3), spaces.Discrete(4)]) == spaces.Discrete(4)
    image = spaces.Box(0, 255, (4, 4, 3), np.uint8)
    assert widest([image, image]) == image
    assert not is_leading(spaces.Box(0, 255, (2, 4, 3), np.uint8), image)
    for unequal in (
        [box(2), spaces.Discrete(4)],
        [spaces.MultiDiscrete([2]), spaces.MultiDiscrete([2, 3])],
        [spaces.Discrete(2), spaces.Discrete(3, start=1)],
        [spaces.Dict({"a": box(2)}), spaces.Dict({"a": box(3)})],
    ):
        with pytest.raises(ValueError, match=r"neither of .* is the leading part of the other"):
            widest(unequal)
