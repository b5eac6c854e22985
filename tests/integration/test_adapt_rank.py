"""`adapt_rank` in a whole run: ranks fall, metrics tell, resuming and several learners are exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_state import assert_same_everywhere
from test_lorasa import AGENTS, config

from rllib_haml import LoRASA


def adapting(energy: float = 0.6, every: int = 2, **training: Any) -> Any:
    made = config(0, lr=1e-2, adapt_rank={"energy": energy, "every": every}, **training)
    return made.training(lora={"r": 4})


def ranks(algo: Any) -> dict[str, dict[str, int]]:
    learner = algo.learner_group._learner
    return {
        name: {target.name: rank for target, rank in learner.module[name].lora.live_ranks().items()}
        for name in sorted(AGENTS)
    }


def test_ranks_fall_and_stay_down(ray_cluster: None, tmp_path: Path) -> None:
    """The reported rank is that after the iteration; sampler and learner still agree."""
    algo = adapting().build_algo()
    results: list[Any] = [algo.train() for _ in range(2)]
    fallen = ranks(algo)
    assert [results[i]["learners"]["agent_0"]["adapter_rank"] for i in (0, 1)] == [
        4,
        np.mean(list(fallen["agent_0"].values())),
    ]
    assert min(min(of.values()) for of in fallen.values()) >= 1
    assert all(rank < 4 for of in fallen.values() for rank in of.values())
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    results.append(algo.train())
    assert ranks(algo) == fallen, "no iteration to adapt in, and nothing comes back"
    assert all(results[-1]["learners"][name]["behaviour_gap"] < 1e-4 for name in AGENTS)
    results.append(algo.train())
    assert all(
        after <= before
        for name in AGENTS
        for after, before in zip(ranks(algo)[name].values(), fallen[name].values(), strict=True)
    )
    resumed = LoRASA.from_checkpoint(path)
    for _ in range(2):
        resumed.train()
    assert_same_everywhere(algo, resumed)
    algo.stop()
    resumed.stop()


def test_several_learners_drop_the_same(ray_cluster: None) -> None:
    algo = adapting(every=1).learners(num_learners=2).build_algo()
    result: Any = algo.train()

    def state(learner: Any) -> dict[str, np.ndarray]:
        return {k: v.numpy() for name in sorted(AGENTS) for k, v in learner.module[name].state_dict().items()}

    first, second = (answer.get() for answer in algo.learner_group.foreach_learner(state))
    assert all(np.array_equal(value, second[key]) for key, value in first.items())
    assert all(result["learners"][name]["adapter_rank"] < 4 for name in AGENTS)
    algo.stop()


@pytest.mark.parametrize(
    "training, message",
    [
        ({"adapt_rank": {"budget": 10}}, r"budget=10: one direction for each layer.* take \d+ parameters"),
        ({"adapt_rank": {"rank": 2}}, "adapt_rank has no key 'rank'"),
        ({"adapt_rank": {}, "adapter_mode": "dense_delta"}, "trains no low-rank adapters: leave it out"),
    ],
)
def test_what_cannot_be_adapted(ray_cluster: None, training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(0, **training).build_algo()
