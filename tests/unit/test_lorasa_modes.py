"""Who moves, update by update, in each mode of the adapters; no Ray process is started."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fragments import make_fragment
from gymnasium import spaces
from ray.rllib.core import ALL_MODULES
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import register_env

from rllib_haml import LoRASAConfig
from rllib_haml.learners.connector import JointBatchConnector
from rllib_haml.learners.together import Together

TEAM = ("agent_0", "agent_1", "agent_2")
BACKBONE = {"backbone"}


class Team(MultiAgentEnv):
    """Three agents, the last of which may see less than the others; it is never played."""

    def __init__(self, narrow: bool = False):
        super().__init__()
        self.possible_agents = self.agents = list(TEAM)
        widths = {name: 2 if narrow and name == TEAM[-1] else 3 for name in TEAM}
        self.observation_spaces = {name: spaces.Box(-1, 1, (n,), np.float32) for name, n in widths.items()}
        self.action_spaces = dict.fromkeys(TEAM, spaces.Discrete(3))


class Run:
    """A learner, updated again and again with the same fragments."""

    def __init__(
        self,
        mode: str = "frozen",
        *,
        narrow: bool = False,
        trained: list[str] | None = None,
        overrides: dict[str, Any] | None = None,
        **training: Any,
    ):
        register_env("three", lambda given: Team(**given))
        settings: dict[str, Any] = {"lora": {"r": 1}, "num_epochs": 1, "critic_num_epochs": 1, "lr": 1e-2}
        config = (
            LoRASAConfig()
            .environment("three", env_config={"narrow": narrow})
            .training(**settings | training, adapter_mode=mode)
            .rl_module(model_config={"fcnet_hiddens": [6], "head_gain": 1.0})
            .multi_agent(algorithm_config_overrides_per_module=overrides or {})
            .debugging(seed=1)
        )
        if trained is not None:
            config.multi_agent(policies_to_train=trained)
        config.validate()
        torch.manual_seed(0)
        self.learner: Any = config.build_learner()
        team = self.learner.config.team
        made = [make_fragment(9, seed, team=team, source=(0, seed)) for seed in range(2)]
        self.batch = JointBatchConnector(team, "shared", "cpu", "three")(
            rl_module=None, batch={}, episodes=made
        )

    def weights(self) -> dict[str, torch.Tensor]:
        each = self.learner.module.items()
        return {f"{name}.{key}": p.detach().clone() for name, m in each for key, p in m.named_parameters()}

    def update(self) -> set[str]:
        """One iteration's; which modules moved, the critic aside."""
        before = self.weights()
        self.learner._weights_seq_no += 1
        self.learner._update(self.batch)
        self.report = self.learner.fit_critics()
        self.moved = {key for key, value in self.weights().items() if not torch.equal(value, before[key])}
        return {key.split(".")[0] for key in self.moved} - {"critic"}

    def figures(self, key: str) -> dict[str, float]:
        """A metric of the last update by module, where there is one."""
        each = {name: figures[key] for name, figures in self.report.items() if key in figures}
        return {name: float(value) for name, value in each.items() if name in (*TEAM, *BACKBONE)}

    def ranks(self) -> set[int]:
        return {rank for name in TEAM for rank in self.learner.module[name].lora.live_ranks().values()}


MOVERS: dict[str, Any] = {
    "frozen": lambda own: [own, own, own],
    "joint": lambda own: [own | BACKBONE] * 3,
    "alternating": lambda own: [own, BACKBONE, own],
    "continue_shared": lambda own: [BACKBONE] * 3,
    "dense_delta": lambda own: [own, own, own],
    "separate": lambda own: [own, own, own],
}


@pytest.mark.parametrize(
    ("scheme", "trained"),
    [("sequential", None), ("simultaneous", None), ("sequential", []), ("simultaneous", ["agent_1"])],
)
@pytest.mark.parametrize("mode", MOVERS)
def test_who_moves(mode: str, scheme: str, trained: list[str] | None) -> None:
    """First the backbone for all; then what the mode says, of those that are trained."""
    own = set(TEAM if trained is None else trained)
    run = Run(mode, trained=trained, update_scheme=scheme)
    assert run.update() == BACKBONE
    assert run.figures("adapter_rank") == {}
    run.learner.begin_adapters()
    reached = mode in ("joint", "alternating", "continue_shared")
    for expected in MOVERS[mode](own):
        assert run.update() == expected
        assert {run.learner.module[name].unwrapped().train_backbone for name in TEAM} == {reached}
        told = set(TEAM) if expected >= BACKBONE and mode != "continue_shared" else expected
        assert set(run.figures("mean_kl")) >= told
        assert all(run.figures("mean_kl")[name] > 0 for name in told)
    if mode not in ("dense_delta", "separate"):
        assert set(run.figures("adapter_rank")) == set(TEAM)


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_with_unequal_spaces_the_backbone_moves_through_adapters_that_rest(mode: str) -> None:
    run = Run(mode, narrow=True)
    assert run.update() == BACKBONE
    run.learner.begin_adapters()
    assert run.update() == set(TEAM) | (BACKBONE if mode == "joint" else set())


@pytest.mark.parametrize("scheme", ["sequential", "simultaneous"])
@pytest.mark.parametrize("own", [{}, {"agent_1": {"entropy_coeff": 0.1}}], ids=["alike", "one differs"])
def test_adapters_that_move_at_once_are_one_player_if_alike(scheme: str, own: dict[str, Any]) -> None:
    run = Run(update_scheme=scheme, overrides=own)
    run.learner.begin_adapters()
    players, seen = run.learner._players, []
    run.learner._players = lambda joint: seen.append(players(joint)) or seen[-1]
    assert run.update() == set(TEAM)
    together = scheme == "simultaneous" and not own
    assert [isinstance(player.policy, Together) for player in seen[0].values()] == [together] * len(seen[0])
    assert list(seen[0]) == ["agent_0"] if together else set(seen[0]) == set(TEAM)


def test_the_continued_backbone_begins_without_moments() -> None:
    for mode, steps in (("continue_shared", 1), ("joint", 2)):
        run = Run(mode)
        run.update()
        run.learner.begin_adapters()
        run.update()
        state = run.learner.get_optimizer("backbone").state
        assert {int(moments["step"]) for moments in state.values()} == {steps}


def test_turns_go_on_in_a_learner_that_takes_up_the_state() -> None:
    run = Run("alternating")
    run.update()
    run.learner.begin_adapters()
    assert run.update() == set(TEAM)
    other = Run("alternating")
    other.learner.set_state(run.learner.get_state())
    other.learner._weights_seq_no = run.learner._weights_seq_no
    assert other.update() == run.update() == BACKBONE
    assert all(map(torch.equal, other.weights().values(), run.weights().values()))
    assert Run("alternating").update() == BACKBONE
    assert other.update() == set(TEAM)


def test_the_critic_learns_by_its_difference_once_the_team_adapts() -> None:
    """Its network first; in a learner that takes up the state too."""

    def parts(run: Run) -> set[str]:
        run.update()
        names = {key.removeprefix("critic.") for key in run.moved if key.startswith("critic.")}
        return {"lora" if name.startswith("lora") else "network" for name in names}

    run = Run(critic_lora={"r": 1})
    assert parts(run) == {"network"}
    run.learner.begin_adapters()
    assert parts(run) == {"lora"}
    other = Run(critic_lora={"r": 1})
    other.learner.set_state(run.learner.get_state())
    assert parts(other) == {"lora"}
    plain = Run()
    plain.learner.begin_adapters()
    assert parts(plain) == {"network"}, "control: without a difference it goes on as it was"


def test_ranks_are_adapted_every_so_many_updates_of_the_adapters() -> None:
    run = Run(lora={"r": 2}, adapt_rank={"energy": 0.1, "every": 2})
    run.update()
    run.learner.begin_adapters()
    seen = []
    for _ in range(3):
        run.update()
        seen.append(run.ranks())
        told = [*run.figures("adapter_rank").values(), run.report[ALL_MODULES]["adapter_rank"]]
        assert {float(rank) for rank in told} == seen[-1], "of this update alone"
    assert seen == [{2}, {1}, {1}]


@pytest.mark.parametrize("trained, taken", [(None, 3), (["agent_1"], 1)])
def test_a_budget_that_is_too_small_is_refused_when_built(trained: list[str] | None, taken: int) -> None:
    """It is that of the adapters that are trained."""
    layers = (3 + 6) + (6 + 3)
    enough = taken * layers
    Run(trained=trained, lora={"r": 2}, adapt_rank={"budget": enough})
    with pytest.raises(ValueError, match=f"take {enough} parameters"):
        Run(trained=trained, lora={"r": 2}, adapt_rank={"budget": enough - 1})


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_nothing_is_made_on_the_default_device(mode: str) -> None:
    """But where the adapters lie: nothing can be computed on the one that is set here."""
    run = Run(mode, update_scheme="simultaneous", lora={"r": 2}, adapt_rank={"energy": 0.1, "every": 1})
    run.learner.begin_adapters()
    with torch.device("meta"):
        assert set(TEAM) <= run.update()
    assert run.ranks() == {1}
    assert all(value.isfinite().all() for value in run.weights().values())
