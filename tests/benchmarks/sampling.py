"""Sampling speed: the fast sampler, RLlib's own, and the environment alone, interleaved in one run.

    python tests/benchmarks/sampling.py --repeats 7 --out tests/benchmarks/results/sampling.csv

One process, one torch thread, one policy per agent. Every contender steps the same environment class. "alone"
steps E copies in a Python loop with actions drawn beforehand. Figures are env steps (joint steps of the team)
per second of CPU time, medians over the repeats; what counts are the ratios within the run.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from gymnasium_robotics import mamujoco_v1
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner

import rllib_haml
from rllib_haml import HAPPOConfig
from rllib_haml.envs.mamujoco import make
from rllib_haml.sampling.joint_env_runner import JointEnvRunner


def runner(cls: type, conf: str, num_envs: int) -> Callable[[int], Any]:
    config: Any = (
        HAPPOConfig()
        .environment("mamujoco", env_config={"scenario": "HalfCheetah", "agent_conf": conf})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs, env_runner_cls=cls)
        .rl_module(model_config={"fcnet_hiddens": [128, 128]})
        .debugging(seed=0)
    )
    config.validate()
    sampler = cls(config=config)

    def sample(steps: int) -> int:
        fragments = sampler.sample(num_timesteps=steps)
        sampler.get_metrics()
        return sum(map(len, fragments))

    return sample


def alone(make_env: Callable[[], Any], num_envs: int) -> Callable[[int], Any]:
    envs = [make_env() for _ in range(num_envs)]
    actions = []
    for env in envs:
        env.reset(seed=0)
        actions.append([{a: env.action_space(a).sample() for a in env.possible_agents} for _ in range(64)])

    def sample(steps: int) -> int:
        done = 0
        while done < steps:
            for env, own in zip(envs, actions, strict=True):
                _, _, _, truncations, _ = env.step(own[done % 64])
                if next(iter(truncations.values())):
                    env.reset()
            done += num_envs
        return done

    return sample


def rate(sample: Callable[[int], int], steps: int) -> float:
    start = time.process_time()
    return sample(steps) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4000, help="env steps per repeat")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rllib_haml.register()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    rows = []
    for conf in ("2x3", "6x1"):
        contenders = {
            "fast": (runner(JointEnvRunner, conf, args.envs), args.steps),
            "stock, 1 sub-environment": (runner(MultiAgentEnvRunner, conf, 1), args.steps // 4),
            f"stock, {args.envs} sub-environments": (
                runner(MultiAgentEnvRunner, conf, args.envs),
                args.steps // 4,
            ),
            "alone": (alone(lambda conf=conf: make("HalfCheetah", conf), args.envs), args.steps),
            "gymnasium-robotics alone": (
                alone(lambda conf=conf: mamujoco_v1.parallel_env("HalfCheetah", conf), args.envs),
                args.steps,
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for repeat in range(args.repeats + 1):
            for name, (sample, steps) in contenders.items():
                measured = rate(sample, steps)
                if repeat:  # the first round warms up
                    rates[name].append(measured)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        stock = max(value for name, value in medians.items() if name.startswith("stock"))
        for name, value in medians.items():
            low, high = min(rates[name]), max(rates[name])
            rows.append([conf, name, round(value), round(low), round(high)])
            print(f"{conf}  {name:28s} {value:8.0f} steps/s  ({low:.0f} to {high:.0f})", flush=True)
        print(f"{conf}  fast / stock {medians['fast'] / stock:.1f}   fast / alone ", end="")
        print(f"{medians['fast'] / medians['alone']:.2f}   fast / gymnasium-robotics alone ", end="")
        print(f"{medians['fast'] / medians['gymnasium-robotics alone']:.2f}", flush=True)
    if args.out:
        with args.out.open("w", newline="") as file:
            csv.writer(file).writerows([["conf", "contender", "median", "min", "max"], *rows])


if __name__ == "__main__":
    main()
