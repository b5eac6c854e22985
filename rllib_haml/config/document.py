"""Reading YAML so that every key knows the line on which it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rllib_haml.config.errors import ConfigError, Problem

KeyPath = tuple[Any, ...]


@dataclass
class Document:
    """Nested plain data, and for every key path in it the place where it was written."""

    name: str
    data: Any
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """The place of `path`, or that of the nearest key above it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)

    def error(self, path: KeyPath, text: str) -> None:
        """Notes a mistake at `path`; `raise_problems` reports all of them together."""
        key = ".".join(str(part) for part in path if not isinstance(part, int))
        self.problems.append(Problem(self.where(path), key, text))

    def raise_problems(self) -> None:
        """Raises a ConfigError if any mistake was noted."""
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))

    def override(self, path: KeyPath, value: Any, place: str) -> None:
        """Sets `value` at `path`; mappings are merged key by key, anything else is replaced."""
        if isinstance(value, dict) and isinstance(self._get(path), dict):
            for key, item in value.items():
                self.override((*path, key), item, place)
            return
        parent = self.data
        for key in path[:-1]:
            if parent.get(key) is None:
                parent[key] = {}
            parent = parent[key]
            if not isinstance(parent, dict):
                return  # a mistake in the file, which stays for the parser to find
        parent[path[-1]] = value
        self.places = {p: at for p, at in self.places.items() if p[: len(path)] != path}
        self.places[path] = place

    def remove(self, path: KeyPath) -> None:
        """Removes the key at `path` if it is there."""
        parent = self._get(path[:-1])
        if isinstance(parent, dict):
            parent.pop(path[-1], None)

    def rename_only(self, name: str, place: str) -> None:
        """Gives the document's only top-level key another name."""
        if len(self.data) > 1:
            self.error((), f"{place} names one experiment, but there are {len(self.data)} here.")
            self.raise_problems()
        [(old, value)] = self.data.items()
        self.data = {name: value}
        self.places = {(name, *p[1:]) if p[:1] == (old,) else p: at for p, at in self.places.items()}

    def _get(self, path: KeyPath) -> Any:
        node = self.data
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node


def read_file(path: str | Path) -> Document:
    """Reads a YAML file.

    Raises:
        ConfigError: The file cannot be read or is no valid YAML, or a key stands in it twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}.")]) from error
    except UnicodeDecodeError as error:
        text = f"is no text in UTF-8 (byte {error.start}). Save it as UTF-8; is it a YAML file?"
        raise ConfigError([Problem(str(path), "", text)]) from error
    return read_text(text, str(path))


def read_text(text: str, name: str) -> Document:
    """Parses YAML (and with it JSON) text; `name` is what messages call it."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(name, None)
        _refuse_duplicates(node, name)
        data = loader.construct_document(node)
        lines = {path: f"{name}:{line}" for path, line in _walk(node, (), loader)}
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, name)]) from error
    except RecursionError as error:
        text = "an alias (`*name`) stands within what it names. Write out what is meant."
        raise ConfigError([Problem(name, "", text)]) from error
    return Document(name, data, lines)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `5e-4` and `1e6` as numbers, as YAML 1.2 does and YAML 1.1 does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _refuse_duplicates(node: yaml.Node, name: str) -> None:
    children = _children(node)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            # `<<` merges a mapping in, which may rightly happen several times.
            if key.value != "<<" and str(key.value) in first:
                text = f"stands here a second time (first on line {first[key.value]}). Delete one."
                raise ConfigError([Problem(f"{name}:{line}", key.value, text)])
            first[str(key.value)] = line
    for child in children:
        _refuse_duplicates(child, name)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _walk(node: yaml.Node, path: KeyPath, loader: _Loader) -> Iterator[tuple[KeyPath, int]]:
    """Key paths with their lines. A path inside a list carries the index of the element."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, loader.construct_object(key, deep=True))
            yield from _walk(value, here, loader)
            yield here, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*path, index), loader)


def _syntax_problem(error: yaml.YAMLError, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Problem(where, "", f"not valid YAML: {what}. Check indentation, colons and brackets.")
