"""The options of `rllib train`, and how they override a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from rllib_haml.config.document import Document, KeyPath, read_text


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says, None where it says nothing."""

    run: str | None
    env: str | None
    config: str | None
    stop: str | None
    num_samples: int | None
    experiment_name: str | None
    storage_path: str | None
    restore: str | None
    checkpoint_freq: int | None
    checkpoint_at_end: bool | None
    max_failures: int | None
    seed: int | None
    resume: bool
    auto_resume: bool
    ray_address: str | None
    ray_num_cpus: int | None
    ray_num_gpus: int | None
    wait_for_nodes: bool | None
    allow_eval: bool
    verbosity: int

    def override(self, document: Document) -> None:
        """Writes the options over every experiment of `document`."""
        if self.experiment_name:
            document.rename_only(self.experiment_name, "--experiment-name")
        for name in document.data:
            override(document, name, self.flags() | self._storage())

    def _storage(self) -> dict[str, str]:
        return {} if self.storage_path is None else {"storage_path": self.storage_path}

    @property
    def resumes(self) -> bool:
        """Whether a run that is there goes on."""
        return self.resume or self.auto_resume

    def flags(self) -> dict[str, Any]:
        """Those given of what an experiment is; where it lies, and what it runs on, may change."""
        given = {key: getattr(self, key) for key in (*_SPEC_OPTIONS, "config", "stop", "seed")}
        return {key: value for key, value in given.items() if value is not None}


def override(document: Document, name: str, flags: Mapping[str, Any]) -> None:
    """Writes `TrainOptions.flags` over the experiment `name` of `document`."""
    for path, value, flag in _overrides(flags):
        if path in _ALSO_AT:
            document.remove((name, *_ALSO_AT[path]))
        document.override((name, *path), value, flag)


def _overrides(flags: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any, str]]:
    for key in (*_SPEC_OPTIONS, "storage_path"):
        if key in flags:
            yield (key,), flags[key], f"--{key.replace('_', '-')}"
    if "config" in flags:
        for key, value in _mapping(flags["config"], "--config").items():
            yield ("config", key), value, "--config"
    if "stop" in flags:
        # Replaces the file's criteria: the first one reached would end the run otherwise.
        yield ("stop",), None, "--stop"
        yield ("stop",), _mapping(flags["stop"], "--stop"), "--stop"
    if "seed" in flags:
        yield ("config", "seed"), flags["seed"], "--seed"


_SPEC_OPTIONS = (
    "run",
    "env",
    "num_samples",
    "restore",
    "checkpoint_freq",
    "checkpoint_at_end",
    "max_failures",
)


# What an option replaces may stand in a second place of a file.
_ALSO_AT: dict[KeyPath, KeyPath] = {
    ("env",): ("config", "env"),
    ("checkpoint_freq",): ("checkpoint_config", "checkpoint_frequency"),
    ("checkpoint_at_end",): ("checkpoint_config", "checkpoint_at_end"),
    ("storage_path",): ("local_dir",),
}


def _mapping(text: str, flag: str) -> dict[str, Any]:
    """A JSON or YAML mapping given on the command line."""
    document = read_text(text, flag)
    if not isinstance(document.data, dict):
        document.error((), f"given {text!r}, expected JSON: '{{\"key\": value}}'.")
    document.raise_problems()
    return document.data


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds every option of TrainOptions to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = [
    click.option("--run", "--algo", "-r", "run", metavar="NAME", help="Algorithm: HAPPO, PPO, ..."),
    click.option("--env", "-e", metavar="NAME", help="Registered environment or import path."),
    click.option("--config", "-c", metavar="JSON", help="Config keys, merged over the file's."),
    click.option("--stop", "-s", metavar="JSON", help="Stop criteria, in place of the file's."),
    click.option("--num-samples", type=int, metavar="N", help="Trials per point of the search."),
    click.option("--seed", type=int, metavar="N", help="Seed of everything random."),
    click.option("--experiment-name", "-n", metavar="NAME", help="Directory under storage path."),
    click.option("--storage-path", metavar="DIR", help="Results go here.  [default: ~/ray_results]"),
    click.option(
        "--checkpoint-freq",
        type=int,
        metavar="N",
        help="Checkpoint every N iterations, and every ten minutes; 0: neither. The last 3 are kept.  "
        "[default: 25]",
    ),
    click.option(
        "--checkpoint-at-end/--no-checkpoint-at-end",
        default=None,
        help="Checkpoint the last iteration.  [default: yes]",
    ),
    click.option(
        "--max-failures",
        type=int,
        metavar="N",
        help="Restarts of a failed trial from its last checkpoint; -1: any.",
    ),
    click.option("--restore", metavar="CHECKPOINT", help="Start new trials from a checkpoint."),
    click.option(
        "--resume", is_flag=True, help="Continue the last interrupted run, with the flags it began with."
    ),
    click.option(
        "--auto-resume", is_flag=True, help="Begin, or continue what has not ended: for supervisors."
    ),
    click.option("--ray-address", metavar="ADDRESS", help="Ray cluster to use: auto, or host:port."),
    click.option("--ray-num-cpus", type=click.IntRange(min=0), metavar="N", help="CPUs of a local Ray."),
    click.option("--ray-num-gpus", type=click.IntRange(min=0), metavar="N", help="GPUs of a local Ray."),
    click.option(
        "--wait-for-nodes/--no-wait-for-nodes",
        default=None,
        help="Wait where nodes are missing, or fail.  [default: wait if an autoscaler is on]",
    ),
    click.option("--allow-eval", is_flag=True, help='Execute {eval: "..."} expressions of the file.'),
    click.option("-v", "verbosity", count=True, help="Ray's logs and full traces; -vv: more."),
]
