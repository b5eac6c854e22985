"""A setup moved over from RLlib's PPO: connectors and a mapping of its own, with a remote env runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from test_connectors import Sees, Trace
from test_from_ppo import ROWS

from rllib_haml import HAPPO, HAPPOConfig

AGENTS = ("a", "b")


def connectors(env: Any = None, spaces: Any = None, device: Any = None) -> Any:
    return [FlattenObservations(multi_agent=True), MeanStdFilter(multi_agent=True), Trace()]


def by_hash(agent: Any, episode: Any = None, **kwargs: Any) -> str:
    """A function of the agent, though another one in every process."""
    return f"p{hash(agent)}"


def answers(env_runner: Any) -> Any:
    decided = env_runner.config.policy_mapping_fn
    return {a: decided(a) for a in AGENTS}, {a: decided.given(a) for a in AGENTS}


def check_names_of_metrics(learners: Any, policy: str) -> None:
    """PPO's metrics are found where the table says."""
    renamed = {what[1:-1].split("/")[2]: here for what, _, here in ROWS if what.startswith("`learners/")}
    assert len(renamed) > 5
    for name, here in renamed.items():
        assert name not in learners[policy]
        where = here.split("`")[1].split("/") if "`" in here else []
        found = learners[policy] if len(where) == 1 else learners["critic"]
        assert not where or where[-1] in found, here


def test_an_rllib_setup_trains_is_restored_and_evaluated(
    ray_cluster: Any, stopping: list[Any], tmp_path: Path
) -> None:
    config = (
        HAPPOConfig()
        .environment(Sees, env_config={"sees": "dict"})
        .env_runners(num_env_runners=1, num_envs_per_env_runner=2, env_to_module_connector=connectors)
        .multi_agent(policy_mapping_fn=by_hash)
        .training(train_batch_size_per_learner=40, num_epochs=1, critic_num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8], "head_gain": 1.0})
        .evaluation(evaluation_interval=100, evaluation_duration=2)
        .debugging(seed=1)
    )
    algo = config.build_algo()
    stopping.append(algo)
    assert algo.config.env_runner_cls is MultiAgentEnvRunner
    table = dict(algo.config.team.module_of)
    assert table == {a: by_hash(a) for a in AGENTS}
    for _ in range(2):
        learners = algo.train()["learners"]
        for policy in table.values():
            assert float(learners[policy]["behaviour_gap"]) < 1e-4
    check_names_of_metrics(learners, min(table.values()))
    ((there, asked_again),) = algo.env_runner_group.foreach_env_runner(answers, local_env_runner=False)
    assert there == table
    assert asked_again != table, "control: asked there, the mapping says something else"
    assert np.isfinite(algo.evaluate()["env_runners"]["episode_return_mean"])
    algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    here = algo.config.copy(copy_frozen=False).env_runners(num_env_runners=0)
    again = HAPPO.from_checkpoint(str(tmp_path / "checkpoint"), config=here)
    stopping.append(again)
    assert dict(again.config.team.module_of) == table
    learners = again.train()["learners"]
    assert all(float(learners[policy]["behaviour_gap"]) < 1e-4 for policy in table.values())
