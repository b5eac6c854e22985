"""Which robots MAMuJoCo can split, and into which teams."""

from __future__ import annotations

import re
from typing import Any

from rllib_haml.envs.extras import import_extra

BUILT_IN: dict[str, tuple[str, ...]] = {
    "Ant": ("2x4", "2x4d", "4x2"),
    "CoupledHalfCheetah": ("1p1",),
    "HalfCheetah": ("2x3", "6x1"),
    "Hopper": ("3x1",),
    "Humanoid": ("9|8",),
    "HumanoidStandup": ("9|8",),
    "Pusher": ("3p",),
    "Reacher": ("2x1",),
    "Swimmer": ("2x1",),
    "Walker2d": ("2x3",),
}
"""Robots and factorisations of gymnasium-robotics."""

FURTHER: dict[str, tuple[str, ...]] = {
    "Ant": ("8x1",),
    "HalfCheetah": ("3x2",),
    "Humanoid": ("17x1",),
    "HumanoidStandup": ("17x1",),
    "Walker2d": ("3x2", "6x1"),
}
"""Factorisations of the papers that gymnasium-robotics lacks; made by `further_factorisation`."""

ANY_SIZE = ("ManySegmentAnt", "ManySegmentSwimmer")
"""Robots built to measure: `agent_conf` is any "<agents>x<segments per agent>"."""


def check_factorisation(scenario: str, agent_conf: str | None) -> None:
    """Raises a `ValueError` that lists what there is, unless this robot can be split so."""
    if scenario in ANY_SIZE:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(agent_conf)):
            raise ValueError(
                f"agent_conf {agent_conf!r} of {scenario}: expected "
                '"<agents>x<segments per agent>", for example "10x2"'
            )
        return
    if scenario in ("InvertedPendulum", "InvertedDoublePendulum"):
        raise ValueError(f"{scenario} has one actuator, which cannot be shared by a team")
    if scenario not in BUILT_IN:
        raise ValueError(
            f"unknown MAMuJoCo scenario {scenario!r}; there are: " + ", ".join(sorted((*BUILT_IN, *ANY_SIZE)))
        )
    valid = (*BUILT_IN[scenario], *FURTHER.get(scenario, ()))
    if agent_conf not in valid:
        raise ValueError(
            f"unknown agent_conf {agent_conf!r} of MAMuJoCo {scenario}; there are: " + ", ".join(valid)
        )


def further_factorisation(scenario: str, agent_conf: str) -> dict[str, Any] | None:
    """`agent_factorization` for one of `FURTHER`, or None where gymnasium-robotics has it.

    The robot's joints, in the order of their actuators, are dealt out in equal runs.
    """
    if agent_conf not in FURTHER.get(scenario, ()):
        return None
    obsk = import_extra("gymnasium_robotics.envs.multiagent_mujoco.obsk", extra="mujoco")
    (whole,), edges, root = obsk.get_parts_and_edges(scenario, None)
    joints = sorted(whole, key=lambda joint: joint.act_ids)
    size = int(agent_conf.split("x")[1])
    partition = [tuple(joints[i : i + size]) for i in range(0, len(joints), size)]
    return {"partition": partition, "edges": edges, "globals": root}
