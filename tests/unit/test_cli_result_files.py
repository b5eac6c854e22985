"""What a run leaves on the disk for every iteration. No Ray is started."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rllib_haml.cli.result_files import Curves, Lines, Table, recorded, result_files

OURS = (Lines, Table, Curves)
TUNES = (JsonLoggerCallback, CSVLoggerCallback, TBXLoggerCallback)


class FakeTrial:
    """What loggers ask a trial for."""

    checkpoint = None
    evaluated_params: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        self.local_path, self.config = str(path), {"lr": 1e-3}
        path.mkdir(exist_ok=True)

    def init_local_path(self) -> None:
        """It is there."""


def result(iteration: int, agents: int = 2, **more: Any) -> dict[str, Any]:
    """As RLlib gives it for a team of HAPPO: the config, and figures that are never round."""
    odd = iteration + 0.123456789
    names = [f"a_figure_of_the_usual_length_{i}" for i in range(19)]
    names += [
        "entropy",
        "policy_loss",
        "num_module_steps_trained",
        "weights_seq_no",
        "num_trainable_parameters",
    ]
    learners: dict[str, Any] = {f"agent_{i}": dict.fromkeys(names, odd) for i in range(agents)}
    learners["agent_0"] |= {"x_throughput": {"since": odd}, "learner_connector": {"timers": {"a": odd}}}
    returns = {
        f"{of}_{kind}": odd for of in ("team_return", "episode_len") for kind in ("min", "mean", "max")
    }
    return {
        "config": {f"key_{i}": "a value" for i in range(500)},
        "env_runners": {**returns, "outcome_mean": {"win": odd}, "num_env_steps_sampled": 64, "sample": odd},
        "learners": learners,
        "timers": {f"timer_{i}": odd for i in range(7)},
        "num_env_steps_sampled_lifetime": 64 * iteration,
        "training_iteration": iteration,
        "time_total_s": odd,
        "done": False,
        **more,
    }


def log(path: Path, results: list[dict[str, Any]], kinds: Any = OURS) -> Path:
    """The results as a run logs them; its directory."""
    trial: Any = FakeTrial(path)
    for logger in (kind() for kind in kinds):
        for one in results:
            logger.log_trial_result(0, trial, one)
        logger.log_trial_end(trial)
    return path


def sizes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


@pytest.mark.parametrize("agents", [2, 3, 8])
def test_an_iteration_leaves_at_most_5_kb(agents: int, tmp_path: Path) -> None:
    def left(name: str, number: int, kinds: Any) -> int:
        return sizes(log(tmp_path / name, [result(n, agents) for n in range(1, number + 1)], kinds))

    assert (left("more", 140, OURS) - left("less", 40, OURS)) / 100 < 5000
    assert (left("Tune's more", 30, TUNES) - left("Tune's", 10, TUNES)) / 20 > 15000, "control"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "result.json").read_text().splitlines()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with (path / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_iteration_has_its_line_and_its_row(tmp_path: Path) -> None:
    evaluated = result(3, evaluation={"env_runners": {"team_return_mean": 7.0}})
    results = [result(1), result(2), evaluated, result(4)]
    path = log(tmp_path / "run", results)
    lines, rows = lines_of(path), rows_of(path)
    assert lines == [recorded(one) for one in results]
    assert lines[0]["env_runners"]["team_return_mean"] == 1.12346
    assert lines[0]["learners"]["agent_1"]["policy_loss"] == 1.12346
    assert json.loads((path / "params.json").read_text()) == {"lr": 1e-3}, "the config is not lost"
    assert [row["training_iteration"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["evaluation/env_runners/team_return_mean"] for row in rows] == ["", "", "7.0", ""]
    assert [row["learners/agent_1/entropy"] for row in rows] == ["1.12346", "2.12346", "3.12346", "4.12346"]


def test_of_a_large_team_the_table_has_all_and_every_fifth_line(tmp_path: Path) -> None:
    path = log(tmp_path / "run", [result(n, agents=9) for n in range(1, 12)])
    whole = [line["training_iteration"] for line in lines_of(path) if "learners" in line]
    assert whole == [1, 6, 11]
    assert all("team_return_mean" in line["env_runners"] for line in lines_of(path))
    assert all(row["learners/agent_8/entropy"] for row in rows_of(path))


def test_tensorboard_has_every_return_and_the_rest_of_some_iterations_and_of_the_last(tmp_path: Path) -> None:
    shown = EventAccumulator(str(log(tmp_path / "run", [result(n) for n in range(1, 13)])))
    shown.Reload()

    def steps(tag: str) -> list[int]:
        return sorted({event.step for event in shown.Scalars(f"ray/tune/{tag}")})

    for tag in ("team_return_mean", "outcome_mean/win"):
        assert steps(f"env_runners/{tag}") == list(range(1, 13))
    assert steps("learners/agent_0/entropy") == [1, 7, 12]


def test_a_resumed_run_goes_on_in_the_same_columns(tmp_path: Path) -> None:
    """RLlib's metrics come in another order in every process; Tune's own table mixes them up: the control."""
    first, second = result(1), dict(reversed(result(2).items()))
    for name, table in (("ours", Table), ("Tune's", CSVLoggerCallback)):
        for one in (first, second):
            log(tmp_path / name, [one], [table])
        iterations = [row["training_iteration"] for row in rows_of(tmp_path / name)]
        assert (iterations == ["1", "2"]) == (name == "ours")


def test_loggers_that_a_user_gives_take_the_place_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [type(one) for one in result_files([])] == list(OURS)
    assert [type(one) for one in result_files([JsonLoggerCallback()])] == [Table, Curves]
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    assert result_files([]) == []
