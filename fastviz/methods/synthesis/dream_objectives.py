"""Objectives of DeepDream: squares, matches with a guide, and sums over tiles."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fastviz.engine.optimize import TargetObjective
from fastviz.execution.differentiation import differentiate
from fastviz.targets.indices import Activations
from fastviz.targets.objectives import Objective

__all__ = ["GuidedObjective", "TiledObjective", "cuts", "squared"]

_MAX_PRODUCTS = 1 << 24
"""The maximum number of feature products in memory for a guided dream."""


def squared(objective: Objective) -> Objective:
    """Half the square of an objective, ``½h²``, whose gradient is h times that of h.

    For :func:`deep_dream` on single units and channels, like ``½‖a‖²`` for whole layers.

    Args:
        objective: any objective with one value per sample.

    Returns:
        An objective, which can be added and scaled like others.

    Raises:
        TypeError: not an objective, such as ``fastviz.neuron(...)`` or ``fastviz.class_score(...)``.

    >>> import fastviz as fv
    >>> fv.squared(fv.neuron("conv3_1", channel=7)).layers
    ('conv3_1',)
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"objective should be one such as neuron(...), got {type(objective).__name__}")
    return _Squared(objective)


class _Squared(Objective):
    def __init__(self, inner: Objective) -> None:
        self.inner = inner
        self.layers, self.predicts = inner.layers, inner.predicts

    @property
    def reads_output(self) -> bool:
        return self.inner.reads_output

    @property
    def samples(self) -> int | None:
        return self.inner.samples

    def values(self, output: object, activations: Activations) -> Tensor:
        return self.inner.values(output, activations).square() / 2

    def with_predicted(self, predicted: Tensor) -> Objective:
        return _Squared(self.inner.with_predicted(predicted))

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        return _Squared(self.inner.for_samples(samples, of))


class GuidedObjective(Objective):
    """``Σ_p max_q ⟨a_p, b_q⟩`` for a layer, with the features b [1 or N, C, Q] of guides."""

    def __init__(self, layer: str, features: Tensor) -> None:
        self.layers = (layer,)
        self.features = features

    @property
    def reads_output(self) -> bool:
        """See :class:`fastviz.targets.objectives.Objective`."""
        return False

    @property
    def samples(self) -> int | None:
        """See :class:`fastviz.targets.objectives.Objective`."""
        return len(self.features) if len(self.features) > 1 else None

    def values(self, output: object, activations: Activations) -> Tensor:
        """See :class:`fastviz.targets.objectives.Objective`."""
        maps = activations[self.layers[0]].flatten(2)
        # Finding the best match needs no graph, and is done in parts to save memory.
        with torch.no_grad():
            rows = max(1, _MAX_PRODUCTS // self.features.shape[2])
            best = torch.cat([(part.mT @ self.features).argmax(2) for part in maps.split(rows, 2)], 1)
        matches = self.features.expand(len(maps), -1, -1).gather(2, best[:, None].expand_as(maps))
        return (maps * matches).sum((1, 2))

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        """See :class:`fastviz.targets.objectives.Objective`."""
        return self if self.samples is None else GuidedObjective(self.layers[0], self.features[samples])


class TiledObjective:
    """The sum of an objective over tiles, ``side`` pixels wide, of images [n, C, H, W], one tile in memory at a time.

    Its gradient is assembled from those of the tiles, so that the graph of a tile can be freed after it.
    """

    def __init__(self, inner: TargetObjective, side: int) -> None:
        self.inner, self.side = inner, side

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """The sum for each of the ``images``, [n], in their graph."""
        total, slope = images.new_zeros(len(images)), torch.zeros_like(images)
        for down in cuts(images.shape[2], self.side):
            for across in cuts(images.shape[3], self.side):
                tile = images[..., down, across].detach().requires_grad_(images.requires_grad)
                values, _ = self.inner(tile, rows)
                total = total + values.detach()
                if images.requires_grad:
                    (found,) = differentiate(values.sum(), [tile]) if values.requires_grad else (None,)
                    if found is not None:
                        slope[..., down, across] = found
        if not images.requires_grad:
            return total
        linear = (images * slope).flatten(1).sum(1)
        return total + linear - linear.detach()


def cuts(length: int, side: int) -> list[slice]:
    """Divides a ``length`` into equal parts of about ``side`` pixels."""
    count = max(1, round(length / side))
    ends = [length * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]
