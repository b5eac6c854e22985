"""Two learners compute what one computes, whatever the algorithm, and never wait for each other in vain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from fake_envs import NAMES, ScriptedMultiAgentEnv
from learner_teams import ABSENT, ChoosingEnv, Pair, data, distance, fragments, lonely, trained, without
from ray.tune.registry import register_env

from rllib_haml import (
    A2POConfig,
    HAA2CConfig,
    HAKLConfig,
    HAMLConfig,
    HAPPOConfig,
    HATRPOConfig,
    IPPOConfig,
    LoRASAConfig,
    MAPPOConfig,
)
from rllib_haml.learners.collectives import world_size
from rllib_haml.sampling.fragment import JointFragment, JointTrainingData

UPDATES = 5
ENVS = {
    "scripted": ScriptedMultiAgentEnv(equal_rewards=True),
    "alike": ChoosingEnv(wider=0),
    "unequal": ChoosingEnv(wider=1),
}


@dataclass(frozen=True)
class Case:
    """An algorithm, its settings, its team, the update with which adapters begin, and the networks."""

    config: type[HAMLConfig]
    training: dict[str, Any] = field(default_factory=dict)
    env: str = "scripted"
    adapters_at: int | None = None
    model: dict[str, Any] = field(default_factory=dict)


LORA = {"lora": {"r": 2}, "adapters_from": None}
MEMORY = {"use_gru": True, "lstm_cell_size": 8, "max_seq_len": 6}
AT_ONCE = {**LORA, "update_scheme": "simultaneous"}
CASES = {
    "HAPPO": Case(HAPPOConfig),
    "HAPPO, recurrent": Case(HAPPOConfig, model=MEMORY),
    "HATRPO": Case(HATRPOConfig),
    "HAA2C": Case(HAA2CConfig),
    "A2PO": Case(A2POConfig),
    "HAKL": Case(HAKLConfig),
    "HAML, KL drift, KL ball": Case(
        HAMLConfig,
        {"drift": {"type": "kl", "coeff": 1.0}, "neighbourhood": {"type": "kl_ball", "radius": 0.1}},
    ),
    "IPPO": Case(IPPOConfig),
    "MAPPO, separate": Case(MAPPOConfig),
    "MAPPO, shared": Case(MAPPOConfig, {"share_parameters": True}, "alike"),
    "LoRASA shares": Case(LoRASAConfig, LORA, "alike"),
    "LoRASA shares, unequal spaces": Case(LoRASAConfig, LORA, "unequal"),
    "LoRASA, one after another": Case(LoRASAConfig, LORA, "alike", 2),
    "LoRASA, at once as one network": Case(LoRASAConfig, AT_ONCE, "alike", 2),
    "LoRASA, at once, recurrent": Case(LoRASAConfig, AT_ONCE, "alike", 2, MEMORY),
    "LoRASA, at once, unequal spaces": Case(LoRASAConfig, AT_ONCE, "unequal", 2),
    "LoRASA, with the backbone, critic too": Case(
        LoRASAConfig, {**LORA, "adapter_mode": "joint", "critic_lora": {"r": 2}}, "alike", 2
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def config(case: Case) -> HAMLConfig:
    """Three minibatches of 109 joint steps, where there are minibatches."""
    register_env(case.env, lambda env_config: ENVS[case.env])
    settings = {"minibatch_size": 37, "num_epochs": 2, "critic_minibatch_size": 37, "entropy_coeff": 0.01}
    made = case.config()
    made.environment(case.env).training(
        **{key: value for key, value in settings.items() if key not in made.refused_keys} | case.training
    )
    made.rl_module(model_config={"fcnet_hiddens": [16], **case.model}).debugging(seed=5)
    made.validate()
    return made


@pytest.fixture(scope="module")
def pair(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    seats = Pair(tmp_path_factory.mktemp("pair"))
    yield seats
    seats.leave()


@every_case
def test_two_learners_equal_one_in_float64(pair: Pair, case: Case) -> None:
    """On unequal fragments, early terminations and an agent that is there only at times."""
    batches = [data(fragments(update, ENVS[case.env])) for update in range(UPDATES)]
    settings = config(case)
    *_, alone = trained(settings, batches, case.adapters_at)
    (*_, first), (*_, second) = pair(trained, settings, batches, case.adapters_at)
    assert distance(first, second) == 0.0, "ranks must agree bit for bit"
    assert distance(first, alone) < 1e-9
    (*_, first), (*_, second) = pair(trained, settings, batches, case.adapters_at, lonely)
    assert distance(first, second) > 1e-4, "control: learners that do not talk disagree"
    assert distance(first, alone) > 1e-4


def shares(env: Any, update: int) -> tuple[list[JointFragment], list[JointFragment]]:
    """A batch as two learners get it."""
    first, second = data(fragments(update, env)).shard(2)
    return first[0].episodes, second[0].episodes


def edges(env: Any) -> dict[str, JointTrainingData]:
    """One batch of each kind of share that leaves a learner nothing to do somewhere."""
    here, there = shares(env, 0)
    return {
        "no row on one learner": data(here[:1]),
        "agent absent on one learner": data([*here, *(without(f, ABSENT) for f in there)]),
        "agent absent on both": data([without(f, ABSENT) for f in [*here, *there]]),
        "nobody acts on one learner": data([*here, *(without(f, *env.possible_agents) for f in there)]),
    }


def test_the_edges_are_what_they_are_called() -> None:
    def acted(share: JointTrainingData) -> dict[str, int]:
        return {name: int(sum(f.active[name][:-1].sum() for f in share.episodes)) for name in NAMES}

    found = {
        edge: [acted(share) for share, _ in batch.shard(2)] for edge, batch in edges(ENVS["scripted"]).items()
    }
    (_, empty), (idle, _) = found["no row on one learner"], found["nobody acts on one learner"]
    assert sum(empty.values()) == 0 < min(idle.values())
    assert sum(found["nobody acts on one learner"][1].values()) == 0
    assert [share[ABSENT] > 0 for share in found["agent absent on one learner"]] == [True, False]
    assert [share[ABSENT] for share in found["agent absent on both"]] == [0, 0]


@every_case
def test_who_has_nothing_to_do_keeps_nobody_waiting(pair: Pair, case: Case) -> None:
    """A deadlock is a call that does not answer in time."""
    batches, settings = edges(ENVS[case.env]), config(case)
    adapters_at = None if case.adapters_at is None else 0
    alone = trained(settings, list(batches.values()), adapters_at)
    every = zip(batches, alone, *pair(trained, settings, list(batches.values()), adapters_at), strict=True)
    for edge, expected, first, second in every:
        assert distance(first, second) == 0.0, edge
        assert distance(first, expected) < 1e-9, edge


def one_waits() -> None:
    if dist.get_rank() == 0:
        dist.all_reduce(torch.zeros(1))


def test_control_who_waits_for_ever_fails_and_the_next_pair_is_sound(pair: Pair) -> None:
    with pytest.raises(ray.exceptions.GetTimeoutError):
        pair(one_waits, seconds=1)
    assert pair(world_size) == [2, 2]
