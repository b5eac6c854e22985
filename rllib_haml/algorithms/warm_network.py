"""Whether a network of an earlier run, and what of its critic, goes on in this one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from ray.rllib.utils.typing import StateDict

from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.critic import CRITIC, IMAGES, Critic
from rllib_haml.modules.lora_targets import Target
from rllib_haml.modules.model_config import ModelConfig

logger = logging.getLogger("rllib_haml")

# What the shapes of weights do not tell, of any network and of one with Gaussian actions.
_SETTINGS = ("fcnet_activation", "feature_layer_norm", "hidden_layer_norm", "conv_filters")
_GAUSSIAN = ("std_parametrisation", "max_std", "squash_actions")


def check_same_policy(path: str, here: Actor, before: Any) -> None:
    """
    Raises:
        ValueError: `before`, of the checkpoint at `path`, is another policy with the settings of `here`.
    """
    if not isinstance(before, Actor):
        raise ValueError(
            f"backbone_checkpoint={path!r} holds a {type(before).__name__}: expected this package's Actor, "
            f"which is what adapters fit. Train the shared policy without an RLModule of your own."
        )
    gaussian = any(name.endswith("log_std") for name, _ in here.named_parameters())
    keys = (*_SETTINGS, *(_GAUSSIAN if gaussian else ()))
    different = _different(here.model_config, before.model_config, keys)
    if not different and here.head.family != before.head.family:
        different = f"action_space was {before.action_space} and is {here.action_space}"
    if different:
        raise ValueError(
            f"backbone_checkpoint={path!r} is another policy here, since {different}: give the "
            f"`model_config` and the environment that it was trained with."
        )


@dataclass(frozen=True)
class FormerCritic:
    """A critic that begins a run.

    Attributes:
        model_config: Its own.
        state: Weights and the normaliser's statistics by name.
        merged: The same without a low-rank difference, which is added to the weights.
        targets: Of the difference; empty if it has none.
    """

    model_config: dict[str, Any]
    state: StateDict
    merged: StateDict
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, critic: Critic) -> FormerCritic:
        state = critic.get_state()
        merged = {name: value for name, value in state.items() if not _of_lora(name)}
        deltas = {} if critic.lora is None else critic.lora.deltas()
        for name, delta in deltas.items():
            merged[name] = merged[name] + delta.detach().cpu().numpy()
        targets = () if critic.lora is None else critic.lora.targets
        return cls(dict(critic.model_config), state, merged, targets)

    def begin(self, critic: Critic) -> str:
        """Gives `critic` all that fits it; else says why nothing does."""
        if different := _different(critic.model_config, self.model_config, (*_SETTINGS, IMAGES)):
            return different
        own = critic.get_state()
        plain = {name: value for name, value in own.items() if not _of_lora(name)}
        if different := _different_shapes(plain, self.merged):
            return different
        alike = critic.lora is not None and critic.lora.targets == self.targets
        # A difference of other ranks, or one that was not there, begins as zero.
        critic.set_state(self.state if alike else own | self.merged)
        return ""


def take_over_critic(algorithm: Any, former: Critic | None) -> None:
    """Network and value normaliser, on every learner, if they fit what is seen here; else a new one learns.

    Raises:
        ValueError: `critic_lora` would let a new one rest at random weights.
    """
    given = None if former is None else FormerCritic.of(former)
    refusal = next(filter(None, on_every_learner(algorithm, partial(_take, former=given))), "")
    if not refusal:
        return
    if algorithm.config.critic_lora is not None and algorithm.config.make_switch().step == 0:
        raise ValueError(
            f"critic_lora: the critic begins anew ({refusal}), and with adapters from the start its network "
            f"would rest at random weights: leave critic_lora out, or give adapters_from some env steps."
        )
    logger.warning("The critic begins anew: %s.", refusal)


def _take(learner: Any, former: FormerCritic | None) -> str:
    if former is None:
        return "the checkpoint has none of the whole team"
    return former.begin(learner.module[CRITIC].unwrapped())


def _of_lora(name: str) -> bool:
    return name.startswith("lora.")


def _different(here: Mapping[str, Any], before: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The first of these settings that is another one, in words."""
    now, then = _settings(here), _settings(before)
    found = (key for key in keys if now.get(key) != then.get(key))
    return next((f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in found), "")


def _settings(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of `ModelConfig`."""
    known = {field.name for field in fields(ModelConfig)}
    networks = ModelConfig.from_dict({k: v for k, v in model_config.items() if k in known})
    return {**model_config, **asdict(networks)}


def _different_shapes(here: StateDict, before: StateDict) -> str:
    now, then = ({name: np.shape(value) for name, value in state.items()} for state in (here, before))
    if now == then:
        return ""
    name = min(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    return f"{name} was of shape {then.get(name)} and is {now.get(name)}: other states, or `model_config`"
