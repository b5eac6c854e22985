"""Runs experiments through Ray Tune, and says at the end where everything lies."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import click
import ray
from ray import tune
from ray.tune import Tuner

from rllib_haml.algorithms.autoscaler import autoscaler_is_on
from rllib_haml.cli.directories import directory, next_number
from rllib_haml.cli.full_disk import NOT_OF_STORAGE, UNWRITTEN, unwritten
from rllib_haml.cli.interrupt import (
    EndsWithCheckpoints,
    UntilInterrupted,
    asked_to_end,
    former_sigterm,
    sigterm_is_ctrl_c,
)
from rllib_haml.cli.logs import show_worker_logs_of_this_package, silence_ray
from rllib_haml.cli.long_iterations import LongIterations
from rllib_haml.cli.note import Note
from rllib_haml.cli.options import TrainOptions
from rllib_haml.cli.progress import ProgressLines
from rllib_haml.cli.report import report
from rllib_haml.cli.resources import WaitingLines, trial_shortage
from rllib_haml.cli.result_files import result_files
from rllib_haml.cli.resume import NEVER_BEGUN, EarlierRun, earlier_run
from rllib_haml.cli.starts import check_starts
from rllib_haml.cli.storage import check_storage, experiment_path, storage_root
from rllib_haml.cli.timed_checkpoints import TimedCheckpoints
from rllib_haml.config.errors import ConfigError, Problem
from rllib_haml.config.experiment import Experiment

logger = logging.getLogger("rllib_haml")
INTERRUPTED = 130  # exit code


def run_experiments(experiments: list[Experiment], options: TrainOptions) -> int:
    """Trains the experiments one after another.

    Returns:
        The exit code: 0, 1 if a trial failed, 130 if Ctrl-C or SIGTERM interrupted.

    Raises:
        ConfigError: A checkpoint to begin with, storage or resources are not there.
    """
    if options.auto_resume and _all_have_ended(experiments):
        for experiment in experiments:
            _say_ended(experiment)
        return 0
    check_starts([e for e in experiments if not _goes_on(e, options)])
    check_storage(experiments)
    if not options.resumes:
        experiments = _beside_earlier_runs(experiments)
    _warn_of_lost_work(experiments)
    with former_sigterm():
        try:
            start_ray(options)
            sigterm_is_ctrl_c()
            _check_resources(experiments, options)
            return _run_all(experiments, options)
        except KeyboardInterrupt:
            # Before Tune listens, or a second time while it ends.
            click.echo("interrupted at once: the same command with --resume continues what had begun.")
            return INTERRUPTED
        finally:
            ray.shutdown()


def _beside_earlier_runs(experiments: list[Experiment]) -> list[Experiment]:
    """New runs, each in a directory of its own."""
    number = next_number({e.name: storage_root(e.storage_path) for e in experiments})
    placed = [replace(e, directory=directory(e.name, number)) for e in experiments]
    if number > 1:
        for experiment, new in zip(experiments, placed, strict=True):
            click.echo(
                f"{experiment.name}: an earlier run stands in {experiment_path(experiment)}; this one goes "
                f"to {new.directory}. (With --resume the last one that was interrupted goes on instead.)"
            )
    return placed


def start_ray(options: TrainOptions) -> None:
    """Connects to the cluster of `--ray-address`, else starts a Ray of its own on this machine."""
    # How often Tune notes the state that `--resume` continues from; its default is every 10 s.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    local = not _cluster(options)
    ray.init(
        address=options.ray_address or (None if _cluster(options) else "local"),
        num_cpus=options.ray_num_cpus if local else None,
        num_gpus=options.ray_num_gpus if local else None,
        include_dashboard=False if local else None,
        logging_level=logging.INFO if options.verbosity else logging.CRITICAL,
    )
    if not options.verbosity:
        silence_ray()
        show_worker_logs_of_this_package()


def _cluster(options: TrainOptions) -> str | None:
    return options.ray_address or os.environ.get("RAY_ADDRESS")


def _goes_on(experiment: Experiment, options: TrainOptions) -> bool:
    """From a checkpoint of its own, so that it needs none of another run."""
    return options.resumes and earlier_run(experiment_path(experiment)).begun


def _all_have_ended(experiments: list[Experiment]) -> bool:
    return all(earlier_run(experiment_path(e)).has_ended(e.num_trials) for e in experiments)


def _say_ended(experiment: Experiment) -> None:
    click.echo(f"{experiment.name}: has ended, nothing to resume in {experiment_path(experiment)}")


def _check_resources(experiments: list[Experiment], options: TrainOptions) -> None:
    short = {experiment.name: trial_shortage(experiment) for experiment in experiments}
    problems = [Problem("resources", name, text) for name, text in short.items() if text]
    if not problems:
        return
    if _may_grow(options):
        for problem in problems:
            logger.warning("%s Waiting for nodes.", problem)
        return
    advice = " If nodes are still to be started: --wait-for-nodes." if _cluster(options) else ""
    raise ConfigError([replace(problem, text=problem.text + advice) for problem in problems])


def _may_grow(options: TrainOptions) -> bool:
    if options.wait_for_nodes is not None:
        return options.wait_for_nodes
    return bool(_cluster(options)) and autoscaler_is_on()


def _warn_of_lost_work(experiments: list[Experiment]) -> None:
    for experiment in experiments:
        if experiment.max_failures and not experiment.checkpoints.get("checkpoint_frequency"):
            logger.warning(
                "%s: max_failures: %d with checkpoint_freq: 0: a trial that fails starts again from its "
                "beginning. Leave checkpoint_freq out, or set it to the iterations you can afford to lose.",
                experiment.name,
                experiment.max_failures,
            )


def _run_all(experiments: list[Experiment], options: TrainOptions) -> int:
    worst = 0
    for place, experiment in enumerate(experiments, start=1):
        worst = max(worst, _run(experiment, options))
        if asked_to_end() and place < len(experiments):
            worst = INTERRUPTED
        if worst == INTERRUPTED:
            break
    return worst


def _run(experiment: Experiment, options: TrainOptions) -> int:
    path, asked = experiment_path(experiment), experiment.num_trials
    before = earlier_run(path) if options.resumes else NEVER_BEGUN
    if before.has_ended(asked):
        _say_ended(experiment)
        return 0
    try:
        tuner = _interrupted_tuner(experiment) if before.begun else _new_tuner(experiment, options)
        _say_begin(experiment, before)
        results = tuner.fit()
        report(experiment.name, results, path, options.verbosity)
    except NOT_OF_STORAGE:
        raise
    except UNWRITTEN as error:
        click.echo(f"{experiment.name}: {unwritten(path, error)}", err=True)
        return 1
    if results.errors:
        return 1
    after = earlier_run(path)
    # Of a search that its time ended, the trials that were never begun are not missing.
    if after.has_ended(1 if experiment.time_budget_s else asked):
        return 0
    if before.begun and after == before and after.has_ended(len(after.statuses)):
        raise _fewer_trials(experiment, len(after.statuses))
    flag = " with --resume" if after.begun and not options.auto_resume else ""
    click.echo(f"{experiment.name}: interrupted. The same command{flag} {after.way_on()}")
    return INTERRUPTED


def _say_begin(experiment: Experiment, before: EarlierRun) -> None:
    path = experiment_path(experiment)
    if not before.begun:
        click.echo(f"{experiment.name}: training in {path}")
        return
    click.echo(f"{experiment.name}: resuming in {path}, with the settings that it began with")
    click.echo(f"{experiment.name}: it {before.way_on()}")


def _fewer_trials(experiment: Experiment, begun: int) -> ConfigError:
    text = (
        f"the run has ended with {begun} trials, and {experiment.num_trials} are asked for now; a resumed "
        f"run keeps its settings. Start another for the rest: --experiment-name NAME, without --resume."
    )
    return ConfigError([Problem("--resume", experiment.name, text)])


def _interrupted_tuner(experiment: Experiment) -> Tuner:
    return Tuner.restore(experiment_path(experiment), experiment.algorithm_class, resume_errored=True)


def _new_tuner(experiment: Experiment, options: TrainOptions) -> Tuner:
    # A search may end, by its time, with any number of trials.
    num_trials = 1 if experiment.time_budget_s else experiment.num_trials
    note = Note(experiment.name, options.flags(), experiment.spec, num_trials)
    note.write(experiment_path(experiment))
    return Tuner(
        experiment.algorithm_class,
        param_space=experiment.param_space,  # pyright: ignore[reportArgumentType]
        tune_config=tune.TuneConfig(
            num_samples=experiment.num_samples,
            time_budget_s=experiment.time_budget_s,
            scheduler=UntilInterrupted(),
        ),
        run_config=tune.RunConfig(
            name=experiment.directory or experiment.name,
            storage_path=storage_root(experiment.storage_path),
            stop=experiment.stop,
            verbose=options.verbosity,
            callbacks=[
                ProgressLines(experiment.name, experiment.num_trials),
                WaitingLines(experiment.name),
                *result_files(experiment.tune_callbacks),
                LongIterations(experiment.name, experiment.num_trials),
                EndsWithCheckpoints(experiment.name),
                *([TimedCheckpoints()] if experiment.checkpoints.get("checkpoint_frequency") else []),
                *experiment.tune_callbacks,
            ],
            checkpoint_config=tune.CheckpointConfig(**experiment.checkpoints),
            failure_config=tune.FailureConfig(max_failures=experiment.max_failures),
        ),
        # `tune.run` takes a checkpoint that every trial starts from, `Tuner` hands it through.
        _tuner_kwargs={"restore": experiment.restore} if experiment.restore else None,
    )
