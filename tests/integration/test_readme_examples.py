"""The README's environment, its training in Python and its use of the policies run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readmes_python_runs(
    ray_cluster: Any,
    stopping: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment, training, playing = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "meeting.py").write_text(environment)
    monkeypatch.syspath_prepend(tmp_path)
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(compile(training, "README.md", "exec"), names)
    stopping.append(names["algo"])
    returns = [float(line) for line in capsys.readouterr().out.split() if re.fullmatch(r"-?\d+\.\d+", line)]
    assert len(returns) == 5
    assert np.isfinite(returns).all()
    assert returns[-1] > returns[0], "random walkers meet seldom; five updates must show"
    exec(compile(playing, "README.md", "exec"), names)
    assert names["env"].time == 20
    assert set(names["rewards"]) == {"ann", "bob"}
