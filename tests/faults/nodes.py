"""Trains the cluster's example on a head and two nodes, one of which dies and is replaced.

    cd tests/faults
    python nodes.py --work /tmp/nodes --out results/nodes.csv
    python nodes.py --work /tmp/nodes --out results/nodes_cluster.csv --test-cluster --iterations 45

Head and nodes are processes of their own on this machine, of `ray start` or of the cluster that Ray has for
tests, with separate resources; the learner needs no GPU here. A third of the way the second node, with half
of the env runners, is killed with all its processes; ten iterations later another one joins. Each iteration
is a row.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

PORT = 6411
YAML = Path(__file__).parents[2] / "tuned_examples/happo/cluster_halfcheetah_2x3.yaml"
NAME = "happo-cluster-halfcheetah-2x3"
FIELDS: tuple[str, ...] = (
    "iteration",
    "env_steps",
    "team_return_mean",
    "healthy",
    "restarts",
    "stale",
    "steps_per_s",
    "event",
)


class RayStart:
    """Nodes of `ray start`, in sessions of their own, so that a whole node can be killed."""

    def __init__(self, work: Path):
        self.address, self._work, self._number = f"127.0.0.1:{PORT}", work, 0
        self._head = self._start("--head", f"--port={PORT}", "--num-cpus=2", "--include-dashboard=false")
        self._workers: list[subprocess.Popen[bytes]] = []

    def add(self) -> None:
        options = (f"--address={self.address}", "--num-cpus=2", '--resources={"env_runner": 2}')
        self._workers.append(self._start(*options))

    def kill_newest(self) -> None:
        kill(self._workers.pop())

    def close(self) -> None:
        for process in (*self._workers, self._head):
            kill(process)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        ray = str(Path(sys.executable).with_name("ray"))
        ports = 20000 + 500 * self._number
        ports_options = (f"--min-worker-port={ports}", f"--max-worker-port={ports + 499}")
        log = self._work / f"node-{self._number}.log"
        self._number += 1
        command = [ray, "start", "--block", "--disable-usage-stats", *options, *ports_options]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        # Two that start at the same moment can wait for each other.
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"A node did not start: see {log}")
            time.sleep(0.1)
        return process


class RayTestCluster:
    """Nodes of `ray.cluster_utils.Cluster`."""

    def __init__(self, work: Path):
        head = {"num_cpus": 2, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self._workers: list[Any] = []

    def add(self) -> None:
        self._workers.append(self._cluster.add_node(num_cpus=2, resources={"env_runner": 2}))

    def kill_newest(self) -> None:
        self._cluster.remove_node(self._workers.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(d for child in children for d in descendants(int(child)))]


def kill(process: subprocess.Popen[bytes]) -> None:
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended with its parent
    process.wait()


def results(work: Path) -> list[dict[str, Any]]:
    files = list((work / "results" / NAME).glob("*/result.json"))
    lines = files[0].read_text().splitlines() if files else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a directory for logs and results")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--test-cluster", action="store_true", help="nodes of Ray's cluster for tests")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    nodes = RayTestCluster(args.work) if args.test_cluster else RayStart(args.work)
    for _ in range(2):
        nodes.add()
    config = {"num_env_runners": 4, "num_envs_per_env_runner": 5, "num_gpus_per_learner": 0}
    command = ["-f", str(YAML), "--ray-address", nodes.address, "--config", json.dumps(config)]
    stop = ["--stop", json.dumps({"training_iteration": args.iterations})]
    place = ["--storage-path", str(args.work / "results")]
    main_ = "from rllib_haml.cli import main; main()"
    train = subprocess.Popen([sys.executable, "-c", main_, "train", *command, *stop, *place])
    events: dict[int, str] = {}
    try:
        while train.poll() is None:
            time.sleep(0.2)
            done = len(results(args.work))
            if not events and done >= args.iterations // 3:
                nodes.kill_newest()
                events[done + 1] = "a node killed"
            elif len(events) == 1 and done >= min(events) + 10:
                nodes.add()
                events[done + 1] = "a node added"
    finally:
        nodes.close()
    if train.returncode:
        raise SystemExit(f"The training ended with exit code {train.returncode}.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row(result, events) for result in results(args.work))
    print(events)


def row(result: dict[str, Any], events: dict[int, str]) -> dict[str, Any]:
    number = result["training_iteration"]
    return {
        "iteration": number,
        "env_steps": int(result["env_runners"]["num_env_steps_sampled_lifetime"]),
        "team_return_mean": round(result["env_runners"].get("team_return_mean", float("nan")), 1),
        "healthy": int(result["num_healthy_env_runners"]),
        "restarts": int(result["num_env_runner_restarts_lifetime"]),
        "stale": int(result["num_env_steps_stale_lifetime"]),
        "steps_per_s": round(4000 / result["time_this_iter_s"]),
        "event": events.get(number, ""),
    }


if __name__ == "__main__":
    main()
