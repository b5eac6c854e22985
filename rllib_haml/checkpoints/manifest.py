"""What a checkpoint says of itself: its files with their digests, who made it, for which team."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import ray
import torch
from gymnasium import spaces

import rllib_haml
from rllib_haml.sampling.team import Team

MANIFEST = "haml_manifest.json"
_OF_AN_AGENT = ("policy", "observation_space", "action_space")


def present_versions() -> dict[str, str]:
    return {
        "rllib_haml": rllib_haml.__version__,
        "ray": ray.__version__,
        "torch": torch.__version__,
        "gymnasium": version("gymnasium"),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Manifest:
    """The manifest of one checkpoint.

    Attributes:
        algorithm: Name of the class that made the checkpoint.
        agents: Per agent its policy and its spaces, as `outline` tells them.
        versions: Of this package and of what a checkpoint depends on.
        files: SHA-256 of every other file of the checkpoint, by its path within.
    """

    algorithm: str
    agents: dict[str, dict[str, str]]
    versions: dict[str, str] = field(default_factory=present_versions)
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, algorithm: str, team: Team) -> Manifest:
        """That of a checkpoint to be made; it has no files yet."""
        return cls(algorithm, agents_of(team))

    def dumps(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def loads(cls, text: str | bytes) -> Manifest:
        """Reads what `dumps` wrote.

        Raises:
            ValueError: It is no manifest; it says why.
        """
        try:
            values = json.loads(text, object_pairs_hook=_each_key_once)
            if not isinstance(values, dict) or values.keys() != {f.name for f in fields(cls)}:
                raise ValueError(f"{str(text)[:80]!r} is no manifest")
            made = cls(**values)
            made._check_kinds()
        except RecursionError as error:
            raise ValueError("its values lie too deep within each other") from error
        return made

    def _check_kinds(self) -> None:
        if not isinstance(self.algorithm, str):
            raise ValueError(f"`algorithm` is {self.algorithm!r:.80}, expected a name")
        for key in ("versions", "files"):
            if not _is_words(given := getattr(self, key)):
                raise ValueError(f"`{key}` is {given!r:.80}, expected a string for each name")
        if not isinstance(self.agents, dict):
            raise ValueError(f"`agents` is {self.agents!r:.80}, expected an object")
        for agent, about in self.agents.items():
            if not _is_words(about) or about.keys() != set(_OF_AN_AGENT):
                raise ValueError(
                    f"agent {agent!r} is {about!r:.80}, expected strings for {', '.join(_OF_AN_AGENT)}"
                )


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands in it twice")
    return made


def _is_words(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(word, str) for word in value.values())


def agents_of(team: Team) -> dict[str, dict[str, str]]:
    return {
        str(agent): {
            "policy": team.module_of[agent],
            "observation_space": outline(team.observation_spaces[agent]),
            "action_space": outline(team.action_spaces[agent]),
        }
        for agent in team.agents
    }


def outline(space: gym.Space) -> str:
    """What of a space decides on a network's shape; in words of our own, since gymnasium's change."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{key}: {outline(sub)}' for key, sub in space.items())})"
    if isinstance(space, spaces.Tuple):
        return f"Tuple({', '.join(map(outline, space))})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})"
    if isinstance(space, spaces.MultiDiscrete):
        return f"MultiDiscrete({space.nvec.tolist()})"
    return f"{type(space).__name__}{space.shape} {space.dtype}"


def digest(stream: Any) -> str:
    """SHA-256 of what is left to read of a binary stream."""
    found = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        found.update(chunk)
    return found.hexdigest()


def files_in(directory: Path) -> list[Path]:
    """Whatever is no directory in a checkpoint, links too, but the manifest; sorted."""
    entries = (p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(p for p in entries if p != directory / MANIFEST)
