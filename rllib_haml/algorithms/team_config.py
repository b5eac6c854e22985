"""Who plays with which networks: the part of the config that every algorithm of the package shares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.connectors.learner import LearnerConnectorPipeline
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from rllib_haml._typing import AgentID, NotProvided
from rllib_haml.algorithms.find_team import decide_for_evaluation, find_team
from rllib_haml.algorithms.training_keys import refuse_unknown
from rllib_haml.algorithms.user_modules import (
    as_dict,
    common_settings,
    has_own_multi_rl_module,
    is_default,
    refuse_unread_catalog,
    spec_of,
    specs_by_module,
)
from rllib_haml.annotations import POSITIVE
from rllib_haml.envs.registry import registered_envs, resolve_env
from rllib_haml.learners.connector import JointBatchConnector, state_images, state_size
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.critic import CRITIC, IMAGES, Critic
from rllib_haml.modules.encoders import flat_size
from rllib_haml.modules.heads import make_head
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.modules.team import TeamModule
from rllib_haml.sampling.no_team import single_agent
from rllib_haml.sampling.policy_mapping import DecidedMapping
from rllib_haml.sampling.seen import record_seen
from rllib_haml.sampling.stock_actions import squashing
from rllib_haml.sampling.team import Team, TeamReward

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("rllib_haml")

SHARED_POLICY = "shared"


def policy_of_agent(agent_id: Any, episode: Any = None, **kwargs: Any) -> str:
    """Each agent's own policy, named like the agent."""
    return str(agent_id)


def shared_policy(agent_id: Any, episode: Any = None, **kwargs: Any) -> str:
    """One policy for all agents."""
    return SHARED_POLICY


class TeamConfig(PPOConfig):
    """RLlib's `PPOConfig` for a team: agents, policies and spaces come from the environment.

    Attributes:
        team_reward: How the agents' rewards become one; see `team_reward` of `rllib_haml.sampling.team`.
        use_value_norm: Normalise value targets by their running mean and variance.
        env_step_timeout_s: See `fault_tolerance`.
        team: The environment's team; None before `validate` has looked at it.
    """

    model_config_class: ClassVar[type] = ModelConfig
    # Under which key the mapping stands that holds where none is given.
    default_mapping_key: ClassVar[str] = "policy_mapping_fn"
    result_metrics: ClassVar[tuple[str, ...]] = (
        *(f"env_runners/team_return_{of}" for of in ("mean", "min", "max")),
        "env_runners/outcome_mean/*",
    )

    # RLlib's annotations admit None here, and a mapping that asks for a worker.
    metrics_num_episodes_for_smoothing: Any
    policy_mapping_fn: Any

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.team_reward: TeamReward = "shared"
        self.use_value_norm = True
        self.env_step_timeout_s: float | None = 600.0
        # Spent in every iteration while an env runner is lost: nobody waits RLlib's 30 s for one that is
        # starting again, it answers in a later one.
        self.env_runner_health_probe_timeout_s = 0.25
        self.team: Team | None = None
        self._team_key: Any = None
        self._derived_policies: set[str] = set()

    def training(self, **kwargs: Any) -> Self:
        """Sets the training configuration; see the algorithm's own `training`.

        Raises:
            TypeError: There is no such key; it names the nearest.
        """
        refuse_unknown(type(self), kwargs)
        return super().training(**kwargs)

    def fault_tolerance(self, *, env_step_timeout_s: POSITIVE | None = NotProvided, **kwargs: Any) -> Self:
        """Sets what happens when something fails; other keys are RLlib's.

        Args:
            env_step_timeout_s: An env runner in a process of its own ends, and is started again, when one
                `reset` or `step` of its environment lasts longer; None: never.
        """
        super().fault_tolerance(**kwargs)
        if env_step_timeout_s is not NotProvided:
            self.env_step_timeout_s = env_step_timeout_s
        return self

    @override(PPOConfig)
    def validate(self) -> None:
        old = [
            f"{key}=False"
            for key in ("enable_rl_module_and_learner", "enable_env_runner_and_connector_v2")
            if not getattr(self, key)
        ]
        if old:
            raise ValueError(
                f"there is only RLlib's new API stack here: remove `.api_stack({', '.join(old)})`."
            )
        super().validate()

    @property
    def is_multi_agent(self) -> bool:
        """Always: a team of one is a team."""
        return True

    def _check_networks(self, team: Team) -> None:
        """Finds out here what would otherwise fail on every env runner.

        Raises:
            ValueError: If `model_config` or a space does not suit the default actors.
        """
        for agent, policy in team.module_of.items():
            given = spec_of(self._rl_module_spec, policy)
            refuse_unread_catalog(given, policy)
            if not is_default(given):
                continue
            model_config = ModelConfig.from_dict(self.network_config() | as_dict(given.model_config))
            try:
                flat_size(team.observation_spaces[agent])
                make_head(team.action_spaces[agent], model_config)
            except ValueError as error:
                raise ValueError(f"Agent {agent!r}: {error}") from error

    def env_creator(self) -> Callable[[Mapping[str, Any]], Any]:
        """What makes one environment of an `env_config`; env runners ask for it.

        Raises:
            ValueError: `env` names nothing that is known.
        """
        return resolve_env(self.env)

    def resolve_team(self) -> Team:
        """Looks at the environment once: its agents, their spaces, and each one's policy.

        Raises:
            ValueError: If the environment cannot be found or made, or does not fit the policies; or if these
                depend on more than the agent, or have names that cannot be theirs.
        """
        if self.team is not None and self._team_key == self._make_team_key():
            return self.team
        if isinstance(self.env, str) and self.env in gym.registry and self.env not in registered_envs():
            raise ValueError(f"environment {self.env!r} is gymnasium's. {single_agent(repr(self.env))}")
        found = find_team(self)
        self._team_key = self._make_team_key()
        return found

    def _decide_for_evaluation(self) -> None:
        if self._team_key != self._make_team_key():
            decide_for_evaluation(self)

    @property
    def changes_observations(self) -> bool:
        """Whether connectors of the user's stand between environment and policies."""
        return (
            self._env_to_module_connector is not None
            or not self.add_default_connectors_to_env_to_module_pipeline
        )

    @override(PPOConfig)
    def build_env_to_module_connector(self, *args: Any, **kwargs: Any) -> Any:
        pipeline: Any = super().build_env_to_module_connector(*args, **kwargs)
        if self.changes_observations:
            record_seen(pipeline)
        return pipeline

    def _make_team_key(self) -> tuple[Any, ...]:
        mappings = (self.given_mapping(), self.default_policy_mapping_fn())
        connectors = (self._env_to_module_connector, self.add_default_connectors_to_env_to_module_pipeline)
        return (self.env, repr(self.env_config), sorted(self.policies, key=str), *mappings, *connectors)

    def own_modules(self, policies: Iterable[str]) -> list[str]:
        """The modules beside these policies, which no policy can be called like."""
        return [CRITIC]

    def default_policy_mapping_fn(self) -> Callable[..., str]:
        """Which policy each agent follows if the user does not say it."""
        return policy_of_agent

    def mapping_for(self, agents: Sequence[AgentID]) -> Callable[..., str]:
        """The default one, which may look at the environment's agents."""
        return self.default_policy_mapping_fn()

    def given_mapping(self) -> Callable[..., Any] | None:
        """The user's own policy mapping, or None."""
        mapping = self.policy_mapping_fn
        given = mapping.given if isinstance(mapping, DecidedMapping) else mapping
        not_given = (self.DEFAULT_POLICY_MAPPING_FN, policy_of_agent, shared_policy)
        return None if given in not_given else given

    @override(PPOConfig)
    def build_module_to_env_connector(self, env: Any = None, spaces: Any = None) -> Any:
        """RLlib's pipeline, which squashes the draws of policies with `squash_actions`."""
        return squashing(super().build_module_to_env_connector(env, spaces))

    @override(PPOConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=Actor)

    def network_config(self) -> dict[str, Any]:
        """`model_config` as the user gave it, to all modules."""
        return as_dict(self._model_config) | common_settings(self._rl_module_spec)

    def acting_modules(self) -> list[str]:
        """The modules that env runners need, and are sent after each update."""
        return sorted(self.policies)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}

    @override(PPOConfig)
    def get_multi_rl_module_spec(
        self, *, env: Any = None, spaces: Any = None, inference_only: bool = False, **kwargs: Any
    ) -> MultiRLModuleSpec:
        team = self.team or self.resolve_team()
        spaces = {
            name: (team.observation_spaces[agents[0]], team.action_spaces[agents[0]])
            for name, agents in team.members().items()
        } | {k: v for k, v in (spaces or {}).items() if k in team.members()}
        spec = super().get_multi_rl_module_spec(
            env=None, spaces=spaces, inference_only=inference_only, **kwargs
        )
        own = self.network_config()
        for name, module_spec in specs_by_module(spec).items():
            given = spec_of(self._rl_module_spec, name)
            if is_default(given):
                module_spec.model_config = own | as_dict(given.model_config)
            else:
                module_spec.model_config = {"vf_share_layers": False} | as_dict(module_spec.model_config)
            if given.module_class is None and given.catalog_class is not None:
                module_spec.module_class = DefaultPPOTorchRLModule  # as in PPO: it reads the catalog
        if not has_own_multi_rl_module(self._rl_module_spec):
            spec.multi_rl_module_class = TeamModule
        if not inference_only:
            spec.add_modules(self.critic_specs(team, own))
        return spec

    def critic_specs(self, team: Team, model_config: dict[str, Any]) -> dict[str, RLModuleSpec]:
        """The critics by name: one, on the environment's state or the joint observation."""
        return {CRITIC: self.critic_spec(team, model_config)}

    def critic_spec(self, team: Team, model_config: dict[str, Any]) -> RLModuleSpec:
        """A critic that sees all of `team`."""
        known = {f.name for f in fields(ModelConfig)}
        return RLModuleSpec(
            module_class=Critic,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (state_size(team),), np.float32),
            action_space=gym.spaces.Discrete(1),
            learner_only=True,
            model_config={k: v for k, v in model_config.items() if k in known}
            | {"use_value_norm": self.use_value_norm, IMAGES: state_images(team)},
        )

    @override(PPOConfig)
    def build_learner_connector(
        self, input_observation_space: Any, input_action_space: Any, device: Any = None
    ) -> LearnerConnectorPipeline:
        assert self.team is not None
        critic_id = min(self.critic_specs(self.team, {}))
        connector = JointBatchConnector(self.team, self.team_reward, device, str(self.env), critic_id)
        return LearnerConnectorPipeline(
            input_observation_space=input_observation_space,
            input_action_space=input_action_space,
            connectors=[connector],
        )

    @override(PPOConfig)
    def build_learner_group(self, **kwargs: Any) -> LearnerGroup:
        """The learners, each on its device.

        Raises:
            ValueError: The node that Ray gave a GPU learner has a torch without CUDA.
        """
        try:
            return super().build_learner_group(**kwargs)
        except RuntimeError as error:
            if "NCCL built in" not in str(error):
                raise
            raise ValueError(
                f"num_gpus_per_learner={self.num_gpus_per_learner}, but torch on the node that Ray chose for "
                f"the learner is a build without CUDA: install one with CUDA there, or set it to 0."
            ) from error
