"""A command that is typed again: beside what stands there, or on with it as it began."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_cli_resume import note

from rllib_haml.cli import run
from rllib_haml.cli.app import rllib
from rllib_haml.cli.note import NOTE
from rllib_haml.config.experiment import Experiment

FILE = """\
team:
  run: PPO
  env: CartPole-v1
  config: {num_env_runners: 0, lr: 1.0e-3}
"""
SECOND = FILE.replace("team:", "other:")


class Workplace:
    """A directory in which the command is typed; a run leaves trials of the statuses given, without Ray."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, scheme: str = "") -> None:
        self.place, self.file, self.storage = place, place / "file.yaml", f"{scheme}{place}/results"
        self.file.write_text(FILE)
        self.statuses = ["RUNNING"]
        self.trained: list[tuple[str, str]] = []
        self.resumed: list[Experiment] = []
        monkeypatch.setattr(run, "start_ray", lambda options: None)
        monkeypatch.setattr(run, "_check_resources", lambda *_: None)
        monkeypatch.setattr(run, "report", lambda *_: None)
        monkeypatch.setattr(run.tune, "RunConfig", lambda name, **settings: name)
        monkeypatch.setattr(run, "Tuner", lambda *_, run_config, **__: self._fit("new", run_config))
        monkeypatch.setattr(run, "_interrupted_tuner", self._resume)

    def _resume(self, experiment: Experiment) -> Any:
        self.resumed.append(experiment)
        return self._fit("resumed", experiment.directory or "")

    def _fit(self, how: str, directory: str) -> Any:
        def fit() -> Any:
            (self.place / "results" / directory / "a_trial").mkdir(parents=True, exist_ok=True)
            note(self.place / "results" / directory, *self.statuses)
            self.trained.append((how, directory))
            return SimpleNamespace(errors=[])

        return SimpleNamespace(fit=fit)

    def train(self, *flags: str, statuses: tuple[str, ...] = ("RUNNING",), file: bool = True) -> Result:
        self.statuses = list(statuses)
        given = ["-f", str(self.file)] if file else []
        return CliRunner().invoke(rllib, ["train", *given, "--storage-path", self.storage, *flags])


@pytest.fixture(params=["", "file://"])
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Workplace:
    return Workplace(tmp_path, monkeypatch, request.param)


def test_the_same_command_again_leaves_what_stands_there_alone(typed: Workplace) -> None:
    first = typed.train(statuses=("TERMINATED",))
    assert first.exit_code == 0, first.output
    assert "earlier run" not in first.output, "control"
    stands = {path: path.read_bytes() for path in typed.place.rglob("team/*") if path.is_file()}
    again = typed.train()
    assert f"team: an earlier run stands in {typed.storage}/team; this one goes to team_2" in again.output
    assert f"team: training in {typed.storage}/team_2" in again.output
    typed.train()
    assert typed.trained == [("new", "team"), ("new", "team_2"), ("new", "team_3")]
    assert {path: path.read_bytes() for path in stands} == stands


@pytest.mark.parametrize("flag", ["--resume", "--auto-resume"])
def test_the_last_run_is_the_one_that_goes_on(flag: str, typed: Workplace) -> None:
    typed.train(statuses=("TERMINATED",))
    interrupted = typed.train()
    assert interrupted.exit_code == 130
    assert typed.train(flag, statuses=("TERMINATED",)).exit_code == 0
    assert typed.trained[2:] == [("resumed", "team_2")]
    ended = typed.train(flag)
    assert len(typed.trained) == 3
    assert "has ended" in ended.output
    assert ended.exit_code == (2 if flag == "--resume" else 0)


def test_an_older_run_goes_on_where_it_alone_was_interrupted(typed: Workplace) -> None:
    typed.train()
    typed.train(statuses=("TERMINATED",))
    typed.train("--resume")
    assert typed.trained[2:] == [("resumed", "team")]
    assert "has ended" in typed.train("--auto-resume").output, "a supervisor's command looks at the last one"


def test_all_experiments_of_a_file_are_one_run(typed: Workplace) -> None:
    typed.file.write_text(FILE + SECOND)
    typed.train(statuses=("TERMINATED",))
    typed.train()  # interrupted in the first: the second never began
    assert [directory for _, directory in typed.trained] == ["team", "other", "team_2"]
    typed.train("--resume", statuses=("TERMINATED",))
    assert typed.trained[3:] == [("resumed", "team_2"), ("new", "other_2")]


def test_another_experiment_of_that_name_is_another(typed: Workplace) -> None:
    typed.file.write_text(FILE.replace("team:", "team_2:"))
    typed.train()
    typed.file.write_text(FILE)
    typed.train(statuses=("TERMINATED",))
    assert "nothing to resume" in typed.train("--resume").output
    typed.train(statuses=("TERMINATED",))
    assert [directory for _, directory in typed.trained] == ["team_2", "team", "team_3"]


FLAGS = (
    "--seed",
    "3",
    "--stop",
    '{"training_iteration": 5}',
    "--num-samples",
    "2",
    "--config",
    '{"gamma": 0.9}',
)


def test_resuming_needs_none_of_the_flags_that_the_run_began_with(typed: Workplace) -> None:
    typed.train(*FLAGS, "--checkpoint-freq", "7")
    for flags in ((), FLAGS, FLAGS[:4], FLAGS[4:]):
        assert typed.train("--resume", *flags).exit_code == 130
    assert len(typed.resumed) == 4
    for experiment in typed.resumed:
        assert experiment.config.seed == 3
        assert (experiment.config.gamma, experiment.config.lr) == (0.9, 1e-3)
        assert experiment.stop == {"training_iteration": 5}
        assert (experiment.num_trials, experiment.checkpoints["checkpoint_frequency"]) == (2, 7)


def test_a_command_that_names_nothing_but_the_experiment_resumes_it(typed: Workplace) -> None:
    typed.train(*FLAGS, "--experiment-name", "mine")
    assert typed.train("--resume", "--experiment-name", "mine", file=False).exit_code == 130
    assert typed.trained[1:] == [("resumed", "mine")]
    assert "nothing to resume" in typed.train("--resume", "--experiment-name", "yours", file=False).output
    assert typed.train("--experiment-name", "mine", file=False).exit_code == 2


CONTRADICTIONS = [
    (("--seed", "4"), "--seed: team.config.seed: was 3, and is 4 now"),
    (("--stop", '{"training_iteration": 9}'), "team.stop.training_iteration: was 5, and is 9 now"),
    (("--stop", '{"time_total_s": 9}'), "team.stop.time_total_s: was not given, and is 9 now"),
    (("--num-samples", "3"), "team.num_samples: was 2, and is 3 now"),
    (("--max-failures", "3"), "team.max_failures: was not given, and is 3 now"),
    (("--checkpoint-freq", "1"), "team.checkpoint_freq: was not given, and is 1 now"),
    (("--config", '{"gamma": 0.8}'), "team.config.gamma: was 0.9, and is 0.8 now"),
    (("--run", "HAPPO"), 'team.run: was "PPO", and is "HAPPO" now'),
]


@pytest.mark.parametrize("flag", ["--resume", "--auto-resume"])
@pytest.mark.parametrize("given, said", CONTRADICTIONS)
def test_what_contradicts_the_run_is_refused_before_ray_starts(
    given: tuple[str, ...], said: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = Workplace(tmp_path, monkeypatch)
    typed.train(*FLAGS)
    monkeypatch.setattr(run, "start_ray", lambda options: pytest.fail("Ray starts"))
    refused = typed.train(flag, *given)
    assert refused.exit_code == 2, refused.output
    assert said in refused.output
    assert "without resuming" in refused.output
    assert len(typed.trained) == 1


def test_a_file_that_was_edited_is_a_contradiction_with_its_line(typed: Workplace) -> None:
    typed.train()
    typed.file.write_text(FILE.replace("1.0e-3", "2.0e-3"))
    refused = typed.train("--resume")
    assert f"{typed.file}:4: team.config.lr: was 0.001, and is 0.002 now" in refused.output
    typed.file.write_text("# a comment\n" + FILE.replace("1.0e-3", "0.001"))
    assert typed.train("--resume").exit_code == 130, "control: nothing was changed"


def test_nothing_to_resume_is_said_before_ray_starts(
    typed: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "start_ray", lambda options: pytest.fail("Ray starts"))
    refused = typed.train("--resume")
    assert refused.exit_code == 2
    assert f"nothing to resume: no interrupted run in {typed.storage}/team" in refused.output


def test_a_run_of_an_earlier_release_has_no_note_and_is_resumed(typed: Workplace) -> None:
    typed.train()
    (typed.place / "results" / "team" / NOTE).unlink()
    assert typed.train("--resume", "--seed", "4").exit_code == 130
    assert typed.trained[1:] == [("resumed", "team")]


def test_a_note_that_is_torn_is_named(typed: Workplace) -> None:
    typed.train()
    file = typed.place / "results" / "team" / NOTE
    for torn in ("", "{", json.dumps({"experiment": "team"})):
        file.write_text(torn)
        refused = typed.train("--resume")
        assert refused.exit_code == 2
        assert f"{NOTE} cannot be read" in refused.output


def test_an_experiment_knows_what_was_written(typed: Workplace) -> None:
    typed.train(*FLAGS)
    noted = json.loads((typed.place / "results" / "team" / NOTE).read_text())
    assert noted["spec"]["config"] == {"num_env_runners": 0, "lr": 1e-3, "gamma": 0.9, "seed": 3}
    assert noted["num_trials"] == 2
