"""Trains on a cluster of several nodes while parts of it are killed, and writes down what came of it.

    python tests/faults/soak.py --out tests/faults/results/soak.csv
    python tests/faults/soak.py --out tests/faults/results/soak.csv --undisturbed --seeds 1 2 3 4 5
    python tests/faults/soak.py --out tests/faults/results/soak.csv --summary

The cluster is Ray's own for tests: a head, where the algorithm and one learner run, and two nodes with an env
runner each, every node with its own raylet and processes, on this machine. The task is MPE's spread, through
Tune with `max_failures`. Every 10 iterations a fault, in turn: an env runner killed (SIGKILL) in mid-sample,
its node removed and another one added three iterations later, a learner killed, and in one of many
sub-environments an exception, NaN, and a step that never returns. The control, `--undisturbed`, is the same
without faults.
Each iteration is a row; `--summary` compares returns, memory, file handles and counters.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from pettingzoo.utils import BaseParallelWrapper
from ray import tune
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster
from ray.tune import Callback, Tuner

import rllib_haml

EVERY = 10
FAULTS = ("env_runner", "node", "learner", "raise", "nan", "stall")
FIELDS = (
    "run",
    "iteration",
    "env_steps",
    "return",
    "faults_before",
    "healthy",
    "restarts",
    "sub_env_failures",
    "discarded",
    "stale",
    "trial_failures",
    "seconds",
    "trial_mb",
    "trial_handles",
    "env_runners_mb",
)


class Orders(BaseParallelWrapper):
    """Fails once for each file in a directory; the file's name is the fault."""

    def __init__(self, env: Any, orders: str):
        super().__init__(env)
        self._orders = Path(orders)

    def step(self, actions: Any) -> Any:
        obs, *rest = super().step(actions)
        match self._taken():
            case "raise":
                raise OSError("the simulator lost its licence")
            case "nan":
                agent = self.possible_agents[0]
                obs = {**obs, agent: np.full_like(obs[agent], np.nan)}
            case "stall":
                time.sleep(3600)
        return obs, *rest

    def _taken(self) -> str | None:
        for file in self._orders.iterdir():
            try:
                file.unlink()
            except FileNotFoundError:
                continue  # another process was faster
            return file.name
        return None


def spread(config: Any) -> Any:
    from rllib_haml.envs import mpe

    return Orders(mpe.make("simple_spread_v3", local_ratio=0.0), config["orders"])


class Machines:
    """A head and two nodes for env runners."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        self.nodes = [self._start() for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False)

    def _start(self) -> Any:
        return self.cluster.add_node(num_cpus=1, resources={"env_runner": 1})

    def remove(self) -> None:
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def add(self) -> None:
        self.nodes.append(self._start())

    def processes(self, name: str) -> list[psutil.Process]:
        """The Ray workers of this cluster whose title begins with `ray::` and `name`."""
        found = []
        for node in [self.cluster.head_node, *self.nodes]:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            found += [p for p in raylet.children(recursive=True) if _title(p).startswith(f"ray::{name}")]
        return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


class Saboteur(Callback):
    """After every tenth iteration the next fault, and a row for every iteration."""

    def __init__(self, run: str, machines: Machines, orders: Path, out: Path, disturbs: bool):
        self._run, self._machines, self._orders, self._out = run, machines, orders, out
        self._faults: Iterator[str] = itertools.cycle(FAULTS if disturbs else ())
        self._disturbs, self._begun, self._done, self._add_at = disturbs, 0.0, 0, 0
        self.injected: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks to go on later, which is not asked of this one

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        self._write(result, trial)
        now = result["training_iteration"]
        if self._add_at and now >= self._add_at:
            self._machines.add()
            self._add_at = 0
        # A trial that went back to its checkpoint has had the faults up to there.
        if self._disturbs and now % EVERY == 0 and now > self._done:
            self._done = now
            self._inject(next(self._faults), now)

    def _inject(self, fault: str, now: int) -> None:
        self.injected[fault] += 1
        print(f"iteration {now}: {fault}", flush=True)
        if fault == "node":
            self._machines.remove()
            self._add_at = now + 3
        elif fault in ("env_runner", "learner"):
            name = {"env_runner": "JointEnvRunner", "learner": "_WrappedExecutable"}[fault]
            victims = self._machines.processes(name) or self._machines.processes("OnPolicyTeamLearner")
            assert victims, [_title(p) for p in self._machines.processes("")]
            victims[0].kill()
        else:
            (self._orders / fault).touch()

    def _write(self, result: Any, trial: Any) -> None:
        trainable = psutil.Process(result["pid"])
        runners = self._machines.processes("JointEnvRunner")
        env_runners = result["env_runners"]
        row = {
            "run": self._run,
            "iteration": result["training_iteration"],
            "env_steps": int(env_runners["num_env_steps_sampled_lifetime"]),
            "return": round(float(env_runners.get("team_return_mean", np.nan)), 3),
            "faults_before": sum(self.injected.values()),
            "healthy": int(result["num_healthy_env_runners"]),
            "restarts": int(result["num_env_runner_restarts_lifetime"]),
            "sub_env_failures": int(env_runners.get("num_env_step_failures", 0)),
            "discarded": int(env_runners.get("num_env_steps_discarded_lifetime", 0)),
            "stale": int(result["num_env_steps_stale_lifetime"]),
            "trial_failures": trial.num_failures,
            "seconds": round(result["time_this_iter_s"], 2),
            "trial_mb": trainable.memory_info().rss // 2**20,
            "trial_handles": trainable.num_fds(),
            "env_runners_mb": sum(p.memory_info().rss for p in runners) // 2**20,
        }
        new = not self._out.exists()
        with self._out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def train(seed: int, iterations: int, disturbs: bool, out: Path) -> None:
    run = f"{'faults' if disturbs else 'undisturbed'}-{seed}"
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    orders = work / "orders"
    orders.mkdir()
    machines = Machines()
    rllib_haml.register()
    tune.register_env("faulty_spread", spread)
    config = (
        rllib_haml.HAPPOConfig()
        .environment("faulty_spread", env_config={"orders": str(orders)})
        .env_runners(
            num_env_runners=2,
            num_envs_per_env_runner=4,
            custom_resources_per_env_runner={"env_runner": 1},
            sample_timeout_s=10.0,
        )
        .learners(num_learners=1)
        .training(train_batch_size_per_learner=800, lr=7e-4, critic_lr=7e-4)
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .fault_tolerance(
            restart_failed_env_runners=True, restart_failed_sub_environments=True, env_step_timeout_s=5.0
        )
        .debugging(seed=seed)
    )
    saboteur = Saboteur(run, machines, orders, out, disturbs)
    results = Tuner(
        "HAPPO",
        param_space=config.to_dict(),
        run_config=tune.RunConfig(
            name=run,
            storage_path=str(work),
            stop={"training_iteration": iterations},
            verbose=0,
            callbacks=[saboteur],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=5, num_to_keep=2),
            failure_config=tune.FailureConfig(max_failures=-1),
        ),
    ).fit()
    assert not results.errors, results.errors
    print(f"{run}: injected {dict(saboteur.injected)}", flush=True)
    time.sleep(5)  # what actors held is freed in the background
    print(memory_summary(address=machines.cluster.address, stats_only=True), flush=True)
    ray.shutdown()
    machines.cluster.shutdown()
    shutil.rmtree(work)


def summarise(out: Path) -> None:
    """Final returns, the faults that showed, and how memory and handles of the trial's process went."""
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for run in sorted({row["run"] for row in rows}):
        own = [row for row in rows if row["run"] == run]
        total = int(own[-1]["iteration"])
        tail = [float(row["return"]) for row in own if int(row["iteration"]) > 0.9 * total]
        first, last = (
            [row for row in own if row["faults_before"] == own[at]["faults_before"]] for at in (0, -1)
        )
        print(
            f"{run:14} iterations {total}, return {np.mean(tail):.2f}, "
            f"faults {own[-1]['faults_before']}, {seen(own)} of which showed in counters; "
            f"stale {own[-1]['stale']}; MB {_mean(first, 'trial_mb')} to {_mean(last, 'trial_mb')}, "
            f"handles {_mean(first, 'trial_handles')} to {_mean(last, 'trial_handles')}"
        )


def seen(rows: list[dict[str, str]]) -> int:
    """After how many faults, and before the next, an env runner was missing or a counter had moved."""
    faults = sorted({int(row["faults_before"]) for row in rows} - {0})
    count = 0
    for fault in faults:
        begun = max(i for i, row in enumerate(rows) if int(row["faults_before"]) == fault - 1)
        after = [row for row in rows if int(row["faults_before"]) == fault]
        moved = ("restarts", "sub_env_failures", "trial_failures")
        count += any(row["healthy"] != "2" or any(row[k] != rows[begun][k] for k in moved) for row in after)
    return count


def _mean(rows: list[dict[str, str]], field: str) -> str:
    return f"{np.mean([float(row[field]) for row in rows]):.0f}" if rows else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--undisturbed", action="store_true", help="the control: the same without faults")
    parser.add_argument("--summary", action="store_true", help="print what --out says")
    args = parser.parse_args()
    if args.summary:
        summarise(args.out)
        return
    for seed in args.seeds:
        train(seed, args.iterations, not args.undisturbed, args.out)


if __name__ == "__main__":
    main()
