"""What a run left behind, said at its end."""

from __future__ import annotations

import re

import click
from ray.tune import Result, ResultGrid

from rllib_haml.cli.storage import within

LEARNERS = "learners"


def report(name: str, results: ResultGrid, path: str, verbosity: int) -> None:
    """Prints where results and checkpoints lie, how to go on, and why trials failed.

    Args:
        name: The experiment.
        results: Its trials.
        path: Its directory, or its URI.
        verbosity: From 1 on with full traces.
    """
    checkpoints = []
    for result in results:
        if result.error is not None:
            click.echo(f"{name}: trial failed: {cause(str(result.error))}", err=True)
            if verbosity:
                click.echo(str(result.error), err=True)
            else:
                click.echo(f"  -v shows the whole trace; it also lies in {result.path}", err=True)
        if result.checkpoint is not None:
            checkpoints.append(within(path, result.checkpoint.path))
    click.echo(f"{name}: results      {path}")
    for checkpoint in checkpoints:
        click.echo(f"{name}: checkpoint   {checkpoint}")
    click.echo(f"{name}: TensorBoard  tensorboard --logdir {path}")
    for checkpoint in checkpoints:
        click.echo(f"{name}: evaluate     rllib evaluate {checkpoint}")
    for result in results:
        _report_adapters(name, result, path)


def _report_adapters(name: str, result: Result, path: str) -> None:
    """What each agent ended up with of its own, where agents have adapters."""
    learners = (result.metrics or {}).get(LEARNERS, {})
    figures = {agent: of for agent, of in sorted(learners.items()) if "adapter_relative_norm_max" in of}
    if not figures:
        return
    from rllib_haml.modules.adapter_audit import audit_table

    click.echo(f"{name}: adapters\n{audit_table(figures)}")
    if result.checkpoint is not None:
        click.echo(f"{name}: audit        rllib adapters audit {within(path, result.checkpoint.path)}")


# What says most, up to the blank line before what was raised of it.
_FAULT = re.compile(r"^\S*\b(?:EnvironmentFault|CheckpointError): (.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def cause(trace: str) -> str:
    """Why a trial failed, in one line.

    Args:
        trace: A chain of exceptions as remote workers printed it, the root cause first.

    Returns:
        The fault of an environment, with its place, or a checkpoint's, with a way out, where there is one in
        the chain; else the root cause.
    """
    if fault := _FAULT.search(trace):
        return " ".join(fault.group(1).split())
    trace = trace.partition("\nThe above exception was the direct cause")[0].rstrip()
    lines = trace.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    message = lines[frames[-1] + 1 :] if frames else lines
    return " ".join(" ".join(message or lines).split())
