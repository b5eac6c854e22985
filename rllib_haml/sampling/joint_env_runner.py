"""The fast sampler: arrays in, arrays out, one forward pass for all agents of equal shape."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils.annotations import override

from rllib_haml.modules.team import TeamAction, TeamModule
from rllib_haml.sampling.actions import ToEnvActions
from rllib_haml.sampling.faults import EnvironmentFault, RaisedWhenRead
from rllib_haml.sampling.finite import check_finite
from rllib_haml.sampling.fragment import JointFragment, joined
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.masks import MaskCheck
from rllib_haml.sampling.metrics import EpisodeMetrics
from rllib_haml.sampling.random_actions import uniform_actions
from rllib_haml.sampling.recorder import Recorder
from rllib_haml.sampling.restarts import Restarts
from rllib_haml.sampling.resumable import ResumableEnvRunner
from rllib_haml.sampling.stall_guard import StallGuard
from rllib_haml.sampling.team import Team
from rllib_haml.sampling.tickets import Tickets
from rllib_haml.sampling.under_way import UnderWay
from rllib_haml.sampling.vector_env import TeamStep
from rllib_haml.sampling.vector_view import TeamVectorView

CHUNK = 200  # rows of the buffers when sampling whole episodes


class JointEnvRunner(ResumableEnvRunner):
    """Samples `JointFragment`s from E copies of one team's environment.

    It takes RLlib `MultiAgentEnv`s, PettingZoo `ParallelEnv`s and `VectorTeamEnv`s. Its actions depend on
    a generator of its own, seeded by `config.seed` and the worker's index; with it, the environments and
    the running episodes, its state is complete wherever the environments can save theirs.
    """

    @override(MultiAgentEnvRunner)
    def __init__(self, config: Any, **kwargs: Any):
        log_dir = None if config.in_evaluation else kwargs.get("log_dir")
        worker_index = kwargs.get("worker_index") or 0
        self._under_way = UnderWay(log_dir, worker_index, config.total_train_batch_size)
        super().__init__(config=config, **kwargs)

    @override(MultiAgentEnvRunner)
    def make_env(self) -> None:
        if self.env is not None:
            self.env.close()
        context = EnvContext(
            self.config.env_config,
            worker_index=self.worker_index,
            num_workers=self.config.num_env_runners,
        )
        creator = partial(self.config.env_creator(), context)
        env = make_vector_team_env(creator, self.config.num_envs_per_env_runner)
        self.env, self.num_envs = TeamVectorView(env), env.num_envs
        team = self._team = Team.of(env, self.config.policy_mapping_fn)
        self._to_env = ToEnvActions(
            team.action_spaces, normalize=self.config.normalize_actions, clip=self.config.clip_actions
        )
        self._check_masks = MaskCheck(team.action_spaces)
        self._restarts = Restarts(self.config.restart_failed_sub_environments)
        self._guard = StallGuard(self.config.env_step_timeout_s, str(self.config.env))
        self._generator = torch.Generator(self._device)
        if self._seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self._seed)
        self._episodes = EpisodeMetrics(team, env.num_envs)
        self._started, self._needs_initial_reset = False, True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env,
                "env_context": context,
            },
        )

    @override(MultiAgentEnvRunner)
    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Any]:
        """Returns `JointFragment`s."""
        assert self.env is not None
        assert isinstance(self.module, TeamModule)
        self.module.refresh(self._team.module_of)
        self._restarts.begin(self.metrics)
        with self._guard:
            if force_reset or num_episodes is not None or self._needs_initial_reset:
                self._reset_all()
            if num_timesteps is not None:
                fragments = self._roll(-(-num_timesteps // self.num_envs), explore, random_actions)
            else:
                fragments = self._roll_episodes(num_episodes or 0, explore, random_actions)
                self._needs_initial_reset = True
        self._episodes.log(self.metrics, fragments, self._log_episode_metrics)
        self.num_env_steps_sampled_lifetime += sum(map(len, fragments))
        self._under_way.tell()
        return fragments

    def _reset_all(self) -> None:
        seeds: list[int | None] = [None] * self.num_envs
        # Only once: seeded again, the environments would repeat the episodes that they began with.
        if self._seed is not None and not self._started:
            # `_seed` grows by 1 from one env runner to the next: this keeps all sub-environments' apart.
            first = self._seed + (self.worker_index or 0) * self.num_envs
            seeds = [first + e for e in range(self.num_envs)]
        self._actor_states = self._make_actor_states()
        self._mend(self._reset(range(self.num_envs), seeds))
        self._started, self._needs_initial_reset = True, False

    def _reset(self, rows: Iterable[int], seeds: list[int | None]) -> EnvironmentFault | None:
        assert self.env is not None
        self._actor_states.restart(list(rows))
        for e in rows:
            self._episodes.start(e, uuid.UUID(bytes=self._random_bytes(16)).hex)
        return self._take(self.env.team.reset, list(rows), seeds)

    def _take(self, call: Callable[..., TeamStep], *args: Any) -> EnvironmentFault | None:
        """Takes what the environment's `call` shows for the present step, and says what is wrong with it."""
        assert self.env is not None
        try:
            self._now = call(*args)
            self._guard.beat()
            check_finite(self._now, self._team.agents, self._episodes.steps, str(self.config.env))
            self._check_masks(self._now, self._episodes.steps, str(self.config.env))
        except EnvironmentFault as fault:
            if fault.sub_env is None or not self._restarts.allowed:
                raise
            self._now = self.env.team.reset([], [])
            return fault
        return None

    def _mend(self, fault: EnvironmentFault | None, recorder: Recorder | None = None) -> None:
        """Starts sub-environments that failed anew, without their episodes, until all are sound."""
        assert self.env is not None
        while fault is not None:
            rows = []
            for one in (fault, *fault.others):
                assert one.sub_env is not None
                rows.append(one.sub_env)
                lost = 0 if recorder is None else recorder.drop(one.sub_env)
                self._restarts.forgive(one, lost, self.metrics)
            if hasattr(self.env.team, "renew"):
                self.env.team.renew(rows)
            seeds: list[int | None] = [int.from_bytes(self._random_bytes(4), "little") for _ in rows]
            fault = self._reset(rows, seeds)

    def _random_bytes(self, n: int) -> bytes:
        draw = torch.randint(256, (n,), generator=self._generator, device=self._generator.device)
        return bytes(draw.tolist())

    def _roll(
        self, length: int, explore: bool, random_actions: bool, tickets: Tickets | None = None
    ) -> list[JointFragment]:
        """`length` joint steps in every sub-environment; with `tickets`, until all of those are spent."""
        assert self.env is not None
        fragments: list[JointFragment | None] = []
        recorder: Recorder | None = None
        self._actor_states.begin_fragments()
        for _ in range(length):
            idle = self._over()
            action = self._random_action() if random_actions else self._act(explore, idle)
            if recorder is None:
                recorder = Recorder(length, self._now, action)
            recorder.see(self._now)
            recorder.act(action)
            self._episodes.count_step()
            self._under_way.count(self.num_envs, self._weights_seq_no)
            fault = self._take(self.env.team.step, self._to_env(action.executed))
            recorder.reward(self._now.reward)
            self._mend(fault, recorder)
            ended = self._over() & ~idle
            if ended.any():
                rows = np.flatnonzero(ended).tolist()
                fragments += [self._cut(recorder, e) for e in rows]
                if tickets is not None:
                    rows = tickets.spent(rows, self._episodes.ids)
                if rows:
                    self._mend(self._reset(rows, [None] * len(rows)), recorder)
                if tickets is not None and not tickets.held_by_any:
                    break
        if recorder is not None:
            fragments += [self._cut(recorder, e) for e in np.flatnonzero(~self._over()).tolist()]
        return [f for f in fragments if f is not None]

    def _over(self) -> np.ndarray:
        """(E,) bool: whose episode has ended, and waits for a reset."""
        return self._now.terminated | self._now.truncated

    def _roll_episodes(self, number: int, explore: bool, random_actions: bool) -> list[JointFragment]:
        """The first `number` episodes to begin, in that order, each as one fragment."""
        tickets, pieces = Tickets(number, self.num_envs), defaultdict[str, list[JointFragment]](list)
        while tickets.held_by_any:
            for fragment in self._roll(CHUNK, explore, random_actions, tickets):
                pieces[fragment.episode_id].append(fragment)
        return [joined(pieces[episode]) for episode in tickets.episodes]

    def _act(self, explore: bool, idle: np.ndarray) -> TeamAction:
        now, masks, states = self._now, self._now.action_mask, self._actor_states
        if idle.any():  # nobody promises that a mask leaves anything after an episode's last step
            masks = {agent: mask | idle[:, None] for agent, mask in masks.items()}
        action = self.module.act(now.obs, masks, states.now, generator=self._generator, explore=explore)
        states.advance(action.state, now.active)
        return action

    def _random_action(self) -> TeamAction:
        """Uniform in what masks allow, drawn from this runner's generator; recurrent states stay."""
        rng = np.random.default_rng(int.from_bytes(self._random_bytes(8), "little"))
        masks, normalize = self._now.action_mask, self.config.normalize_actions
        executed = {
            agent: uniform_actions(space, self.num_envs, masks.get(agent), rng, normalize=normalize)
            for agent, space in self._team.action_spaces.items()
        }
        drawn = {agent: family.drawn(executed[agent]) for agent, family in self.module.squashing.items()}
        logp = {agent: np.zeros(self.num_envs, np.float32) for agent in executed}
        return TeamAction(executed | drawn, logp, executed=executed)

    def _cut(self, recorder: Recorder, e: int) -> JointFragment | None:
        length = recorder.t - int(recorder.starts[e])
        return recorder.cut(
            e,
            self._now,
            self._team.agents,
            terminated=bool(self._now.terminated[e]),
            truncated=bool(self._now.truncated[e]),
            outcome=self._now.outcome_of(e),
            episode_id=self._episodes.ids[e],
            env_t=int(self._episodes.steps[e]) - length,
            source=(self.worker_index or 0, e),
            weights_seq_no=self._weights_seq_no,
            actor_state=self._actor_states.before_fragment(e),
        )

    @override(MultiAgentEnvRunner)
    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """RLlib ends this process at any error, and its evaluation then waits for nothing, without a word."""

        def faults_as_values(env_runner: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return func(env_runner, *args, **kwargs)
            except EnvironmentFault as fault:
                return RaisedWhenRead(fault)

        return super().apply(faults_as_values if self.config.in_evaluation else func, *args, **kwargs)

    @override(MultiAgentEnvRunner)
    def stop(self) -> None:
        if self.env is not None:
            self.env.close()
