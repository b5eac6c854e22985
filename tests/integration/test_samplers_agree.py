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
from spaces_env import ACTIONS, SpacesEnv, choices

from rllib_haml import HAPPOConfig
from rllib_haml.modules.actor import Actor
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


class RememberingActor(ScriptedActor):
    """The same, with a recurrent state that its log-probability tells."""

    START, DECAY = 100.0, 0.5

    def get_initial_state(self) -> dict[str, Any]:
        return {"seen": np.full(1, self.START, np.float32)}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        obs, seen, told = batch[Columns.OBS], batch[Columns.STATE_IN]["seen"], []
        actions = super()._forward({Columns.OBS: obs.flatten(0, 1)})[Columns.ACTIONS]
        for now in obs.unbind(1):
            told.append(seen[:, 0])
            seen = self.DECAY * seen + now[:, :3].sum(-1, keepdim=True)
        return {
            Columns.ACTIONS: actions.unflatten(0, obs.shape[:2]),
            Columns.ACTION_LOGP: torch.stack(told, dim=1),
            Columns.STATE_OUT: {"seen": seen},
        }


def runner(cls: type, env: str, actor: type, **env_config: Any) -> Any:
    config = (
        HAPPOConfig()
        .environment(env, env_config=env_config, disable_env_checking=True)  # the check plays an episode
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1, env_runner_cls=cls)
        .training(team_reward="mean")
        .rl_module(rl_module_spec=RLModuleSpec(module_class=actor))
        .debugging(seed=0)
    )
    config.validate()
    assert config.env_runner_cls is cls
    return cls(config=config)


def episodes(
    cls: type, env: str, actor: type = ScriptedActor, weights: Any = None, cut: bool = True, **env_config: Any
) -> dict[tuple[int, int], dict[str, Any]]:
    """Per (episode, env step) everything that its row holds.

    Args:
        actor: Class of the policies; where it draws its actions, the modes are compared.
        weights: Of the policies, if the actor has any.
        cut: Samples episodes in pieces, else whole ones.
    """
    sampler = runner(cls, env, actor, **env_config)
    if weights is not None:
        sampler.module.set_state(weights)
    rows: dict[tuple[int, int], dict[str, Any]] = defaultdict(dict)
    seen: list[str] = []
    for _ in range(CALLS if cut else 1):
        much = {"num_timesteps": STEPS} if cut else {"num_episodes": 20}
        samples = sampler.sample(**much, explore=actor is ScriptedActor)
        fragments = as_fragments(samples, sampler.config)
        for fragment in sorted(fragments, key=lambda f: [*seen, f.episode_id].index(f.episode_id)):
            if fragment.episode_id not in seen:
                seen.append(fragment.episode_id)
            if actor is RememberingActor:
                check_states(fragment)
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
        "mask": at(fragment.action_mask, t),
        "next_mask": at(fragment.action_mask, t + 1),
        "state": () if fragment.state is None else at(fragment.state, t),
        "next_state": () if fragment.state is None else at(fragment.state, t + 1),
        "terminated": fragment.terminated and ends,
        "truncated": fragment.truncated and ends,
        "outcome": fragment.outcome if ends else {},
    }


def check_states(fragment: JointFragment) -> None:
    """From the recorded state on, the actor was in the states that its log-probabilities tell."""
    start = {"seen": np.full(1, RememberingActor.START, np.float32)}
    for agent, obs in fragment.obs.items():
        state = fragment.actor_state.get(agent, start)["seen"][0]
        for t in np.flatnonzero(fragment.active[agent][:-1]):
            assert state == fragment.logp[agent][t], (agent, fragment.env_t + t)
            state = RememberingActor.DECAY * state + obs[t, :3].sum()


SCRIPTS: dict[str, dict[str, Any]] = {
    "time limit": {},
    "time limit with both flags": {"end": "both"},
    "terminal": {"end": "terminated"},
    "a death, then a time limit": {"deaths": {"carrier": 3}},
    "a death, then terminal": {"deaths": {"scout": 2}, "end": "terminated"},
    "an outcome after a time limit": {"outcomes": ("carrier", "anchor")},
    "an outcome after a death": {"outcomes": ("scout",), "deaths": {"anchor": 3}, "end": "terminated"},
    "one step": {"length": 1, "end": "terminated"},
    # RLlib drops from a chunk who has no whole step in it, so these episodes are not cut.
    "one joins late": {"joins": {"anchor": 2}, "cut": False},
    "one joins late and dies": {
        "joins": {"anchor": 1},
        "deaths": {"anchor": 3},
        "end": "terminated",
        "cut": False,
    },
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
    assert_same_rows(fast, stock)
    for (episode, _), row in fast.items():
        told = "outcomes" in script and (row["terminated"] or row["truncated"])
        assert row["outcome"] == ({"win": episode % 2, "number": episode} if told else {})


@pytest.mark.parametrize("name", ["a death, then a time limit", "one joins late"])
def test_both_samplers_carry_the_same_recurrent_states(ray_cluster: Any, name: str) -> None:
    """Each actor tells its state in its log-probability, each fragment that with which it began."""
    register_env("scripted", lambda config: ScriptedMultiAgentEnv(**config))
    fast = episodes(JointEnvRunner, "scripted", RememberingActor, **SCRIPTS[name])
    assert_same_rows(fast, episodes(MultiAgentEnvRunner, "scripted", RememberingActor, **SCRIPTS[name]))


def test_the_state_of_an_agent_that_is_not_observed_stays(ray_cluster: Any) -> None:
    register_env("scripted", lambda config: ScriptedMultiAgentEnv(**config))
    rows = episodes(JointEnvRunner, "scripted", RememberingActor, skips={"carrier": (2, 4)})
    told = [rows[0, t]["logp"]["carrier"] for t in (1, 3)]
    assert told[1] == RememberingActor.DECAY * told[0] + rows[0, 1]["obs"]["carrier"][:3].sum()


def test_an_agent_that_is_not_observed_for_a_while(ray_cluster: Any) -> None:
    register_env("scripted", lambda config: ScriptedMultiAgentEnv(**config))
    script: dict[str, Any] = {"skips": {"carrier": (2, 4)}}
    with pytest.raises(ValueError, match=r"'carrier' was not observed.*batch_mode='complete_episodes'"):
        episodes(MultiAgentEnvRunner, "scripted", **script)
    fast = episodes(JointEnvRunner, "scripted", cut=False, **script)
    stock = episodes(MultiAgentEnvRunner, "scripted", cut=False, **script)
    for (_, t), row in fast.items():
        assert row["active"]["carrier"] == (t not in (2, 4))
    # RLlib adds up what an agent is given while it is not observed.
    given, summed = (sum(rows[key].pop("reward") for key in fast) for rows in (fast, stock))
    np.testing.assert_allclose(given, summed)
    assert_same_rows(fast, stock)


def assert_same_rows(
    fast: dict[tuple[int, int], Any], stock: dict[tuple[int, int], Any], close: bool = False
) -> None:
    """Equal; with `close`, floats up to rounding."""
    common = fast.keys() & stock.keys()
    assert len(common) >= 20, "several episodes, cut in their middle"
    assert sum(fast[key]["terminated"] or fast[key]["truncated"] for key in common) >= 3
    for key in sorted(common):
        tree.assert_same_structure(fast[key], stock[key])
        for path, value in tree.flatten_with_path(fast[key]):
            other = stock[key]
            for part in path:
                other = other[part]
            tolerance = 1e-5 if np.asarray(value).dtype.kind == "f" and close else 0.0
            np.testing.assert_allclose(value, other, rtol=tolerance, atol=tolerance, err_msg=f"{key} {path}")


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("masks", [None, "obs"])
def test_both_samplers_give_the_same_actions_and_masks_of_every_kind(
    ray_cluster: Any, masks: str | None, skips: bool
) -> None:
    """What the default actors do in every action space; the environment refuses what is not in it."""
    register_env("spaces", lambda config: SpacesEnv(**config))
    script: dict[str, Any] = {"masks": masks, "skips": skips}
    weights = runner(JointEnvRunner, "spaces", Actor, **script).module.get_state()
    script["cut"] = not skips
    fast = episodes(JointEnvRunner, "spaces", Actor, weights, **script)
    stock = episodes(MultiAgentEnvRunner, "spaces", Actor, weights, **script)
    masked = {agent for agent, space in ACTIONS.items() if choices(space)}
    first = fast[min(fast)]
    assert set(first["mask"]) == (masked if masks else set())
    if masks:
        assert not all(mask.all() for mask in first["mask"].values())
    if skips:
        assert not all(present for row in fast.values() for present in row["active"].values())
    for row in (*fast.values(), *stock.values()):
        del row["logp"]  # of a mode; RLlib says 0
    assert_same_rows(fast, stock, close=True)  # stacked networks round otherwise
