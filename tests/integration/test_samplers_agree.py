"""The fast sampler and RLlib's own give the same fragments when both play one script."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
import tree
from fake_envs import ScriptedMultiAgentEnv, ScriptedParallelEnv
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.tune.registry import register_env

from rllib_haml import HAPPOConfig
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv

STEPS = 7  # of one sampling call: with episodes of five, fragments are cut in the middle
CALLS = 4


class ScriptedActor(TorchRLModule):
    """Acts by (agent, episode, step), which its observation tells, and claims a log-probability of it."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        obs = batch[Columns.OBS]
        phase = 7 * obs[:, 0] + 5 * obs[:, 1] + obs[:, 2]
        if hasattr(self.action_space, "n"):
            actions = phase.long() % int(self.action_space.n)
        else:
            actions = torch.sin(phase)[:, None].expand(-1, *self.action_space.shape)
        return {Columns.ACTIONS: actions, Columns.ACTION_LOGP: -0.01 * phase}


def runner(cls: type, env: str, **env_config: Any) -> Any:
    config = (
        HAPPOConfig()
        .environment(env, env_config=env_config, disable_env_checking=True)  # the check plays an episode
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1, env_runner_cls=cls)
        .training(team_reward="mean")
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ScriptedActor))
        .debugging(seed=0)
    )
    config.validate()
    assert config.env_runner_cls is cls
    return cls(config=config)


def episodes(cls: type, env: str, **env_config: Any) -> dict[tuple[int, int], dict[str, Any]]:
    """Per (episode, env step) everything that its row holds; row T of the last step as 'final'."""
    sampler = runner(cls, env, **env_config)
    rows: dict[tuple[int, int], dict[str, Any]] = defaultdict(dict)
    seen: list[str] = []
    for _ in range(CALLS):
        fragments = as_fragments(sampler.sample(num_timesteps=STEPS), sampler.config)
        for fragment in sorted(fragments, key=lambda f: [*seen, f.episode_id].index(f.episode_id)):
            if fragment.episode_id not in seen:
                seen.append(fragment.episode_id)
            for t in range(len(fragment)):
                rows[(seen.index(fragment.episode_id), fragment.env_t + t)] = row(fragment, t)
    sampler.stop()
    return dict(rows)


def row(fragment: JointFragment, t: int) -> dict[str, Any]:
    def at(x: Any, index: int) -> Any:
        return tree.map_structure(lambda a: np.asarray(a[index]), x)

    ends = t == len(fragment) - 1
    return {
        "obs": at(fragment.obs, t),
        "next_obs": at(fragment.obs, t + 1),
        "actions": at(fragment.actions, t),
        "logp": at(fragment.logp, t),
        "active": at(fragment.active, t),
        "next_active": at(fragment.active, t + 1),
        "reward": fragment.reward[t],
        "state": () if fragment.state is None else at(fragment.state, t),
        "next_state": () if fragment.state is None else at(fragment.state, t + 1),
        "terminated": fragment.terminated and ends,
        "truncated": fragment.truncated and ends,
    }


SCRIPTS: dict[str, dict[str, Any]] = {
    "time limit": {},
    "time limit with both flags": {"end": "both"},
    "terminal": {"end": "terminated"},
    "a death, then a time limit": {"deaths": {"carrier": 3}},
    "a death, then terminal": {"deaths": {"scout": 2}, "end": "terminated"},
    "one step": {"length": 1, "end": "terminated"},
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("kind", [ScriptedMultiAgentEnv, ScriptedParallelEnv])
def test_both_samplers_give_the_same_rows(ray_cluster: Any, kind: type, script: dict[str, Any]) -> None:
    def make(env_config: Any) -> Any:
        made = kind(**env_config)
        return ParallelTeamEnv(made) if kind is ScriptedParallelEnv else made

    register_env("scripted", make)
    fast = episodes(JointEnvRunner, "scripted", **script)
    stock = episodes(MultiAgentEnvRunner, "scripted", **script)
    common = fast.keys() & stock.keys()
    assert len(common) >= 20, "several episodes, cut in their middle"
    assert sum(fast[key]["terminated"] or fast[key]["truncated"] for key in common) >= 3
    for key in sorted(common):
        tree.assert_same_structure(fast[key], stock[key])
        for path, value in tree.flatten_with_path(fast[key]):
            other = stock[key]
            for part in path:
                other = other[part]
            np.testing.assert_array_equal(value, other, err_msg=f"{key} {path}")
