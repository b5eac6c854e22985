"""Advantage estimation and value normalisation equal plain loops over float64 numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from haml_policies import Array, Ranks, apart
from torch import Tensor

from rllib_haml.haml import ValueNorm, gae

GAMMA, LAMBDA = 0.93, 0.8


@dataclass
class Piece:
    """One contiguous piece of an episode: T rewards, T + 1 values, and whether the last state is terminal."""

    reward: Array
    value: Array
    terminal: bool

    def advantages(self, terminal: bool | None = None) -> Array:
        """Σ_l (γλ)^l δ_{t+l}, as a double loop; `terminal` overrides what the piece says."""
        terminal = self.terminal if terminal is None else terminal
        length = len(self.reward)
        result = np.zeros(length)
        for t in range(length):
            for later in range(t, length):
                bootstrap = 0.0 if terminal and later == length - 1 else self.value[later + 1]
                delta = self.reward[later] + GAMMA * bootstrap - self.value[later]
                result[t] += (GAMMA * LAMBDA) ** (later - t) * delta
        return result


def pieces(seed: int = 0) -> list[Piece]:
    """Different lengths; every third ends in a terminal state, the others by a time limit or a cut."""
    rng = np.random.default_rng(seed)
    lengths = [9, 5, 9, 1, 7, 1, 3]
    return [Piece(rng.normal(size=n), rng.normal(size=n + 1), i % 3 == 0) for i, n in enumerate(lengths)]


def columns(all_pieces: list[Piece], padding: float) -> dict[str, Tensor]:
    """The time-major tensors, with `padding` after each piece's end."""
    shape = (max(len(p.reward) for p in all_pieces), len(all_pieces))
    floats = {name: np.full(shape, padding) for name in ("reward", "value", "next_value")}
    flags = {name: np.zeros(shape, dtype=bool) for name in ("terminated", "ended")}
    for column, piece in enumerate(all_pieces):
        length = len(piece.reward)
        floats["reward"][:length, column] = piece.reward
        floats["value"][:length, column] = piece.value[:-1]
        floats["next_value"][:length, column] = piece.value[1:]
        flags["terminated"][length - 1, column] = piece.terminal
        flags["ended"][length - 1, column] = True
    return {name: torch.tensor(array) for name, array in (floats | flags).items()}


def gae_error(inputs: dict[str, Tensor], expected: list[Array]) -> float:
    found = gae(**inputs, gamma=GAMMA, lambda_=LAMBDA)
    return max(apart(found[: len(e), column], e) for column, e in enumerate(expected))


@pytest.mark.parametrize("padding", [0.0, 1e30, float("nan")])
def test_gae_equals_loop(padding: float) -> None:
    """Over terminations, time limits and cuts of different lengths, whatever the padding holds."""
    assert gae_error(columns(pieces(), padding), [p.advantages() for p in pieces()]) < 1e-12


def test_gae_ignores_the_value_of_a_terminal_state() -> None:
    """Even one that is not a number; and what follows in the column starts afresh."""
    inputs = columns(pieces(), 0.0)
    inputs["next_value"][inputs["terminated"]] = float("nan")
    assert gae_error(inputs, [p.advantages() for p in pieces()]) < 1e-12


@pytest.mark.parametrize("terminal", [True, False])
def test_gae_tells_terminal_from_truncated(terminal: bool) -> None:
    """Control: a loop that bootstraps terminal states, or no last state at all, gives other numbers."""
    assert gae_error(columns(pieces(), 0.0), [p.advantages(terminal) for p in pieces()]) > 0.1


def test_gae_without_the_ends_is_wrong() -> None:
    """Control: unless `ended` says so, padding would leak into the sums."""
    inputs = columns(pieces(), 1.0)
    inputs["ended"] = torch.zeros_like(inputs["ended"])
    assert gae_error(inputs, [p.advantages() for p in pieces()]) > 0.1


def test_gae_refuses_unequal_shapes() -> None:
    inputs = columns(pieces(), 0.0)
    inputs["value"] = inputs["value"][:-1]
    with pytest.raises(ValueError, match="one shape"):
        gae(**inputs, gamma=GAMMA, lambda_=LAMBDA)


# --- traces of the preceding agents -------------------------------------------------------------------


def corrected(piece: Piece, trace: Array, lambda_power: int = 1) -> Array:
    """A2PO's eq. 2, Σ_k γ^k (Π_{j=1…k} λ min(1, ratio_{t+j})) δ_{t+k}, as a double loop of products."""
    length = len(piece.reward)
    result = np.zeros(length)
    for t in range(length):
        for k in range(length - t):
            step = t + k
            bootstrap = 0.0 if piece.terminal and step == length - 1 else piece.value[step + 1]
            delta = piece.reward[step] + GAMMA * bootstrap - piece.value[step]
            product = 1.0
            for j in range(1, k + 1):
                product *= LAMBDA**lambda_power * trace[t + j]
            result[t] += GAMMA**k * product * delta
    return result


def traces(padding: float) -> tuple[list[Array], Tensor]:
    """min(1, ratio) of each piece, and the padded column tensor."""
    rng = np.random.default_rng(1)
    each = [np.minimum(1, rng.lognormal(0, 0.5, len(piece.reward))) for piece in pieces()]
    column = np.full((max(map(len, each)), len(each)), padding)
    for index, trace in enumerate(each):
        column[: len(trace), index] = trace
    return each, torch.tensor(column)


def trace_error(expected: list[Array], padding: float = 0.0) -> float:
    found = gae(**columns(pieces(), padding), gamma=GAMMA, lambda_=LAMBDA, trace=traces(padding)[1])
    return max(apart(found[: len(e), column], e) for column, e in enumerate(expected))


@pytest.mark.parametrize("padding", [0.0, 1e30, float("nan")])
def test_traces_equal_loop(padding: float) -> None:
    """Over terminations, time limits and cuts, whatever the padding holds."""
    each, _ = traces(padding)
    assert trace_error([corrected(p, c) for p, c in zip(pieces(), each, strict=True)], padding) < 1e-12


def test_lambda_enters_a_trace_once() -> None:
    """Control: with λ applied twice, or with the trace of the step before, the numbers are others."""
    each, _ = traces(0.0)
    twice = [corrected(p, c, lambda_power=2) for p, c in zip(pieces(), each, strict=True)]
    shifted = [corrected(p, np.roll(c, 1)) for p, c in zip(pieces(), each, strict=True)]
    untraced = [p.advantages() for p in pieces()]
    assert min(map(trace_error, (twice, shifted, untraced))) > 1e-2


def test_traces_of_ones_are_gae() -> None:
    """Bit for bit, as is no trace at all; and a trace of another shape is refused."""
    inputs = columns(pieces(), 0.0)
    ones = torch.ones_like(inputs["reward"])
    plain = gae(**inputs, gamma=GAMMA, lambda_=LAMBDA)
    assert torch.equal(gae(**inputs, gamma=GAMMA, lambda_=LAMBDA, trace=ones), plain)
    with pytest.raises(ValueError, match="one shape"):
        gae(**inputs, gamma=GAMMA, lambda_=LAMBDA, trace=ones[:-1])


# --- value normalisation ------------------------------------------------------------------------------


def debiased(batches: list[Array], beta: float, floor: float) -> tuple[float, float]:
    """Mean and variance as explicit weighted sums over all batches."""
    count = len(batches)
    weight = np.array([(1 - beta) * beta ** (count - 1 - j) for j in range(count)])
    weight = weight / weight.sum()
    mean = sum(w * b.mean() for w, b in zip(weight, batches, strict=True))
    square = sum(w * (b**2).mean() for w, b in zip(weight, batches, strict=True))
    return float(mean), float(max(square - mean**2, floor))


def reward_batches(seed: int = 0) -> list[Array]:
    """Batches of different sizes and drifting moments."""
    rng = np.random.default_rng(seed)
    return [rng.normal(3 + k, 1 + k, size=(5 + k, 4)) for k in range(7)]


@pytest.mark.parametrize("beta", [0.5, 0.99, 0.99999, 0.9999999])
def test_value_norm_equals_loop(beta: float) -> None:
    """Mean and variance after each batch; normalising and its inverse."""
    norm, batches = ValueNorm(beta), reward_batches()
    for k, batch in enumerate(batches):
        norm.update(torch.tensor(batch))
        mean, variance = debiased(batches[: k + 1], beta, 1e-2)
        assert apart(torch.stack(norm.mean_var()), np.array([mean, variance])) < 1e-8
    x = np.linspace(-5, 5, 7)
    assert apart(norm.normalise(torch.tensor(x)), (x - mean) / np.sqrt(variance)) < 1e-8
    assert apart(norm.denormalise(torch.tensor(x)), x * np.sqrt(variance) + mean) < 1e-8


def test_value_norm_is_debiased() -> None:
    """Control: the same sums without division by their weight are far off after one batch."""
    norm, (batch, *_) = ValueNorm(), reward_batches()
    norm.update(torch.tensor(batch))
    assert abs(norm.mean_var()[0].item() - batch.mean()) < 1e-9
    assert abs(norm.mean_sum.item() - batch.mean()) > 1


def test_value_norm_floor_and_start() -> None:
    """Before any batch 0 and the floor; constant returns stay at the floor; float32 stays float32."""
    norm = ValueNorm(min_variance=0.25)
    assert [x.item() for x in norm.mean_var()] == [0, 0.25]
    norm.update(torch.full((9,), 4.0))
    assert [x.item() for x in norm.mean_var()] == pytest.approx([4, 0.25])
    assert norm.normalise(torch.full((2,), 5.0)).tolist() == pytest.approx([2, 2])
    assert norm.normalise(torch.zeros(2)).dtype == norm.denormalise(torch.zeros(2)).dtype == torch.float32


def test_value_norm_takes_in_a_single_return() -> None:
    norm = ValueNorm(beta=0.5)
    norm.update(torch.tensor([6.0], dtype=torch.float64))
    norm.update(torch.tensor([0.0, 3.0], dtype=torch.float64))
    mean, variance = (float(x) for x in norm.mean_var())
    assert mean == pytest.approx((0.25 * 6 + 0.5 * 1.5) / 0.75)
    assert variance == pytest.approx((0.25 * 36 + 0.5 * 4.5) / 0.75 - mean**2)


def test_value_norm_ignores_a_batch_in_which_nothing_counts() -> None:
    norm, batch = ValueNorm(0.9), torch.tensor(reward_batches()[0])
    norm.update(batch[:0])
    assert [float(x) for x in norm.mean_var()] == [0.0, norm.min_variance]
    norm.update(batch)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.update(batch[:0])
    assert all(torch.equal(value, norm.state_dict()[name]) for name, value in before.items())
    norm.update(batch[:1])
    assert not torch.equal(before["mean_sum"], norm.mean_sum), "control"


def test_value_norm_survives_a_checkpoint() -> None:
    """A state dict restores the statistics, in full precision."""
    norm, restored = ValueNorm(), ValueNorm()
    for batch in reward_batches():
        norm.update(torch.tensor(batch))
    restored.load_state_dict(norm.state_dict())
    assert restored.mean_var() == norm.mean_var()


def test_value_norm_on_two_learners() -> None:
    """Unequal shares, one of them empty, give the statistics of the whole; control: not without the sum."""
    batches, ranks = reward_batches(), Ranks(2)
    shares = [(3, 17), (20, 4), (0, 28), (30, 2), (9, 27), (1, 39), (22, 22)]
    expected = np.array(debiased(batches, 0.99, 1e-2))

    def work(rank: int, together: bool = True) -> Array:
        norm = ValueNorm(0.99)
        for batch, (first, _) in zip(batches, shares, strict=True):
            mine = np.split(batch.flatten(), [first])[rank]
            if together:
                norm.update(torch.tensor(mine), ranks.all_reduce(rank))
            elif len(mine):
                norm.update(torch.tensor(mine))
        return torch.stack(norm.mean_var()).numpy()

    assert all(apart(found, expected) < 1e-10 for found in ranks.run(work))
    assert all(apart(work(rank, together=False), expected) > 1e-3 for rank in range(2))
