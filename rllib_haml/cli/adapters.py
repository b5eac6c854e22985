"""`rllib adapters`: what the agents of a LoRASA checkpoint have of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rllib_haml.cli.arguments import CHECKPOINT
from rllib_haml.config.errors import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    from rllib_haml.modules.adapter_drift import AdapterAudit

_AGENT = click.option("--agent", help="Only this agent's.")


@click.group(
    epilog="""\b
Examples:
  rllib adapters list CHECKPOINT
  rllib adapters export CHECKPOINT adapters/
  rllib adapters audit CHECKPOINT --plot drift.png
"""
)
def adapters() -> None:
    """List, export, import, merge or audit the adapters of a LoRASA checkpoint."""


@adapters.command("list")
@CHECKPOINT
def list_adapters(checkpoint: Path) -> None:
    """List the adapters: ranks, trained parameters, and their share of the backbone's."""
    for agent, adapter in _adapters(checkpoint).items():
        own = adapter.lora.num_live_parameters()
        shared = sum(p.numel() for p in adapter.backbone.parameters())
        rank = ", ".join(map(str, sorted(set(adapter.lora.live_ranks().values())))) or "dense"
        click.echo(f"{agent:<24} rank {rank:<8} {own:>9,} parameters  {own / shared:6.1%} of the backbone")


@adapters.command("export")
@CHECKPOINT
@click.argument("directory", type=click.Path(path_type=Path))
@_AGENT
def export_adapters(checkpoint: Path, directory: Path, agent: str | None) -> None:
    """Write each agent's adapter into DIRECTORY/AGENT, in PEFT's format."""
    from rllib_haml.modules.adapter_files import export_adapter

    for name, adapter in _adapters(checkpoint, agent).items():
        export_adapter(adapter, directory / name)
        click.echo(f"{directory / name}")


@adapters.command("import")
@CHECKPOINT
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--agent", required=True, help="Whose adapter it becomes.")
@click.option(
    "--any-backbone",
    is_flag=True,
    help="Also one that was made over another backbone, or, as PEFT's own, does not say over which.",
)
def import_adapter_files(
    checkpoint: Path, directory: Path, out: Path, agent: str, any_backbone: bool
) -> None:
    """Write a copy OUT of CHECKPOINT in which AGENT has the adapter in DIRECTORY.

    A run that goes on from OUT trains it with a new optimizer.
    """
    from rllib_haml.algorithms.adapter_import import check_import, replace_adapter
    from rllib_haml.checkpoints.manifest import MANIFEST, Manifest
    from rllib_haml.checkpoints.write import write_whole
    from rllib_haml.modules.adapter_files import import_adapter
    from rllib_haml.modules.adapter_fit import adopt

    (running,) = _adapters(checkpoint, agent).values()
    manifest = Manifest.loads((checkpoint / MANIFEST).read_bytes())
    if out.exists():
        raise _problem(out, "exists already: name a new directory.")
    try:
        check_import(checkpoint, agent)
    except ValueError as error:
        raise _problem(checkpoint, str(error)) from error
    try:
        given = import_adapter(directory, running.backbone, like=running, any_backbone=any_backbone)
        adopt(running, given)
    except (ValueError, OSError) as error:
        raise _problem(directory, str(error)) from error

    def write(directory: Path) -> None:
        shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
        replace_adapter(directory, agent, running)

    write_whole(out.absolute(), manifest, write)
    click.echo(f"{out}")


@adapters.command("merge")
@CHECKPOINT
@click.argument("directory", type=click.Path(path_type=Path))
@_AGENT
def merge_adapters(checkpoint: Path, directory: Path, agent: str | None) -> None:
    """Write each agent's whole policy into DIRECTORY/AGENT, an RLModule that needs no adapter."""
    for name, adapter in _adapters(checkpoint, agent).items():
        adapter.merged().save_to_path(str((directory / name).resolve()))
        click.echo(f"{directory / name}")


@adapters.command("audit")
@CHECKPOINT
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it into this picture, too.")
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=300,
    show_default=True,
    help="Joint steps to play, on which policies are compared (recurrent ones where episodes and batches "
    "begin); 0 compares weights alone.",
)
def audit(checkpoint: Path, plot: Path | None, steps: int) -> None:
    """Show how far the agents have drifted from the backbone and from each other."""
    from rllib_haml.cli.logs import set_up_logs

    set_up_logs(verbosity=0)
    from rllib_haml.modules.adapter_audit import audit_table, plot_audit
    from rllib_haml.modules.adapter_layers import layer_table

    found = _audit(checkpoint, steps)
    click.echo(f"{audit_table(found.by_agent())}\n\n{layer_table(found)}")
    if steps and found.divergence is None:
        click.echo("KL: unknown. Policies with unequal spaces are not compared, nor where nobody acted.")
    if plot is not None:
        plot_audit(found, plot)
        click.echo(f"{plot}")


def _audit(checkpoint: Path, steps: int) -> AdapterAudit:
    from rllib_haml.learners.adapter_report import are_comparable, report_adapters
    from rllib_haml.modules.adapter_drift import audit_adapters

    found = _adapters(checkpoint)
    if not steps or not are_comparable(list(found.values())):
        return audit_adapters(found)
    from rllib_haml.cli.play import observe

    joint = observe(checkpoint, steps)
    return report_adapters(found, joint, len(joint.row), (0,))


def _adapters(checkpoint: Path, agent: str | None = None) -> dict[str, Any]:
    """The adapters of a checkpoint that is whole, by agent, bound to its backbone."""
    from rllib_haml.checkpoints.policies import modules_of
    from rllib_haml.checkpoints.read import CheckpointError
    from rllib_haml.modules.adapter import Adapter

    try:
        modules = modules_of(checkpoint)
    except CheckpointError as error:
        raise ConfigError([Problem("rllib adapters", "", str(error))]) from error
    found = {name: module for name, module in modules.items() if isinstance(module, Adapter)}
    if not found:
        raise _problem(checkpoint, "has no adapters. Those of LoRASA have: `rllib train --run LoRASA`.")
    if agent is None:
        return found
    if agent not in found:
        raise _problem(checkpoint, f"has no adapter {agent!r}. {did_you_mean(agent, found)}")
    return {agent: found[agent]}


def _problem(path: Path, text: str) -> ConfigError:
    return ConfigError([Problem(str(path), "", text)])
