"""With one agent the update is PPO, held against a short PPO that is written here."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from haml_policies import Network, NetworkPolicy, adam, apart
from torch import Tensor

from rllib_haml.haml import ClipDrift, Everywhere, JointRows, Player, RandomOrder, sweep

UPDATES, EPOCHS, STEPS, MINIBATCH = 20, 3, 50, 16
CLIP, ENTROPY_COEFF, GRAD_CLIP, LR, SEED = 0.1, 0.01, 0.5, 3e-3, 7


def log_prob_and_entropy(network: Network, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Written out: a diagonal Gaussian, or a categorical distribution."""
    output = network(obs)
    if network.gaussian:
        std = 0.5 / (1 + torch.exp(-network.head.log_std))
        terms = -(((action - output) / std) ** 2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2
        entropy = (torch.log(std) + 0.5 + math.log(2 * math.pi) / 2).sum()
        return terms.sum(1), entropy.expand(len(obs))
    logp = output - output.exp().sum(1, keepdim=True).log()
    return logp[torch.arange(len(obs)), action[:, 0]], -(logp.exp() * logp).sum(1)


class PPO:
    """Clipped policy-gradient ascent; `clip=None` leaves the clip out."""

    def __init__(self, network: Network, clip: float | None):
        self.network, self.clip = network, clip
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LR)

    def update(self, obs: Tensor, action: Tensor, advantage: Tensor, minibatches: list[Tensor]) -> None:
        old = log_prob_and_entropy(self.network, obs, action)[0].detach()
        for rows in minibatches:
            logp, entropy = log_prob_and_entropy(self.network, obs[rows], action[rows])
            ratio, a = torch.exp(logp - old[rows]), advantage[rows]
            gain = ratio * a
            if self.clip is not None:
                gain = torch.min(gain, ratio.clamp(1 - self.clip, 1 + self.clip) * a)
            self.optimizer.zero_grad()
            (-gain.mean() - ENTROPY_COEFF * entropy.mean()).backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRAD_CLIP)
            self.optimizer.step()


def distance(gaussian: bool, clip: float | None, permuted_alike: bool = True) -> float:
    """Largest difference of a weight between `sweep` and `PPO` during 20 updates on the same rows."""
    torch.manual_seed(0)
    outputs = 3
    network = Network(5, outputs, gaussian)
    ppo = PPO(copy.deepcopy(network), clip)
    policy = NetworkPolicy(network, torch.empty(STEPS, 0), torch.empty(STEPS, 0), optimizer=adam(LR))
    player = Player(policy, ClipDrift(CLIP), Everywhere(EPOCHS, MINIBATCH, GRAD_CLIP), ENTROPY_COEFF)
    rows = JointRows.whole(STEPS)
    furthest = 0.0
    for update in range(UPDATES):
        obs = torch.randn(STEPS, 5, dtype=torch.float64)
        advantage = torch.randn(STEPS, dtype=torch.float64)
        with torch.no_grad():
            output = network(obs)
            action = (
                output + network.std() * torch.randn_like(output)
                if gaussian
                else torch.multinomial(output.softmax(-1), 1)
            )
        permutation_of = update if permuted_alike else update + 1
        minibatches = [
            torch.as_tensor(slice_)
            for epoch in range(EPOCHS)
            for slice_ in rows.minibatches(MINIBATCH, SEED, permutation_of, "only", epoch)
        ]
        policy.obs, policy.action = obs, action
        sweep({"only": player}, lambda f, a=advantage: a, order=RandomOrder(), rows=rows, key=(SEED, update))
        ppo.update(obs, action, advantage, minibatches)
        furthest = max(furthest, *map(apart, network.parameters(), ppo.network.parameters()))
    return furthest


@pytest.mark.parametrize("gaussian", [True, False], ids=["gaussian", "categorical"])
def test_one_agent_is_ppo(gaussian: bool) -> None:
    """20 updates of 3 epochs of uneven minibatches agree to 1e-10."""
    assert distance(gaussian, CLIP) < 1e-10


@pytest.mark.parametrize("gaussian", [True, False], ids=["gaussian", "categorical"])
def test_one_agent_is_not_ppo_without_clip(gaussian: bool) -> None:
    """Control: with the clip left out of the PPO here, the two part."""
    assert distance(gaussian, None) > 1e-3


def test_the_permutation_matters() -> None:
    """Control: on another permutation the two part, so agreement is not for lack of minibatches."""
    assert distance(True, CLIP, permuted_alike=False) > 1e-3
