"""What several learners agree on, between two real processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rllib_haml.learners.collectives import all_maximum, all_reduce, broadcast, world_size


def _speak(rank: int, store: str, told: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    told.put((rank, world_size(), *(x.tolist() for x in spoken(float(rank)))))
    dist.destroy_process_group()


def spoken(rank: float) -> list[Tensor]:
    """A sum, a maximum, two tensors of the first one's, each in place and with what it returns."""
    weight = torch.tensor([1.0 + rank, -5.0], requires_grad=True)
    total, largest, others = (torch.tensor([1.0 + 2 * rank, -rank]) for _ in range(3))
    returned = [all_reduce(total), all_maximum(largest)]
    assert returned[0] is total
    assert returned[1] is largest
    broadcast(x for x in (weight, others))
    return [total, largest, weight.detach(), others]


def test_two_learners(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    told = processes.Queue()
    target: Callable[..., None] = _speak
    store = str(tmp_path / "store")
    # One that failed would leave the other waiting for ever.
    each = [processes.Process(target=target, args=(rank, store, told), daemon=True) for rank in (0, 1)]
    for process in each:
        process.start()
    found = sorted(told.get(timeout=60) for _ in each)
    for process in each:
        process.join()
        assert process.exitcode == 0
    agreed = ([4.0, -1.0], [3.0, 0.0], [1.0, -5.0], [1.0, 0.0])
    assert found == [(0, 2, *agreed), (1, 2, *agreed)]


def test_one_learner_agrees_with_itself() -> None:
    assert world_size() == 1
    assert [x.tolist() for x in spoken(1.0)] == [[3.0, -1.0], [3.0, -1.0], [2.0, -5.0], [3.0, -1.0]]
