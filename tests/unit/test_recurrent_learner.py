"""Recurrent policies and critics on fragments, against explicit loops over time steps in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tree
from fragments import TEAM, make_fragment
from gymnasium import spaces
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from recurrent_cells import CELLS
from torch import Tensor

from rllib_haml.haml import Evaluation, JointRows, KLBall, MirrorStep, NoDrift, Player
from rllib_haml.haml.flat import flat_gradient, split_like
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.connector import JointBatchConnector
from rllib_haml.learners.critic_memory import CriticMemory
from rllib_haml.learners.module_policy import RecurrentPolicy
from rllib_haml.learners.sequences import common_seq_len
from rllib_haml.learners.state_values import RecurrentStateValues
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.critic import Critic
from rllib_haml.modules.encoders import flatten_rows
from rllib_haml.sampling.fragment import JointFragment, in_batch_order

SIZE, LENGTHS = 4, (5, 1, 9, 6, 12)
MODEL = {"lstm_cell_size": SIZE, "fcnet_hiddens": [6], "head_gain": 1.0, "max_seq_len": 3}
KINDS = ["use_gru", "use_lstm"]


def fragments(kind: str, present: float = 0.7) -> list[JointFragment]:
    """Of a team whose `hands` are two agents with dictionaries of observations and masks; some begin late."""
    rng = np.random.default_rng(0)
    parts = ("h", "c") if kind == "use_lstm" else ("h",)

    def state() -> dict[str, np.ndarray]:
        return {part: rng.normal(size=SIZE).astype(np.float32) for part in parts}

    return in_batch_order(
        [
            make_fragment(
                n,
                i,
                present=present,
                masked=("left", "right"),
                source=(0, i),
                env_t=3 * i,
                actor_state={a: state() for a in TEAM.agents},
            )
            for i, n in enumerate(LENGTHS)
        ]
    )


def double(value: Any) -> Any:
    return tree.map_structure(lambda x: x.double() if x.is_floating_point() else x, value)


def batch_of(made: list[JointFragment], kind: str = "use_lstm") -> JointBatch:
    connector = JointBatchConnector(TEAM, "shared", "cpu", "arena")
    modules = {module_id: actor(kind, module_id) for module_id in ("boss", "hands")}
    modules["zed"] = None
    return JointBatch.of(connector(rl_module=modules, batch={}, episodes=made))


def actor(kind: str, module_id: str) -> Any:
    torch.manual_seed(2)
    agent = TEAM.members()[module_id][0]
    made = Actor(
        observation_space=TEAM.observation_spaces[agent],
        action_space=TEAM.action_spaces[agent],
        model_config={kind: True} | MODEL,
    ).double()
    return disturb(made, 0.3)


def disturb(module: Any, by: float) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def policy_of(module: Any, module_id: str, joint: JointBatch, max_seq_len: int = 3) -> RecurrentPolicy:
    return RecurrentPolicy(
        module,
        columns=double(joint.policies[module_id]),
        parameters=list(module.parameters()),
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        joint=joint,
        max_seq_len=max_seq_len,
    )


def by_hand(
    module: Any,
    kind: str,
    module_id: str,
    made: list[JointFragment],
    *,
    starts: dict[tuple[int, Any, int], Any] | None = None,
    max_seq_len: int = 3,
) -> tuple[dict[tuple[int, int], tuple[Tensor, Tensor]], dict[tuple[int, Any, int], Any]]:
    """Per (agent, row) log-probability and distribution inputs, and the state met at each sequence's begin.

    With `starts` the state there is replaced by that one, as truncated backpropagation does.
    """
    found, met, first = {}, {}, 0
    agents = TEAM.members()[module_id]
    for f, fragment in enumerate(made):
        for k, agent in enumerate(agents):
            state = {part: torch.tensor(x).double() for part, x in fragment.actor_state[agent].items()}
            for t in range(len(fragment)):
                if t % max_seq_len == 0:
                    met[f, agent, t] = {part: value.detach() for part, value in state.items()}
                    state = state if starts is None else starts[f, agent, t]
                if not fragment.active[agent][t]:
                    continue

                def now(x: np.ndarray, t: int = t) -> Tensor:
                    return double(torch.as_tensor(x[t])[None])

                obs = tree.map_structure(now, fragment.obs[agent])
                x = module.network(flatten_rows(TEAM.observation_spaces[agent], obs).double())[0]
                state = CELLS[kind](module.memory, x, state)
                mask = fragment.action_mask.get(agent)
                inputs = module.head(
                    module.output(module.memory.norm(state["h"]))[None], None if mask is None else now(mask)
                )
                distribution = module.get_train_action_dist_cls()(inputs)
                logp = distribution.logp(tree.map_structure(now, fragment.actions[agent]))
                found[k, first + t] = logp[0], inputs[0]
        first += len(fragment)
    return found, met


def assert_equal(got: Evaluation, expected: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> None:
    assert len(expected) > 15
    for (k, row), (logp, inputs) in expected.items():
        torch.testing.assert_close(got.log_prob[k, row], logp, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.parameters[k, row], inputs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("module_id", ["boss", "hands"])
@pytest.mark.parametrize("kind", KINDS)
def test_policies_read_fragments_as_a_loop_does(kind: str, module_id: str) -> None:
    """From the recorded states, past absent rows, under new weights too."""
    made = fragments(kind)
    module = actor(kind, module_id)
    policy = policy_of(module, module_id, batch_of(made, kind))
    with torch.no_grad():
        assert_equal(policy.evaluate(slice(None)), by_hand(module, kind, module_id, made)[0])
        disturb(module, 0.1)
        after = policy.evaluate(slice(None))
        assert_equal(after, by_hand(module, kind, module_id, made)[0])
        for fragment in made:
            fragment.actor_state[TEAM.members()[module_id][0]]["h"] += 1
        wrong = by_hand(module, kind, module_id, made)[0]
        key = next(key for key in wrong if key[0] == 0)
        assert abs(wrong[key][0] - after.log_prob[key]) > 1e-4, "control: the recorded state matters"
    absent = ~policy.active
    assert absent.any()
    assert not after.log_prob[absent].any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_truncated_backpropagation(kind: str) -> None:
    """Sequences begin with the states of the weights before the move, also when these have moved."""
    made = fragments(kind)
    module = actor(kind, "hands")
    joint = batch_of(made, kind)
    policy = policy_of(module, "hands", joint)
    policy.evaluate(slice(None))
    starts = by_hand(module, kind, "hands", made)[1]
    disturb(module, 0.1)
    weight = torch.randn(2, len(joint.row), dtype=torch.float64)

    def gradient(found: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> Tensor:
        terms = torch.stack([weight[key] * logp for key, (logp, _) in found.items()])
        return flat_gradient(terms.sum(), policy.parameters())

    got = policy.evaluate(slice(None))
    truncated = by_hand(module, kind, "hands", made, starts=starts)[0]
    assert_equal(got, truncated)
    surrogate = (weight * got.log_prob)[policy.active].sum()
    expected = gradient(truncated)
    torch.testing.assert_close(flat_gradient(surrogate, policy.parameters()), expected, rtol=1e-8, atol=1e-9)
    whole = gradient(by_hand(module, kind, "hands", made)[0])
    assert (whole - expected).norm() > 1e-2 * expected.norm(), "control: all the way back is another one"


@pytest.mark.parametrize("kind", KINDS)
def test_minibatches_hold_whole_sequences(kind: str) -> None:
    joint = batch_of(fragments(kind), kind)
    policy = policy_of(actor(kind, "hands"), "hands", joint)
    units = joint.unit_begins(3)[~joint.last].long().cumsum(0) - 1
    assert units.bincount().tolist() == [3, 2, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3], "of 5, 1, 9, 6 and 12 rows"
    whole, seen = policy.evaluate(slice(None)), []
    for part in JointRows(joint.row, len(joint.row), units=units).minibatches(7, 0):
        got = policy.evaluate(part)
        torch.testing.assert_close(got.log_prob, whole.log_prob[:, part])
        torch.testing.assert_close(got.parameters, whole.parameters[:, part])
        seen += torch.as_tensor(part).tolist()
    assert sorted(seen) == list(range(len(joint.row)))


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_present_policy_every_ratio_is_one(kind: str) -> None:
    policy = policy_of(actor(kind, "boss"), "boss", batch_of(fragments(kind), kind))
    with torch.no_grad():
        before = policy.evaluate(slice(None))
    assert torch.equal(policy.evaluate(slice(None)).log_prob, before.log_prob)


def test_a_learner_without_rows_evaluates_nothing() -> None:
    joint = batch_of([])
    policy = policy_of(actor("use_lstm", "hands"), "hands", joint)
    got = policy.evaluate(slice(None))
    assert got.log_prob.shape == (2, 0)
    assert flat_gradient(got.log_prob.sum(), policy.parameters()).abs().sum() == 0


def test_a_fragment_without_states_begins_with_the_initial_one() -> None:
    states = batch_of([make_fragment(4)], "use_gru").policies["hands"]["state_in"]
    assert states["h"].shape == (1, 2, SIZE)
    assert not states["h"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_and_the_kl_ball(kind: str) -> None:
    joint = batch_of(fragments(kind), kind)
    policy = policy_of(actor(kind, "boss"), "boss", joint)
    rows = JointRows.whole(len(joint.row))
    advantage = torch.randn(len(joint.row), dtype=torch.float64)
    with torch.no_grad():
        before = policy.evaluate(slice(None))
    player = Player(policy, NoDrift(), KLBall(0.01))
    step = MirrorStep(player, torch.ones_like(advantage), advantage, before, rows, (0,))
    parameters = policy.parameters()
    direction = torch.randn(sum(p.numel() for p in parameters), dtype=torch.float64)

    def slope(create_graph: bool = False) -> Tensor:
        return flat_gradient(step.kl(policy.evaluate(slice(None))), parameters, create_graph=create_graph)

    product = flat_gradient(slope(create_graph=True) @ direction, parameters)
    sides = []
    for by in (1e-5, -2e-5):
        with torch.no_grad():
            for p, d in zip(parameters, split_like(by * direction, parameters), strict=True):
                p.add_(d)
        sides.append(slope())
    with torch.no_grad():
        for p, d in zip(parameters, split_like(1e-5 * direction, parameters), strict=True):
            p.add_(d)
    torch.testing.assert_close(product, (sides[0] - sides[1]) / 2e-5, rtol=1e-4, atol=1e-6)
    report = player.neighbourhood.maximise(step)
    assert report["line_search_accepted"] == 1
    assert 0 < report["kl"] <= 0.01
    assert report["objective_gain"] > 0


def critic(kind: str, size: int) -> Any:
    torch.manual_seed(3)
    made = Critic(
        observation_space=spaces.Box(-1, 1, (size,), np.float32),
        action_space=spaces.Discrete(1),
        model_config={kind: True} | MODEL,
    ).double()
    return disturb(made, 0.3)


def values_by_hand(module: Any, kind: str, states: Tensor, state: Any) -> tuple[Tensor, Any]:
    """(T,) values of (T, D) states, and the recurrent state before the last of them."""
    values, before = [], state
    for x in states:
        before, state = state, CELLS[kind](module.memory, module.network(x), state)
        values.append(module.output(module.memory.norm(state["h"]))[0])
    return torch.stack(values), before


@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_reads_fragments_as_a_loop_does(kind: str) -> None:
    made = fragments(kind)
    joint = batch_of(made, kind)
    module = critic(kind, joint.states.shape[1])
    first = {p: torch.randn(len(made), SIZE, dtype=torch.float64) for p in module.get_initial_state()}
    values = RecurrentStateValues(module, joint, first, 3)
    states, after = joint.states.double(), values.after_last_step()
    for f in range(len(made)):
        mine = joint.fragment == f
        expected, before_last = values_by_hand(
            module, kind, states[mine], {p: x[f] for p, x in first.items()}
        )
        torch.testing.assert_close(values.before[mine], expected, rtol=1e-9, atol=1e-9)
        for part, value in before_last.items():
            torch.testing.assert_close(after[part][f], value, rtol=1e-9, atol=1e-9)
    part = torch.tensor([0, 1, 2, 6, 7, 8])
    torch.testing.assert_close(values.of_steps(part), values.before[~joint.last][part])


@pytest.mark.parametrize("kind", KINDS)
def test_the_critics_gradients_are_truncated(kind: str) -> None:
    joint = batch_of([make_fragment(8, 4)], kind)
    module = critic(kind, joint.states.shape[1])
    start = {p: torch.zeros(SIZE, dtype=torch.float64) for p in module.get_initial_state()}
    values = RecurrentStateValues(module, joint, {p: x[None] for p, x in start.items()}, 3)
    states = joint.states.double()
    with torch.no_grad():
        starts = [start, *(values_by_hand(module, kind, states[: t + 1], start)[1] for t in (3, 6))]
    disturb(module, 0.1)
    pieces = [
        values_by_hand(module, kind, states[t : t + 3], s)[0] for t, s in zip((0, 3, 6), starts, strict=True)
    ]
    parameters, weight = list(module.parameters()), torch.randn(8, dtype=torch.float64)
    got = flat_gradient(weight @ values.of_steps(slice(None)), parameters)
    expected = flat_gradient(weight @ torch.cat(pieces)[:8], parameters)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
    whole = flat_gradient(weight @ values_by_hand(module, kind, states[:8], start)[0], parameters)
    assert (whole - expected).norm() > 1e-2 * expected.norm(), "control: all the way back is another one"


def test_the_critic_goes_on_where_the_episode_was_cut(caplog: pytest.LogCaptureFixture) -> None:
    """Two fragments of an episode in two batches are read as one, on any learner, after a restart too."""
    whole = make_fragment(11, 7, episode_id="long")
    other = make_fragment(4, 8, episode_id="other", source=(0, 1))
    joint = batch_of([whole])
    module = critic("use_lstm", joint.states.shape[1])
    memory = CriticMemory(module.get_initial_state())
    expected = RecurrentStateValues(module, joint, memory.recall(joint), 3).before

    first = batch_of(in_batch_order([whole[:5], other]))
    values = RecurrentStateValues(module, first, memory.recall(first), 3)
    torch.testing.assert_close(values.before[:6], expected[:6])
    memory.keep(first, values.after_last_step(), JointRows.whole(len(first.row)))
    assert "mid-episode" not in caplog.text
    ends = sorted(zip(first.episode.tolist(), (5, 4), strict=True))
    assert sorted(map(tuple, memory.get_state()["keys"].tolist())) == ends, "of these two, and no others"
    restored = CriticMemory(module.get_initial_state())
    restored.set_state(memory.get_state())
    for held in (memory, restored):
        second = batch_of(in_batch_order([whole[5:]]))
        values = RecurrentStateValues(module, second, held.recall(second), 3)
        torch.testing.assert_close(values.before, expected[5:])
        assert "mid-episode" not in caplog.text
    unknown = batch_of([whole[6:]])
    values = RecurrentStateValues(module, unknown, memory.recall(unknown), 3)
    assert (values.before - expected[6:]).abs().max() > 1e-3, "control: without its state it reads otherwise"
    assert "1 fragments in mid-episode" in caplog.text


def test_all_recurrent_modules_have_one_sequence_length() -> None:
    """RLlib's default where the config says none; those without memory have no say."""

    def made(**model: Any) -> Any:
        return Actor(observation_space=TEAM.observation_spaces["boss"],
                     action_space=TEAM.action_spaces["boss"], model_config=model)  # fmt: skip

    plain, usual = made(max_seq_len=7), made(use_lstm=True)
    five, six = made(use_gru=True, max_seq_len=5), made(use_lstm=True, max_seq_len=6)
    assert common_seq_len({"a": plain}) is None
    assert common_seq_len({"a": plain, "b": usual}) == DefaultModelConfig().max_seq_len
    assert common_seq_len({"a": five, "b": five, "c": plain}) == 5
    with pytest.raises(ValueError, match=r"max_seq_len differs, {'a': 5, 'b': 6}"):
        common_seq_len({"a": five, "b": six, "c": plain})
