"""`rllib evaluate`: plays a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from rllib_haml.cli.arguments import CHECKPOINT
from rllib_haml.config.errors import ConfigError, Problem


@click.command(
    epilog="""\b
Examples:
  rllib evaluate ~/ray_results/my_experiment/HAPPO_mamujoco_.../checkpoint_000010
  rllib evaluate CHECKPOINT --episodes 100
  rllib evaluate CHECKPOINT --episodes 2 --render videos/    (one GIF per episode)
  MUJOCO_GL=egl rllib evaluate CHECKPOINT --render videos/   (MuJoCo without a display; or osmesa)
"""
)
@CHECKPOINT
@click.option("--episodes", type=click.IntRange(min=1), default=10, show_default=True)
@click.option(
    "--render",
    metavar="DIR",
    help=(
        "Write one GIF per episode into DIR. The environment's `render()` must return a uint8 array "
        "(height, width, 3); it gets `render_mode: rgb_array` in its config. MuJoCo without a display "
        "needs MUJOCO_GL=egl (or osmesa) before the command."
    ),
)
@click.option("-v", "verbosity", count=True, help="Show Ray's logs.")
def evaluate(checkpoint: Path, episodes: int, render: str | None, verbosity: int) -> None:
    """Play a checkpoint without exploration; print mean and spread over the episodes.

    This package's are verified first. RLlib's own cannot be: playing one runs the code that its pickles name.
    """
    path = checkpoint.expanduser().resolve()
    if not (path / "class_and_ctor_args.pkl").is_file():
        raise ConfigError([Problem("rllib evaluate", "", _reason(path))])
    from rllib_haml.cli.logs import set_up_logs

    set_up_logs(verbosity)
    from rllib_haml.cli.play import play

    columns: dict[str, list[float]] = {"team return": [], "length": []}
    for number, episode in enumerate(play(path, episodes, Path(render) if render else None, verbosity), 1):
        columns["team return"].append(episode.team_return)
        columns["length"].append(float(episode.length))
        line = f"episode {number:>3}  team return {episode.team_return:,.2f}  length {episode.length:,.0f}"
        for name, value in episode.outcome.items():
            columns.setdefault(name, []).append(value)
            line += f"  {name} {value:g}"
        click.echo(line)
    for name, values in columns.items():
        click.echo(f"{name:<11}  {_spread(values)}")


def _reason(path: Path) -> str:
    """Why there is no checkpoint at `path`, and where there is one."""
    from rllib_haml.checkpoints.read import CheckpointError, check_any

    try:
        check_any(path)
    except (CheckpointError, FileNotFoundError) as error:
        return str(error)
    raise AssertionError(f"{path} was read after all")


def _spread(values: list[float]) -> str:
    import statistics

    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return (
        f"mean {statistics.fmean(values):,.2f}  std {deviation:,.2f}  "
        f"min {min(values):,.2f}  max {max(values):,.2f}  ({len(values)} episodes)"
    )
