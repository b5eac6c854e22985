"""`rllib validate`: is this file all right, and what will its first iteration be like?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from rllib_haml.cli.apart import Lost, Tell, call_apart
from rllib_haml.cli.first_iteration import Plan, first_iteration
from rllib_haml.config.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rllib_haml.cli.tryout import Played
    from rllib_haml.config.document import Document
    from rllib_haml.config.experiment import Experiment

SILENCE_S = 60.0  # without a word from an environment


@click.command(
    epilog="""\b
Example:
  rllib validate my_experiment.yaml tuned_examples/happo/*.yaml
"""
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--allow-eval", is_flag=True, help='Execute {eval: "..."} expressions of the files.')
def validate(files: tuple[str, ...], allow_eval: bool) -> None:
    """Check YAML files without training anything.

    A team's environment is made in as many copies as in training, and sampled for some 20 steps of each. What
    does not bear several copies in one process is named, and the seconds that the first iteration will sample
    are told. What gives no sign for a minute is ended. Of RLlib's own algorithms the file alone is checked.
    """
    problems = []
    for file in files:
        try:
            for found in call_apart(_read, file, allow_eval, silence_s=2 * SILENCE_S):
                problems += _tried(file, found)
        except Lost as lost:
            text = f"checking it was given up: {lost}. The last thing begun was {lost.told or 'reading it'}."
            problems.append(Problem(file, "", text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class _Found:
    """A sound experiment, as far as its file tells.

    Attributes:
        verdict: What stands behind OK.
        env_place: Where its environment stands, and under which key.
        config: To be played, pickled; None for RLlib's own algorithms.
        plan: What it asks of one iteration.
        evaluates_here: Evaluation's copies will stand in the same process.
    """

    name: str
    verdict: str
    env_place: tuple[str, str]
    config: bytes | None
    plan: Plan
    evaluates_here: bool


def _tried(file: str, found: _Found) -> list[Problem]:
    """Plays an experiment's environment, and says what came of it."""
    lines: list[str] = []
    if found.config is not None:
        try:
            lines = _play(found.config, found)
        except _Unfit as unfit:
            return [Problem(*found.env_place, str(unfit))]
    click.echo(f"{file}: {found.name}: OK ({found.verdict})")
    for line in lines:
        click.echo(f"{file}: {found.name}: {line}")
    return []


class _Unfit(Exception):
    """Why an environment cannot be trained in."""


def _play(config: bytes, found: _Found) -> list[str]:
    """What can be told of the first iteration.

    Raises:
        _Unfit: Training would stumble.
    """
    try:
        played = _played(config, alone=False)
        if not (played.fault or played.share_state):
            return first_iteration(found.plan, played.steps_per_s, played.start_s)
        what, hung = played.fault or "what one shows depends on what another does (they share state)", False
    except Lost as lost:
        what, hung = str(lost), lost.hung
    if found.plan.copies == 1 and not found.evaluates_here:
        if hung:
            return [f"WARNING: {_too_slow(1)}"]
        raise _Unfit(what)
    try:
        alone = _played(config, alone=True)
    except Lost as lost:
        if lost.hung:
            return [f"WARNING: {_too_slow(1)}"]
        raise _Unfit(str(lost)) from None
    if alone.fault:
        raise _Unfit(alone.fault)
    if hung and alone.first_s * found.plan.copies > SILENCE_S:
        return [f"WARNING: {_too_slow(found.plan.copies)} One alone took {alone.first_s:.0f} s."]
    raise _Unfit(_only_one(found, what))


def _played(config: bytes, *, alone: bool) -> Played:
    return call_apart(_play_apart, config, alone, silence_s=SILENCE_S)


def _only_one(found: _Found, what: str) -> str:
    copies, settings = found.plan.copies, []
    if copies > 1:
        settings.append("`num_envs_per_env_runner: 1` (more processes sample by `num_env_runners`)")
    if found.evaluates_here:
        settings.append("`evaluation_num_env_runners: 1`, which evaluates in a process of its own")
    many = f"{copies} copies" if copies > 1 else "a copy for training and one for evaluation"
    return (
        f"it does not bear {many} in one process, while one alone can be played: {what}. "
        f"Set {' and '.join(settings)}."
    )


def _too_slow(copies: int) -> str:
    them = f"its {copies} copies" if copies > 1 else "its environment"
    return f"not tried: {them} took no step within {SILENCE_S:g} s. Stuck, or as slow as that?"


# What follows runs apart.


def _play_apart(tell: Tell, config: bytes, alone: bool) -> Played:
    from rllib_haml.cli.tryout import play

    return play(tell, config, alone)


def _read(tell: Tell, file: str, allow_eval: bool) -> list[_Found]:
    """Raises a ConfigError for what is wrong with a file."""
    from rllib_haml.cli.starts import check_starts
    from rllib_haml.config import parse_experiments
    from rllib_haml.config.document import read_file

    document = read_file(file)
    tell("making its environments")
    try:
        experiments = parse_experiments(document, allow_eval)
    except ConfigError:
        _note_env_configs(document)
        document.raise_problems()
        raise
    check_starts(experiments)
    return [_found(experiment, document) for experiment in experiments]


def _found(experiment: Experiment, document: Document) -> _Found:
    from ray.cloudpickle.cloudpickle import dumps

    from rllib_haml.algorithms.team_config import TeamConfig
    from rllib_haml.cli.tryout import evaluation_in_this_process

    config: Any = experiment.config.copy(copy_frozen=False)
    config.validate()
    here = (experiment.name, "config", "env")
    path = here if here in document.places else (experiment.name, "env")
    trials = f", {experiment.num_trials} trials" if experiment.num_trials > 1 else ""
    ours = isinstance(config, TeamConfig)
    return _Found(
        name=experiment.name,
        verdict=f"{experiment.algorithm}{trials}{_drift(config)}",
        env_place=(document.where(path), ".".join(map(str, path))),
        config=dumps(config) if ours else None,
        plan=Plan(
            copies=config.num_envs_per_env_runner,
            processes=max(1, config.num_env_runners),
            batch=config.total_train_batch_size if ours else 0,
            learners=max(1, config.num_learners),
            makes_checkpoints=bool(experiment.checkpoints.get("checkpoint_frequency")),
        ),
        evaluates_here=ours and evaluation_in_this_process(config) is not None,
    )


def _note_env_configs(document: Document) -> None:
    """What is wrong with an `env_config` is told beside other mistakes, which kept it from being tried."""
    from rllib_haml.config.build import can_be_made
    from rllib_haml.config.search import contains, is_eval, is_grid

    for name, spec in document.data.items() if isinstance(document.data, dict) else ():
        config = spec.get("config") if isinstance(spec, dict) else None
        if not isinstance(config, dict):
            continue
        env, given = spec.get("env", config.get("env")), config.get("env_config")
        searched = contains(given, is_grid) or contains(given, is_eval)
        if isinstance(env, str) and isinstance(given, dict) and not searched:
            can_be_made(env, given, (name, "config", "env_config"), document)


def _drift(config: Any) -> str:
    """What trying the drift showed, for the algorithms that have one."""
    from rllib_haml.algorithms.haml_config import HAMLConfig

    if not isinstance(config, HAMLConfig):
        return ""
    check = config.drift_check()
    return "; its drift meets HAML's conditions" if check.holds else f"; its drift is not {check.condition}"
