"""Kills `rllib train` at random moments, again and again, and compares what comes out with a run left alone.

    python tests/faults/kills.py --work /tmp/kills --out tests/faults/results/kills.csv

20 times the command is started (from the second time on with `--resume`) and killed with SIGKILL, all its
processes at once, at a moment drawn between its first progress line and some iterations later; then it is let
finish. Sampling is local, so every number of every iteration must be that of the run that nobody killed; an
iteration whose process was killed between its checkpoint and its row in `result.json` has none. One row for
each start: where the run went on and how far it came.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ITERATIONS = 400
FILE = f"""\
killed:
  run: HAPPO
  env: mamujoco
  stop: {{training_iteration: {ITERATIONS}}}
  checkpoint_freq: 1
  checkpoint_config: {{num_to_keep: 3}}
  config:
    env_config: {{scenario: HalfCheetah, agent_conf: 2x3}}
    num_env_runners: 0
    num_envs_per_env_runner: 4
    train_batch_size_per_learner: 400
    seed: 7
    model_config: {{fcnet_hiddens: [32]}}
"""
LINE = re.compile(r"killed +(\d+) / ")


def start(work: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    (work / "killed.yaml").write_text(FILE)
    command = "from rllib_haml.cli import main; main()"
    options = ["-f", "killed.yaml", "--ray-num-cpus", "1", "--storage-path", str(work / name), *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", command, "train", *options],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def losses(results: Path) -> dict[int, str]:
    """Per iteration all that the update and the episodes gave, the last time that it was done."""
    found = {}
    for file in results.glob("killed/*/result.json"):
        for line in file.read_text().splitlines():
            try:
                result = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the process was killed
            timeless = {
                k: v
                for k, v in _numbers(result)
                if not re.search("time|duration|throughput|_sec|env_runners/sample$", k)
            }
            found[result["training_iteration"]] = json.dumps(timeless, sort_keys=True)
    return found


def _numbers(result: dict[str, Any]) -> Any:
    for part in ("learners", "env_runners"):
        stack = [(part, result[part])]
        while stack:
            name, value = stack.pop()
            if isinstance(value, dict):
                stack += [(f"{name}/{key}", inner) for key, inner in value.items()]
            else:
                yield name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a directory for both runs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    draw = random.Random(args.seed)
    rows = []
    for number in range(args.kills + 1):
        process = start(args.work, "killed", *(["--resume"] if number else []))
        patience = draw.uniform(0.0, 6.0) if number < args.kills else float("inf")
        row = {"start": number, **follow(process, patience)}
        rows.append(row)
        print(row, flush=True)
    alone = start(args.work, "alone")
    alone.communicate()
    told = compare(args.work)
    print(told)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.write(f"# {told}\n")


def compare(work: Path) -> str:
    """Both runs, iteration by iteration, in words.

    Raises:
        AssertionError: They differ.
    """
    found, expected = losses(work / "killed"), losses(work / "alone")
    assert sorted(expected) == list(range(1, ITERATIONS + 1))
    assert max(found) == ITERATIONS
    different = [i for i in found if found[i] != expected[i]]
    assert not different, f"first difference in iteration {min(different)}"
    return f"{len(found)} of {ITERATIONS} iterations have a row, and all of these are equal bit for bit"


def follow(process: subprocess.Popen[str], patience: float) -> dict[str, Any]:
    """Reads the command's progress, and kills it `patience` seconds after the first line of it."""
    assert process.stdout is not None
    first = last = 0
    begun = time.monotonic()
    end = threading.Timer(patience, os.killpg, (process.pid, signal.SIGKILL))
    for line in process.stdout:
        shown = LINE.match(line)
        if shown:
            last = int(shown.group(1))
            if not first and patience < float("inf"):
                end.start()
            first = first or last
    process.communicate()
    end.cancel()
    return {
        "first_iteration": first,
        "last_iteration": last,
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - begun, 1),
    }


if __name__ == "__main__":
    main()
