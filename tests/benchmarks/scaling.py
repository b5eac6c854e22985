"""Where an iteration's time goes on more env runners, learners and agents, and a model of it.

    python tests/benchmarks/scaling.py --out tests/benchmarks/results/scaling.csv

HAPPO, 1,600 joint steps of 4 sub-environments per env runner, five epochs of actors and critic on the whole
batch, MLP 64×64, one policy per agent, on a team of N agents that costs next to nothing to step (8 numbers
seen, 4 choices, episodes of 25 steps); each process has one torch thread. Without `--address` on a Ray of
this machine's CPUs.

Each row is one cell. Of its fastest iteration, wall seconds by stage, as the driver sees them (`sampling` is
what it waits, `transfer` its own CPU time while it collects). Means of all: CPU seconds of one env runner and
of one learner. And bytes sent beside bytes that must move (`traffic`). `scaling_model` fits and plots the
table, and says what it assumes.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import scaling_model
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from ray.tune.registry import register_env
from traffic import needed, parameter_bytes, recorded, sent

from rllib_haml import HAPPOConfig
from rllib_haml.learners.on_policy import OnPolicyTeamLearner

SUB_ENVS, EPISODE, WARM_UP = 4, 25, 2


class Cell(NamedTuple):
    """What varies: env runners, learners (0: in the driver), agents, joint steps of a batch."""

    runners: int = 1
    learners: int = 0
    agents: int = 4
    steps: int = 1600


CELLS = [
    *(Cell(agents=n) for n in (2, 4, 8, 16, 32)),
    *(Cell(runners=r) for r in (2, 4)),
    *(Cell(runners=r, learners=n) for r in (1, 2) for n in (1, 2)),
    *(Cell(learners=n, agents=16) for n in (1, 2)),
    Cell(learners=4, agents=8),
    Cell(agents=8, steps=4800),
    Cell(runners=2, learners=2, agents=8, steps=4800),
]


class Crowd(ParallelEnv):
    """N agents that see noise and are paid for the share of them that choose 0."""

    metadata: dict[str, Any] = {"name": "crowd"}  # noqa: RUF012
    render_mode = None

    def __init__(self, agents: int):
        self.possible_agents = [f"agent_{i}" for i in range(agents)]
        self.agents: list[str] = []
        self._view, self._choice = spaces.Box(-1, 1, (8,), np.float32), spaces.Discrete(4)
        self._rng = np.random.default_rng(0)

    def observation_space(self, agent: str) -> spaces.Space:
        return self._view

    def action_space(self, agent: str) -> spaces.Space:
        return self._choice

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self._time = self.possible_agents.copy(), 0
        return self._look(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self._time += 1
        over, team = self._time == EPISODE, self.possible_agents
        reward = sum(int(actions[agent]) == 0 for agent in team) / len(team)
        self.agents = [] if over else team.copy()
        return (
            self._look(),
            dict.fromkeys(team, reward),
            dict.fromkeys(team, False),
            dict.fromkeys(team, over),
            {agent: {} for agent in team},
        )

    def _look(self) -> dict[str, np.ndarray]:
        seen = self._rng.uniform(-1, 1, (len(self.possible_agents), 8)).astype(np.float32)
        return dict(zip(self.possible_agents, seen, strict=True))


class TimedLearner(OnPolicyTeamLearner):
    """The product's learner, and the CPU seconds that it has spent on updates and on critics' epochs."""

    def build(self) -> None:
        super().build()
        self.spent = {"update": 0.0, "critic": 0.0}

    def update(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = super().update(*args, **kwargs)
        self.spent["update"] += time.process_time() - start
        return result

    def fit_critics(self) -> Any:
        start = time.process_time()
        result = super().fit_critics()
        self.spent["critic"] += time.process_time() - start
        return result


class Stages:
    """Wall and CPU seconds that the driver spends in each stage of each iteration."""

    def __init__(self, algo: Any):
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)
        algo.sampler.collect = self._timed("collect", algo.sampler.collect)
        algo.learner_group.update = self._timed("update", algo.learner_group.update)
        algo.sampler.take_weights = self._timed("sync", algo.sampler.take_weights)
        algo.learner_group.foreach_learner = self._timed("critic", algo.learner_group.foreach_learner)
        algo.train = self._timed("iteration", algo.train)

    def _timed(self, stage: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = do(*args, **kwargs)
            self.wall[stage].append(time.perf_counter() - wall)
            self.cpu[stage].append(time.process_time() - cpu)
            return result

        return timed


def build(cell: Cell) -> Any:
    register_env("crowd", lambda config: Crowd(config["agents"]))
    return (
        HAPPOConfig()
        .environment("crowd", env_config={"agents": cell.agents})
        .env_runners(num_env_runners=cell.runners, num_envs_per_env_runner=SUB_ENVS)
        .learners(num_learners=cell.learners)
        .training(
            train_batch_size_per_learner=cell.steps // max(cell.learners, 1),
            num_epochs=5,
            critic_num_epochs=5,
            learner_class=TimedLearner,
        )
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .debugging(seed=0)
        .build_algo()
    )


def measured(cell: Cell, iterations: int) -> dict[str, float]:
    """One row. The first iteration, which finds its batch sampled, counts for CPU time alone."""
    algo = build(cell)
    for _ in range(WARM_UP):
        algo.train()
    before = _spent(algo)
    stages = Stages(algo)
    for _ in range(iterations):
        algo.train()
    after = _spent(algo)
    with recorded(algo) as traffic:
        algo.train()
    sizes = parameter_bytes(algo)
    algo.stop()
    fastest = min(range(1, iterations), key=stages.wall["iteration"].__getitem__)
    wall = {stage: seconds[fastest] for stage, seconds in stages.wall.items()}
    transfer = stages.cpu["collect"][fastest]
    return {
        "steps_per_s": cell.steps / wall["iteration"],
        "iteration": wall["iteration"],
        "sampling": wall["collect"] - transfer,
        "transfer": transfer,
        "update": wall["update"],
        "sync": wall["sync"],
        "critic": wall["critic"],
        "rest": 2 * wall["iteration"] - sum(wall.values()),
        **{f"cpu_{name}": (after[name] - before[name]) / iterations for name in after},
        "fragment_bytes": sum(map(sent, traffic.answers)),
        "fragment_needed": needed(traffic.fragments),
        "weight_bytes": sum(map(sent, traffic.weights)),
        "weight_needed": sum(size for name, size in sizes.items() if name != "critic"),
    }


def _spent(algo: Any) -> dict[str, float]:
    """CPU seconds so far of the mean env runner and learner. Waits for the batch that was begun."""
    runners = algo.env_runner_group.foreach_env_runner(
        lambda runner: time.process_time(), local_env_runner=False
    )
    learners = [answer.get() for answer in algo.learner_group.foreach_learner(lambda learner: learner.spent)]
    return {
        "runner": statistics.mean(runners),
        **{stage: statistics.mean(spent[stage] for spent in learners) for stage in learners[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--address", default="local", help="of a running Ray, such as auto")
    parser.add_argument(
        "--iterations", type=int, default=12, help="of each cell, after two that do not count"
    )
    parser.add_argument("--out", type=Path, required=True, help="the table; the plot lies beside it, as PNG")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    most = max(cell.runners + cell.learners for cell in CELLS) + 1
    is_here = args.address == "local"
    here: dict[str, Any] = {"num_cpus": most, "include_dashboard": False} if is_here else {}
    ray.init(
        args.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}},
        **here,
    )
    cores = os.cpu_count() if is_here else ray.cluster_resources()["CPU"]
    with args.out.open("w", newline="") as file:
        writer = None
        for cell in CELLS:
            row = {**cell._asdict(), "cores": cores, **measured(cell, args.iterations)}
            writer = writer or csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
            file.flush()
            print(*(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    scaling_model.report(args.out)


if __name__ == "__main__":
    main()
