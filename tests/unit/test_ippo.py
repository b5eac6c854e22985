"""Independent learners: each policy's update depends on what its own agent saw and on the team's reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import NAMES, ScriptedMultiAgentEnv
from fragments import make_fragment
from ray.tune.registry import register_env
from torch import Tensor

from rllib_haml import HAPPOConfig, IPPOConfig, MAPPOConfig
from rllib_haml.haml import JointRows
from rllib_haml.sampling.fragment import JointFragment, in_batch_order
from rllib_haml.sampling.team import Team


def learner(config: Any, agents: tuple[str, ...] = NAMES) -> Any:
    register_env("scripted_ippo", lambda _: ScriptedMultiAgentEnv(agents=agents, equal_rewards=True))
    config.environment("scripted_ippo").rl_module(model_config={"fcnet_hiddens": [8]}).debugging(seed=1)
    config.training(num_epochs=2, critic_num_epochs=2, minibatch_size=7, lr=1e-2, critic_lr=1e-2)
    config.validate()
    torch.manual_seed(0)
    return config.build_learner()


def update(made: Any, fragments: list[JointFragment]) -> dict[str, Tensor]:
    """The weights after one update."""
    connector = made.config.build_learner_connector(None, None)[0]
    made._update(connector(rl_module=None, batch={}, episodes=fragments))
    return {
        f"{name}/{key}": value.detach().clone()
        for name, module in made.module.items()
        for key, value in module.state_dict().items()
    }


def batch(team: Team) -> list[JointFragment]:
    return in_batch_order([make_fragment(n, i, team=team, source=(0, i)) for i, n in enumerate((5, 1, 8))])


def with_other_view(fragments: list[JointFragment], agent: str) -> list[JointFragment]:
    """The same, but `agent` saw something else."""
    return [replace(f, obs={**f.obs, agent: _changed(f.obs[agent])}) for f in fragments]


def _changed(obs: Any) -> Any:
    return {k: _changed(v) for k, v in obs.items()} if isinstance(obs, dict) else np.flip(obs, 0).copy()


def moved(config: type, of: str, seen_by: str) -> bool:
    """Whether `of`'s policy ends elsewhere if `seen_by` saw something else."""
    first, second = learner(config()), learner(config())
    fragments = batch(first.config.team)
    plain, other = update(first, fragments), update(second, with_other_view(fragments, seen_by))
    return any(not torch.equal(plain[k], other[k]) for k in plain if k.startswith(f"{of}/"))


def test_others_observations_do_not_matter() -> None:
    assert moved(IPPOConfig, "scout", seen_by="scout")
    assert not moved(IPPOConfig, "scout", seen_by="carrier")
    assert moved(MAPPOConfig, "scout", seen_by="carrier"), "control: a common critic sees them"


def test_one_agent_alone_is_a_team() -> None:
    """With one agent and no state, independent and joint learning are the same to the last bit."""
    joint, own = (learner(config(), agents=("scout",)) for config in (HAPPOConfig, IPPOConfig))
    fragments = batch(joint.config.team)
    expected, found = update(joint, fragments), update(own, fragments)
    found = {key.replace("scout_critic/", "critic/"): value for key, value in found.items()}
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def test_a_shared_policy_is_refused() -> None:
    config = IPPOConfig().environment("matrix_game", env_config={"game": "climbing"})
    config.multi_agent(policies=["one"], policy_mapping_fn=lambda agent, episode, **kwargs: "one")
    with pytest.raises(ValueError, match=r"IPPO needs a policy for each agent.*share_parameters: true"):
        config.validate()


def test_the_teams_bound_is_the_sum_over_all_agents() -> None:
    made = learner(IPPOConfig())
    update(made, batch(made.config.team))
    bounds = [float(made.metrics.peek((name, "improvement_lower_bound"))) for name in NAMES]
    whole = float(made.metrics.peek(("__all_modules__", "improvement_lower_bound")))
    assert whole == pytest.approx(sum(bounds))
    assert min(bounds) > whole, "control: it is no single one's"


def test_every_policys_loss_is_returned() -> None:
    made = learner(IPPOConfig())
    fragments = [make_fragment(6, i, team=made.config.team, source=(0, i)) for i in range(2)]
    columns = made.config.build_learner_connector(None, None)[0](rl_module=None, batch={}, episodes=fragments)
    _, losses, _ = made._update(columns)
    assert set(losses) == set(NAMES)
    assert len({float(loss) for loss in losses.values()}) == len(NAMES)


def test_policies_draw_minibatches_of_their_own() -> None:
    rows = JointRows.whole(20)
    first, second = (next(iter(rows.minibatches(5, 1, 2, name, 0))).tolist() for name in ("scout", "carrier"))
    assert first != second


def test_what_is_worth_the_same_with_and_without_the_agent_is_learnt_so() -> None:
    """The team earns 1 in each step for ever, whoever is there: V = 1 / (1 - γ) = 5, also where the agent,
    which is there in the first half alone, has gone. Values before it left are bootstrapped from those after.
    """
    config = IPPOConfig().training(gamma=0.8, lambda_=0.9)
    made = learner(config, agents=("scout",))
    made.config.training(critic_num_epochs=10, minibatch_size=None)
    there = np.arange(13) < 6
    fragments = in_batch_order(
        [
            replace(
                make_fragment(12, i, team=made.config.team, source=(0, i)),
                active={"scout": there},
                reward=np.ones((12, 1), np.float32),
            )
            for i in range(4)
        ]
    )
    connector = made.config.build_learner_connector(None, None)[0]
    for _ in range(150):
        columns = connector(rl_module=None, batch={}, episodes=fragments)
        made._update(columns)
        made.fit_critics()
    critic = made.module["scout_critic"]
    with torch.no_grad():
        values = critic.denormalise(critic.normalised_values(columns["scout_critic"]["state"])).numpy()
    gone = np.tile(~there, 4)
    assert values[gone] == pytest.approx(5.0, abs=0.3)
    assert values[~gone] == pytest.approx(5.0, abs=0.3)
