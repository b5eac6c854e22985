"""What adapters cost beside one shared network and beside separate ones.

    python tests/benchmarks/adapters.py --out tests/benchmarks/results/adapters.csv

For N agents and two hidden layers: trainable parameters and bytes of Adam's moments (MiB) of the whole
team; milliseconds of one update (an epoch of HAPPO's objective: forward, backward, Adam) when all move at
once; of one agent's move in the sweep; and of one acting step of 20 sub-environments, merged weights for
adapters. One process, one torch thread; contenders by turns, medians. Every cell is a row of the CSV.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_haml.haml import ClipDrift, Everywhere, JointRows, MirrorStep, Player
from rllib_haml.learners.batch import ACTIVE
from rllib_haml.learners.module_policy import ModulePolicy
from rllib_haml.learners.together import Together
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import BACKBONE, Adapter
from rllib_haml.modules.team import TeamModule

OBS, ACTION = spaces.Box(-1, 1, (20,), np.float32), spaces.Box(-1, 1, (3,), np.float32)
ENVS = 20
KINDS = ("shared", "separate", "adapters")
FIELDS = ("agents", "hidden", "steps", "policies", "numbers", "moments", "update", "move", "act")


class Contenders:
    """The same team of N agents with each kind of policies, on the same S joint steps."""

    def __init__(self, agents: int, hidden: int, rank: int, steps: int):
        self.agents = [f"agent_{i}" for i in range(agents)]
        model = {"fcnet_hiddens": [hidden, hidden]}
        lora = {**model, "lora": {"r": rank, "lora_alpha": rank}}
        self.teams = {
            "shared": _team({"shared": (Actor, model)}),
            "separate": _team({name: (Actor, model) for name in self.agents}),
            "adapters": _team({BACKBONE: (Actor, model), **{name: (Adapter, lora) for name in self.agents}}),
        }
        alone = {name: _columns(steps, 1) for name in self.agents}
        together = {key: torch.cat([part[key] for part in alone.values()], 1) for key in _columns(1, 1)}
        separate = [_policy(self.teams["separate"][name], alone[name]) for name in self.agents]
        adapters = {name: _policy(self.teams["adapters"][name], alone[name]) for name in self.agents}
        at_once = Together(adapters, {name: policy.optimizer for name, policy in adapters.items()})
        self.policies: dict[str, list[Any]] = {
            "shared": [_policy(self.teams["shared"]["shared"], together)],
            "separate": separate,
            "adapters": list(adapters.values()),
        }
        advantage = torch.randn(steps)
        self._all = {
            kind: [_step(policy, advantage) for policy in ([at_once] if kind == "adapters" else policies)]
            for kind, policies in self.policies.items()
        }
        self._first = {kind: _step(self.policies[kind][0], advantage) for kind in ("separate", "adapters")}
        self._obs = {name: np.random.rand(ENVS, *OBS.shape).astype(np.float32) for name in self.agents}
        self._generator = torch.Generator().manual_seed(0)
        for kind, team in self.teams.items():
            team.refresh({name: "shared" if kind == "shared" else name for name in self.agents})

    def numbers(self, kind: str) -> int:
        """Trainable ones of all agents."""
        return sum(p.numel() for policy in self.policies[kind] for p in policy.parameters())

    def moments(self, kind: str) -> float:
        """MiB that the optimizers hold once they have stepped."""
        states = [state for policy in self.policies[kind] for state in policy.optimizer.state.values()]
        return sum(x.numel() * x.element_size() for state in states for x in state.values()) / 2**20

    def all_at_once(self, kind: str) -> None:
        for step in self._all[kind]:
            step.player.neighbourhood.maximise(step)

    def one_move(self, kind: str) -> None:
        step = self._first[kind]
        step.player.neighbourhood.maximise(step)

    def act(self, kind: str) -> None:
        self.teams[kind].act(self._obs, {}, {}, generator=self._generator, explore=True)


def _team(modules: dict[str, tuple[type, dict[str, Any]]]) -> Any:
    specs = {
        name: RLModuleSpec(module_class=kind, observation_space=OBS, action_space=ACTION, model_config=config)
        for name, (kind, config) in modules.items()
    }
    return TeamModule(rl_module_specs=specs)


def _columns(steps: int, agents: int) -> dict[str, Any]:
    return {
        Columns.OBS: torch.rand(steps, agents, *OBS.shape),
        Columns.ACTIONS: torch.randn(steps, agents, *ACTION.shape),
        Columns.ACTION_LOGP: torch.zeros(steps, agents),
        ACTIVE: torch.ones(steps, agents, dtype=torch.bool),
    }


def _policy(module: Any, columns: dict[str, Any]) -> ModulePolicy:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return ModulePolicy(module, columns, parameters, torch.optim.Adam(parameters, lr=1e-5))


def _step(policy: Any, advantage: torch.Tensor) -> MirrorStep:
    player = Player(policy, ClipDrift(0.2), Everywhere(1, grad_clip=10.0))
    with torch.no_grad():
        before = policy.evaluate(slice(None))
    rows = JointRows.whole(len(advantage))
    return MirrorStep(player, torch.ones_like(advantage), advantage, before, rows, (0,))


def _milliseconds(do: Callable[[str], None], kinds: tuple[str, ...], repeats: int) -> dict[str, float]:
    """Medians; the contenders take turns."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(repeats + 2):
        for kind in kinds:
            start = time.perf_counter()
            do(kind)
            if repeat >= 2:
                seconds[kind].append(time.perf_counter() - start)
    return {kind: 1e3 * statistics.median(values) for kind, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[2, 10, 27])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, nargs="+", default=[1000], help="joint steps of the batch")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for steps, hidden, agents in itertools.product(args.steps, args.hidden, args.agents):
            cell = Contenders(agents, hidden, args.rank, steps)
            update = _milliseconds(cell.all_at_once, KINDS, args.repeats)
            move = _milliseconds(cell.one_move, ("separate", "adapters"), args.repeats)
            act = _milliseconds(cell.act, KINDS, 5 * args.repeats)
            for kind in KINDS:
                figures = (cell.numbers(kind), cell.moments(kind), update[kind], move.get(kind), act[kind])
                row = (agents, hidden, steps, kind, *(_short(x) for x in figures))
                writer.writerow(dict(zip(FIELDS, row, strict=True)))
                print(*row, flush=True)


def _short(x: float | None) -> float | str:
    return "" if x is None else float(f"{x:.4g}") if isinstance(x, float) else x


if __name__ == "__main__":
    main()
