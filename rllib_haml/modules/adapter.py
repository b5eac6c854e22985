"""One agent's adapter of a policy that all agents share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn
from torch.func import functional_call

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.lora import LoRA, Weights, adapted_by_all, stack_effective
from rllib_haml.modules.lora_config import LoRAConfig
from rllib_haml.modules.state import load_exactly

BACKBONE = "backbone"


class Adapter(TorchRLModule):
    """The backbone's policy with this agent's own differences (LoRASA, arXiv 2502.05573).

    It owns the differences only. The backbone is another RLModule, an `Actor`, that it is bound to; it is
    no part of this module's parameters, state, copies or pickles, and a copy is bound to nothing.

    `model_config` holds the backbone's keys, `lora` with those of `LoRAConfig`, and `train_backbone`
    whether gradients reach the backbone, too (False).

    Raises:
        ValueError: (when built) if `lora` does not fit the backbone that `model_config` describes.
    """

    def setup(self) -> None:
        values = dict(self.model_config)
        config = LoRAConfig.from_dict(values.pop("lora", {}))
        self.train_backbone = bool(values.pop("train_backbone", False))
        # Names and shapes without memory or random numbers.
        with torch.device("meta"):
            like = Actor(
                observation_space=self.observation_space, action_space=self.action_space, model_config=values
            )
        self.lora = LoRA(like, config)
        self.action_dist_cls = like.action_dist_cls
        self._initial_state = like.get_initial_state()
        self._made_for = _signature(like)
        # Not as an attribute that is a module: torch would register it.
        self._bound: tuple[_Call] | None = None

    @classmethod
    def over(cls, backbone: Actor, config: LoRAConfig, *, train_backbone: bool = False) -> Adapter:
        """A new adapter that is bound to `backbone`; its policy is the backbone's.

        Raises:
            ValueError: If `config` does not fit the backbone.
        """
        adapter = cls(
            observation_space=backbone.observation_space,
            action_space=backbone.action_space,
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
            ValueError: It is another network than the one this adapter was made for.
        """
        given = _signature(backbone)
        if given != self._made_for:
            different = sorted(dict(given.items() ^ self._made_for.items()))
            raise ValueError(
                f"This adapter is made for another backbone: {', '.join(different)} differ. Give both the "
                f"same spaces and `model_config`."
            )
        self._bound = (_Call(backbone),)

    @property
    def backbone(self) -> Actor:
        """
        Raises:
            RuntimeError: It is bound to none.
        """
        if self._bound is None:
            raise RuntimeError(
                "This adapter is bound to no backbone, and holds none: it cannot act alone. Type "
                "`rllib adapters merge CHECKPOINT` for a policy that can, or call `adapter.bind(backbone)`."
            )
        return self._bound[0].actor

    def weights(self) -> Weights:
        """All parameters of its policy; differentiable in its own, and in the backbone's if these train."""
        return self.lora.effective(self.base_weights())

    def base_weights(self) -> Weights:
        """The backbone's parameters as this adapter sees them."""
        parameters = self.backbone.named_parameters()
        return {name: p if self.train_backbone else p.detach() for name, p in parameters}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        weights = {f"actor.{name}": weight for name, weight in self.weights().items()}
        assert self._bound is not None
        return functional_call(self._bound[0], weights, (batch,))

    def get_initial_state(self) -> dict[str, Tensor]:
        return {part: zeros.clone() for part, zeros in self._initial_state.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        load_exactly(self, state)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bound": None}

    def merged(self) -> Actor:
        """Its policy as an ordinary `Actor` that shares nothing with this one or the backbone."""
        actor = copy.deepcopy(self.backbone)
        with torch.no_grad():
            weights = self.weights()
            for name, parameter in actor.named_parameters():
                parameter.copy_(weights[name])
        return actor

    def refactored(self, config: LoRAConfig) -> Adapter:
        """Its policy in factors of other ranks, as near as these allow (see `LoRA.assign`)."""
        made = Adapter.over(self.backbone, config, train_backbone=self.train_backbone)
        made.lora.assign(self.lora.deltas())
        return made

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


def effective_weights(adapters: Sequence[Adapter]) -> Weights:
    """The parameters (N, ...) of N adapters' policies; see `stack_effective`.

    Raises:
        ValueError: If they are bound to different backbones, or adapt different parameters.
    """
    first, *others = adapters
    if any(other.backbone is not first.backbone for other in others):
        raise ValueError("These adapters are bound to different backbones.")
    return stack_effective(first.base_weights(), [adapter.lora for adapter in adapters])


def _signature(actor: Actor) -> dict[str, str]:
    """Parameters' shapes, and what the outputs mean."""
    shapes = {name: str(tuple(parameter.shape)) for name, parameter in actor.named_parameters()}
    return {**shapes, "distribution": str(actor.head.family)}


class _Call(nn.Module):
    """The backbone's generic forward as a module's call, which is what torch can give other weights to."""

    def __init__(self, actor: Actor):
        super().__init__()
        self.actor = actor

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.actor._forward(batch)
