"""Features of a mask as boxes that can be covered one at a time with pictures that several of them share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Layer", "Segments", "segments"]

_MOST_LAYERS = 32


@dataclass(frozen=True)
class Layer:
    """Features whose boxes do not overlap in the same mask: one picture with all of them covered serves them all.

    Attributes:
        boxes: int64 [B, 4]: top, left, bottom, right of each.
        features: int64 [B], their numbers.
        masks: int64 [B], the mask that each is of.
        covered: bool [masks, C, H, W], the values of all of them.
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
        layers: all features of all masks, each in one of them.
    """

    index: Tensor
    count: int
    layers: list[Layer]


def segments(mask: Tensor) -> Segments | None:
    """The features of ``mask`` [masks, C, H, W], whatever their numbers; None if too many of their boxes overlap.

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
    """Numbers that tell the features of different masks apart, [masks, C, H, W]."""
    return index + count * torch.arange(len(index))[:, None, None, None]


def _boxes(index: Tensor, count: int) -> Tensor:
    """The smallest box around each feature of each mask, [masks · count, 4]; an empty one where a mask lacks it."""
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
    """For each box the first layer in which no box of the same mask overlaps it; None if that takes too many."""
    taken: list[list[np.ndarray]] = [[] for _ in range(shape[0])]
    found = []
    for (top, left, bottom, right), mask in zip(boxes, masks, strict=True):
        number = next(
            (at for at, used in enumerate(taken[mask]) if not used[top:bottom, left:right].any()), len(taken[mask])
        )
        if number == _MOST_LAYERS:
            return None
        if number == len(taken[mask]):
            taken[mask].append(np.zeros(shape[2:], dtype=bool))
        taken[mask][number][top:bottom, left:right] = True
        found.append(number)
    return found
