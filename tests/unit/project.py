"""Where the project lies, and what its pyproject.toml says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXAMPLES = {
    path.relative_to(ROOT / "tuned_examples").with_suffix("").as_posix()
    for path in (ROOT / "tuned_examples").rglob("*.yaml")
}
