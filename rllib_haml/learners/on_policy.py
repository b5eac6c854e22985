"""The on-policy update: advantages, one HAML sweep over the policies, critic epochs."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ray.rllib.core import ALL_MODULES
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.rllib.utils.typing import ResultDict, StateDict
from torch import Tensor

from rllib_haml.haml import AdaptiveDrift, JointRows, NotFinite, Player, Policy, SweepResult, sweep
from rllib_haml.learners import diagnostics
from rllib_haml.learners.advantages import TeamAdvantage
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.collectives import all_reduce, broadcast
from rllib_haml.learners.configured_learner import ConfiguredLearner
from rllib_haml.learners.module_policy import ModulePolicy, RecurrentPolicy
from rllib_haml.learners.policy_drifts import DRIFTS, PolicyDrifts
from rllib_haml.learners.sequences import common_seq_len
from rllib_haml.learners.skipped_updates import SkippedUpdates
from rllib_haml.learners.state_values import StateValues
from rllib_haml.learners.team_critic import TeamCritic
from rllib_haml.modules.critic import CRITIC, Critic

logger = logging.getLogger("rllib_haml")
SWEEP_SEED, CRITIC_MEMORIES = "sweep_seed", "critic_memories"
SKIPPED_UPDATES = "skipped_updates"
# Behaviour and learner evaluate the same weights; more than rounding between them is a defect.
WARN_BEHAVIOUR_GAP = 1e-4


class OnPolicyTeamLearner(ConfiguredLearner):
    """Runs the whole sweep in one call of `update`: it owns its epochs and minibatches.

    `fit_critics` is the rest of the update; a caller who leaves it out has it done before the next one.
    Several learners hold equal weights without DDP: every gradient, mean and count is summed over them,
    and all random numbers depend on (seed, number of the update, policy, epoch) alone.
    """

    # RLlib's annotations know neither this package's config nor its modules.
    config: Any
    _module: Any
    _device: Any

    @property
    def module(self) -> Any:
        """The policies and the critic."""
        return self._module

    @override(ConfiguredLearner)
    def build(self) -> None:
        super().build()
        for module in self.module.values():
            broadcast(t.data for t in [*module.parameters(), *module.buffers()])
        self.sweep_seed = self._agree_on_seed()
        self.skipped = SkippedUpdates(self.module)
        self._unfitted: list[tuple[str, StateValues, TeamAdvantage, tuple[int | str, ...]]] = []
        # Kept from update to update.
        drifts = {name: self.config.get_config_for_module(name).make_drift() for name in self._policy_ids()}
        self._drifts = PolicyDrifts(drifts, self._device)
        self._max_seq_len = common_seq_len(self.module)
        self._critics = {
            critic_id: TeamCritic(
                self.module[critic_id].unwrapped(),
                self.get_optimizer(critic_id),
                self.config.get_config_for_module(critic_id),
                self._max_seq_len,
            )
            for critic_id in self._critic_ids()
        }
        self._entropy = {
            module_id: Scheduler(
                fixed_value_or_schedule=self.config.get_config_for_module(module_id).entropy_coeff,
                framework="torch",
                device=self._device,
            )
            for module_id in self._policy_ids()
        }

    def _critic_ids(self) -> list[str]:
        return sorted(name for name, module in self.module.items() if isinstance(module.unwrapped(), Critic))

    def _policy_ids(self) -> list[str]:
        return sorted(set(self.module.keys()) - set(self._critic_ids()))

    def _agree_on_seed(self) -> int:
        own = torch.randint(2**31, (1,), device=self._device)
        broadcast([own])
        return int(own) if self.config.seed is None else int(self.config.seed)

    @override(ConfiguredLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Not wrapped: a player's gradient touches one module, and DDP expects all of them to move."""

    @override(ConfiguredLearner)
    def should_module_be_updated(self, module_id: str, multi_agent_batch: Any = None) -> bool:
        """All rows reach `_update`: the compound ratio and the critic need those of frozen policies too."""
        return True

    def _is_trained(self, module_id: str) -> bool:
        return super().should_module_be_updated(module_id, None)

    @override(ConfiguredLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        config = config or self.config
        parameters = [p for p in self.module[module_id].parameters() if p.requires_grad]
        if not parameters:
            return
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters, eps=config.adam_epsilon, weight_decay=config.weight_decay),
            params=parameters,
            lr_or_lr_schedule=config.critic_lr if module_id in self._critic_ids() else config.lr,
        )

    @override(ConfiguredLearner)
    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        self._end_update()
        super().before_gradient_based_update(timesteps=timesteps)
        for schedule in self._entropy.values():
            schedule.update(timestep=timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))

    @override(ConfiguredLearner)
    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        joint = JointBatch.of(batch)
        rows = self._rows(joint)
        values, advantage = self._critics[CRITIC].estimate(joint, rows)
        losses = self._sweep(self._players(joint), advantage)
        self._fit_later(CRITIC, values, advantage)
        return {}, losses, {}

    def _sweep(self, players: dict[str, Player], advantage: TeamAdvantage) -> dict[str, Tensor]:
        """Moves the policies; returns each one's last loss."""
        config = self.config
        result = sweep(
            players,
            advantage,
            order=config.make_order(),
            rows=advantage.rows,
            key=(self.sweep_seed, self._weights_seq_no),
            simultaneous=config.update_scheme == "simultaneous",
            compound_clip=config.compound_bound(),
        )
        for name in result.order:
            for module_id in self._moved_by(name, players[name]):
                self._count(module_id, result.faults.get(name))
        self._adapt(players, result)
        return self._report_sweep(result, players, advantage)

    def _moved_by(self, name: str, player: Player) -> list[str]:
        """The modules that a player's step moves."""
        return [name]

    @override(ConfiguredLearner)
    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """Abstract in RLlib, whose own update would call it; here a policy's objective needs the sweep."""
        raise NotImplementedError("The sweep computes each policy's objective; override `_update` instead.")

    def _rows(self, joint: JointBatch) -> JointRows:
        """Where the local rows lie; if anyone remembers, in units that no minibatch tears apart."""
        total = int(all_reduce(torch.tensor(len(joint.row), device=self._device)))
        units = None
        if self._max_seq_len is not None:
            begins = joint.row.new_zeros(total)
            begins[joint.row] = joint.unit_begins(self._max_seq_len)[~joint.last].long()
            units = all_reduce(begins).cumsum(0) - 1
        return JointRows(joint.row, total, all_reduce=all_reduce, units=units)

    def _players(self, joint: JointBatch) -> dict[str, Player]:
        """The policies that are trained, each with its drift and neighbourhood."""
        return {
            module_id: self._player(module_id, self._policy(module_id, columns, joint))
            for module_id, columns in joint.policies.items()
            if self._is_trained(module_id) and module_id in self._module_optimizers
        }

    def _player(self, module_id: str, policy: Policy) -> Player:
        """`policy` under the settings of the module `module_id`."""
        return Player(
            policy,
            self._drifts[module_id],
            self.config.get_config_for_module(module_id).make_neighbourhood(),
            float(self._entropy[module_id].get_current_value()),
        )

    def _policy(self, module_id: str, columns: dict[str, Any], joint: JointBatch) -> ModulePolicy:
        optimizer = self.get_optimizer(module_id)
        module = self.module[module_id].unwrapped()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        policy: dict[str, Any] = {"columns": columns, "parameters": parameters, "optimizer": optimizer}
        if self._max_seq_len is not None and module.is_stateful():
            return RecurrentPolicy(module, **policy, joint=joint, max_seq_len=self._max_seq_len)
        return ModulePolicy(module, **policy)

    def _adapt(self, players: dict[str, Player], result: SweepResult) -> None:
        """Tells the drifts that want to know how far their policies went, where these acted at all."""
        for name in result.order:
            drift: Any = players[name].drift
            if isinstance(drift, AdaptiveDrift) and name not in result.faults:
                step, active = result.steps[name], players[name].policy.active
                kl = step.rows.mean(step.move(result.after[name]).kl(), active)
                kl, acted = all_reduce(torch.stack([kl, active.sum().to(kl.dtype)]))
                if acted > 0:
                    drift.adapt(float(kl))

    def _fit_later(self, critic_id: str, values: StateValues, advantage: TeamAdvantage) -> None:
        key = (self.sweep_seed, self._weights_seq_no, critic_id)
        self._unfitted.append((critic_id, values, advantage, key))

    def fit_critics(self) -> ResultDict:
        """Ends the update: the critics' epochs. Returns their metrics."""
        self._end_update()
        return self.metrics.reduce()

    def _end_update(self) -> None:
        for critic_id, values, advantage, key in self._unfitted:
            report, fault = self._critics[critic_id].fit(values, advantage, key)
            self._count(critic_id, fault)
            self.metrics.log_dict(report, key=critic_id, window=1)
        self._unfitted.clear()

    def _count(self, module_id: str, fault: NotFinite | None) -> None:
        self.metrics.log_dict(self.skipped.count(module_id, fault), key=module_id, window=1)

    def _report_sweep(
        self, result: SweepResult, players: dict[str, Player], advantage: TeamAdvantage
    ) -> dict[str, Tensor]:
        """Logs each policy's figures; returns its last loss."""
        raw = advantage.plain
        scale = advantage.moments(raw)[1], diagnostics.largest(raw.abs(), advantage.joint.any_active)
        bound = torch.zeros((), device=self._device)
        for place, name in enumerate(result.order):
            policy: Any = players[name].policy
            step, after = result.steps[name], result.after[name]
            report = diagnostics.of_move(step, after, self.config.get_config_for_module(name).clip_param)
            report |= diagnostics.of_factor(step.factor, policy.active.any(0), step.rows)
            report |= result.reports[name]
            report["improvement_lower_bound"] = diagnostics.improvement_lower_bound(
                report["surrogate_gain"], report["max_kl"], *scale, self.config.gamma
            )
            bound = bound + report["improvement_lower_bound"]
            gap = diagnostics.behaviour_gap(step.before, policy.behaviour_logp, policy.active)
            report |= {"behaviour_gap": gap, "entropy_coeff": players[name].entropy_coeff, "order": place}
            self.metrics.log_dict(report, key=name, window=1)
            if gap > WARN_BEHAVIOUR_GAP:
                logger.warning(
                    "Policy %s: the learner's log-probabilities differ from the sampler's by up to %.2g. "
                    "Does the module act differently in forward_exploration and forward_train?",
                    name,
                    gap,
                )
        self._report_team(result, advantage, bound)
        unknown = torch.full((), torch.nan, device=self._device)
        return {name: result.reports[name].get("policy_loss", unknown) for name in result.order}

    def _report_team(self, result: SweepResult, advantage: TeamAdvantage, bound: Tensor) -> None:
        """Logs the figures of the sweep as a whole; `bound` is the sum of the policies' lower bounds."""
        of_team = diagnostics.of_factor(result.log_factor.exp(), advantage.joint.any_active, advantage.rows)
        self.metrics.log_dict(of_team | {"improvement_lower_bound": bound}, key=ALL_MODULES, window=1)

    @override(ConfiguredLearner)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        if kwargs.get("inference_only"):
            return super().get_state(*args, **kwargs)  # goes to env runners, after every update
        memories = {k: c.memory.get_state() for k, c in self._critics.items() if c.memory is not None}
        own = {
            SWEEP_SEED: self.sweep_seed,
            CRITIC_MEMORIES: memories,
            SKIPPED_UPDATES: self.skipped.get_state(),
        }
        return {**super().get_state(*args, **kwargs), **own, **self._drifts.get_state()}

    @override(ConfiguredLearner)
    def set_state(self, state: StateDict) -> None:
        super().set_state(state)
        self._unfitted.clear()
        self.sweep_seed = state.get(SWEEP_SEED, self.sweep_seed)
        self.skipped.set_state(state.get(SKIPPED_UPDATES, {}))
        for name, known in state.get(CRITIC_MEMORIES, {}).items():
            memory = self._critics[name].memory
            if memory is not None:
                memory.set_state(known)
        if DRIFTS in state:
            self._drifts.set_state(state)
