"""Records what an environment shows while it is played, and writes it as GIFs."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_haml.config.errors import ConfigError, Problem

_SAY_EVERY_S = 10.0
# What errors of graphics libraries speak of where there is no display.
_GRAPHICS = ("OpenGL", "glGet", "GLFW", "EGL", "OSMesa", "X11", "DISPLAY")


class _Film:
    """The frames of the running episode; says now and then how many there are."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self._said_at = time.monotonic()

    def restart(self) -> None:
        self.frames.clear()

    def add(self, frame: np.ndarray) -> None:
        self.frames.append(frame)
        now = time.monotonic()
        if now - self._said_at >= _SAY_EVERY_S:
            self._said_at = now
            click.echo(f"rendering: {len(self.frames):,} frames of this episode so far", err=True)


# Callbacks are made by RLlib, so this is where they meet `Recorder`.
_film = _Film()


class RecordFrames(RLlibCallback):
    """Renders the environment at every step."""

    def on_episode_start(self, **kwargs: Any) -> None:
        """Forgets the last episode."""
        _film.restart()

    def on_episode_step(self, *, env: Any = None, **kwargs: Any) -> None:
        """Keeps one frame."""
        try:
            frame = env.envs[0].render()
        except Exception as error:
            raise unrendered("the environment cannot be rendered", error) from error
        if not isinstance(frame, np.ndarray):
            given = "gives None" if frame is None else f"gives a {type(frame).__name__}"
            raise refusal(
                f"the environment's render() {given}: write `def render(self)` that returns a uint8 array "
                f"(height, width, 3)."
            )
        _film.add(np.asarray(frame, dtype=np.uint8))


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

        images = [Image.fromarray(frame) for frame in _film.frames]
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


def unrendered(text: str, error: Exception) -> ConfigError:
    """A refusal for what graphics raised, with the way out where a display is missing."""
    message = f"{text}: {error!r}."
    if any(word in message for word in _GRAPHICS):
        message += " Without a display put MUJOCO_GL=egl (or MUJOCO_GL=osmesa) before the command."
    return refusal(message)
