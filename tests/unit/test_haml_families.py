"""Families of action distributions in float64 against enumeration, scipy and quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tree
from scipy import integrate, stats
from torch import Tensor

from rllib_haml.haml.families import (
    MASKED_LOGIT,
    ActionFamily,
    Bernoulli,
    Categorical,
    Gaussian,
    SquashedGaussian,
)
from rllib_haml.haml.products import MultiCategorical, Product, Shaped

ROWS = 5


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values))


def parameters(family: ActionFamily, seed: int = 0) -> Tensor:
    return torch.randn(ROWS, family.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything(family: Any) -> list[Any]:
    """All actions of a finite family, in any tree."""
    if isinstance(family, Categorical):
        return list(range(family.n))
    if isinstance(family, Bernoulli):
        return [np.array(bits) for bits in itertools.product((0, 1), repeat=family.n)]
    if isinstance(family, Shaped):
        return [action.reshape(family.shape) for action in everything(family.vectors)]
    combined = itertools.product(*(everything(part) for part in family.parts))
    if isinstance(family, MultiCategorical):
        return [np.array(choices) for choices in combined]
    if family._keys is not None:
        return [dict(zip(family._keys, choices, strict=True)) for choices in combined]
    return list(combined)


def in_every_row(action: Any) -> Any:
    return tree.map_structure(lambda x: tensor(x).expand(ROWS, *np.shape(x)), action)


def table(family: Any, members: Tensor) -> np.ndarray:
    """(ROWS, actions) log-probabilities, by the family's own `log_prob`."""
    rows = [family.log_prob(members, in_every_row(action)) for action in everything(family)]
    return torch.stack(rows, dim=-1).numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


NESTED = Product(
    {"say": MultiCategorical([2, 3]), "on": Bernoulli(2), "then": Product([Categorical(2), Categorical(3)])}
)
FINITE: dict[str, Any] = {
    "categorical": Categorical(4),
    "multi categorical": MultiCategorical([3, 2, 4]),
    "bernoulli": Bernoulli(3),
    "tuple": Product([Categorical(3), Bernoulli(2)]),
    "dict": NESTED,
    "table of switches": Shaped(Bernoulli(4), (2, 2)),
    "table of choices": Shaped(MultiCategorical([2, 3, 2, 2]), (2, 2)),
}


@pytest.mark.parametrize("name", FINITE)
def test_entropy_and_kl_are_sums_over_all_actions(name: str) -> None:
    family = FINITE[name]
    here, there = parameters(family, 0), parameters(family, 1)
    logp, logq = table(family, here), table(family, there)
    p = np.exp(logp)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(family.entropy(here), -(p * logp).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(family.kl(here, there), (p * (logp - logq)).sum(-1), rtol=1e-11)
    reverse = (np.exp(logq) * (logq - logp)).sum(-1)
    assert np.abs(family.kl(here, there).numpy() - reverse).max() > 1e-2, "control: it has a direction"


def test_log_probabilities_of_the_elementary_families() -> None:
    logits = parameters(Categorical(4)).numpy()
    np.testing.assert_allclose(np.exp(table(Categorical(4), tensor(logits))), softmax(logits), rtol=1e-12)
    switches = parameters(Bernoulli(3)).numpy()
    on = sigmoid(switches)
    wanted = [
        np.prod([on[:, i] if bit else 1 - on[:, i] for i, bit in enumerate(bits)], axis=0)
        for bits in itertools.product((0, 1), repeat=3)
    ]
    np.testing.assert_allclose(
        np.exp(table(Bernoulli(3), tensor(switches))), np.stack(wanted, -1), rtol=1e-12
    )


def test_the_parts_of_a_product_take_their_parameters_in_turn() -> None:
    members = parameters(NESTED).numpy()
    say, more, on, then, last = np.split(members, [2, 5, 7, 9], axis=-1)
    for action in everything(NESTED):
        wanted = softmax(say)[:, action["say"][0]] * softmax(more)[:, action["say"][1]]
        wanted *= softmax(then)[:, action["then"][0]] * softmax(last)[:, action["then"][1]]
        for i, bit in enumerate(action["on"]):
            wanted *= sigmoid(on[:, i]) if bit else 1 - sigmoid(on[:, i])
        got = NESTED.log_prob(tensor(members), in_every_row(action)).exp()
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", FINITE)
def test_draws_are_as_frequent_as_they_are_likely(name: str) -> None:
    family, count = FINITE[name], 20_000
    member = parameters(family)[:1]
    drawn, logp = family.sample(member.expand(count, -1), torch.Generator().manual_seed(3))
    torch.testing.assert_close(logp, family.log_prob(member.expand(count, -1), drawn))
    seen = tree.map_structure(lambda x: x.numpy(), drawn)
    for action, chance in zip(
        everything(family), np.exp(table(family, member.expand(ROWS, -1))[0]), strict=True
    ):
        same = np.ones(count, bool)
        for got, wanted in zip(tree.flatten(seen), tree.flatten(action), strict=True):
            same &= (got == wanted).reshape(count, -1).all(-1)
        assert abs(same.mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / count) + 1e-12


@pytest.mark.parametrize("name", FINITE)
def test_the_mode_is_the_likeliest_action(name: str) -> None:
    family = FINITE[name]
    members = parameters(family)
    mode, logp = family.mode(members)
    torch.testing.assert_close(logp, tensor(table(family, members).max(-1)))
    torch.testing.assert_close(logp, family.log_prob(members, mode))


@pytest.mark.parametrize("name", [n for n, f in FINITE.items() if f.mask_size])
def test_a_mask_leaves_what_it_allows_in_proportion(name: str) -> None:
    """The masked member is the conditional distribution; masks lie one after another as the parts do."""
    family = FINITE[name]
    members = parameters(family)
    mask = np.random.default_rng(0).random((ROWS, family.mask_size)) < 0.6
    sizes = options(family)
    starts = np.cumsum([0, *sizes[:-1]])
    mask[:, starts] = True
    p = np.exp(table(family, members))
    allowed = np.stack([mask[:, starts + chosen(family, a)].all(-1) for a in everything(family)], axis=-1)
    assert not allowed.all()
    conditional = np.where(allowed, p, 0) / np.where(allowed, p, 0).sum(-1, keepdims=True)
    got = np.exp(table(family, family.masked(members, tensor(mask))))
    np.testing.assert_allclose(got, conditional, rtol=1e-12, atol=1e-300)
    drawn, _ = family.sample(family.masked(members, tensor(mask)), torch.Generator().manual_seed(0))
    for row in range(ROWS):
        one = tree.map_structure(lambda x, row=row: x[row].numpy(), drawn)
        assert mask[row, starts + chosen(family, one)].all()


def options(family: Any) -> list[int]:
    if isinstance(family, Categorical):
        return [family.n]
    if isinstance(family, Shaped):
        return options(family.vectors)
    return [n for part in getattr(family, "parts", []) for n in options(part)]


def chosen(family: Any, action: Any) -> np.ndarray:
    """Which option each of `options` took."""
    if isinstance(family, Bernoulli):
        return np.zeros(0, int)
    if isinstance(family, (Categorical, MultiCategorical, Shaped)):
        return np.asarray(action).reshape(-1)
    parts = list(action) if family._keys is None else [action[key] for key in family._keys]
    return np.concatenate([chosen(f, a) for f, a in zip(family.parts, parts, strict=True)])


def test_masked_entropy_and_kl_are_finite_and_exact() -> None:
    family = Categorical(4)
    mask = tensor([[True, False, True, False]] * ROWS)
    here, there = (family.masked(parameters(family, seed), mask) for seed in (0, 1))
    p, q = softmax(here[:, [0, 2]].numpy()), softmax(there[:, [0, 2]].numpy())
    np.testing.assert_allclose(family.entropy(here), -(p * np.log(p)).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(family.kl(here, there), (p * np.log(p / q)).sum(-1), rtol=1e-11)
    assert (here == MASKED_LOGIT).sum() == 2 * ROWS


DIM = 3


def gaussian(seed: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean, log_std = rng.normal(size=(ROWS, DIM)), 0.4 * rng.normal(size=(ROWS, DIM)) - 0.5
    return tensor(np.concatenate([mean, log_std], -1)), mean, np.exp(log_std)


def integral(f: Callable[[float], float], low: float = -np.inf, high: float = np.inf) -> float:
    return integrate.quad(f, low, high, epsabs=1e-12, epsrel=1e-12, limit=500)[0]


def test_the_gaussian_is_scipys() -> None:
    members, mean, std = gaussian(0)
    others, mean2, std2 = gaussian(1)
    family, action = Gaussian(DIM), np.random.default_rng(2).normal(size=(ROWS, DIM))
    wanted = stats.norm.logpdf(action, mean, std).sum(-1)
    np.testing.assert_allclose(family.log_prob(members, tensor(action)), wanted, rtol=1e-12)
    np.testing.assert_allclose(family.entropy(members), stats.norm.entropy(mean, std).sum(-1), rtol=1e-12)
    for row in range(ROWS):
        kl = 0.0
        for d in range(DIM):
            here, there = stats.norm(mean[row, d], std[row, d]), stats.norm(mean2[row, d], std2[row, d])
            kl += integral(
                lambda x, here=here, there=there: here.pdf(x) * (here.logpdf(x) - there.logpdf(x)), -15, 15
            )
        np.testing.assert_allclose(family.kl(members, others)[row], kl, rtol=1e-8)


SCALES, CENTRES = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0), (0.0, 1e-3, -0.3, 2.0, 6.0, -10.0, 10.0)
GRID = [(mean, std) for mean in CENTRES for std in SCALES]


def member(mean: Any, std: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """(..., 2) parameters of one number."""
    exact = [torch.as_tensor(x, dtype=torch.float64) for x in (mean, std)]
    return torch.stack([exact[0], exact[1].log()], dim=-1).to(dtype)


def log_slope(u: float) -> float:
    """log(1 - tanh² u) of one number, by its logarithmic form."""
    return 2 * (math.log(2) - abs(u) - math.log1p(math.exp(-2 * abs(u))))


def expectation(f: Callable[[float], float], mean: float, std: float) -> float:
    """Of a function of a normal number that bends near 0, by scipy, piece by piece."""
    edges = {-12.0, -6.0, 0.0, 6.0, 12.0, *((u - mean) / std for u in (-9, -3, -1, 0, 1, 3, 9))}
    inside = sorted(z for z in edges if abs(z) <= 12)
    pieces = itertools.pairwise(inside)
    return sum(integral(lambda z: stats.norm.pdf(z) * f(mean + std * z), a, b) for a, b in pieces)


def test_the_squashed_gaussians_entropy_is_that_of_what_is_done() -> None:
    """By scipy; also of the sum over an action's numbers. Control: 48 nodes of Gauss-Hermite miss it."""
    wanted = [stats.norm.entropy(m, s) + expectation(log_slope, m, s) for m, s in GRID]
    means, stds = torch.tensor(GRID, dtype=torch.float64).T
    found = SquashedGaussian(1).entropy(member(means, stds))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
    pairs = torch.stack([means, means.flip(0), stds.log(), stds.flip(0).log()], dim=-1)
    np.testing.assert_allclose(SquashedGaussian(2).entropy(pairs), found + found.flip(0), rtol=1e-12)
    single = SquashedGaussian(1).entropy(member(means, stds, torch.float32))
    np.testing.assert_allclose(single, wanted, rtol=0, atol=5e-6)
    nodes, weights = np.polynomial.hermite.hermgauss(48)
    few = [np.sum(weights * [log_slope(10 * math.sqrt(2) * z) for z in nodes]) / math.sqrt(math.pi)]
    assert abs(few[0] - expectation(log_slope, 0.0, 10.0)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_slope_of_that_entropy(dtype: torch.dtype) -> None:
    """dH/dμ = E -2 tanh u and dH/dlog σ = 1 + E -2 tanh u · (u - μ)."""
    rows = member(*torch.tensor(GRID, dtype=torch.float64).T, dtype).requires_grad_()
    SquashedGaussian(1).entropy(rows).sum().backward()
    wanted = [
        (
            expectation(lambda u: -2 * math.tanh(u), m, s),
            1 + expectation(lambda u, m=m: -2 * math.tanh(u) * (u - m), m, s),
        )
        for m, s in GRID
    ]
    assert rows.grad is not None
    np.testing.assert_allclose(rows.grad, wanted, rtol=0, atol=1e-8 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("std", [1e-6, 1e3, 1e5])
@pytest.mark.parametrize("mean", [0.0, 1e3, -1e6])
def test_the_entropy_far_out_is_finite(mean: float, std: float) -> None:
    """So is its gradient, in float32: an optimizer may pass there."""
    rows = member([mean], [std], torch.float32).requires_grad_()
    found = SquashedGaussian(1).entropy(rows)
    found.sum().backward()
    assert found.isfinite().all()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
    assert found <= Gaussian(1).entropy(rows) + 1e-5


def clamped_log_prob(rows: Tensor, drawn: Tensor) -> Tensor:
    """Control: of tanh, cut off where it is inverted, as if nothing were ever drawn beyond."""
    before = drawn.tanh().clamp(-1 + 1e-6, 1 - 1e-6).atanh()
    return Gaussian(1).log_prob(rows, before[..., None])


@pytest.mark.parametrize("mean", [0.0, 7.0, -8.0, 10.0])
@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
def test_ratios_are_those_of_what_is_drawn(mean: float, std: float) -> None:
    """E π'/π = 1 and E log π/π' = KL, by quadrature in float64 and by draws in float32; not if clamped."""
    family, near = SquashedGaussian(1), (mean + 0.2 * std, 0.9 * std)
    numbers, weights = np.polynomial.hermite_e.hermegauss(32)
    drawn = tensor(mean + std * numbers)
    here, there = (member(m, s).expand(32, 2) for m, s in ((mean, std), near))
    log_ratio = family.log_prob(there, drawn[:, None]) - family.log_prob(here, drawn[:, None])
    share = tensor(weights / weights.sum())
    assert abs(float(share @ log_ratio.exp()) - 1) < 1e-9
    kl = expectation(lambda u: stats.norm.logpdf(u, mean, std) - stats.norm.logpdf(u, *near), mean, std)
    assert abs(float(-(share @ log_ratio)) - kl) < 1e-9
    np.testing.assert_allclose(family.kl(here, there), kl, atol=1e-9)

    count = 200_000
    here, there = (member(m, s, torch.float32).expand(count, 2) for m, s in ((mean, std), near))
    sample, logp = family.sample(here, torch.Generator().manual_seed(0))
    ratio = (family.log_prob(there, sample) - logp).double().exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(count)
    if mean == 10 and std <= 1:
        clamped = (clamped_log_prob(there, sample[:, 0]) - clamped_log_prob(here, sample[:, 0])).exp()
        assert abs(float(clamped.mean()) - 1) > 0.05, "control"


def test_squashed_draws_are_kept_where_their_tanh_tells_nothing() -> None:
    members = gaussian(0)[0].float()
    members[:, :DIM] *= 20  # far out, where tanh is 1 in floating point
    family = SquashedGaussian(DIM)
    for drawn, logp in (family.sample(members, torch.Generator().manual_seed(0)), family.mode(members)):
        done = family.executed(drawn)
        assert (done.abs() == 1).any()
        assert torch.equal(done, drawn.tanh())
        assert not torch.allclose(family.drawn(done), drawn), "control"
        torch.testing.assert_close(logp, family.log_prob(members, drawn))
        torch.testing.assert_close(logp, Gaussian(DIM).log_prob(members, drawn))
    assert family.drawn(torch.ones(2)).isfinite().all()
    assert np.isfinite(family.drawn(-np.ones(2, np.float32))).all()


def test_of_a_tree_what_is_squashed_is_executed() -> None:
    """Other parts stay; numpy and torch alike; and back again."""
    family = Product(
        {
            "go": Shaped(SquashedGaussian(4), (2, 2)),
            "say": Product([Categorical(3), Gaussian(2)]),
            "turn": Shaped(SquashedGaussian(1), ()),
            "set": MultiCategorical([2, 3]),
        }
    )
    drawn, _ = family.sample(parameters(family), torch.Generator().manual_seed(0))
    done = family.executed(drawn)
    for name in ("go", "turn"):
        assert torch.equal(done[name], drawn[name].tanh())
    for name in ("say", "set"):
        assert all(x is y for x, y in zip(*map(tree.flatten, (done[name], drawn[name])), strict=True))
    tree.map_structure(torch.testing.assert_close, family.drawn(done), drawn)
    arrays = tree.map_structure(lambda x: x.numpy(), drawn)
    for got, wanted in zip(tree.flatten(family.executed(arrays)), tree.flatten(done), strict=True):
        assert isinstance(got, np.ndarray)
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert family.squashes
    plain = Product({"go": Gaussian(2), "say": Categorical(3)})
    action, _ = plain.sample(parameters(plain))
    assert not plain.squashes
    assert plain.executed(action) is plain.drawn(action) is action


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_a_table_of_numbers_is_a_vector_in_another_shape(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    family, vectors = Shaped(Gaussian(size), shape), Gaussian(size)
    members = parameters(family)
    drawn, logp = family.sample(members, torch.Generator().manual_seed(1))
    flat, flat_logp = vectors.sample(members, torch.Generator().manual_seed(1))
    assert drawn.shape == (ROWS, *shape)
    assert torch.equal(drawn.reshape(ROWS, size), flat)
    assert torch.equal(logp, flat_logp)
    torch.testing.assert_close(family.log_prob(members, drawn), logp)
    in_time = family.log_prob(members.view(1, ROWS, -1), drawn.view(1, ROWS, *shape))
    torch.testing.assert_close(in_time, logp[None])


EVERY = FINITE | {
    "gaussian": Gaussian(2),
    "squashed": SquashedGaussian(2),
    "nested numbers": Product({"a": Gaussian(1), "b": Product([Categorical(3), SquashedGaussian(2)])}),
    "table of numbers": Shaped(Gaussian(4), (2, 2)),
}


@pytest.mark.parametrize("name", EVERY)
def test_draws_come_from_the_given_generator_alone(name: str) -> None:
    family = EVERY[name]
    members = parameters(family).repeat(20, 1)
    held = torch.get_rng_state()
    draws = [family.sample(members, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), held)
    first, again, other = (tree.flatten(drawn) for drawn in draws)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other)), "control: the seed matters"


@pytest.mark.parametrize("name", EVERY)
def test_leading_dimensions_are_free(name: str) -> None:
    """(2, 3) members at once give what the six give in a row."""
    family = EVERY[name]
    here, there = (torch.cat([parameters(family, s), parameters(family, s + 2)])[:6] for s in (0, 1))
    mask = torch.rand(6, family.mask_size, generator=torch.Generator().manual_seed(5)) < 0.9
    action = family.sample(here, torch.Generator().manual_seed(0))[0]

    def figures(*shape: int) -> list[Tensor]:
        p, q, m = (x.view(*shape, -1) for x in (here, there, mask))
        taken = tree.map_structure(lambda x: x.view(*shape, *x.shape[1:]), action)
        drawn, drawn_logp = family.sample(p, torch.Generator().manual_seed(0))
        mode, mode_logp = family.mode(p)
        numbers = [family.log_prob(p, taken), family.entropy(p), family.kl(p, q), drawn_logp, mode_logp]
        assert {x.shape for x in numbers} == {shape}
        found = [*numbers, family.masked(p, m), *tree.flatten(drawn), *tree.flatten(mode)]
        return [x.flatten(0, len(shape) - 1) for x in found]

    for at_once, in_a_row in zip(figures(2, 3), figures(6), strict=True):
        torch.testing.assert_close(at_once, in_a_row)


@pytest.mark.parametrize("dim", [1, 3])
def test_the_mode_of_numbers_is_their_mean(dim: int) -> None:
    members = parameters(Gaussian(dim))
    mode, logp = Gaussian(dim).mode(members)
    assert torch.equal(mode, members[:, :dim])
    highest = -(members[:, dim:] + 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(logp, highest)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_cannot_be_told_from_one_was_drawn_by_the_nearest_number_inside(dtype: Any) -> None:
    family, inside = SquashedGaussian(3), np.nextafter(dtype(1), dtype(0))
    wanted = [np.arctanh(inside), -np.arctanh(inside), np.arctanh(dtype(0.5))]
    executed = np.array([1, -1, 0.5], dtype)
    np.testing.assert_allclose(family.drawn(executed), wanted, rtol=1e-6)
    np.testing.assert_allclose(family.drawn(torch.as_tensor(executed)), wanted, rtol=1e-6)
