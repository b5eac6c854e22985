"""Saving a Gymnasium MuJoCo environment so exactly that it continues bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rllib_haml.envs.extras import import_extra


def get_mujoco_state(env: gym.Env) -> dict[str, Any]:
    """The physics, the step counter of the time limit, and the generator of `env`.

    Beside MuJoCo's own integration state this keeps the arrays derived from it: after a step they
    still belong to the position before the last substep, observations and rewards read them, and
    recomputing them would move them on.
    """
    mujoco = import_extra("mujoco", extra="mujoco")
    inner: Any = env.unwrapped
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(inner.model, kind), np.float64)
    mujoco.mj_getState(inner.model, inner.data, physics, kind)
    return {
        "physics": physics,
        "derived": {name: array.copy() for name, array in _arrays(inner.data).items()},
        "elapsed_steps": [layer._elapsed_steps for layer in _time_limits(env)],
        "generator": inner.np_random.bit_generator.state,
    }


def set_mujoco_state(env: gym.Env, state: dict[str, Any]) -> None:
    """Puts `env`, made with the same arguments, where `get_mujoco_state` found it."""
    mujoco = import_extra("mujoco", extra="mujoco")
    env.reset()  # tells the wrappers that an episode is running
    inner: Any = env.unwrapped
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(inner.model, inner.data, state["physics"], kind)
    mujoco.mj_forward(inner.model, inner.data)
    present = _arrays(inner.data)
    for name, array in state["derived"].items():
        # Arrays over the contacts differ in length; no step reads those of the step before.
        if present[name].shape == array.shape:
            present[name][...] = array
    mujoco.mj_setState(inner.model, inner.data, state["physics"], kind)
    for layer, elapsed in zip(_time_limits(env), state["elapsed_steps"], strict=True):
        layer._elapsed_steps = elapsed
    inner.np_random.bit_generator.state = state["generator"]


def _arrays(data: Any) -> dict[str, np.ndarray]:
    found = {}
    for name in dir(data):
        value = None if name.startswith("_") else getattr(data, name, None)
        if isinstance(value, np.ndarray) and value.flags.writeable:
            found[name] = value
    return found


def _time_limits(env: gym.Env) -> list[Any]:
    layers = []
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit):
            layers.append(layer)
        layer = layer.env
    return layers
