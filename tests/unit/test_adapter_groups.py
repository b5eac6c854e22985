"""Which adapter an agent has, and what is no answer to that."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from fake_envs import NAMES
from test_config_team import Twins

from rllib_haml import LoRASAConfig
from rllib_haml.algorithms import theory
from rllib_haml.algorithms.adapter_groups import policy_of_role
from rllib_haml.config import load_experiments

GROUPS = {"legs": ["scout", "anchor"], "load": ["carrier"]}


def by_length(agent_id: Any, episode: Any = None, **kwargs: Any) -> str:
    return f"long_{len(agent_id) > 5}"


def config(**training: Any) -> Any:
    return LoRASAConfig().environment(Twins, env_config={"equal_rewards": True}).training(**training)


def members(made: Any) -> dict[str, list[str]]:
    made.validate()
    return made.team.members()


@pytest.mark.parametrize(
    "agent, role",
    [
        ("adversary_0", "adversary"),
        ("adversary_12", "adversary"),
        ("walker1", "walker"),
        ("left_2_leg", "left_2_leg"),
        ("carrier", "carrier"),
        (3, "3"),
    ],
)
def test_a_role_is_the_name_without_its_number(agent: Any, role: str) -> None:
    assert policy_of_role(agent) == role


@pytest.mark.parametrize(
    "given, expected",
    [
        ("agent", {name: [name] for name in NAMES}),
        (GROUPS, {"legs": ["scout", "anchor"], "load": ["carrier"]}),
        (by_length, {"long_False": ["scout"], "long_True": ["carrier", "anchor"]}),
        ("test_adapter_groups:by_length", {"long_False": ["scout"], "long_True": ["carrier", "anchor"]}),
    ],
)
def test_who_shares_an_adapter(given: Any, expected: dict[str, list[str]]) -> None:
    made = config(adapter_mapping_fn=given)
    assert members(made) == expected
    assert set(made.policies) == set(expected)
    assert set(made.acting_modules()) == {*expected, "backbone"}
    function = pickle.loads(pickle.dumps(made.policy_mapping_fn))
    assert {name: function(name, None) for name in NAMES} == {
        agent: name for name, agents in expected.items() for agent in agents
    }
    assert function == made.policy_mapping_fn
    assert members(made.copy(copy_frozen=False)) == expected, "a config that has seen its team is as good"


def test_another_answer_makes_another_team() -> None:
    made = config(adapter_mapping_fn=GROUPS)
    assert set(members(made)) == {"legs", "load"}
    assert set(members(made.training(adapter_mapping_fn="agent"))) == set(NAMES)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"legs": ["scout"]}, r"in no group: carrier, anchor\)\. The agents are scout, carrier, anchor"),
        ({"a": list(NAMES), "b": ["scout"]}, r"exactly one group \(in several: scout\)"),
        ({"a": [*NAMES, "scot"]}, r"not in this environment: scot"),
        ({"backbone": list(NAMES)}, r"'backbone' of agent 'scout', .* the algorithm's own module"),
        (lambda agent, episode: 5, r"adapter_mapping_fn\('scout', episode=None\) gives 5, a int"),
        (lambda agent, episode: {}[agent], r"adapter_mapping_fn\('scout', episode=None\) raised KeyError"),
        ("roles", r"adapter_mapping_fn='roles': expected 'agent', 'role', groups"),
        ("no.such:thing", r"cannot be imported: No module named 'no'"),
        (7, r"adapter_mapping_fn=7: expected"),
    ],
)
def test_what_is_no_answer(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(adapter_mapping_fn=given).validate()


def test_two_answers_are_too_many() -> None:
    both = config(adapter_mapping_fn=GROUPS).multi_agent(policy_mapping_fn=by_length)
    with pytest.raises(ValueError, match="policy_mapping_fn and adapter_mapping_fn both"):
        both.validate()
    assert set(members(config().multi_agent(policy_mapping_fn=by_length))) == {"long_False", "long_True"}


def test_a_group_is_told_how_far_the_theory_goes(caplog: pytest.LogCaptureFixture) -> None:
    theory._said.clear()
    config(adapter_mapping_fn=GROUPS).validate()
    (said,) = [r.getMessage() for r in caplog.records if "move as one" in r.getMessage()]
    assert "{'legs': ['scout', 'anchor']}" in said
    assert "`adapter_mapping_fn: agent`" in said
    theory._said.clear()
    caplog.clear()
    config().validate()
    assert not [r for r in caplog.records if "move as one" in r.getMessage()]


FILE = """\
team:
  run: LoRASA
  env: mpe
  config:
    env_config: {{scenario: simple_spread_v3, local_ratio: 0.0}}
    adapter_mapping_fn: {}
"""


@pytest.mark.parametrize(
    "given, policies",
    [
        ("role", {"agent"}),
        ("{first: [agent_0], others: [agent_1, agent_2]}", {"first", "others"}),
        ("test_adapter_groups:by_length", {"long_True"}),
    ],
)
def test_in_a_file(given: str, policies: set[str], tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(FILE.format(given))
    (experiment,) = load_experiments(path)
    loaded: Any = experiment.config
    loaded.validate()
    assert set(loaded.policies) == policies


def test_a_mistake_in_a_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(FILE.format("{first: [agent_0], others: [agent_1]}"))
    with pytest.raises(ValueError, match=r"x\.yaml:6: team\.config\.adapter_mapping_fn.*no group: agent_2"):
        load_experiments(path)
