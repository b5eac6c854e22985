"""The update of a team that first shares one network, and then adapts it agent by agent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from ray.rllib.core import ALL_MODULES
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import StateDict
from torch import Tensor

from rllib_haml.haml import Player, SweepResult
from rllib_haml.learners.adapter_report import report_adapters
from rllib_haml.learners.advantages import TeamAdvantage
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.on_policy import OnPolicyTeamLearner
from rllib_haml.learners.stacked_policy import side_by_side
from rllib_haml.learners.together import Together, unfolded
from rllib_haml.modules.adapter import BACKBONE
from rllib_haml.modules.adapter_mode import backbone_moves
from rllib_haml.modules.critic import CRITIC

ADAPTERS_SINCE = "adapters_since"
DIFFERENCE = "difference"


class LoRASALearner(OnPolicyTeamLearner):
    """While the team shares, one player moves the backbone on all agents' rows; then `adapter_mode` decides.

    Critic, value normaliser and counters know nothing of the phases, so they carry over.
    """

    @override(OnPolicyTeamLearner)
    def build(self) -> None:
        super().build()
        # Number of the first update of the adapter phase.
        self._adapters_since: int | None = None
        self._rank_adaptation = self.config.make_rank_adaptation()
        if self._rank_adaptation is not None:
            policies = [name for name in self._policy_ids() if name != BACKBONE and self._is_trained(name)]
            self._rank_adaptation.check({name: self.module[name].unwrapped() for name in policies})

    def begin_adapters(self) -> None:
        """From the next update on, the team no longer shares everything."""
        self._adapters_since = self._weights_seq_no + 1
        self._choose_critic_optimizer()
        if self.config.adapter_mode == "continue_shared":
            # As the adapters do, it begins without moments: the control differs in what moves alone.
            self.get_optimizer(BACKBONE).state.clear()

    @override(OnPolicyTeamLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """A critic with a low-rank difference has two optimizers: the network's, and the difference's."""
        lora = getattr(self.module[module_id].unwrapped(), "lora", None) if module_id == CRITIC else None
        if lora is None:
            super().configure_optimizers_for_module(module_id, config)
            return
        lora.requires_grad_(False)
        super().configure_optimizers_for_module(module_id, config)
        lora.requires_grad_(True)
        config, parameters = config or self.config, list(lora.parameters())
        self.register_optimizer(
            module_id=module_id,
            optimizer_name=DIFFERENCE,
            optimizer=torch.optim.Adam(parameters, eps=config.adam_epsilon, weight_decay=config.weight_decay),
            params=parameters,
            lr_or_lr_schedule=config.critic_lr,
        )

    def _choose_critic_optimizer(self) -> None:
        """Of the whole critic while the team shares, then of its low-rank difference, if it has one."""
        if self.config.critic_lora is not None:
            name = DEFAULT_OPTIMIZER if self._adapters_since is None else DIFFERENCE
            self._critics[CRITIC].optimizer = self.get_optimizer(CRITIC, name)

    @property
    def _shares_all(self) -> bool:
        return self._adapters_since is None or self.config.adapter_mode == "continue_shared"

    @override(OnPolicyTeamLearner)
    def _players(self, joint: JointBatch) -> dict[str, Player]:
        mode = self.config.adapter_mode
        self._let_gradients_through(joint, self._shares_all or backbone_moves(mode))
        if self._shares_all:
            return self._sharing(joint)
        assert self._adapters_since is not None
        if backbone_moves(mode):
            adapters_rest = mode == "alternating" and (self._weights_seq_no - self._adapters_since) % 2
            if mode == "joint" or adapters_rest:
                return self._at_once(joint, [] if adapters_rest else self._trained(joint), backbone=True)
        if self.config.update_scheme == "simultaneous" and self._adapters_alike(joint):
            return self._at_once(joint, self._trained(joint))
        return super()._players(joint)

    def _let_gradients_through(self, joint: JointBatch, to_the_backbone: bool) -> None:
        for name in joint.policies:
            self.module[name].unwrapped().train_backbone = to_the_backbone

    def _sharing(self, joint: JointBatch) -> dict[str, Player]:
        """The backbone without adapters, on all agents' rows.

        With unequal spaces they are no one batch: each agent's go through its adapter, which is zero until
        the team no longer shares.
        """
        if any(self.module[name].unwrapped().is_narrow for name in joint.policies):
            return self._at_once(joint, [], backbone=True)
        together = side_by_side(list(joint.policies.values()))
        return super()._players(replace(joint, policies={BACKBONE: together}))

    def _at_once(
        self, joint: JointBatch, adapters: list[str], *, backbone: bool = False
    ) -> dict[str, Player]:
        """One player for all: it moves these adapters, and perhaps the backbone below them.

        No player, if nothing is to move.
        """
        moving = [*([BACKBONE] if backbone else []), *adapters]
        if not moving:
            return {}
        members = {
            name: self._policy(name, columns, joint)
            for name, columns in joint.policies.items()
            if backbone or name in adapters
        }
        policy = Together(members, {name: self.get_optimizer(name) for name in moving})
        return {moving[0]: self._player(moving[0], policy)}

    @override(OnPolicyTeamLearner)
    def _moved_by(self, name: str, player: Player) -> list[str]:
        return player.policy.moving if isinstance(player.policy, Together) else [name]

    def _trained(self, joint: JointBatch) -> list[str]:
        return [name for name in joint.policies if self._is_trained(name)]

    def _adapters_alike(self, joint: JointBatch) -> bool:
        """Whether no setting is one adapter's own."""
        return not any(name in self.config.algorithm_config_overrides_per_module for name in joint.policies)

    @override(OnPolicyTeamLearner)
    def _report_sweep(
        self, result: SweepResult, players: dict[str, Player], advantage: TeamAdvantage
    ) -> dict[str, Tensor]:
        seen = (result, players) if self._shares_all else unfolded(result, players)
        return super()._report_sweep(*seen, advantage)

    @override(OnPolicyTeamLearner)
    def _sweep(self, players: dict[str, Player], advantage: TeamAdvantage) -> dict[str, Tensor]:
        losses = super()._sweep(players, advantage)
        if self._adapters_since is not None:
            self._adapt_ranks(advantage.joint, self._weights_seq_no - self._adapters_since + 1)
            self._log_audit(advantage)
        return losses

    def _adapt_ranks(self, joint: JointBatch, updates: int) -> None:
        """`updates`: of the adapter phase, this one counted."""
        if self._rank_adaptation is not None and updates % self._rank_adaptation.every == 0:
            adapters = {name: self.module[name].unwrapped() for name in self._trained(joint)}
            optimizers = {name: self.get_optimizer(name) for name in adapters}
            self._rank_adaptation.apply(adapters, optimizers)

    def _log_audit(self, advantage: TeamAdvantage) -> None:
        adapters = {name: self.module[name].unwrapped() for name in advantage.joint.policies}
        key = self.sweep_seed, self._weights_seq_no
        audit = report_adapters(adapters, advantage.joint, advantage.rows.total, key)
        self.metrics.log_dict(audit.metrics(), key=ALL_MODULES, window=1)
        for name, figures in audit.by_agent().items():
            self.metrics.log_dict(figures, key=name, window=1)

    @override(OnPolicyTeamLearner)
    def _is_trained(self, module_id: str) -> bool:
        return module_id == BACKBONE or super()._is_trained(module_id)

    @override(OnPolicyTeamLearner)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        return {**super().get_state(*args, **kwargs), ADAPTERS_SINCE: self._adapters_since}

    @override(OnPolicyTeamLearner)
    def set_state(self, state: StateDict) -> None:
        super().set_state(state)
        self._adapters_since = state.get(ADAPTERS_SINCE, self._adapters_since)
        self._choose_critic_optimizer()
