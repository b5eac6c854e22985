"""What a run of LoRASA may begin with: an earlier run's shared policy, or its whole team."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray.rllib.utils.typing import StateDict

from rllib_haml.algorithms.adapter_swap import running_adapter, send_weights
from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.algorithms.phase_switch import PLATEAU
from rllib_haml.algorithms.warm_network import check_same_policy, take_over_critic
from rllib_haml.checkpoints.policies import modules_of
from rllib_haml.checkpoints.read import CheckpointError
from rllib_haml.modules.adapter import BACKBONE, Adapter
from rllib_haml.modules.adapter_fit import adopt
from rllib_haml.modules.critic import CRITIC

_STARTS = ("backbone_checkpoint", "adapters_checkpoint")


def located(checkpoint: str | None) -> str | None:
    """Its whole path: trials run in directories of their own."""
    return None if checkpoint is None else str(Path(checkpoint).expanduser().absolute())


def check_warm_start(config: Any) -> None:
    """Looks at the keys that say what a run begins with.

    Raises:
        ValueError: They contradict each other.
    """
    if config.adapters_checkpoint is None:
        if config.new_adapters != "zero":
            raise ValueError(
                f"new_adapters={config.new_adapters!r} says how agents join the team of "
                f"`adapters_checkpoint`: give that, too, or neither."
            )
        return
    if config.backbone_checkpoint is not None:
        raise ValueError("backbone_checkpoint and adapters_checkpoint both bring a backbone: give one.")
    if config.adapters_from not in (PLATEAU, 0):
        raise ValueError(
            f"adapters_from={config.adapters_from!r}: adapters that adapters_checkpoint brings train from "
            f"the start: leave it out."
        )


def missing_start(config: Any) -> str:
    """What is wrong if the checkpoint that the run is to begin with does not exist; else empty."""
    for key in _STARTS:
        path = getattr(config, key)
        if path is not None and not Path(path).is_dir():
            return f"{key}={path!r} does not exist: expected the directory of a checkpoint."
    return ""


def standing_alone(config: dict[str, Any]) -> dict[str, Any]:
    """`config` of a run that has begun: its own checkpoints hold what it began with."""
    began = dict.fromkeys(_STARTS) | {"new_adapters": "zero"}
    at_once = {"adapters_from": 0} if config["adapters_checkpoint"] is not None else {}
    return config | began | at_once


def begin(algorithm: Any) -> None:
    """Loads what the algorithm's config names; see `LoRASAConfig.training`."""
    config = algorithm.config
    if config.backbone_checkpoint is not None:
        shared, critic = shared_policy_of(config.backbone_checkpoint)
        check_same_policy(config.backbone_checkpoint, algorithm.get_module(BACKBONE), shared)
        on_every_learner(algorithm, partial(_begin_with, states={BACKBONE: shared.get_state()}))
        take_over_critic(algorithm, critic)
        send_weights(algorithm)
    if config.adapters_checkpoint is not None:
        former = former_team(config.adapters_checkpoint)
        states = {BACKBONE: former[BACKBONE].get_state()} | adapters_of(algorithm, former)
        on_every_learner(algorithm, partial(_begin_with, states=states))
        take_over_critic(algorithm, former[CRITIC])
        send_weights(algorithm)


def shared_policy_of(path: str) -> tuple[Any, Any]:
    """The policy that all agents share in the checkpoint at `path`, and the team's critic, if it has one.

    Raises:
        ValueError: It holds no shared policy.
        CheckpointError: There is no checkpoint, or it is not as it was written.
    """
    found = _modules_of("backbone_checkpoint", path)
    for name in (BACKBONE, "shared"):
        if name in found:
            return found[name], found.get(CRITIC)
    raise ValueError(
        f"backbone_checkpoint={path!r} holds no shared policy: expected the checkpoint of MAPPO with "
        f"share_parameters: true, or of LoRASA."
    )


def former_team(path: str) -> dict[str, Any]:
    """The modules of the checkpoint at `path`, adapters bound to their backbone.

    Raises:
        ValueError: It is none of LoRASA.
        CheckpointError: There is no checkpoint, or it is not as it was written.
    """
    found = _modules_of("adapters_checkpoint", path)
    if not any(isinstance(module, Adapter) for module in found.values()):
        raise ValueError(
            f"adapters_checkpoint={path!r} holds no adapters: expected the checkpoint of a LoRASA run."
        )
    return found


def _modules_of(key: str, path: str) -> dict[str, Any]:
    """As `modules_of`; its errors name the config's key."""
    try:
        return modules_of(path)
    except CheckpointError as error:
        raise CheckpointError(f"{key}={path!r}: {error}") from error


def adapters_of(algorithm: Any, former: Mapping[str, Any]) -> dict[str, StateDict]:
    """What each policy of the new team begins with, over the former team's backbone.

    Raises:
        ValueError: No policy of the former team is in the new one; networks or spaces are others; there is
            no adapter to copy; or this run's `lora` cannot express an adapter.
    """
    policies, new = sorted(algorithm.config.team.members()), algorithm.config.new_adapters
    peers = {name: module for name, module in former.items() if isinstance(module, Adapter)}
    _check_names(algorithm.config, policies, sorted(peers))
    _check_same(BACKBONE, algorithm.get_module(BACKBONE), former[BACKBONE])
    made = {}
    for name in policies:
        adapter = copy.deepcopy(running_adapter(algorithm, name))
        adapter.bind(former[BACKBONE])
        if name in peers:
            _check_same(name, adapter, peers[name])
            adopt(adapter, peers[name])
        elif new in peers:
            _check_same(name, adapter, peers[new])
            adopt(adapter, peers[new])
        elif new == "mean":
            adapter.start_from("mean", _with_spaces_of(name, adapter, peers))
        made[name] = adapter.get_state()
    return made


def _check_names(config: Any, policies: list[str], peers: list[str]) -> None:
    if not set(policies) & set(peers):
        raise ValueError(
            f"adapters_checkpoint={config.adapters_checkpoint!r} has the adapters {', '.join(peers)}, "
            f"none of which is a policy of this team: {', '.join(policies)}."
        )
    if config.new_adapters not in ("zero", "mean", *peers):
        raise ValueError(
            f"new_adapters={config.new_adapters!r}: expected zero, mean, or the name of an adapter to copy: "
            f"{', '.join(peers)}."
        )


def _check_same(name: str, here: Any, before: Any) -> None:
    for kind in ("observation_space", "action_space"):
        if getattr(here, kind) != getattr(before, kind):
            raise ValueError(
                f"adapters_checkpoint: the {kind} of {name!r} was {getattr(before, kind)} and is "
                f"{getattr(here, kind)} here: adapters go on only where agents see and do what they did."
            )
    if name == BACKBONE:
        copy.deepcopy(here).set_state(before.get_state())


def _with_spaces_of(name: str, adapter: Adapter, peers: Mapping[str, Adapter]) -> list[Adapter]:
    spaces = adapter.observation_space, adapter.action_space
    alike = [peer for peer in peers.values() if (peer.observation_space, peer.action_space) == spaces]
    if not alike:
        raise ValueError(
            f"new_adapters='mean': none of the adapters {', '.join(peers)} has the spaces of {name!r}, "
            f"{spaces}: begin with zero."
        )
    return alike


def _begin_with(learner: Any, states: Mapping[str, StateDict]) -> None:
    for name, state in states.items():
        learner.module[name].unwrapped().set_state(state)
