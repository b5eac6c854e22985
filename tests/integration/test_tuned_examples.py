"""Every tuned example loads strictly and trains."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from rllib_haml import HATRPOConfig
from rllib_haml.config import load_experiments

EXAMPLES = Path(__file__).parents[2] / "tuned_examples"
FILES = [path.relative_to(EXAMPLES).as_posix() for path in sorted(EXAMPLES.rglob("*.yaml"))]
AGENTS = {
    "mamujoco_halfcheetah_2x3": 2,
    "cluster_halfcheetah_2x3": 2,
    "mamujoco_ant_4x2": 4,
    "mamujoco_walker2d_2x3": 2,
    "mamujoco_walker2d_3x2": 3,
    "mamujoco_hopper_3x1": 3,
    "mamujoco_humanoid_9_8": 2,
    "mpe_spread": 3,
    "mpe_spread_continuous": 3,
    "mpe_speaker_listener": 2,
    "smax_3m": 3,
    "rware_tiny_2ag": 2,
    "lbf": 2,
    "job_shop": 5,
}


def test_both_algorithms_have_their_examples() -> None:
    tasks = {"halfcheetah_2x3", "ant_4x2", "walker2d_2x3", "hopper_3x1"}
    wanted = {f"{run}/mamujoco_{task}.yaml" for run in ("happo", "mappo") for task in tasks}
    for task in ("mpe_spread", "smax_3m", "rware_tiny_2ag", "lbf", "job_shop"):
        wanted |= {f"{run}/{task}.yaml" for run in ("happo", "mappo")}
    assert wanted <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_the_file_says_what_it_needs_and_when_it_stops(file: str) -> None:
    text = (EXAMPLES / file).read_text(encoding="utf-8")
    head = text.partition("run:")[0]
    for word in ("# Needs:", "# Expect:", "# Settings:", "# Scale:", "num_learners"):
        assert word in head
    first = head.splitlines()[0]  # what `rllib example list` shows
    assert first.startswith(f"# {file.partition('/')[0].upper()} on ")
    assert first.endswith(".")
    (spec,) = yaml.safe_load(text).values()
    assert spec["stop"]["num_env_steps_sampled_lifetime"] >= 1_000_000
    assert spec["checkpoint_at_end"] is True


@pytest.mark.parametrize("file", FILES)
def test_the_example_trains(ray_cluster: Any, file: str) -> None:
    """One iteration on a tiny batch, in this process; everything else as the file says."""
    if "smax" in file and find_spec("jaxmarl") is None:
        pytest.skip("needs rllib-haml[smax]")
    (experiment,) = load_experiments(EXAMPLES / file)
    config: Any = experiment.config.copy(copy_frozen=False)
    batch = config.train_batch_size_per_learner
    minibatch = 64 * config.minibatch_size // batch if config.minibatch_size else None
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    config.learners(num_learners=0, num_gpus_per_learner=0)
    config.training(train_batch_size_per_learner=64, critic_minibatch_size=minibatch, critic_num_epochs=2)
    if not isinstance(config, HATRPOConfig):
        config.training(minibatch_size=minibatch, num_epochs=2)
    algo: Any = config.build_algo()
    try:
        result = algo.train()
    finally:
        algo.stop()
    agents = algo.config.team.agents
    task = re.sub("_shared.*|_simultaneous|_full", "", Path(file).stem)
    assert len(agents) == AGENTS[task]
    losses = {name: found.get("policy_loss") for name, found in result["learners"].items()}
    moved = {name for name, loss in losses.items() if loss is not None}
    assert moved == _policies(file, agents)
    assert all(math.isfinite(losses[name]) for name in moved)
    for critic in algo.config.critic_specs(algo.config.team, {}):
        assert math.isfinite(result["learners"][critic]["vf_loss"])
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 64


def _policies(file: str, agents: Sequence[Any]) -> set[Any]:
    """Who moves in the first iteration."""
    if file.startswith("lorasa/"):
        return {"backbone"}
    return {"shared"} if "_shared" in file else set(agents)
