"""`rllib example`: the tuned examples that come with the package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from rllib_haml.cli.options import TrainOptions, train_options
from rllib_haml.cli.train import train_document
from rllib_haml.config.document import read_file
from rllib_haml.config.errors import ConfigError, Problem, did_you_mean

# In a checkout a link to the directory of the same name; in an installed package, files.
_DIRECTORY = Path(__file__).parents[1] / "tuned_examples"


@click.group(
    epilog="""\b
Examples:
  rllib example list
  rllib example get happo/mpe_spread > mine.yaml
  rllib example run happo/mpe_spread --seed 1
"""
)
def example() -> None:
    """List, print or run the tuned examples."""


@example.command("list")
def list_examples() -> None:
    """List the examples with their first comment."""
    for identifier, path in _examples().items():
        click.echo(f"{identifier:<40} {_first_comment(path)}".rstrip())


@example.command("get")
@click.argument("identifier", metavar="ID")
def get_example(identifier: str) -> None:
    """Print the YAML of an example."""
    click.echo(_find(identifier).read_text(encoding="utf-8"), nl=False)


@example.command("run")
@click.argument("identifier", metavar="ID")
@train_options
def run_example(identifier: str, **options: Any) -> None:
    """Train an example; takes the options of `rllib train`."""
    train_document(read_file(_find(identifier)), TrainOptions(**options))


def _examples() -> dict[str, Path]:
    paths = sorted(_DIRECTORY.glob("**/*.yaml"))
    return {path.relative_to(_DIRECTORY).with_suffix("").as_posix(): path for path in paths}


def _find(identifier: str) -> Path:
    examples = _examples()
    name = identifier.removesuffix(".yaml")
    if name not in examples:
        text = f"there is no such example. {_hint(name, examples)}"
        raise ConfigError([Problem("rllib example", identifier, text)])
    return examples[name]


def _hint(name: str, examples: Iterable[str]) -> str:
    """All that are called so, whatever their algorithm; else all whose names hold it; else the nearest."""
    same = [example for example in examples if example.rpartition("/")[2] == name]
    matches = same or [example for example in examples if name in example]
    return f"Name one of: {', '.join(matches)}." if matches else did_you_mean(name, examples)


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
