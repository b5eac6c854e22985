"""One agent's adapter of a policy that all agents share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import gymnasium as gym
import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn
from torch.func import functional_call

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.leading import is_leading, leading
from rllib_haml.modules.lora import LoRA, Weights, adapted_by_all
from rllib_haml.modules.lora_config import LoRAConfig
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.modules.state import load_exactly

BACKBONE, SETTINGS = "backbone", "model_config"
Network = TypeVar("Network", bound=TorchRLModule)


class Adapter(TorchRLModule):
    """The backbone's policy with this agent's own differences (LoRASA, arXiv 2502.05573).

    It owns the differences only. The backbone is another RLModule, an `Actor`, that it is bound to; it is
    no part of this module's parameters, state, copies or pickles, and a copy is bound to nothing.

    Where the agent's spaces are narrower than the backbone's, its network is the leading part of it: an
    `Actor` for these spaces whose parameters are W[:out, :in] of the backbone's. Thus entry k of every
    agent's observation is read by the same weights, and entry k of every action written by the same.

    `model_config` holds the backbone's keys, `lora` with those of `LoRAConfig`, and `train_backbone`
    whether gradients reach the backbone, too (False).

    Raises:
        ValueError: (when built) if `lora` does not fit the backbone that `model_config` describes.
    """

    def setup(self) -> None:
        values = dict(self.model_config)
        config = LoRAConfig.from_dict(values.pop("lora", {}))
        self.train_backbone = bool(values.pop("train_backbone", False))
        like = on_meta(Actor, self.observation_space, self.action_space, values)
        self.lora = LoRA(like, config)
        self.action_dist_cls = like.action_dist_cls
        self._executed_dist_cls = like.get_inference_action_dist_cls()
        self._initial_state = like.get_initial_state()
        # Not as attributes that are modules: torch would register them.
        self._like = (_Call(like),)
        self._bound: tuple[Actor] | None = None

    @classmethod
    def over(
        cls,
        backbone: Actor,
        config: LoRAConfig,
        *,
        observation_space: gym.Space | None = None,
        action_space: gym.Space | None = None,
        train_backbone: bool = False,
    ) -> Adapter:
        """A new adapter that is bound to `backbone`; its policy is the backbone's.

        Args:
            observation_space, action_space: The agent's, if they are not the backbone's.

        Raises:
            ValueError: If `config` or the spaces do not fit the backbone.
        """
        adapter = cls(
            observation_space=observation_space or backbone.observation_space,
            action_space=action_space or backbone.action_space,
            model_config={
                **backbone.model_config,
                "lora": config.to_dict(),
                "train_backbone": train_backbone,
            },
        )
        adapter.to(next(backbone.parameters()))
        adapter.bind(backbone)
        return adapter

    def bind(self, backbone: Actor) -> None:
        """Acts through `backbone` from now on, which stays where it is.

        Raises:
            ValueError: Neither is it the network that this adapter was made for, nor is that its leading
                part.
        """
        different = sorted(dict(_signature(backbone).items() ^ _signature(self._network).items()))
        narrower = is_leading(self.observation_space, backbone.observation_space) and is_leading(
            self.action_space, backbone.action_space
        )
        if different and (SETTINGS in different or not narrower):
            raise ValueError(
                f"This adapter is made for another backbone: {', '.join(different)} differ. Give both the "
                f"same spaces and `model_config`, or the backbone wider spaces (vectors, or more choices)."
            )
        self._bound = (backbone,)

    @property
    def _network(self) -> Actor:
        """The network of its policy, on the meta device."""
        return self._like[0].actor

    @property
    def is_narrow(self) -> bool:
        """Whether its network is but a part of the backbone's."""
        whole = dict(self.backbone.named_parameters())
        return any(p.shape != whole[name].shape for name, p in self._network.named_parameters())

    @property
    def backbone(self) -> Actor:
        """The policy that it acts through.

        Raises:
            RuntimeError: It is bound to none.
        """
        if self._bound is None:
            raise RuntimeError(
                "This adapter is bound to no backbone, and holds none: it cannot act alone. Type "
                "`rllib adapters merge CHECKPOINT` for a policy that can, or call `adapter.bind(backbone)`."
            )
        return self._bound[0]

    def weights(self) -> Weights:
        """All parameters of its policy; differentiable in its own, and in the backbone's if these train."""
        return self.lora.effective(self.base_weights())

    def base_weights(self) -> Weights:
        """The backbone's parameters as this adapter sees them: views of their leading parts."""
        whole = dict(self.backbone.named_parameters())
        own = {name: leading(whole[name], p.shape) for name, p in self._network.named_parameters()}
        return own if self.train_backbone else {name: p.detach() for name, p in own.items()}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self.forward_with(self.weights(), batch)

    def forward_with(self, weights: Weights, batch: dict[str, Any]) -> dict[str, Any]:
        """What a network like its own puts out with these weights."""
        return functional_call(self._like[0], {f"actor.{n}": w for n, w in weights.items()}, (batch,))

    def get_inference_action_dist_cls(self) -> Any:
        """As of `Actor`: samples are actions, where those of the other two are draws."""
        return self._executed_dist_cls

    def get_exploration_action_dist_cls(self) -> Any:
        return self.action_dist_cls

    def get_train_action_dist_cls(self) -> Any:
        return self.action_dist_cls

    def get_initial_state(self) -> dict[str, Tensor]:
        return {part: zeros.clone() for part, zeros in self._initial_state.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        load_exactly(self, state)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bound": None}

    def merged(self) -> Actor:
        """Its policy as an ordinary `Actor` that shares nothing with this one or the backbone."""
        with torch.no_grad():
            weights = self.weights()
            some = next(iter(weights.values()))
            actor = copy.deepcopy(self._network).to_empty(device=some.device).to(some.dtype)
            for name, parameter in actor.named_parameters():
                parameter.copy_(weights[name])
        return actor

    def start_from(self, how: Literal["zero", "copy", "mean"], peers: Sequence[Adapter] = ()) -> None:
        """Where an agent that joins a trained team begins.

        Args:
            how: `zero`: at the backbone's policy; `copy`: at that of the one peer; `mean`: at the mean of
                the peers' differences, as near as its ranks allow.

        Raises:
            ValueError: `zero` takes no peer, `copy` one, `mean` one or more, that adapt the same parameters.
        """
        needed = {"zero": len(peers) == 0, "copy": len(peers) == 1, "mean": len(peers) >= 1}
        if not needed.get(how, False):
            raise ValueError(
                f"start_from({how!r}) with {len(peers)} peers: expected 'zero' with none, 'copy' with one, "
                f"or 'mean' with at least one."
            )
        if how == "zero":
            self.lora.reset()
        elif how == "copy" and peers[0].lora.targets == self.lora.targets:
            self.lora.load_state_dict(peers[0].lora.state_dict())
        else:
            adapted_by_all([self.lora, *(peer.lora for peer in peers)])
            deltas = [peer.lora.deltas() for peer in peers]
            mean = {name: torch.stack([d[name] for d in deltas]).mean(0) for name in deltas[0]}
            self.lora.assign(mean)


def on_meta(
    kind: type[Network], observation_space: gym.Space, action_space: gym.Space, model_config: dict[str, Any]
) -> Network:
    """A network's names and shapes, without memory or random numbers."""
    with torch.device("meta"):
        return kind(observation_space=observation_space, action_space=action_space, model_config=model_config)


def _signature(actor: Actor) -> dict[str, str]:
    """Parameters' shapes, what the outputs mean, and the network's settings."""
    shapes = {name: str(tuple(parameter.shape)) for name, parameter in actor.named_parameters()}
    settings = str(ModelConfig.from_dict(actor.model_config))
    return {**shapes, "distribution": str(actor.head.family), SETTINGS: settings}


class _Call(nn.Module):
    """An actor's generic forward as a module's call, which is what torch can give other weights to."""

    def __init__(self, actor: Actor):
        super().__init__()
        self.actor = actor

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.actor._forward(batch)
