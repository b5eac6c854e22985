"""A move that is not finite leaves no trace, and the sweep goes on with the others."""

from __future__ import annotations

import copy
import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from haml_policies import MakeOptimizer, Network, NetworkPolicy, Ranks, adam
from torch import Tensor

from rllib_haml.haml import (
    ClipDrift,
    Evaluation,
    Everywhere,
    FixedOrder,
    JointRows,
    KLBall,
    Move,
    Neighbourhood,
    NotFinite,
    Player,
    SweepResult,
    finite,
    sweep,
)
from rllib_haml.haml.finite import all_or_nothing, check_weights

STEPS = 40
EPOCHS = Everywhere(num_epochs=3)
BALL = KLBall(1e-4, accept_ratio=0.1)  # so small that the first step tried is accepted
NAMES = ("first", "second", "third")


@pytest.fixture(autouse=True)
def _nothing_else_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's distributions would refuse NaN themselves; this package's do not look."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)


@dataclass
class Poison:
    """Multiplies the `call`-th value that passes, counted from 0."""

    call: int
    by: float = float("nan")
    calls: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self, value: Tensor) -> Tensor:
        return value * self.by if next(self.calls) == self.call else value


class Policy(NetworkPolicy):
    """A network; the log-probabilities of its evaluations without gradient pass through `poison`."""

    poison: Callable[[Tensor], Tensor] = staticmethod(lambda value: value)

    def evaluate(self, rows: Any) -> Evaluation:
        new = super().evaluate(rows)
        return new if torch.is_grad_enabled() else replace(new, log_prob=self.poison(new.log_prob))


class Team:
    """Three Gaussian policies on one batch; `second` can be poisoned."""

    def __init__(
        self,
        names: tuple[str, ...] = NAMES,
        rows: np.ndarray | None = None,
        optimizer: MakeOptimizer | None = None,
    ):
        torch.manual_seed(0)
        networks = {name: Network(4, 2, gaussian=True) for name in NAMES}
        obs, action = torch.randn(STEPS, 4).double(), 0.4 * torch.randn(STEPS, 2).double()
        advantage = torch.randn(STEPS).double()
        self.mine = torch.arange(STEPS) if rows is None else torch.tensor(rows)
        self.advantage = advantage[self.mine]
        usual = adam(5e-3)
        self.policies = {
            name: Policy(
                copy.deepcopy(networks[name]),
                obs[self.mine],
                action[self.mine],
                optimizer=optimizer if optimizer and name == "second" else usual,
            )
            for name in names
        }
        self.drifts: dict[str, Any] = {name: ClipDrift(0.2) for name in names}

    def sweep(
        self, neighbourhood: Neighbourhood = EPOCHS, all_reduce: Callable[[Tensor], Tensor] | None = None
    ) -> SweepResult:
        players = {n: Player(p, self.drifts[n], neighbourhood) for n, p in self.policies.items()}
        rows = JointRows(self.mine, STEPS, **({"all_reduce": all_reduce} if all_reduce else {}))
        return sweep(players, lambda factor: self.advantage, order=FixedOrder(NAMES), rows=rows)

    def bits(self, name: str) -> bytes:
        """Weights and the optimizer's state of one policy."""
        policy = self.policies[name]
        moments = policy.optimizer.state_dict()["state"].values()
        tensors = [*policy.parameters(), *(v for state in moments for v in state.values())]
        return b"".join(t.detach().numpy().tobytes() for t in tensors)


def gradient(team: Team, call: int) -> None:
    """NaN in one tensor's gradient: of the first layer's bias."""
    bias = team.policies["second"].network.mlp.fc[0].bias
    bias.register_hook(Poison(call))


def loss(team: Team, call: int) -> None:
    """NaN from a drift of the user's own."""
    clip, poison = ClipDrift(0.2), Poison(call)

    def drift(move: Move) -> Tensor:
        return poison(clip(move))

    team.drifts["second"] = drift


def moved(team: Team, call: int) -> None:
    """NaN in the policy after its move; the ball's search has evaluated it once before, and accepted it."""
    team.policies["second"].poison = Poison(call)


CASES = [
    (EPOCHS, gradient, 2, "gradient"),
    (EPOCHS, loss, 2, "loss"),
    (EPOCHS, moved, 1, "log-probability"),
    (BALL, gradient, 0, "gradient"),
    (BALL, loss, 0, "loss"),
    (BALL, moved, 2, "log-probability"),
]
POISONED = pytest.mark.parametrize(
    "neighbourhood, poison, call, what", CASES, ids=lambda x: getattr(x, "__name__", type(x).__name__)
)


@POISONED
def test_the_poisoned_policy_stays_and_the_others_move(
    neighbourhood: Neighbourhood, poison: Callable[[Team, int], None], call: int, what: str
) -> None:
    """Bit for bit, after a clean sweep and in the third epoch: weights and moments as they were.

    The others end where they would without it: its ratio is one.
    """
    team, without = Team(), Team(("first", "third"))
    for each in (team, without):
        each.sweep(neighbourhood)
    # From here on both have the same policies, `first` and `third`.
    for name in ("first", "third"):
        without.policies[name] = copy.deepcopy(team.policies[name])
    before = {name: team.bits(name) for name in NAMES}
    poison(team, call)
    result = team.sweep(neighbourhood)
    expected = without.sweep(neighbourhood)
    assert team.bits("second") == before["second"]
    assert {name: fault.what for name, fault in result.faults.items()} == {"second": what}
    assert result.reports["second"] == {}
    for name in ("first", "third"):
        assert team.bits(name) == without.bits(name) != before[name]
    assert torch.equal(result.log_factor, expected.log_factor)


@pytest.mark.parametrize("poison", [gradient, loss, moved])
def test_control_without_the_guard_weights_or_ratio_become_nan(
    poison: Callable[[Team, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unguarded(step: Any) -> Any:
        report = step.player.neighbourhood.maximise(step)
        with torch.no_grad():
            return report, step.player.policy.evaluate(slice(None)), None

    monkeypatch.setattr(importlib.import_module("rllib_haml.haml.sweep"), "attempt", unguarded)
    monkeypatch.setattr("rllib_haml.haml.neighbourhood.check_gradient", lambda loss, flat, p: flat.norm())
    team = Team()
    poison(team, 1)
    result = team.sweep()
    unharmed = all(p.isfinite().all() for p in team.policies["second"].parameters())
    assert unharmed == (poison is moved)
    assert result.log_factor.isnan().any()


def test_weights_that_overflow_are_undone() -> None:
    """Finite gradients, and an optimizer that makes too much of them."""
    team = Team(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=float("inf")))
    before = team.bits("second")
    fault = team.sweep().faults["second"]
    assert team.bits("second") == before
    assert fault.what == "loss", "the next epoch's"
    fault = team.sweep(Everywhere(num_epochs=1)).faults["second"]
    assert fault.what == "weights"
    assert fault.parameter is team.policies["second"].parameters()[0]


def test_buffers_are_undone_only_after_a_fault() -> None:
    buffer, weight = torch.zeros(2), torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight])

    def become(value: float) -> None:
        with all_or_nothing([weight], optimizer, [buffer]):
            buffer[1] = value
            check_weights([weight, buffer])

    with pytest.raises(NotFinite) as caught:
        become(float("nan"))
    assert caught.value.parameter is buffer
    assert buffer.tolist() == [0, 0]
    become(3.0)
    assert buffer.tolist() == [0, 3]


def test_the_gradient_names_its_parameter() -> None:
    team = Team()
    gradient(team, 1)
    fault = team.sweep().faults["second"]
    assert fault.parameter is team.policies["second"].network.mlp.fc[0].bias


def test_what_was_given_is_named_not_the_network() -> None:
    team = Team()
    team.advantage[3] = float("nan")
    result = team.sweep()
    assert {fault.what for fault in result.faults.values()} == {"advantage"}
    assert set(result.faults) == set(NAMES)
    team = Team()
    team.policies["first"].poison = Poison(1, by=-1e4)  # the ratio overflows, the weights do not
    result = team.sweep()
    assert {n: f.what for n, f in result.faults.items()} == dict.fromkeys(
        NAMES[1:], "compound ratio of the policies before it"
    )


@POISONED
@pytest.mark.parametrize("rank", [0, 1])
def test_learners_agree_if_one_of_them_met_it(
    neighbourhood: Neighbourhood, poison: Callable[[Team, int], None], call: int, what: str, rank: int
) -> None:
    """Neither waits for the other, and both hold the same weights; as one learner alone would."""
    parts, ranks = (np.arange(25), np.arange(25, STEPS)), Ranks(2)
    teams = [Team(rows=part) for part in parts]
    before = teams[0].bits("second")
    poison(teams[rank], call)
    results = ranks.run(lambda r: teams[r].sweep(neighbourhood, ranks.all_reduce(r)))
    for team, result in zip(teams, results, strict=True):
        assert {name: fault.what for name, fault in result.faults.items()} == {"second": what}
        assert team.bits("second") == before
        assert team.bits("first") == teams[0].bits("first")
        assert team.bits("third") == teams[0].bits("third")


def test_one_look_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite step reads one number; entries are looked at after a fault only."""
    looks = 0
    plain = torch.Tensor.__float__

    def counted(self: Tensor) -> float:
        nonlocal looks
        looks += 1
        return plain(self)

    monkeypatch.setattr(torch.Tensor, "__float__", counted)
    parameters = [torch.zeros(5, 5), torch.zeros(5)]
    finite.check_gradient(torch.ones(()), torch.ones(30), parameters)
    assert looks == 1
    with pytest.raises(NotFinite):
        finite.check_gradient(torch.ones(()), torch.full((30,), torch.nan), parameters)
    assert looks > 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_entry_is_enough(value: float) -> None:
    """Infinities of both signs do not cancel; finite numbers whose sum overflows are finite."""
    tensor = torch.full((3, 4), 3e38)
    assert finite.all_finite(tensor)
    assert finite.all_finite(torch.zeros(0))
    assert finite.all_finite(torch.tensor([2**62, 2**62]))
    tensor[1, 2] = value
    assert not finite.all_finite(tensor)
    tensor[0, 0] = -value
    assert not finite.all_finite(tensor)
