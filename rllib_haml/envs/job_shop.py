"""A job shop: unequal machines that choose their next job, and break down."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.typing import MultiAgentDict

from rllib_haml.envs.legal import check_legal
from rllib_haml.nearest import did_you_mean

Route = Sequence[tuple[str, int]]
"""The operations of one job in their order: machine and duration."""

PLANTS: dict[str, Sequence[Route]] = {
    # Without breakdowns the best time is 28, but 33 for machines that never wait: they have to leave
    # work lying for a job that another one is about to send.
    "workshop": (
        (("drill", 5), ("mill", 7), ("furnace", 2)),
        (("furnace", 2), ("paint", 7)),
        (("saw", 6), ("mill", 6), ("furnace", 9), ("paint", 6)),
        (("saw", 2), ("furnace", 4)),
        (("paint", 5), ("drill", 7), ("mill", 4)),
        (("furnace", 7), ("saw", 4), ("mill", 5)),
    ),
    # The classical benchmark of Fisher and Thompson (1963): the best time is 55.
    "ft06": (
        (("c", 1), ("a", 3), ("b", 6), ("d", 7), ("f", 3), ("e", 6)),
        (("b", 8), ("c", 5), ("e", 10), ("f", 10), ("a", 10), ("d", 4)),
        (("c", 5), ("d", 4), ("f", 8), ("a", 9), ("b", 1), ("e", 7)),
        (("b", 5), ("a", 5), ("c", 5), ("d", 3), ("e", 8), ("f", 9)),
        (("c", 9), ("b", 3), ("e", 5), ("f", 4), ("a", 3), ("d", 1)),
        (("b", 3), ("d", 3), ("f", 9), ("a", 10), ("e", 4), ("c", 1)),
    ),
}


def make(plant: str | Sequence[Route] = "workshop", breakdown: float = 0.05, repair: int = 5) -> JobShop:
    """A plant whose machines share one goal: to finish all jobs early.

    Args:
        plant: A name in `PLANTS`, or the route of each job: [[["saw", 3], ["mill", 2]], ...].
        breakdown: Probability that a machine breaks down after an operation.
        repair: Time units until it is back.

    Raises:
        ValueError: There is no such plant, or an argument is out of its range.
    """
    if not isinstance(plant, str):
        return JobShop(plant, breakdown, repair)
    if plant not in PLANTS:
        hint = did_you_mean(plant, PLANTS)
        raise ValueError(f"unknown plant {plant!r}. {hint}There are: {', '.join(PLANTS)}, or give the routes")
    return JobShop(PLANTS[plant], breakdown, repair)


class JobShop(MultiAgentEnv):
    """One agent per machine; the team's return is minus the time at which the last job is finished.

    Time jumps to the next moment at which a machine has a choice: it is free, whole, and a job waits
    for it. Only such machines act; the others skip the step. An action is the number of one of the
    machine's own jobs, or, one past the last, to wait for a job that is still to come. Waiting is
    legal while anything is under way, so that time always goes on and every episode terminates.
    Everyone who acts receives minus the time that passes until the next choice.

    A machine observes {"observations": (3 k,), "action_mask": (k + 1,)} for its k jobs: per job
    whether it waits here, whether it is finished here, and the least time until it can be here. The
    state holds per job the share of operations left, the work left, and whether it is being worked
    on; per machine the time until it is free and whether it is under repair. Times are divided by
    `bound`.

    Attributes:
        routes: The jobs' operations.
        bound: The longest job or the busiest machine: no schedule is shorter.
        time: Time units that have passed.
    """

    def __init__(self, routes: Sequence[Route], breakdown: float = 0.0, repair: int = 1) -> None:
        self.routes = _checked(routes)
        if not 0 <= breakdown < 1 or repair < 1:
            raise ValueError(
                f"breakdown={breakdown}, repair={repair}: expected 0 <= breakdown < 1, repair >= 1"
            )
        self._breakdown, self._repair = breakdown, repair
        self._machines = list(dict.fromkeys(m for route in self.routes for m, _ in route))
        self.possible_agents, self.agents = [*self._machines], []
        super().__init__()
        visits = {m: [j for j, route in enumerate(self.routes) if m in dict(route)] for m in self._machines}
        self._jobs = visits
        loads = [sum(t for route in self.routes for n, t in route if n == m) for m in self._machines]
        self.bound = max(*loads, *(_work(route) for route in self.routes))
        self.observation_spaces = {m: _observation_space(len(jobs)) for m, jobs in visits.items()}
        self.action_spaces = {m: gym.spaces.Discrete(len(jobs) + 1) for m, jobs in visits.items()}
        size = 3 * len(self.routes) + 2 * len(self._machines)
        self.state_space = gym.spaces.Box(0.0, np.inf, (size,), np.float32)
        self._generator = np.random.default_rng()
        self._begin()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[MultiAgentDict, MultiAgentDict]:
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self._begin()
        return self._look(self._choosers())

    def step(
        self, action_dict: MultiAgentDict
    ) -> tuple[MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict]:
        """Raises a `ValueError` on an action that the machine's mask forbids."""
        began = self.time
        for machine, action in action_dict.items():
            self._start(str(machine), int(action))
        while True:
            self._pass_time()
            over = self._stage == [len(route) for route in self.routes]
            if over or self._choosers():
                break
        obs, infos = self._look(self._machines if over else self._choosers())
        rewards: MultiAgentDict = dict.fromkeys(action_dict, float(began - self.time))
        ends: tuple[MultiAgentDict, MultiAgentDict] = {"__all__": over}, {"__all__": False}
        return obs, rewards, *ends, infos

    def state(self) -> np.ndarray:
        """(S,) float32; see the class."""
        rows: list[float] = []
        for job, route in enumerate(self.routes):
            left = len(route) - self._stage[job]
            busy = job in self._job_on.values()
            rows += [left / len(route), self._work_left(job) / self.bound, busy]
        for machine in self._machines:
            until = self._free_in[machine]
            rows += [until / self.bound, until > 0 and self._job_on[machine] is None]
        return np.array(rows, np.float32)

    def get_state(self) -> dict[str, Any]:
        """All that `set_state` needs to continue bit for bit, also in another process."""
        episode = {"time": self.time, "stage": self._stage, "job_on": self._job_on, "free_in": self._free_in}
        return copy.deepcopy({**episode, "generator": self._generator.bit_generator.state})

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state` of the same plant."""
        state = copy.deepcopy(state)
        self.time, self._stage = state["time"], state["stage"]
        self._job_on, self._free_in = state["job_on"], state["free_in"]
        self._generator.bit_generator.state = state["generator"]
        self.agents = [*self._choosers()]

    def _begin(self) -> None:
        self.time = 0
        # The operation that each job is at, and per machine its job (None: idle or under repair).
        self._stage = [0] * len(self.routes)
        self._job_on: dict[str, int | None] = dict.fromkeys(self._machines)
        self._free_in = dict.fromkeys(self._machines, 0)

    def _start(self, machine: str, action: int) -> None:
        check_legal(machine, action, self._mask(machine))
        if action < len(self._jobs[machine]):
            job = self._jobs[machine][action]
            self._job_on[machine] = job
            self._free_in[machine] = self.routes[job][self._stage[job]][1]

    def _pass_time(self) -> None:
        """Until the next operation or repair is finished."""
        passed = min(until for until in self._free_in.values() if until)
        self.time += passed
        for machine, until in self._free_in.items():
            if not until:
                continue
            self._free_in[machine] = until - passed
            job = self._job_on[machine]
            if until == passed and job is not None:
                self._stage[job] += 1
                self._job_on[machine] = None
                if self._generator.random() < self._breakdown:
                    self._free_in[machine] = self._repair

    def _choosers(self) -> list[str]:
        """Machines that have a choice now."""
        free = [m for m in self._machines if not self._free_in[m]]
        return [m for m in free if any(self._waits(job, m) for job in self._jobs[m])]

    def _waits(self, job: int, machine: str) -> bool:
        route, stage = self.routes[job], self._stage[job]
        return stage < len(route) and route[stage][0] == machine and job not in self._job_on.values()

    def _lead(self, job: int, machine: str) -> int | None:
        """The least time until `job` can be at `machine`; None once it is finished there."""
        route, stage = self.routes[job], self._stage[job]
        ahead = [i for i in range(stage, len(route)) if route[i][0] == machine]
        if not ahead:
            return None
        if ahead[0] == stage:
            return 0
        at = route[stage][0]
        rest = _work(route[stage + (self._job_on[at] == job) : ahead[0]])
        return self._free_in[at] + rest

    def _work_left(self, job: int) -> int:
        at = next((m for m, own in self._job_on.items() if own == job), None)
        if at is None:
            return _work(self.routes[job][self._stage[job] :])
        return self._free_in[at] + _work(self.routes[job][self._stage[job] + 1 :])

    def _mask(self, machine: str) -> np.ndarray:
        """(k + 1,) int8. In the last step, when nothing is left to do, waiting stands alone."""
        waiting = [self._waits(job, machine) for job in self._jobs[machine]]
        to_come = any(
            self._lead(job, machine) is not None and not waits
            for job, waits in zip(self._jobs[machine], waiting, strict=True)
        )
        may_wait = (to_come and any(self._free_in.values())) or not any(waiting)
        return np.array([*waiting, may_wait], np.int8)

    def _look(self, machines: list[str]) -> tuple[MultiAgentDict, MultiAgentDict]:
        self.agents = list(machines)
        state = self.state()
        obs: MultiAgentDict = {
            m: {"observations": self._features(m), "action_mask": self._mask(m)} for m in machines
        }
        return obs, {m: {"state": state} for m in machines}

    def _features(self, machine: str) -> np.ndarray:
        rows: list[float] = []
        for job in self._jobs[machine]:
            lead = self._lead(job, machine)
            rows += [self._waits(job, machine), lead is None, (lead or 0) / self.bound]
        return np.array(rows, np.float32)


def _work(operations: Route) -> int:
    return sum(duration for _, duration in operations)


def _observation_space(jobs: int) -> gym.spaces.Dict:
    return gym.spaces.Dict(
        {
            "observations": gym.spaces.Box(0.0, np.inf, (3 * jobs,), np.float32),
            "action_mask": gym.spaces.Box(0, 1, (jobs + 1,), np.int8),
        }
    )


def _checked(routes: Sequence[Route]) -> list[list[tuple[str, int]]]:
    """The routes as plain tuples."""
    try:
        plain = [[(str(machine), int(duration)) for machine, duration in route] for route in routes]
    except (TypeError, ValueError):
        plain = []
    if not plain or not all(route and all(t > 0 for _, t in route) for route in plain):
        raise ValueError(
            f"a plant is a list of jobs, a job a list of operations [machine, duration > 0], for example "
            f'[[["saw", 3], ["mill", 2]], [["mill", 4]]], not {routes!r}'
        )
    return plain
