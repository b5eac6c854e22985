"""What adapters cost beside one shared network and beside separate ones.

    python tests/benchmarks/adapters.py --out tests/benchmarks/results/adapters.csv
    python tests/benchmarks/adapters.py --out tests/benchmarks/results/adapters_gru.csv --network gru
    python tests/benchmarks/adapters.py --out tests/benchmarks/results/adapters_lstm.csv --network lstm

For teams of N agents, or of groups with a policy each (1+2+3+4), and two hidden layers, or one and a
recurrent one: trainable parameters and bytes of Adam's moments (MiB) of the whole team; milliseconds of one
update (an epoch of HAPPO's objective: forward, backward, Adam) when all move at once, for adapters as one
network and one after another; of one policy's move in the sweep; and of one acting step of 20
sub-environments, merged weights for adapters. One process, one torch thread; contenders by turns, medians.
Every cell is a row of the CSV.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tree
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_haml.haml import ClipDrift, Everywhere, JointRows, MirrorStep, Player
from rllib_haml.learners.batch import ACTIVE, JointBatch
from rllib_haml.learners.module_policy import ModulePolicy, RecurrentPolicy
from rllib_haml.learners.together import Together
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import BACKBONE, Adapter
from rllib_haml.modules.team import TeamModule

OBS, ACTION = spaces.Box(-1, 1, (20,), np.float32), spaces.Box(-1, 1, (3,), np.float32)
ENVS = 20
MAX_SEQ_LEN = 10
KINDS = ("shared", "separate", "adapters")
UPDATES = (*KINDS, "one by one")
FIELDS = ("network", "agents", "hidden", "steps", "policies", "numbers", "moments", "update", "move", "act")


class Contenders:
    """The same team with each kind of policies, on the same S joint steps, a fragment of each environment.

    Args:
        groups: How many agents follow each policy.
    """

    def __init__(self, network: str, groups: Sequence[int], hidden: int, rank: int, steps: int):
        policies = {f"policy_{i}": count for i, count in enumerate(groups)}
        model: dict[str, Any] = {"fcnet_hiddens": [hidden, hidden]}
        if network != "mlp":
            model = {"fcnet_hiddens": [hidden], f"use_{network}": True, "lstm_cell_size": hidden}
        lora = {**model, "lora": {"r": rank, "lora_alpha": rank}}
        self.teams = {
            "shared": _team({"shared": (Actor, model)}),
            "separate": _team({name: (Actor, model) for name in policies}),
            "adapters": _team({BACKBONE: (Actor, model), **{name: (Adapter, lora) for name in policies}}),
        }
        like = self.teams["shared"]["shared"]
        columns = {name: _columns(like, steps, count) for name, count in policies.items()}
        together: Any = tree.map_structure(lambda *parts: torch.cat(parts, 1), *columns.values())
        self.policies: dict[str, dict[str, Any]] = {
            "shared": {"shared": _policy(like, together)},
            "separate": {name: _policy(self.teams["separate"][name], columns[name]) for name in policies},
            "adapters": {name: _policy(self.teams["adapters"][name], columns[name]) for name in policies},
        }
        adapters = self.policies["adapters"]
        optimizers = {name: policy.optimizer for name, policy in adapters.items()}
        at_once, one_by_one = Together(adapters, optimizers), Together(adapters, optimizers)
        one_by_one._parts = list(adapters.values())
        players = {kind: list(each.values()) for kind, each in self.policies.items()}
        players |= {"adapters": [at_once], "one by one": [one_by_one]}
        advantage = torch.randn(steps)
        self._all = {kind: [_step(policy, advantage) for policy in players[kind]] for kind in UPDATES}
        self._first = {
            kind: _step(next(iter(self.policies[kind].values())), advantage)
            for kind in ("separate", "adapters")
        }
        self._act(policies)

    def _act(self, policies: dict[str, int]) -> None:
        follows = {f"{name} {k}": name for name, count in policies.items() for k in range(count)}
        self._obs = {agent: np.random.rand(ENVS, *OBS.shape).astype(np.float32) for agent in follows}
        self._generator = torch.Generator().manual_seed(0)
        for kind, team in self.teams.items():
            team.refresh({agent: "shared" if kind == "shared" else name for agent, name in follows.items()})
        initial = self.teams["shared"].initial_states()
        self._states = {
            agent: {part: np.tile(zeros, (ENVS, 1)) for part, zeros in state.items()}
            for agent, state in initial.items()
        }

    def numbers(self, kind: str) -> int:
        """Trainable ones of all agents."""
        return sum(p.numel() for policy in self.policies[kind].values() for p in policy.parameters())

    def moments(self, kind: str) -> float:
        """MiB that the optimizers hold once they have stepped."""
        optimizers = [policy.optimizer for policy in self.policies[kind].values()]
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        return sum(x.numel() * x.element_size() for state in states for x in state.values()) / 2**20

    def all_at_once(self, kind: str) -> None:
        for step in self._all[kind]:
            step.player.neighbourhood.maximise(step)

    def one_move(self, kind: str) -> None:
        step = self._first[kind]
        step.player.neighbourhood.maximise(step)

    def act(self, kind: str) -> None:
        self.teams[kind].act(self._obs, {}, self._states, generator=self._generator, explore=True)


def _team(modules: dict[str, tuple[type, dict[str, Any]]]) -> Any:
    specs = {
        name: RLModuleSpec(module_class=kind, observation_space=OBS, action_space=ACTION, model_config=config)
        for name, (kind, config) in modules.items()
    }
    return TeamModule(rl_module_specs=specs)


def _columns(like: Any, steps: int, agents: int) -> dict[str, Any]:
    columns: dict[str, Any] = {
        Columns.OBS: torch.rand(steps, agents, *OBS.shape),
        Columns.ACTIONS: torch.randn(steps, agents, *ACTION.shape),
        Columns.ACTION_LOGP: torch.zeros(steps, agents),
        ACTIVE: torch.ones(steps, agents, dtype=torch.bool),
    }
    if state := like.get_initial_state():
        columns[Columns.STATE_IN] = {k: x.expand(ENVS, agents, -1) for k, x in state.items()}
    return columns


def _policy(module: Any, columns: dict[str, Any]) -> ModulePolicy:
    parameters = [p for p in module.parameters() if p.requires_grad]
    keys: dict[str, Any] = {"parameters": parameters, "optimizer": torch.optim.Adam(parameters, lr=1e-5)}
    if not module.is_stateful():
        return ModulePolicy(module, columns, **keys)
    joint = _fragments(len(columns[ACTIVE]))
    return RecurrentPolicy(module, columns=columns, joint=joint, max_seq_len=MAX_SEQ_LEN, **keys)


def _fragments(steps: int) -> JointBatch:
    """As much as recurrent policies look at: where the fragments end."""
    last = (torch.arange(steps // ENVS + 1) == steps // ENVS).repeat(ENVS)
    nothing = torch.zeros(0)
    return JointBatch({}, nothing, last, nothing, nothing, nothing, nothing, nothing, nothing)


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
    parser.add_argument("--network", choices=("mlp", "gru", "lstm"), default="mlp")
    parser.add_argument("--agents", nargs="+", default=["2", "10", "27", "1+2+3+4"])
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
            cell = Contenders(args.network, _groups(agents), hidden, args.rank, steps)
            update = _milliseconds(cell.all_at_once, UPDATES, args.repeats)
            move = _milliseconds(cell.one_move, ("separate", "adapters"), args.repeats)
            act = _milliseconds(cell.act, KINDS, 5 * args.repeats)
            for kind in UPDATES:
                held = (cell.numbers(kind), cell.moments(kind)) if kind in KINDS else (None, None)
                figures = (*held, update[kind], move.get(kind), act.get(kind))
                row = (args.network, agents, hidden, steps, kind, *(_short(x) for x in figures))
                writer.writerow(dict(zip(FIELDS, row, strict=True)))
                print(*row, flush=True)


def _groups(agents: str) -> list[int]:
    """`10` is ten agents with a policy each, `1+2+3+4` ten agents with four policies."""
    counts = [int(count) for count in agents.split("+")]
    return counts if len(counts) > 1 else [1] * counts[0]


def _short(x: float | None) -> float | str:
    return "" if x is None else float(f"{x:.4g}") if isinstance(x, float) else x


if __name__ == "__main__":
    main()
