"""The configuration of every on-policy algorithm of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ray.rllib.utils.annotations import override

from rllib_haml._typing import NotProvided
from rllib_haml.algorithms import ppo_keys
from rllib_haml.algorithms.components import component
from rllib_haml.algorithms.sampler_choice import choose_env_runner
from rllib_haml.algorithms.team_config import TeamConfig
from rllib_haml.algorithms.theory import checked, warn_where_theory_ends
from rllib_haml.algorithms.values import check_values
from rllib_haml.annotations import COEFFICIENT, COUNT, NON_NEGATIVE, POSITIVE, WHOLE, plain, written
from rllib_haml.haml import Drift, DriftCheck, FixedOrder, Neighbourhood, Order
from rllib_haml.learners.on_policy import OnPolicyTeamLearner
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.team import Team, TeamReward

if TYPE_CHECKING:
    from typing_extensions import Self

_LEAVE_OUT = "leave it out"
# Settings of RLlib that the update and the samplers do not read: values that mean "off", and what to do.
WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "observation_filter": (("NoFilter",), "normalise in the environment"),
    "clip_rewards": ((None, False), "clip or scale rewards in the environment"),
    "gym_env_vectorize_mode": (("sync",), "environments step at once in env runners: `num_env_runners`"),
    "compress_observations": ((False,), _LEAVE_OUT),
    "torch_compile_learner": ((False,), _LEAVE_OUT),
    "torch_compile_worker": ((False,), _LEAVE_OUT),
    "log_gradients": ((False,), _LEAVE_OUT),
    "torch_skip_nan_gradients": ((False,), _LEAVE_OUT),
    # Every request is for a share of the one batch that is trained on next.
    "max_requests_in_flight_per_env_runner": ((1,), _LEAVE_OUT),
}
# Keys of `training` that cannot differ from policy to policy.
TEAM_WIDE = {
    "compound_clip",
    "gamma",
    "lambda_",
    "max_consecutive_nonfinite_updates",
    "order",
    "preceding_agent_correction",
    "team_reward",
    "update_scheme",
    "use_value_norm",
}


class HAMLConfig(TeamConfig):
    """Config of HAML (Zhong et al. 2024): RLlib's `PPOConfig`, with policies that move one after another.

    Policies default to one per agent of the environment. `ppo_keys` says what became of each key of PPO.
    New keys are those of `training` below; the networks' are in `ModelConfig`
    (`.rl_module(model_config={...})`).
    """

    refused_keys: ClassVar[dict[str, str]] = {
        key: refusal.instead for key, refusal in ppo_keys.REFUSED.items()
    }

    def __init__(self, algo_class: type | None = None):
        from rllib_haml.algorithms.haml import HAML  # which imports this file

        super().__init__(algo_class=algo_class or HAML)
        self.lr = 5e-4
        self.lambda_ = 0.95
        self.num_epochs = 5
        self.minibatch_size = None
        self.clip_param = 0.2
        self.vf_clip_param = 0.2
        self.grad_clip = 10.0
        self.use_kl_loss, self.kl_coeff, self.kl_target = False, 0.0, None
        # Sampling in the training process: fast enough for a start, and resuming is exact.
        self.num_env_runners, self.num_envs_per_env_runner = 0, 8
        self.critic_lr: Any = 5e-4
        self.critic_num_epochs = 5
        self.critic_minibatch_size: int | None = None
        self.huber_delta: float | None = 10.0
        self._chosen_env_runner: type | None = None
        self.adam_epsilon = 1e-5
        self.weight_decay = 0.0
        self.drift: Any = "none"
        self.neighbourhood: Any = "everywhere"
        self.order: Any = "random"
        self.update_scheme: Literal["sequential", "simultaneous"] = "sequential"
        self.compound_clip: float | Literal["half"] | None = None
        self.preceding_agent_correction = False
        self.max_consecutive_nonfinite_updates = 10

    def training(
        self,
        *,
        vf_clip_param: POSITIVE | None = NotProvided,
        critic_lr: COEFFICIENT = NotProvided,
        critic_num_epochs: WHOLE = NotProvided,
        critic_minibatch_size: COUNT | None = NotProvided,
        huber_delta: POSITIVE | None = NotProvided,
        use_value_norm: bool = NotProvided,
        adam_epsilon: NON_NEGATIVE = NotProvided,
        weight_decay: NON_NEGATIVE = NotProvided,
        drift: str | dict[str, Any] | Drift | None = NotProvided,
        neighbourhood: str | dict[str, Any] | Neighbourhood | None = NotProvided,
        order: str | list[str] | dict[str, Any] | Order | None = NotProvided,
        compound_clip: NON_NEGATIVE | Literal["half"] | None = NotProvided,
        preceding_agent_correction: bool = NotProvided,
        update_scheme: Literal["sequential", "simultaneous"] = NotProvided,
        max_consecutive_nonfinite_updates: COUNT = NotProvided,
        team_reward: TeamReward = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training configuration; other keys are PPO's.

        Args:
            vf_clip_param: How far a value may move from its old one, on the value normaliser's scale; None:
                as far as it does.
            critic_lr: The critic's learning rate, or a schedule of it as RLlib's `lr` takes it.
            critic_num_epochs: Passes of the critic over the batch, after the sweep.
            critic_minibatch_size: Joint steps of a critic's minibatch over all learners; None is all.
            huber_delta: Where the value loss turns linear, on the value normaliser's scale; None: never.
            use_value_norm: Normalise value targets by their running mean and variance.
            adam_epsilon: ε of every Adam.
            weight_decay: Of every Adam.
            drift: What a policy pays for leaving the present one: `none`, `clip`, `joint_clip`, `kl`, one of
                your own by its import path (`{type: my_package.my_module:MyDrift}`), or a `Drift` object.
                Arguments stand beside the type: `{type: kl, coeff: 1.0}`.
            neighbourhood: Where it may move: `everywhere` (by `num_epochs` of gradient steps), `kl_ball`
                (`{type: kl_ball, radius: 0.01}`), one of your own as above, or a `Neighbourhood` object.
            order: Who moves first: `random`, a new permutation in each update; `semi_greedy`, every other
                time the one whose gradient is largest; a fixed list of policies (outside the convergence
                theorem); one of your own as above, or an `Order` object.
            compound_clip: Bounds the compound ratio in the objective to 1 ± this; `half`: of `clip_param`,
                as A2PO does; None does not.
            preceding_agent_correction: Estimates the advantage anew for each mover, with traces cut by how
                far those before it have moved (A2PO's PreOPC).
            update_scheme: `sequential` corrects the advantage for those who moved before; `simultaneous`
                does not: MAPPO.
            max_consecutive_nonfinite_updates: An update of a policy or critic whose loss, gradient or
                weights are not finite is not applied; so many in a row of one of them end the run, with the
                last good weights saved.
            team_reward: The team's one reward: `shared` demands equal ones, `mean` or `sum` over agents.

        Raises:
            ValueError: If a key of PPO's is refused; it names the replacement.
        """
        own = {
            "vf_clip_param": vf_clip_param,
            "critic_lr": critic_lr,
            "critic_num_epochs": critic_num_epochs,
            "critic_minibatch_size": critic_minibatch_size,
            "huber_delta": huber_delta,
            "use_value_norm": use_value_norm,
            "adam_epsilon": adam_epsilon,
            "weight_decay": weight_decay,
            "drift": drift,
            "neighbourhood": neighbourhood,
            "order": order,
            "compound_clip": compound_clip,
            "preceding_agent_correction": preceding_agent_correction,
            "update_scheme": update_scheme,
            "max_consecutive_nonfinite_updates": max_consecutive_nonfinite_updates,
            "team_reward": team_reward,
        }
        own, kwargs = plain(own), plain(kwargs)
        for key, value in {**kwargs, **own}.items():
            # RLlib hands whole configs back, from `to_dict` to `update_from_dict`: what stays says nothing.
            if value is not NotProvided and value != getattr(self, key, None):
                self._refuse(key, value)
        # RLlib would write its null over `num_epochs`.
        kwargs.pop("num_sgd_iter", None)
        super().training(**kwargs)
        for key, value in own.items():
            if value is not NotProvided:
                setattr(self, key, value)
        return self

    def _refuse(self, key: str, value: Any) -> None:
        ppo_keys.refuse(key, value)
        if key in self.refused_keys and key not in ppo_keys.REFUSED:
            name = type(self).__name__.removesuffix("Config")
            raise ValueError(f"{name} does not take {key}={value!r}: {self.refused_keys[key]}.")

    # What an instance is composed of.

    def make_drift(self) -> Drift:
        """D^i, the same functional for every policy, with its own module's settings."""
        return component("drift", self.drift, self)

    def compound_bound(self) -> float | None:
        """How far the compound ratio in the objective may be from 1; None: as far as it is."""
        return self.clip_param / 2 if self.compound_clip == "half" else self.compound_clip

    def drift_check(self) -> DriftCheck:
        """Whether the drift meets the conditions of HAML's guarantee, tried on every kind of action."""
        return checked(self)

    def make_neighbourhood(self) -> Neighbourhood:
        """U^i."""
        return component("neighbourhood", self.neighbourhood, self)

    def make_order(self) -> Order:
        if isinstance(self.order, list | tuple):
            return FixedOrder(tuple(self.order))
        return component("order", self.order, self)

    @override(TeamConfig)
    def get_default_learner_class(self) -> type:
        return OnPolicyTeamLearner

    @override(TeamConfig)
    def validate(self) -> None:
        for key in ppo_keys.REFUSED.keys() & vars(self).keys():
            if key not in ("model", "optimizer"):
                ppo_keys.refuse(key, vars(self)[key])
        ppo_keys.refuse("learner_connector", self._learner_connector)
        self._check_choices()
        if self.env is not None and self.in_evaluation:
            self._decide_for_evaluation()
        elif self.env is not None:
            team = self.resolve_team()
            self._check_networks(team)
            self._check_policies(team)
        super().validate()
        self._choose_env_runner()
        warn_where_theory_ends(self)

    def _choose_env_runner(self) -> None:
        """Remembers what was chosen here, so that a later change of the config can choose anew."""
        if self.env_runner_cls is self._chosen_env_runner:
            self.env_runner_cls = None
        given = self.env_runner_cls
        self.env_runner_cls = choose_env_runner(self)
        self._chosen_env_runner = None if given else self.env_runner_cls
        # After every iteration RLlib waits for what env runners' connectors have learnt; these have none.
        self._dont_auto_sync_env_runner_states = issubclass(self.env_runner_cls, JointEnvRunner)

    def _check_choices(self) -> None:
        check_values(self)
        for make in (self.make_drift, self.make_neighbourhood, self.make_order):
            make()
        for key, (off, way_out) in WITHOUT_EFFECT.items():
            value = plain(getattr(self, key))
            if value not in off:
                said = f"given {written(value)}, which would have no effect here: {way_out}."
                raise ValueError(f"{key}: {said}")

    def _check_policies(self, team: Team) -> None:
        """What names policies names those that there are, and says of them what can differ."""
        names = list(team.members())
        if isinstance(self.order, list | tuple):
            trained = [name for name in names if self._trains(name)]
            if len(set(self.order)) < len(self.order) or not set(trained) <= set(self.order) <= set(names):
                raise ValueError(f"order={self.order!r}: expected each trained policy once, {trained}.")
        modules = [*self.acting_modules(), *self.critic_specs(team, {})]
        overrides = self.algorithm_config_overrides_per_module
        for name in overrides:
            if name not in modules:
                raise ValueError(
                    f"algorithm_config_overrides_per_module names {name!r}; there are {modules}."
                )
            team_wide = TEAM_WIDE.intersection(overrides[name])
            if team_wide:
                raise ValueError(
                    f"algorithm_config_overrides_per_module gives {name!r} {sorted(team_wide)}, which the "
                    f"whole team has in common: set it with .training()."
                )
        for name, spec in self.policies.items():
            if getattr(spec, "config", None):
                raise ValueError(
                    f"policies: RLlib ignores the config of {name!r}: use "
                    f"algorithm_config_overrides_per_module={{{name!r}: {{...}}}}."
                )

    def _trains(self, policy: str) -> bool:
        chosen: Any = self.policies_to_train
        if callable(chosen):
            return bool(chosen(policy, None))
        return chosen is None or policy in chosen
