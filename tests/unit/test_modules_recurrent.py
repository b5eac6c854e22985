"""Networks that remember, against cells by hand and torch's own layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tree
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from recurrent_cells import CELLS
from torch import Tensor, nn

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.critic import Critic
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.modules.recurrent import GRU, LSTM, Memory, with_memory
from rllib_haml.modules.team import TeamModule

KINDS = {"use_gru": GRU, "use_lstm": LSTM}
BOX = spaces.Box(-1, 1, (3,), np.float32)
VIEW = spaces.Dict({"cell": spaces.Discrete(3), "far": BOX})


def memory(kind: str, inputs: int = 5, size: int = 4) -> Memory:
    torch.manual_seed(0)
    made = KINDS[kind](inputs, size, layer_norm=False, orthogonal_init=False).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def random_state(made: Memory, rows: int) -> dict[str, Tensor]:
    return {part: torch.randn(rows, made.size, dtype=torch.float64) for part in made.parts}


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_equals_its_cell_by_hand(kind: str) -> None:
    made = memory(kind)
    x, before = torch.randn(2, 7, 5, dtype=torch.float64), random_state(made, 2)
    out, after = made(x, before)
    for b in range(2):
        state = {part: value[b] for part, value in before.items()}
        for t in range(7):
            state = CELLS[kind](made, x[b, t], state)
            torch.testing.assert_close(out[b, t], state["h"], rtol=1e-12, atol=1e-14)
        for part, value in state.items():
            torch.testing.assert_close(after[part][b], value, rtol=1e-12, atol=1e-14)
    other = made(x, {part: value + 1 for part, value in before.items()})[0]
    assert (out - other).abs().max() > 1e-2, "control: the state before matters"


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_equals_torchs_layer_with_its_weights(kind: str) -> None:
    made = memory(kind)
    layer: Any = {"use_gru": nn.GRU, "use_lstm": nn.LSTM}[kind](5, 4, batch_first=True).double()
    parameters = (
        made.input_gates.weight,
        made.hidden_gates.weight,
        made.input_gates.bias,
        made.hidden_gates.bias,
    )
    with torch.no_grad():
        for own, value in zip(layer.parameters(), parameters, strict=True):
            own.copy_(value)
    x, before = torch.randn(2, 7, 5, dtype=torch.float64), random_state(made, 2)
    given: Any = tuple(before[part][None] for part in made.parts)
    torch.testing.assert_close(made(x, before)[0], layer(x, given if len(given) > 1 else given[0])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_has_second_derivatives(kind: str) -> None:
    made = memory(kind, 2, 2)
    x = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    before = random_state(made, 1)
    assert torch.autograd.gradgradcheck(lambda v: made(v, before)[0], x)


def test_a_memorys_output_is_normalised_where_hidden_layers_are() -> None:
    for norm in (True, False):
        network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        config = ModelConfig(use_gru=True, lstm_cell_size=4, hidden_layer_norm=norm)
        trunk, made, output = with_memory(network, config, 0.01)
        assert made is not None
        assert output is not None
        assert [type(layer) for layer in trunk] == [nn.Linear, nn.ReLU]
        assert (output.in_features, output.out_features) == (4, 2)
        out = made(trunk(torch.randn(5, 6, 3)), {"h": torch.zeros(5, 4)})[0]
        assert (out.mean(-1).abs().max() < 1e-5) == norm
        product = output.weight @ output.weight.mT
        torch.testing.assert_close(product, 1e-4 * torch.eye(2), atol=1e-7, rtol=0)


def actor(kind: str, space: spaces.Space, **model: Any) -> Actor:
    torch.manual_seed(1)
    config = {kind: True, "lstm_cell_size": 4, "fcnet_hiddens": [6], "head_gain": 1.0} | model
    return Actor(observation_space=space, action_space=spaces.Discrete(3), model_config=config)


def sequences(rows: int, steps: int) -> dict[str, Tensor]:
    return {"cell": torch.randint(3, (rows, steps)), "far": torch.randn(rows, steps, 3)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_actor_step_by_step_equals_an_actor_all_at_once(kind: str) -> None:
    made, obs = actor(kind, VIEW), sequences(4, 6)
    mask = torch.rand(4, 6, 3) < 0.8
    state = {k: v.expand(4, -1) for k, v in made.get_initial_state().items()}
    whole = made.forward_train({Columns.OBS: obs, Columns.STATE_IN: state, "action_mask": mask})
    for t in range(6):
        now = {key: value[:, t : t + 1] for key, value in obs.items()}
        batch = {Columns.OBS: now, Columns.STATE_IN: state, "action_mask": mask[:, t : t + 1]}
        out = made.forward_exploration(batch)
        state = out[Columns.STATE_OUT]
        torch.testing.assert_close(
            out[Columns.ACTION_DIST_INPUTS][:, 0], whole[Columns.ACTION_DIST_INPUTS][:, t]
        )
    for part, value in state.items():
        torch.testing.assert_close(value, whole[Columns.STATE_OUT][part])


def test_an_actor_is_recurrent_if_asked() -> None:
    assert actor("use_gru", VIEW).is_stateful()
    assert actor("use_lstm", VIEW).is_stateful()
    assert not actor("use_gru", VIEW, use_gru=False).is_stateful()


@pytest.mark.parametrize("critic_is_recurrent", [True, False])
def test_the_critic_remembers_as_the_actors_do_or_not(critic_is_recurrent: bool) -> None:
    config = {"use_lstm": True, "lstm_cell_size": 4, "fcnet_hiddens": [6], "use_value_norm": False}
    config["critic_is_recurrent"] = critic_is_recurrent
    made = Critic(observation_space=BOX, action_space=spaces.Discrete(1), model_config=config)
    assert made.is_stateful() == critic_is_recurrent
    states = torch.randn(2, 5, 3)
    if critic_is_recurrent:
        before = {part: torch.zeros(2, 4) for part in ("h", "c")}
        values, after = made.unroll(states, before)
        assert values.shape == (2, 5)
        assert {part: value.shape for part, value in after.items()} == {"h": (2, 4), "c": (2, 4)}
    else:
        assert made.normalised_values(states[:, 0]).shape == (2,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"use_lstm": True, "use_gru": True}, "choose one"),
        ({"max_seq_len": 0}, "max_seq_len: given 0"),
        ({"lstm_cell_size": 0}, "lstm_cell_size: given 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(wrong)


def obs_space(width: int) -> spaces.Box:
    return spaces.Box(-1, 1, (width,), np.float32)


PLAYERS = {
    "unequal lengths": {"a": (obs_space(3), BOX), "b": (obs_space(5), BOX), "c": (obs_space(3), BOX)},
    "choosers and trees": {
        "a": (VIEW, spaces.Discrete(3)),
        "b": (VIEW, spaces.Discrete(3)),
        "c": (BOX, spaces.Discrete(3)),
    },
}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", PLAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_of_actors_remembers_as_each_of_them(kind: str, name: str, norm: bool) -> None:
    """Several steps of `TeamModule.act`; one agent's actor is a class of its own and acts alone."""

    class Own(Actor):
        """Not stacked."""

    torch.manual_seed(4)
    model = {
        kind: True,
        "lstm_cell_size": 4,
        "fcnet_hiddens": [6],
        "head_gain": 1.0,
        "hidden_layer_norm": norm,
    }
    specs = {
        agent: RLModuleSpec(Own if agent == "c" else Actor, *spaces_of, model_config=model)  # pyright: ignore
        for agent, spaces_of in PLAYERS[name].items()
    }
    team: Any = MultiRLModuleSpec(multi_rl_module_class=TeamModule, rl_module_specs=specs).build()
    with torch.no_grad():
        for parameter in (p for part in team.values() for p in part.parameters()):
            parameter += 0.3 * torch.randn_like(parameter)
    team.refresh({agent: agent for agent in specs})
    assert len(team._stacks) == 1
    states = {a: {k: np.zeros((2, 4), np.float32) for k in s} for a, s in team.initial_states().items()}
    assert list(states) == ["a", "b", "c"]
    for step in range(3):
        obs = {}
        for i, (agent, (space, _)) in enumerate(PLAYERS[name].items()):
            batch = batch_space(space, 2)
            batch.seed(10 * step + i)
            obs[agent] = batch.sample()
        action = team.act(obs, {}, states, generator=torch.Generator().manual_seed(0), explore=True)
        for agent, module in team.items():
            one = tree.map_structure(lambda x: torch.as_tensor(x)[:, None], obs[agent])
            out = module.forward_train({Columns.OBS: one, Columns.STATE_IN: tensors(states[agent])})
            kind_of = module.get_train_action_dist_cls()
            distribution = kind_of.from_logits(out[Columns.ACTION_DIST_INPUTS][:, 0])
            expected = distribution.logp(torch.as_tensor(action.actions[agent]))
            np.testing.assert_allclose(action.logp[agent], expected.detach(), rtol=1e-4, atol=1e-5)
            for part, value in out[Columns.STATE_OUT].items():
                np.testing.assert_allclose(action.state[agent][part], value.detach(), rtol=1e-4, atol=1e-5)
        states = action.state


def test_memories_with_and_without_a_norm_are_no_one_stack() -> None:
    """They differ in nothing else: without hidden layers, no other norm is there."""
    specs = {
        agent: RLModuleSpec(
            Actor, BOX, BOX, model_config={"use_gru": True, "fcnet_hiddens": [], "hidden_layer_norm": norm}
        )
        for agent, norm in (("a", True), ("b", False), ("c", True))
    }
    team: Any = MultiRLModuleSpec(multi_rl_module_class=TeamModule, rl_module_specs=specs).build()
    team.refresh({agent: agent for agent in specs})
    assert [stack.agents for stack in team._stacks] == [("a", "c"), ("b",)]


def tensors(value: Any) -> Any:
    return tree.map_structure(torch.as_tensor, value)


def test_a_recurrent_actor_and_critic_see_images() -> None:
    image = spaces.Box(0, 255, (12, 12, 1), np.uint8)
    made = actor("use_gru", image)
    pixels = torch.randint(256, (2, 5, 12, 12, 1), dtype=torch.uint8)
    out = made.forward_train({Columns.OBS: pixels, Columns.STATE_IN: {"h": torch.zeros(2, 4)}})
    assert out[Columns.ACTION_DIST_INPUTS].shape == (2, 5, 3)
