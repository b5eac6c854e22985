"""All that a running algorithm consists of, to compare two of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def everything(algo: Any) -> dict[str, np.ndarray]:
    """Weights, optimizer moments and counters of the learner; weights and generator of the sampler."""
    learner = algo.learner_group._learner
    found = {}
    for name, module in learner.module.items():
        found |= {f"{name}/{k}": v.numpy().copy() for k, v in module.state_dict().items()}
    for name, optimizer in learner._named_optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"{name}/{index}/{k}": np.array(v) for k, v in state.items()}
        found[f"{name}/lr"] = np.array([float(g["lr"]) for g in optimizer.param_groups])
    for name, module in algo.env_runner.module.items():
        found |= {f"sampler/{name}/{k}": v.numpy().copy() for k, v in module.state_dict().items()}
    found["generator"] = algo.env_runner._generator.get_state().numpy()
    return found


def assert_same_everywhere(one: Any, other: Any) -> None:
    """Two running algorithms are equal to the last bit."""
    expected, found = everything(one), everything(other)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(value, found[key], err_msg=key)
