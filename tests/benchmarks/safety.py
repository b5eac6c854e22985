"""What it costs that updates are checked for NaN, and that checkpoints are whole.

    python tests/benchmarks/safety.py

HAPPO on HalfCheetah 2x3 and 6x1, tuned, the whole batch and minibatches of 500: CPU time of all that looks
after finite numbers, over that of the iterations; then seconds and bytes of a checkpoint, beside those of
RLlib's plain one. One process, one torch thread.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from pyarrow.fs import LocalFileSystem
from ray.rllib.algorithms.algorithm import Algorithm
from torch import Tensor

import rllib_haml
from rllib_haml.algorithms import haml
from rllib_haml.checkpoints.read import verify
from rllib_haml.config import load_experiments
from rllib_haml.haml import finite, kl_ball, neighbourhood
from rllib_haml.learners import team_critic

EXAMPLE = Path(__file__).parents[2] / "tuned_examples" / "happo" / "mamujoco_halfcheetah_2x3.yaml"
spent = 0.0


def timed(work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def measured(*args: Any) -> Any:
        global spent
        start = time.process_time()
        try:
            return work(*args)
        finally:
            spent += time.process_time() - start

    return measured


def timed_check(loss: Tensor, flat: Tensor, parameters: Any) -> Tensor:
    """Without it the gradient's norm would be taken too, and the loss not be joined to the gradient."""
    global spent
    norm = flat.norm()
    start = time.process_time()
    plain_check(loss, flat, parameters)
    torch.cat([flat, loss.view(1)])
    between = time.process_time()
    flat.norm()
    spent += 2 * between - start - time.process_time()
    return norm


@contextmanager
def timed_snapshot(*args: Any) -> Iterator[None]:
    snapshot = plain_snapshot(*args)
    timed(snapshot.__enter__)()
    yield
    timed(snapshot.__exit__)(None, None, None)


plain_snapshot, plain_check = finite.all_or_nothing, finite.check_gradient
for module in (finite, neighbourhood, kl_ball, team_critic, haml):
    if hasattr(module, "check_gradient"):
        module.check_gradient = timed_check
    for name in ("check_weights", "check_finite", "check_fragments"):
        if hasattr(module, name):
            setattr(module, name, timed(getattr(module, name)))
    if hasattr(module, "all_or_nothing"):
        module.all_or_nothing = timed_snapshot


def guards_share(algo: Any, iterations: int) -> list[float]:
    global spent
    shares = []
    for _ in range(iterations):
        spent, start = 0.0, time.process_time()
        algo.train()
        shares.append(spent / (time.process_time() - start))
    return shares


def checkpoints(algo: Any, repeats: int) -> Iterator[str]:
    """Seconds to write, and bytes, with and without this package's care; seconds to check."""
    with tempfile.TemporaryDirectory() as scratch:
        ways = {
            "whole": lambda path: algo.save_to_path(path),
            "RLlib's plain": lambda path: Algorithm.save_to_path(algo, path),
        }
        for name, save in ways.items():
            path, seconds = str(Path(scratch, name)), []
            for _ in range(repeats):
                start = time.perf_counter()
                save(path)
                seconds.append(time.perf_counter() - start)
            size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
            yield f"{name} {1e3 * statistics.median(seconds):.0f} ms, {size:,} bytes"
        start = time.perf_counter()
        verify(str(Path(scratch, "whole")), LocalFileSystem())
        yield f"checked in {1e3 * (time.perf_counter() - start):.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rllib_haml.register()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    (experiment,) = load_experiments(EXAMPLE)
    for conf in ("2x3", "6x1"):
        for size in (None, 500):
            config: Any = experiment.config.copy(copy_frozen=False)
            config.environment(env_config={"agent_conf": conf})
            config.training(minibatch_size=size, critic_minibatch_size=size)
            algo = config.build_algo()
            algo.train()
            shares = guards_share(algo, args.iterations)
            median, low, high = (100 * f(shares) for f in (statistics.median, min, max))
            print(f"{conf} minibatch {size}  {median:.2f} % of an iteration ({low:.2f} to {high:.2f})")
            if size is None:
                print(f"{conf} checkpoint: {'; '.join(checkpoints(algo, args.iterations))}")
            algo.stop()


if __name__ == "__main__":
    main()
