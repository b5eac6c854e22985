"""What every unit test has in common: one torch thread, and no Ray of its own."""

from __future__ import annotations

import pytest
import ray
import torch

# The tests' tensors are tiny, and threads cost more than they give.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def the_sessions_ray_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is tried in this process ends with `ray.shutdown`; others still need theirs."""
    monkeypatch.setattr(ray, "shutdown", lambda *_, **__: None)
