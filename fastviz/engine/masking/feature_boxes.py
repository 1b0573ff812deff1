"""Features of a mask as boxes, grouped so that several share the picture they are covered with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Layer", "Segments", "segments"]

_MAX_LAYERS = 32


@dataclass(frozen=True)
class Layer:
    """Features whose boxes do not overlap in the same mask, so that one picture with all of them covered serves each.

    Attributes:
        boxes: int64 [B, 4], top, left, bottom, right of each.
        features: int64 [B], the feature of each box.
        masks: int64 [B], the mask of each box.
        covered: bool [masks, C, H, W], the values that belong to any of them.
    """

    boxes: Tensor
    features: Tensor
    masks: Tensor
    covered: Tensor


@dataclass(frozen=True)
class Segments:
    """A feature mask.

    Attributes:
        index: int64 [masks, C, H, W], the number of the feature that each value belongs to.
        count: number of features.
        layers: all features of all masks, each in one layer.
    """

    index: Tensor
    count: int
    layers: list[Layer]


def segments(mask: Tensor) -> Segments | None:
    """The features of ``mask`` [masks, C, H, W], renumbered from 0; None if too many of their boxes overlap.

    >>> found = segments(torch.tensor([[[[7, 7, 2], [7, 7, 2]]]]))
    >>> found.index.tolist(), [layer.boxes.tolist() for layer in found.layers]
    ([[[[1, 1, 0], [1, 1, 0]]]], [[[0, 2, 2, 3], [0, 0, 2, 2]]])
    """
    numbers, index = torch.unique(mask.cpu(), return_inverse=True)
    boxes = _boxes(index, len(numbers))
    present = (boxes[:, 2] > boxes[:, 0]).nonzero().flatten()
    layer_of = _layers(boxes[present].tolist(), (present // len(numbers)).tolist(), mask.shape)
    if layer_of is None:
        return None
    assigned = torch.full((len(boxes),), -1)
    assigned[present] = torch.tensor(layer_of)
    value_layers = assigned[_keys(index, len(numbers))]
    layers = []
    for number in range(max(layer_of) + 1):
        chosen = (assigned == number).nonzero().flatten()
        covered = value_layers == number
        layers.append(Layer(boxes[chosen], chosen % len(numbers), chosen // len(numbers), covered))
    return Segments(index, len(numbers), layers)


def _keys(index: Tensor, count: int) -> Tensor:
    """Feature numbers that are unique over all masks, [masks, C, H, W]."""
    return index + count * torch.arange(len(index))[:, None, None, None]


def _boxes(index: Tensor, count: int) -> Tensor:
    """The bounding box of each feature in each mask, [masks · count, 4]; empty if the mask lacks the feature."""
    keys = _keys(index, count).flatten()
    boxes = torch.zeros(len(index) * count, 4, dtype=torch.int64)
    for axis in range(2):
        size = index.shape[2 + axis]
        places = torch.arange(size).view(-1, 1) if axis == 0 else torch.arange(size)
        flat = places.expand(index.shape).flatten()
        boxes[:, axis] = torch.full((len(boxes),), size).scatter_reduce(0, keys, flat, "amin")
        boxes[:, 2 + axis] = torch.full((len(boxes),), -1).scatter_reduce(0, keys, flat, "amax") + 1
    return boxes


def _layers(boxes: list[list[int]], masks: list[int], shape: torch.Size) -> list[int] | None:
    """The first layer for each box in which no box of its mask overlaps it; None if too many layers are needed."""
    occupied: list[list[np.ndarray]] = [[] for _ in range(shape[0])]
    found = []
    for (top, left, bottom, right), mask in zip(boxes, masks, strict=True):
        number = next(
            (at for at, used in enumerate(occupied[mask]) if not used[top:bottom, left:right].any()),
            len(occupied[mask]),
        )
        if number == _MAX_LAYERS:
            return None
        if number == len(occupied[mask]):
            occupied[mask].append(np.zeros(shape[2:], dtype=bool))
        occupied[mask][number][top:bottom, left:right] = True
        found.append(number)
    return found
