"""`rllib validate`: is this file all right?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rllib_haml.config.errors import ConfigError

if TYPE_CHECKING:
    from rllib_haml.config.document import Document
    from rllib_haml.config.experiment import Experiment


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

    A team's environment is made, reset, and played for 20 random steps, or for 20 seconds where it is slow.
    """
    from rllib_haml.cli.logs import set_up_logs

    set_up_logs(verbosity=0)
    from rllib_haml.cli.starts import check_starts

    problems = []
    for file in files:
        try:
            for experiment in _sound_experiments(file, allow_eval):
                check_starts([experiment])
                trials = f", {experiment.num_trials} trials" if experiment.num_trials > 1 else ""
                click.echo(
                    f"{file}: {experiment.name}: OK ({experiment.algorithm}{trials}{_drift(experiment)})"
                )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _sound_experiments(file: str, allow_eval: bool) -> list[Experiment]:
    """Raises a ConfigError for what is wrong with a file, or with an environment that it names."""
    from rllib_haml.algorithms.team_config import TeamConfig
    from rllib_haml.cli.tryout import fault_in
    from rllib_haml.config import parse_experiments
    from rllib_haml.config.document import read_file

    document = read_file(file)
    try:
        experiments = parse_experiments(document, allow_eval)
    except ConfigError:
        _note_env_configs(document)
        document.raise_problems()
        raise
    for experiment in experiments:
        config: Any = experiment.config
        if isinstance(config, TeamConfig) and (fault := fault_in(config)):
            here = (experiment.name, "config", "env")
            document.error(here if here in document.places else (experiment.name, "env"), fault)
    document.raise_problems()
    return experiments


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


def _drift(experiment: Experiment) -> str:
    """What trying the drift showed, for the algorithms that have one."""
    from rllib_haml.algorithms.haml_config import HAMLConfig

    if not isinstance(experiment.config, HAMLConfig):
        return ""
    check = experiment.config.drift_check()
    return "; its drift meets HAML's conditions" if check.holds else f"; its drift is not {check.condition}"
