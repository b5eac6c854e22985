"""An env runner whose state is complete: what it samples next is what it would have sampled."""

from __future__ import annotations

import logging
from collections.abc import Collection
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.debug import update_global_seed_if_necessary
from ray.rllib.utils.typing import StateDict

from rllib_haml.sampling.actor_states import ActorStates
from rllib_haml.sampling.metrics import EpisodeMetrics
from rllib_haml.sampling.process import was_restarted
from rllib_haml.sampling.team import Team
from rllib_haml.sampling.vector_env import TeamStep

logger = logging.getLogger("rllib_haml")
SAMPLER_STATE = "joint_sampler"


class ResumableEnvRunner(MultiAgentEnvRunner):
    """Saves its generator and, where the environments can save theirs, the running episodes.

    A remote one that Ray has started again, or that is given the state of another, begins new episodes with
    random numbers of its own.
    """

    # RLlib's annotations know neither this package's config nor its vector environments and modules.
    config: Any
    env: Any
    module: Any
    _team: Team
    _now: TeamStep
    _generator: torch.Generator
    _actor_states: ActorStates
    _episodes: EpisodeMetrics
    _started: bool

    def _make_actor_states(self) -> ActorStates:
        return ActorStates(self.module.initial_states(), self._team.agents, self.num_envs)

    @override(MultiAgentEnvRunner)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> StateDict:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self.env is not None and self._check_component(SAMPLER_STATE, components, not_components):
            env = self.env.team
            saves = getattr(env, "has_state", False) and self._started
            state[SAMPLER_STATE] = {
                "worker_index": self.worker_index or 0,
                "generator": self._generator.get_state().numpy(),
                "num_envs": self.num_envs,
                "needs_reset": self._needs_initial_reset,
                "env": env.get_state() if saves else None,
                "now": deepcopy(self._now) if saves else None,
                "actor_states": deepcopy(self._actor_states.now) if saves else None,
                "episodes": self._episodes.get_state() if saves else None,
            }
        return state

    @override(MultiAgentEnvRunner)
    def set_state(self, state: StateDict) -> None:
        super().set_state(state)
        if self.env is None:
            return
        own = state.get(SAMPLER_STATE, {})
        if own.get("worker_index", 0) != (self.worker_index or 0):
            # RLlib sends the local env runner's state to every runner; its sampler state belongs to that
            # runner alone.
            own = {}
        if not own:
            if not self._started and was_restarted():
                begin_anew(self, self._weights_seq_no)
            return
        self._generator.set_state(torch.from_numpy(np.array(own["generator"])))
        needs_reset = own.get("needs_reset", False)
        if own["env"] is None or own["num_envs"] != self.num_envs:
            if needs_reset:
                return  # no episode was running
            reason = (
                f"{self.config.env} cannot save its state"
                if own["env"] is None
                else f"the checkpoint has {own['num_envs']} sub-environments, this run {self.num_envs}"
            )
            logger.warning("Restored without the running episodes, they start anew: %s.", reason)
            return
        self.env.team.set_state(own["env"])
        self._now = deepcopy(own["now"])
        self.module.refresh(self._team.module_of)
        self._actor_states = self._make_actor_states()
        self._actor_states.now.update(deepcopy(own.get("actor_states", {})))
        self._episodes.set_state(own["episodes"])
        self._started, self._needs_initial_reset = True, needs_reset


def begin_anew(env_runner: Any, version: int) -> None:
    """Lets an env runner, this package's or RLlib's, begin new episodes with its next sample.

    If its config has a seed, its random numbers now come of that, of which env runner it is, and of the
    `version` of the weights: it does not repeat what it began with.
    """
    if env_runner.env is None:  # it does not sample
        return
    env_runner._needs_initial_reset = True
    if isinstance(env_runner, ResumableEnvRunner):
        env_runner._started = False
    config, index = env_runner.config, env_runner.worker_index or 0
    if config.seed is None:
        return
    words = [int(config.seed), index, int(config.in_evaluation), version]
    # Seeds of single environments are larger by a little, and fit into 32 bits.
    env_runner._seed = int(np.random.SeedSequence(words).generate_state(1)[0]) >> 1
    if isinstance(env_runner, ResumableEnvRunner):
        env_runner._generator.manual_seed(env_runner._seed)
    if index:  # else the process is the algorithm's
        update_global_seed_if_necessary(config.framework_str, env_runner._seed)
