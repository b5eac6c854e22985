"""Records what an environment shows while it is played, and writes it as GIFs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_haml.config.errors import ConfigError, Problem

# Frames of the running episode; callbacks are made by RLlib, so this is where they meet `Recorder`.
_frames: list[np.ndarray] = []


class RecordFrames(RLlibCallback):
    """Renders the environment at every step."""

    def on_episode_start(self, **kwargs: Any) -> None:
        """Forgets the last episode."""
        _frames.clear()

    def on_episode_step(self, *, env: Any = None, **kwargs: Any) -> None:
        """Keeps one frame."""
        try:
            frame = env.envs[0].render()
        except Exception as error:
            raise refusal(f"the environment cannot be rendered: {error!r}.") from error
        if not isinstance(frame, np.ndarray):
            raise refusal(f"the environment renders {type(frame).__name__}, not an RGB array.")
        _frames.append(np.asarray(frame, dtype=np.uint8))


class Recorder:
    """Writes the recorded frames."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(f"{directory} cannot be made: {error.strerror}. Name a directory.") from error
        self._directory = directory

    def write(self, index: int) -> None:
        """Writes the last episode as `episode_<index>.gif`."""
        from PIL import Image

        images = [Image.fromarray(frame) for frame in _frames]
        path = self._directory / f"episode_{index + 1:03}.gif"
        images[0].save(path, save_all=True, append_images=images[1:], duration=33, loop=0)
        click.echo(f"wrote {path}")


def recording(config: AlgorithmConfig, directory: Path) -> Recorder:
    """Makes `config` record, and gives what writes the recordings.

    Raises:
        ConfigError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise refusal("needs Pillow to write GIFs. Type: pip install pillow")
    # Callbacks on steps make this package's algorithms use RLlib's sampler, which knows its envs.
    config.callbacks(RecordFrames)
    config.environment(env_config={"render_mode": "rgb_array"})
    return Recorder(directory)


def refusal(text: str) -> ConfigError:
    """An error that says why nothing can be rendered."""
    return ConfigError([Problem("rllib evaluate", "--render", text)])
