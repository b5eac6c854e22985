"""Small policies that obey the `Policy` protocol, and the games that they play, for the tests of `haml`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from rllib_haml.haml import Evaluation, families

T = TypeVar("T")
Array = np.ndarray
Rows = Tensor | slice
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
DATA = Path(__file__).parents[1] / "data"


def gradient_ascent(lr: float) -> MakeOptimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def adam(lr: float, eps: float = 1e-8) -> MakeOptimizer:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, eps=eps)


ASCENT = gradient_ascent(0.1)
REFERENCE_ADAM = adam(5e-4, eps=1e-5)


class TabularPolicy:
    """Softmax over a (states, actions) table of logits, shared by the K rows of `action` (K, S)."""

    def __init__(
        self,
        probabilities: Array,
        action: Array,
        state: Array | None = None,
        active: Array | None = None,
        optimizer: MakeOptimizer = ASCENT,
    ):
        table = np.atleast_2d(np.asarray(probabilities, dtype=np.float64))
        self.logits = nn.Parameter(torch.tensor(np.log(table)))
        self.action = torch.as_tensor(np.atleast_2d(action))
        count = self.action.shape[1]
        self.state = torch.zeros(count, dtype=torch.int64) if state is None else torch.as_tensor(state)
        self.active = torch.as_tensor(np.ones(self.action.shape, bool) if active is None else active)
        self.optimizer = optimizer([self.logits])
        self.family = families.Categorical(table.shape[1])

    def evaluate(self, rows: Rows) -> Evaluation:
        logp = self.logits.log_softmax(-1)[self.state[rows]]
        log_prob = logp.gather(-1, self.action[:, rows].T).T
        entropy = -(logp.exp() * logp).sum(-1).expand_as(log_prob)
        return Evaluation(log_prob, entropy, logp.expand(len(self.action), *logp.shape))

    def parameters(self) -> Sequence[Tensor]:
        return [self.logits]

    def table(self) -> Array:
        """(states, actions) probabilities, by numpy alone."""
        logits = self.logits.detach().numpy()
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)


class MeanPolicy:
    """One number drawn from N(mean, 1), whatever the row; `action` (1, S) may be replaced between sweeps."""

    def __init__(self, mean: float, lr: float = 0.1):
        self.mean = nn.Parameter(torch.tensor([mean], dtype=torch.float64))
        self.action = torch.zeros(1, 0, dtype=torch.float64)
        self.optimizer = torch.optim.SGD([self.mean], lr=lr)
        self.family = families.Gaussian(1)

    @property
    def active(self) -> Tensor:
        return torch.ones(self.action.shape, dtype=torch.bool)

    def evaluate(self, rows: Rows) -> Evaluation:
        distribution = Normal(self.mean, 1.0)
        action = self.action[:, rows]
        entropy = distribution.entropy().expand_as(action)
        parameters = torch.cat([self.mean, torch.zeros_like(self.mean)]).expand(*action.shape, 2)
        return Evaluation(distribution.log_prob(action), entropy, parameters)

    def parameters(self) -> Sequence[Tensor]:
        return [self.mean]


class Network(nn.Module):
    """LayerNorm(obs) → [Linear → ReLU → LayerNorm] × 2 → a Gaussian's mean or a categorical's logits."""

    def __init__(self, obs_size: int, outputs: int, gaussian: bool, width: int = 16):
        super().__init__()
        self.feature_norm = nn.LayerNorm(obs_size)
        self.mlp = nn.Module()
        self.mlp.fc = nn.Sequential(
            nn.Linear(obs_size, width),
            nn.ReLU(),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.LayerNorm(width),
        )
        self.head = nn.Module()
        if gaussian:
            self.head.fc_mean = nn.Linear(width, outputs)
            self.head.log_std = nn.Parameter(torch.ones(outputs))
        else:
            self.head.linear = nn.Linear(width, outputs)
        self.gaussian = gaussian
        self.double()

    def forward(self, obs: Tensor) -> Tensor:
        features = self.mlp.fc(self.feature_norm(obs))
        return self.head.fc_mean(features) if self.gaussian else self.head.linear(features)

    def std(self) -> Tensor:
        return 0.5 * self.head.log_std.sigmoid()


class NetworkPolicy:
    """A `Network` on stored observations (S, d) and actions (S, a); one agent."""

    def __init__(
        self,
        network: Network,
        obs: Tensor,
        action: Tensor,
        active: Tensor | None = None,
        action_mask: Tensor | None = None,
        optimizer: MakeOptimizer = REFERENCE_ADAM,
    ):
        self.network, self.obs, self.action, self.action_mask = network, obs, action, action_mask
        self.active = torch.ones(1, len(obs), dtype=torch.bool) if active is None else active[None]
        self.optimizer = optimizer(list(network.parameters()))
        last = network.head.fc_mean if network.gaussian else network.head.linear
        outputs = last.out_features
        self.family = families.Gaussian(outputs) if network.gaussian else families.Categorical(outputs)

    def evaluate(self, rows: Rows) -> Evaluation:
        output = self.network(self.obs[rows])
        if self.network.gaussian:
            distribution = Normal(output, self.network.std().expand_as(output))
            log_prob, entropy = (
                distribution.log_prob(self.action[rows]).sum(-1),
                distribution.entropy().sum(-1),
            )
            parameters = torch.cat([output, self.network.std().log().expand_as(output)], dim=-1)
        else:
            if self.action_mask is not None:
                output = torch.where(self.action_mask[rows], output, -1e10)
            distribution = Categorical(logits=output, validate_args=False)  # its check fails on no rows
            log_prob = distribution.log_prob(self.action[rows].flatten())
            entropy, parameters = distribution.entropy(), output
        return Evaluation(log_prob[None], entropy[None], parameters[None])

    def parameters(self) -> Sequence[Tensor]:
        return list(self.network.parameters())


class Ranks:
    """Learners in threads of one process; a collective that one of them misses breaks the barrier."""

    def __init__(self, count: int):
        self.barrier = threading.Barrier(count, timeout=20)
        self.parts: list[Tensor] = [torch.empty(0)] * count

    def all_reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        """The in-place sum over all ranks, in the order of the ranks on each of them."""

        def reduce(tensor: Tensor) -> Tensor:
            self.parts[rank] = tensor.clone()
            self.barrier.wait()
            assert len({part.shape for part in self.parts}) == 1
            tensor.copy_(torch.stack(self.parts).sum(0))
            self.barrier.wait()
            return tensor

        return reduce

    def run(self, work: Callable[[int], T]) -> list[T]:
        """What `work` gives on each rank."""

        def guarded(rank: int) -> T:
            try:
                return work(rank)
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(len(self.parts)) as pool:
            futures = [pool.submit(guarded, rank) for rank in range(len(self.parts))]
        errors = [error for error in (future.exception() for future in futures) if error]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError) or error is errors[-1]:
                raise error
        return [future.result() for future in futures]


def joint_actions(sizes: Sequence[int]) -> Array:
    """(agents, Π sizes): every joint action, one a column."""
    return np.array(list(itertools.product(*(range(n) for n in sizes)))).T


def joint_probability(tables: Sequence[Array], actions: Array) -> Array:
    """(joint actions,) probability under independent (actions,) tables, as a plain loop of products."""
    result = np.ones(actions.shape[1])
    for column in range(actions.shape[1]):
        for agent, table in enumerate(tables):
            result[column] *= table[actions[agent, column]]
    return result


def loop_mean(values: Array, active: Array, weights: Array) -> float:
    """Weighted mean over what is active, over agents and rows alike."""
    numerator = denominator = 0.0
    for agent, row in itertools.product(*map(range, values.shape)):
        if active[agent, row]:
            numerator += weights[row] * values[agent, row]
            denominator += weights[row]
    return numerator / denominator if denominator else 0.0


def random_table(rng: np.random.Generator, agents: int, steps: int, present: float = 0.7) -> TabularPolicy:
    return TabularPolicy(
        rng.dirichlet(np.ones(4), size=3),
        rng.integers(4, size=(agents, steps)),
        state=rng.integers(3, size=steps),
        active=rng.random((agents, steps)) < present,
        optimizer=gradient_ascent(0.5),
    )


def apart(left: Tensor | Array | float, right: Tensor | Array | float) -> float:
    """Largest absolute difference."""
    return float(np.abs(_numpy(left) - _numpy(right)).max())


def _numpy(values: Tensor | Array | float) -> Array:
    return values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)
