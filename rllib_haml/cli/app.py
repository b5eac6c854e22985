"""The command group: what `rllib` knows, and how it reports mistakes."""

from __future__ import annotations

from typing import Any

import click

from rllib_haml.cli.adapters import adapters
from rllib_haml.cli.evaluate import evaluate
from rllib_haml.cli.example import example
from rllib_haml.cli.train import train
from rllib_haml.cli.validate import validate
from rllib_haml.config.errors import ConfigError


class _Group(click.Group):
    """Prints mistakes of a configuration one per line, and exits with code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(f"{click.style('error', fg='red')}: {problem}", err=True)
            ctx.exit(2)


@click.group(
    cls=_Group,
    epilog="""\b
Try:
  rllib example list
  rllib train --run PPO --env CartPole-v1 --stop '{"training_iteration": 5}'
""",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="rllib-haml")
def rllib() -> None:
    """Train, evaluate and check RLlib algorithms: this package's and RLlib's own."""


for command in (train, evaluate, validate, example, adapters):
    rllib.add_command(command)
