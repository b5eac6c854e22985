"""What `rllib evaluate --render` says of environments that show nothing, and while it works."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rllib_haml.cli import render
from rllib_haml.cli.app import rllib
from rllib_haml.config.errors import ConfigError


def shows(frame: Any) -> Any:
    """A vector environment whose `render()` returns or raises `frame`."""

    def shown() -> Any:
        if isinstance(frame, Exception):
            raise frame
        return frame

    return SimpleNamespace(envs=[SimpleNamespace(render=shown)])


def said_of(frame: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        render.RecordFrames().on_episode_step(env=shows(frame))
    return str(caught.value)


@pytest.mark.parametrize("frame, given", [(None, "gives None"), ("....", "gives a str")])
def test_what_render_must_return(frame: Any, given: str):
    message = said_of(frame)
    assert given in message
    assert "write `def render(self)` that returns a uint8 array (height, width, 3)" in message


def test_a_missing_display():
    # What MuJoCo says.
    error = RuntimeError("an OpenGL platform library has not been loaded into this process")
    for message in (said_of(error), str(render.unrendered("it cannot be made", error))):
        assert "OpenGL" in message
        assert "MUJOCO_GL=egl (or MUJOCO_GL=osmesa) before the command" in message


def test_control_another_error_is_not_the_displays():
    assert "MUJOCO_GL" not in said_of(KeyError("colour"))


def test_frames_are_counted_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = [0.0]
    monkeypatch.setattr(render.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(render, "_film", render._Film())
    callback, env = render.RecordFrames(), shows(np.zeros((2, 2, 3), np.uint8))
    callback.on_episode_start()
    for second in range(25):
        now[0] = float(second)
        callback.on_episode_step(env=env)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("frames")[0] for line in lines] == ["rendering: 11 ", "rendering: 21 "]


def test_help_says_what_rendering_needs():
    output = " ".join(CliRunner().invoke(rllib, ["evaluate", "--help"]).output.split())
    assert "MUJOCO_GL=egl" in output
    assert "a uint8 array (height, width, 3)" in output
