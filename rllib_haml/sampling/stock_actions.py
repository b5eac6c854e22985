"""RLlib's own way of actions to the environment, for policies that squash what they draw."""

from __future__ import annotations

import copy
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.module_to_env import GetActions, NormalizeAndClipActions
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from rllib_haml.modules.distributions import recorded_class, squashing_family


class RecordDraws(GetActions):
    """Records what such a policy draws, without exploration too, where RLlib would record what it does."""

    @override(GetActions)
    def _get_actions(self, batch: dict[str, Any], sa_rl_module: Any, explore: bool | None) -> None:
        if explore or Columns.ACTIONS in batch or squashing_family(sa_rl_module) is None:
            super()._get_actions(batch, sa_rl_module, explore)
            return
        kind = recorded_class(sa_rl_module, explore=False)
        mode = kind.from_logits(batch[Columns.ACTION_DIST_INPUTS]).to_deterministic()
        batch[Columns.ACTIONS] = mode.sample()
        batch.setdefault(Columns.ACTION_LOGP, mode.logp(batch[Columns.ACTIONS]))


class SquashAndScaleActions(NormalizeAndClipActions):
    """Squashes such a policy's draws before they are scaled or clipped; recorded ones stay as they are."""

    @override(NormalizeAndClipActions)
    def __call__(self, *, rl_module: Any, batch: Any, **kwargs: Any) -> Any:
        families = {name: squashing_family(module) for name, module in rl_module.items()}
        if all(family is None for family in families.values()):
            return super().__call__(rl_module=rl_module, batch=batch, **kwargs)

        def squash(drawn: Any, env_id: Any, agent_id: Any, module_id: Any) -> Any:
            family = families[module_id]
            return drawn if family is None else family.executed(drawn)

        drawn = batch[Columns.ACTIONS]
        batch[Columns.ACTIONS] = copy.deepcopy(drawn)
        self.foreach_batch_item_change_in_place(batch=batch, column=Columns.ACTIONS, func=squash)
        batch = super().__call__(rl_module=rl_module, batch=batch, **kwargs)
        batch.setdefault(Columns.ACTIONS_FOR_ENV, batch[Columns.ACTIONS])
        batch[Columns.ACTIONS] = drawn
        return batch


def squashing(pipeline: Any) -> Any:
    """RLlib's pipeline from the modules to the environment, with the two above in place of RLlib's."""
    pipeline.connectors = [_ours(piece) for piece in pipeline.connectors]
    return pipeline


def _ours(piece: ConnectorV2) -> ConnectorV2:
    spaces = piece.input_observation_space, piece.input_action_space
    if type(piece) is GetActions:
        return RecordDraws(*spaces)
    if type(piece) is NormalizeAndClipActions:
        settings = {"normalize_actions": piece.normalize_actions, "clip_actions": piece.clip_actions}
        return SquashAndScaleActions(*spaces, **settings)
    return piece
