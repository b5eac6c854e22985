"""Agents that die, join late and skip steps: one whole update against float64 loops over who acted.

Who acted is written down by hand; nothing below asks a fragment for its `active`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import NAMES, ScriptedMultiAgentEnv
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.tune.registry import register_env

from rllib_haml import HAPPOConfig
from rllib_haml.haml import SweepResult, sweep
from rllib_haml.learners import on_policy
from rllib_haml.learners.connector import JointBatchConnector
from rllib_haml.sampling.fragment import JointFragment, in_batch_order
from rllib_haml.sampling.joint_env_runner import JointEnvRunner

GAMMA, LAMBDA, CLIP, BETA = 0.9, 0.8, 0.2, 0.99999
MEAN, STD = 5.0, 200.0  # what the critic's normaliser knows before
LENGTH = 5

# Per agent the steps of an episode of five, `x` where it acts; the sixth is what follows the last.
SCRIPTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "all are there": ({}, {"scout": "xxxxxx", "carrier": "xxxxxx", "anchor": "xxxxxx"}),
    "a death": ({"deaths": {"carrier": 3}}, {"scout": "xxxxxx", "carrier": "xxx---", "anchor": "xxxxxx"}),
    "a late joiner": ({"joins": {"anchor": 2}}, {"scout": "xxxxxx", "carrier": "xxxxxx", "anchor": "--xxxx"}),
    "skipped steps": (
        {"skips": {"carrier": (1, 4), "scout": (3,)}},
        {"scout": "xxx-xx", "carrier": "x-xx-x", "anchor": "xxxxxx"},
    ),
    "all of it": (
        {"deaths": {"scout": 4}, "joins": {"carrier": 1}, "skips": {"anchor": (3,)}, "end": "terminated"},
        {"scout": "xxxx--", "carrier": "-xxxxx", "anchor": "xxx-xx"},
    ),
    "nobody for a step": (
        {"skips": {name: (2,) for name in NAMES}},
        {name: "xx-xxx" for name in NAMES},
    ),
}


class Recorded:
    """One update, and what went into it.

    Attributes:
        fragments: In the batch's order.
        before: Per module its weights before the update.
        result: Of the sweep.
        learner: With the weights after the update, in float64.
    """

    def __init__(self, script: dict[str, Any], rule: str, monkeypatch: pytest.MonkeyPatch):
        register_env("absences", lambda config: ScriptedMultiAgentEnv(**config))
        config = (
            HAPPOConfig()
            .environment("absences", env_config={"equal_rewards": rule == "shared", **script})
            .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
            .training(gamma=GAMMA, lambda_=LAMBDA, clip_param=CLIP, lr=1e-2, team_reward=rule, num_epochs=3)
            .rl_module(model_config={"fcnet_hiddens": [8], "head_gain": 1.0})
            .debugging(seed=1)
        )
        config.validate()
        self.config, self.script = config, {"equal_rewards": rule == "shared", **script}
        self.learner: Any = config.build_learner()
        runner = JointEnvRunner(config=config)
        for name in NAMES:
            runner.module[name].set_state(self.learner.module[name].get_state())
        # Eight steps of each of two sub-environments: a whole episode, and one that is cut.
        self.fragments = in_batch_order(runner.sample(num_timesteps=16))
        runner.stop()
        for module in self.learner.module.values():
            module.double()
        self.learner.module["critic"].value_norm.update(torch.tensor([MEAN - STD, MEAN + STD]))
        self.before = {name: self._copy(name) for name in (*NAMES, "critic")}
        self.result = SweepResult(torch.zeros(0))

        def kept(*args: Any, **kwargs: Any) -> SweepResult:
            self.result = sweep(*args, **kwargs)
            return self.result

        monkeypatch.setattr(on_policy, "sweep", kept)
        connector = JointBatchConnector(config.team, config.team_reward, "cpu", "absences")
        self.learner._update(connector(rl_module=None, batch={}, episodes=self.fragments))
        self.learner.fit_critics()
        self.after = {name: self._copy(name) for name in (*NAMES, "critic")}

    def _copy(self, name: str) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in self.learner.module[name].state_dict().items()}

    def log_prob(self, name: str, weights: dict[str, torch.Tensor], f: JointFragment, t: int) -> float:
        """log π(a | o) of one row, in plain numbers."""
        module = self.learner.module[name]
        module.load_state_dict(weights)
        obs = torch.as_tensor(f.obs[name][t]).double()[None]
        with torch.no_grad():
            parameters = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS][0].tolist()
        action = f.actions[name][t]
        if isinstance(self.config.team.action_spaces[name], spaces.Discrete):
            return parameters[int(action)] - math.log(sum(math.exp(x) for x in parameters))
        total = 0.0
        for d, value in enumerate(action.tolist()):
            mean, log_std = parameters[d], parameters[len(action) + d]
            total += -0.5 * ((value - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        return total


class Rows:
    """The batch in plain loops.

    Args:
        table: Who acts when; of `SCRIPTS`.
        rule: `team_reward`.
    """

    def __init__(self, run: Recorded, table: dict[str, str], rule: str):
        self.run, self.table = run, table
        self.steps = [(f, t) for f in run.fragments for t in range(len(f))]
        self.values: list[float] = []
        self.advantages: list[float] = []
        for f in run.fragments:
            values = [self.value(f, t) for t in range(len(f) + 1)]
            rewards = [self.reward(f, t, rule) for t in range(len(f))]
            self.values += values[:-1]
            self.advantages += gae(rewards, values, f.terminated)

    def acts(self, name: str, f: JointFragment, t: int) -> bool:
        return self.table[name][f.env_t + t] == "x"

    def reward(self, f: JointFragment, t: int, rule: str) -> float:
        """What the script pays; nobody is paid before it joined or after it died."""
        script = ScriptedMultiAgentEnv(**self.run.script).script
        paid = script.rewarded(episode_of(f), f.env_t + t + 1)
        if rule == "shared":
            return next(iter(paid.values()))
        return sum(paid.values()) / (1 if rule == "sum" else len(NAMES))

    def value(self, f: JointFragment, t: int) -> float:
        """V of the joint observation: of everyone who acts what it sees, then 1; of others zeros."""
        row: list[float] = []
        for i, name in enumerate(NAMES):
            seen = [float(i), float(episode_of(f)), float(f.env_t + t), *[0.0] * i]
            row += [*seen, 1.0] if self.acts(name, f, t) else [0.0] * (len(seen) + 1)
        critic = self.run.learner.module["critic"]
        critic.load_state_dict(self.run.before["critic"])
        with torch.no_grad():
            return MEAN + STD * critic.network(torch.tensor([row], dtype=torch.float64)).item()

    def counted(self) -> list[bool]:
        return [any(self.acts(name, f, t) for name in NAMES) for f, t in self.steps]

    def normalised(self) -> list[float]:
        rows = [a for a, counts in zip(self.advantages, self.counted(), strict=True) if counts]
        mean = sum(rows) / len(rows)
        std = math.sqrt(sum((a - mean) ** 2 for a in rows) / len(rows))
        return [(a - mean) / (std + 1e-5) for a in self.advantages]

    def change(self, name: str) -> list[float]:
        """log π̄ - log π in each row, 0 where the agent did not act."""
        return [
            self.run.log_prob(name, self.run.after[name], f, t)
            - self.run.log_prob(name, self.run.before[name], f, t)
            if self.acts(name, f, t)
            else 0.0
            for f, t in self.steps
        ]

    def objective(self, name: str, log_factor: list[float]) -> float:
        """Mean of min(r M, clip(r) M) over the rows in which the agent acted."""
        terms = []
        rows = zip(self.steps, self.change(name), log_factor, self.normalised(), strict=True)
        for (f, t), change, before, advantage in rows:
            if self.acts(name, f, t):
                ratio, m = math.exp(change), math.exp(before) * advantage
                terms.append(min(ratio * m, max(1 - CLIP, min(1 + CLIP, ratio)) * m))
        return sum(terms) / len(terms)


def episode_of(f: JointFragment) -> int:
    """Each sub-environment plays a whole episode, then three steps of the next."""
    return 0 if len(f) == LENGTH else 1


def gae(rewards: list[float], values: list[float], terminated: bool) -> list[float]:
    """Σ_l (γλ)^l δ_{t+l}, as a double loop; nothing but a terminal end is worth 0."""
    found = []
    for t in range(len(rewards)):
        total = 0.0
        for later in range(t, len(rewards)):
            follows = 0.0 if terminated and later == len(rewards) - 1 else values[later + 1]
            delta = rewards[later] + GAMMA * follows - values[later]
            total += (GAMMA * LAMBDA) ** (later - t) * delta
        found.append(total)
    return found


@pytest.mark.parametrize("rule", ["shared", "mean", "sum"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_update_equals_loops_over_who_acted(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, table = SCRIPTS[name]
    run = Recorded(script, rule, monkeypatch)
    assert sorted(len(f) for f in run.fragments) == [3, 3, 5, 5]
    expected = Rows(run, table, rule)
    (first, *_), steps = run.result.order, run.result.steps
    same(steps[first].advantage[expected.counted()], kept(expected.normalised(), expected.counted()))
    log_factor = [0.0] * len(expected.steps)
    for mover in run.result.order:
        same(steps[mover].factor.log(), log_factor)
        run.learner.module[mover].load_state_dict(run.after[mover])
        same(steps[mover].objective().detach(), expected.objective(mover, log_factor))
        log_factor = [x + y for x, y in zip(log_factor, expected.change(mover), strict=True)]
    same(run.result.log_factor, log_factor)
    assert max(map(abs, log_factor)) > 0.01, "the policies have moved"
    returns = [a + v for a, v in zip(expected.advantages, expected.values, strict=True)]
    norm = run.learner.module["critic"].value_norm
    norm.load_state_dict({k[11:]: v for k, v in run.after["critic"].items() if k.startswith("value_norm.")})
    # All returns: values bootstrap from states in which nobody acts, too.
    same(norm.mean_var()[0], (BETA * MEAN + float(np.mean(returns))) / (BETA + 1))


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "all are there"])
def test_control_another_table_of_who_acted_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Recorded(SCRIPTS[name][0], "mean", monkeypatch)
    everyone = Rows(run, SCRIPTS["all are there"][1], "mean")
    (first, *_), steps = run.result.order, run.result.steps
    assert (steps[first].advantage - torch.tensor(everyone.normalised())).abs().max() > 1e-2
    with pytest.raises(AssertionError):
        same(run.result.log_factor, np.sum([everyone.change(mover) for mover in NAMES], axis=0))


def same(got: torch.Tensor, expected: Any) -> None:
    # Rewards are float32.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def kept(values: list[float], counted: list[bool]) -> list[float]:
    return [value for value, counts in zip(values, counted, strict=True) if counts]


def test_a_batch_in_which_nobody_acted_leaves_no_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """No policy moves; the critic learns what such states are worth."""
    run = Recorded({}, "shared", monkeypatch)
    for name, weights in run.after.items():
        run.learner.module[name].load_state_dict(weights)
    idle = [idled(f) for f in run.fragments]
    connector = JointBatchConnector(run.config.team, "shared", "cpu", "absences")
    _, losses, _ = run.learner._update(connector(rl_module=None, batch={}, episodes=idle))
    assert all(torch.isfinite(torch.as_tensor(loss)) for loss in losses.values())
    run.learner.fit_critics()
    for name, known in run.after.items():
        for key, value in run.learner.module[name].state_dict().items():
            assert value.isfinite().all()
            assert torch.equal(value, known[key]) == (name != "critic"), (name, key)


def idled(f: JointFragment) -> JointFragment:
    return dataclasses.replace(f, active={name: np.zeros_like(x) for name, x in f.active.items()})
