"""What is wrong with a configuration, said so that it can be put right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rllib_haml.nearest import nearest


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, under which key, and what to do about it."""

    where: str
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.text) if part)


class ConfigError(ValueError):
    """All mistakes found in one configuration, one per line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """A sentence that names the option nearest to `name`, or else lists a few of them."""
    names = sorted(set(options))
    if near := nearest(name, names):
        return f"Did you mean `{near}`?"
    if not names:
        return ""
    return f"Valid: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."
