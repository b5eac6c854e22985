"""Loading weights without RLlib's two liberties: skipped keys and rounded float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def load_exactly(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Loads `state` (arrays by name) bit for bit.

    Raises:
        ValueError: If its names or shapes are not the module's: another architecture.
    """
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"These weights are not of this network ({type(module).__name__}): was `model_config` changed "
            f"since they were saved? {error}"
        ) from error
