"""The on-policy update: advantages, one HAML sweep over the policies, critic epochs."""

from __future__ import annotations

import logging
from typing import Any

import torch
import tree
from ray.rllib.core import ALL_MODULES
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.rllib.utils.typing import StateDict
from torch import Tensor

from rllib_haml.haml import JointRows, Player, SweepResult, gae, sweep
from rllib_haml.haml.neighbourhood import descend
from rllib_haml.learners import diagnostics
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.collectives import all_reduce, broadcast
from rllib_haml.learners.module_policy import ModulePolicy
from rllib_haml.modules.critic import CRITIC

logger = logging.getLogger("rllib_haml")
SWEEP_SEED = "sweep_seed"
# Behaviour and learner evaluate the same weights; more than rounding between them is a defect.
WARN_BEHAVIOUR_GAP = 1e-4


class OnPolicyTeamLearner(TorchLearner):
    """Runs the whole update in one call of `_update`: the sweep owns its epochs and minibatches.

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

    @override(TorchLearner)
    def build(self) -> None:
        super().build()
        for module in self.module.values():
            broadcast(t.data for t in [*module.parameters(), *module.buffers()])
        self._sweep_seed = self._agree_on_seed()
        self._entropy = {
            module_id: Scheduler(
                fixed_value_or_schedule=self.config.get_config_for_module(module_id).entropy_coeff,
                framework="torch",
                device=self._device,
            )
            for module_id in self._policy_ids()
        }

    def _policy_ids(self) -> list[str]:
        return sorted(set(self.module.keys()) - {CRITIC})

    def _agree_on_seed(self) -> int:
        own = torch.randint(2**31, (1,), device=self._device)
        broadcast([own])
        return int(own) if self.config.seed is None else int(self.config.seed)

    @override(TorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Not wrapped: a player's gradient touches one module, and DDP expects all of them to move."""

    @override(TorchLearner)
    def should_module_be_updated(self, module_id: str, multi_agent_batch: Any = None) -> bool:
        """All rows reach `_update`: the compound ratio and the critic need those of frozen policies too."""
        return True

    def _is_trained(self, module_id: str) -> bool:
        return super().should_module_be_updated(module_id, None)

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        config = config or self.config
        parameters = [p for p in self.module[module_id].parameters() if p.requires_grad]
        if not parameters:
            return
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters, eps=config.adam_epsilon, weight_decay=config.weight_decay),
            params=parameters,
            lr_or_lr_schedule=config.critic_lr if module_id == CRITIC else config.lr,
        )

    @override(TorchLearner)
    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        for schedule in self._entropy.values():
            schedule.update(timestep=timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))

    @override(TorchLearner)
    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        joint = JointBatch.of(batch)
        total = int(all_reduce(torch.tensor(len(joint.row), device=self._device)))
        rows = JointRows(joint.row, total, all_reduce=all_reduce)
        values, advantage = self._estimate_advantages(joint)
        normalised = self._normalise(advantage, joint.any_active, rows)
        players = self._players(joint)
        result = sweep(
            players,
            lambda log_factor: normalised,
            order=self.config.make_order(),
            rows=rows,
            key=(self._sweep_seed, self._weights_seq_no),
            simultaneous=self.config.update_scheme == "simultaneous",
        )
        losses = self._report_sweep(result, players, rows)
        losses[CRITIC] = self._fit_critic(joint, values, advantage, rows)
        return {}, losses, {}

    @override(TorchLearner)
    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """Abstract in RLlib, whose own update would call it; here a policy's objective needs the sweep."""
        raise NotImplementedError("The sweep computes each policy's objective; override `_update` instead.")

    @torch.no_grad()
    def _estimate_advantages(self, joint: JointBatch) -> tuple[Tensor, Tensor]:
        """V (S,) on the normaliser's scale, and the team's advantage (S,) in units of the reward."""
        critic = self.module[CRITIC]
        normalised = critic.normalised_values(joint.states.to(_dtype(critic)))
        values = critic.denormalise(normalised)
        steps = ~joint.last
        following = values.roll(-1)[steps]
        columns = [
            joint.columns_by_fragment(x.to(values.dtype))[0]
            for x in (joint.reward, values[steps], following, joint.terminated)
        ]
        reward, value, next_value, terminated = columns
        filled = joint.columns_by_fragment(joint.reward)[1]
        ended = torch.ones_like(filled)
        ended[:-1] = ~filled[1:]
        advantage = gae(
            reward,
            value,
            next_value,
            terminated.bool(),
            ended,
            gamma=self.config.gamma,
            lambda_=self.config.lambda_,
        )
        return normalised[steps], joint.rows_of(advantage)

    def _normalise(self, advantage: Tensor, counted: Tensor, rows: JointRows) -> Tensor:
        """(Â - mean) / (std + 1e-5) over all learners' rows in which anyone acted."""
        mean = all_reduce(rows.mean(advantage, counted))
        variance = all_reduce(rows.mean((advantage - mean).square(), counted))
        return (advantage - mean) / (variance.sqrt() + 1e-5)

    def _players(self, joint: JointBatch) -> dict[str, Player]:
        """The policies that are trained, each with its drift and neighbourhood."""
        players = {}
        for module_id, columns in joint.policies.items():
            if not self._is_trained(module_id) or module_id not in self._module_optimizers:
                continue
            config = self.config.get_config_for_module(module_id)
            optimizer = self.get_optimizer(module_id)
            module = self.module[module_id].unwrapped()
            columns = {k: _match_dtype(v, _dtype(module)) for k, v in columns.items()}
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            players[module_id] = Player(
                ModulePolicy(module, columns, parameters, optimizer),
                config.make_drift(),
                config.make_neighbourhood(),
                float(self._entropy[module_id].get_current_value()),
            )
        return players

    def _fit_critic(self, joint: JointBatch, before: Tensor, advantage: Tensor, rows: JointRows) -> Tensor:
        """Regresses V on Â + V, with its own epochs and minibatches; returns the last loss."""
        config, critic = self.config.get_config_for_module(CRITIC), self.module[CRITIC].unwrapped()
        values = critic.denormalise(before)
        returns = advantage + values
        if critic.value_norm is not None:
            critic.value_norm.update(returns[joint.any_active], all_reduce)
        target = critic.normalise(returns)
        states = joint.states[~joint.last].to(_dtype(critic))
        optimizer = self.get_optimizer(CRITIC)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        key = (self._sweep_seed, self._weights_seq_no, len(joint.policies))
        loss = norm = torch.zeros((), device=self._device)
        for epoch in range(config.critic_num_epochs):
            for part in rows.minibatches(config.critic_minibatch_size, *key, epoch):
                error = value_loss(
                    critic.normalised_values(states[part]),
                    before[part],
                    target[part],
                    config.vf_clip_param,
                    config.huber_delta,
                )
                loss = rows.mean(config.vf_loss_coeff * error, joint.any_active[part], part)
                norm = descend(loss, parameters, optimizer, config.grad_clip, rows)
        loss = all_reduce(loss.detach().clone())
        explained = diagnostics.explained_variance(returns, values, joint.any_active, rows)
        report = {"vf_loss": loss, "vf_explained_var": explained, "grad_norm": norm}
        self.metrics.log_dict(report, key=CRITIC, window=1)
        return loss

    def _report_sweep(
        self, result: SweepResult, players: dict[str, Player], rows: JointRows
    ) -> dict[str, Tensor]:
        """Logs each policy's figures; returns its last loss."""
        for place, name in enumerate(result.order):
            policy: Any = players[name].policy
            before, after = result.before[name], result.after[name]
            clip = self.config.get_config_for_module(name).clip_param
            report = diagnostics.of_move(before, after, policy.active, rows, clip) | result.reports[name]
            gap = diagnostics.behaviour_gap(before, policy.behaviour_logp, policy.active)
            report |= {"behaviour_gap": gap, "entropy_coeff": players[name].entropy_coeff, "order": place}
            self.metrics.log_dict(report, key=name, window=1)
            if gap > WARN_BEHAVIOUR_GAP:
                logger.warning(
                    "Policy %s: the learner's log-probabilities differ from the sampler's by up to %.2g. "
                    "Does the module act differently in forward_exploration and forward_train?",
                    name,
                    gap,
                )
        factor = diagnostics.of_factor(result.log_factor, rows)
        self.metrics.log_dict(factor, key=ALL_MODULES, window=1)
        zero = torch.zeros((), device=self._device)
        return {name: result.reports[name].get("policy_loss", zero) for name in result.order}

    @override(TorchLearner)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        return {**super().get_state(*args, **kwargs), SWEEP_SEED: self._sweep_seed}

    @override(TorchLearner)
    def set_state(self, state: StateDict) -> None:
        super().set_state(state)
        self._sweep_seed = state.get(SWEEP_SEED, self._sweep_seed)


def value_loss(
    value: Tensor, before: Tensor, target: Tensor, clip: float | None, huber_delta: float | None
) -> Tensor:
    """(R,) Huber (or half squared) error; with `clip`, the larger of the plain and the clipped value's.

    All on the normaliser's scale, `clip` and `huber_delta` too. The clipped value moves at most `clip`
    away from the value `before` the update.
    """

    def error(v: Tensor) -> Tensor:
        if huber_delta is None:
            return 0.5 * (v - target).square()
        return torch.nn.functional.huber_loss(v, target, reduction="none", delta=huber_delta)

    plain = error(value)
    if clip is None:
        return plain
    return torch.maximum(plain, error(before + (value - before).clamp(-clip, clip)))


def _dtype(module: torch.nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _match_dtype(value: Any, dtype: torch.dtype) -> Any:
    return tree.map_structure(lambda x: x.to(dtype) if x.is_floating_point() else x, value)
