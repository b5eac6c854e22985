"""What the README promises by name exists, and its commands are those that are run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rllib_haml.algorithms.ppo_keys import OWN_MEANING, REFUSED, SAME

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


READMES = [README, *(file.read_text() for file in sorted((ROOT / "tests").glob("*/README.md")))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_file_that_is_named_exists() -> None:
    named = {
        name
        for text in READMES
        for name in re.findall(r"(?:tuned_examples|tests|docker|rllib_haml)/[\w./-]*\w", text)
    }
    assert len(named) > 40
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "rllib_haml/algorithms/README.md",
        *(f"tests/{d}/README.md" for d in ("learning", "benchmarks", "faults")),
    ],
)
def test_every_link_leads_somewhere(file: str) -> None:
    text = (ROOT / file).read_text()
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """The names that a Markdown page's headings get."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("key", sorted({*SAME, *OWN_MEANING, *REFUSED}))
def test_the_table_tells_the_fate_of_each_key_of_ppo(key: str) -> None:
    rows = [
        line for line in README.splitlines() if line.startswith("| `") and f"`{key}`" in line.split("|")[1]
    ]
    assert len(rows) == 1
    fate = rows[0].split("|")[2].strip()
    assert fate == ("the same" if key in SAME else OWN_MEANING.get(key) or f"refused: {REFUSED[key].instead}")


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_names_of_new_keys_are_those_of_the_code() -> None:
    from dataclasses import fields

    from rllib_haml import HAPPOConfig
    from rllib_haml.modules.model_config import ModelConfig

    section = README.split("## Settings")[1].split("What became")[0]
    named = set(re.findall(r"`(\w+)`", section)) - {"model_config"}
    of_training = {name for name in vars(HAPPOConfig()) if name in named}
    assert named == of_training | {field.name for field in fields(ModelConfig)}
