"""`rllib train`: experiments from a file or from the command line."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click

from rllib_haml.cli.options import TrainOptions, train_options
from rllib_haml.config.document import Document, read_file


@click.command(
    epilog="""\b
Examples:
  rllib train -f tuned_examples/happo/mpe_spread.yaml
  rllib train file my_experiment.yaml --seed 3 --ray-num-cpus 4
  rllib train --run HAPPO --env mamujoco \\
      --config '{"env_config": {"scenario": "HalfCheetah", "agent_conf": "2x3"}, "lr": 5e-4}' \\
      --stop '{"num_env_steps_sampled_lifetime": 1000000}'
  rllib train -f my_experiment.yaml --resume        (after a crash or Ctrl-C, with the flags it began with)
  rllib train -f my_experiment.yaml --auto-resume   (under what starts it again: systemd, Slurm, ...)

\b
A file looks like this; several experiments may stand in it, {grid_search: [...]} anywhere:
  my_experiment:
    run: HAPPO
    env: mamujoco
    stop: {num_env_steps_sampled_lifetime: 1000000}
    checkpoint_freq: 10
    config:
      env_config: {scenario: HalfCheetah, agent_conf: 2x3}
      lr: {grid_search: [5e-4, 1e-4]}

Exit codes: 0 trained, 1 a trial failed, 2 something in the file or the command is wrong,
130 interrupted (Ctrl-C or SIGTERM): --resume continues.
"""
)
@click.argument("words", nargs=-1, metavar="[file FILE]")
@click.option("-f", "--config-file", "file", metavar="FILE", help="YAML file of experiments.")
@train_options
def train(words: tuple[str, ...], file: str | None, **options: Any) -> None:
    """Train with Ray Tune. Options override what the file says."""
    if words:
        if file or len(words) != 2 or words[0] != "file":
            raise click.UsageError(f"{' '.join(words)!r}: write `rllib train file FILE`.")
        file = words[1]
    asked = TrainOptions(**options)
    train_document(_document(file, asked), asked)


def train_document(document: Document, options: TrainOptions) -> None:
    """Trains every experiment of `document`, and exits with the command's exit code."""
    from rllib_haml.cli.logs import set_up_logs

    if options.resume and options.auto_resume:
        raise click.UsageError("--resume and --auto-resume: give one of them.")
    set_up_logs(options.verbosity)
    # Only now: importing these shows warnings of gymnasium's.
    from rllib_haml.cli.go_on import go_on
    from rllib_haml.cli.run import run_experiments
    from rllib_haml.config.parse import experiment_specs, parse_experiments

    experiment_specs(document)
    options.override(document)
    directories = go_on(document, options) if options.resumes else {}
    experiments = parse_experiments(document, options.allow_eval)
    sys.exit(run_experiments([replace(e, directory=directories.get(e.name)) for e in experiments], options))


def _document(file: str | None, options: TrainOptions) -> Document:
    if file:
        return read_file(file)
    if options.run:
        return Document("command line", {options.run: {"run": options.run}})
    if options.resumes and options.experiment_name:
        # Its note says what it is.
        return Document("command line", {options.experiment_name: {}})
    raise click.UsageError("Say what to train: -f FILE, or --run NAME --env NAME.")
