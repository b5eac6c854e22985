"""Images among observations: where they lie in the flattened rows, and the convolutions that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rllib_haml.modules.encoders import flat_size
from rllib_haml.modules.model_config import ModelConfig

# Convolutions stop where an image is no larger: the layers after them see the rest as numbers.
SMALL = 6


@dataclass(frozen=True)
class Image:
    """A part of the vectors of `encoders.flatten_rows` that is an image, channels last.

    Attributes:
        start: Its first column.
        shape: (height, width, channels).
        scale: What its numbers are multiplied by: 1/255 for bytes.
    """

    start: int
    shape: tuple[int, int, int]
    scale: float

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape))


def find_images(space: gym.Space, start: int = 0) -> list[Image]:
    """The boxes of rank 3 in `space`, in order; those within 0 and 255 are bytes, of whatever type.

    Args:
        start: Column at which the vectors of `space` begin.
    """
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        height, width, channels = space.shape
        is_bytes = bool((space.low == 0).all() and (space.high == 255).all())
        return [Image(start, (height, width, channels), 1 / 255 if is_bytes else 1.0)]
    parts = list(space.values()) if isinstance(space, spaces.Dict) else []
    parts = list(space) if isinstance(space, spaces.Tuple) else parts
    found: list[Image] = []
    for part in parts:
        found += find_images(part, start)
        start += flat_size(part)
    return found


def image_layers(inputs: int, images: Sequence[Image], config: ModelConfig) -> tuple[list[nn.Module], int]:
    """What stands before `encoders.mlp` in a network on vectors with images in them.

    Args:
        inputs: Width of the vectors.

    Returns:
        One `ImageEncoder`, or nothing where there are no images, and the width that results.
    """
    if not images:
        return [], inputs
    encoder = ImageEncoder(inputs, images, config)
    return [encoder], encoder.out_features


class ImageEncoder(nn.Module):
    """(..., inputs) vectors → (..., out_features): images as convolutions see them, after all else.

    Images of equal shape go through the same convolutions, padded so that a stride s divides a side by s,
    rounded up (RLlib's "same" padding); relu after each.

    Attributes:
        layout: What tells it from encoders of other vectors.
        out_features: Width of the result.
    """

    def __init__(self, inputs: int, images: Sequence[Image], config: ModelConfig):
        super().__init__()
        self.layout = (inputs, *images)
        shapes = list(dict.fromkeys(image.shape for image in images))
        self._groups = [[image for image in images if image.shape == shape] for shape in shapes]
        self.convolutions = nn.ModuleList()
        starts, stops = [0, *(i.stop for i in images)], [*(i.start for i in images), inputs]
        self._others = list(zip(starts, stops, strict=True))
        self.out_features = sum(stop - start for start, stop in self._others)
        for shape, group in zip(shapes, self._groups, strict=True):
            filters = default_filters(shape) if config.conv_filters is None else config.conv_filters
            layers, size = convolutions(shape, filters, config.orthogonal_init)
            self.convolutions.append(layers)
            self.out_features += size * len(group)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        parts = [rows[:, start:stop] for start, stop in self._others]
        for layers, group in zip(self.convolutions, self._groups, strict=True):
            seen = [rows[:, i.start : i.stop].unflatten(1, i.shape) * i.scale for i in group]
            features = layers(torch.cat(seen).movedim(-1, 1)).flatten(1)
            parts += features.chunk(len(group)) if len(rows) else [features] * len(group)
        return torch.cat(parts, dim=-1).unflatten(0, x.shape[:-1])


def default_filters(shape: tuple[int, int, int]) -> list[list[Any]]:
    """[channels, kernel, stride] of layers that halve the image down to `SMALL`: 16, 32, then 64 channels."""
    filters: list[list[Any]] = []
    side = max(shape[:2])
    while side > SMALL:
        filters.append([min(64, 16 << len(filters)), 4, 2])
        side = -(-side // 2)
    return filters


def convolutions(
    shape: tuple[int, int, int], filters: Sequence[Sequence[Any]], orthogonal_init: bool
) -> tuple[nn.Sequential, int]:
    """(R, channels, height, width) → (R, ...) features, and how many numbers these are.

    Orthogonal weights have relu's gain; biases are then 0.
    """
    height, width, channels = shape
    layers: list[nn.Module] = []
    for out_channels, kernel, stride in filters:
        (kernel_h, kernel_w), (stride_h, stride_w) = _pair(kernel), _pair(stride)
        (top, bottom), height = _same(height, kernel_h, stride_h)
        (left, right), width = _same(width, kernel_w, stride_w)
        layer = nn.Conv2d(channels, out_channels, (kernel_h, kernel_w), (stride_h, stride_w))
        if orthogonal_init:
            nn.init.orthogonal_(layer.weight, nn.init.calculate_gain("relu"))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        layers += [nn.ZeroPad2d((left, right, top, bottom)), layer, nn.ReLU()]
        channels = out_channels
    return nn.Sequential(*layers), height * width * channels


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _same(side: int, kernel: int, stride: int) -> tuple[tuple[int, int], int]:
    """Padding before and after, and the side that results: side / stride, rounded up."""
    result = -(-side // stride)
    missing = max((result - 1) * stride + kernel - side, 0)
    return (missing // 2, missing - missing // 2), result
