"""Scores of a class in a part of the picture: over a mask, or at one pixel of what a segmentation network returns."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.execution.precision import map_dtype
from fastviz.targets.indices import (
    Activations,
    Index,
    index_for_samples,
    index_in_range,
    required_index,
    sample_count,
)
from fastviz.targets.objectives import Objective
from fastviz.targets.outputs import maps_of

__all__ = ["pixel", "region_score"]


class _MapTarget(Objective):
    """Base of targets that read the map of class ``k``: an int, or a tensor [N]."""

    def __init__(self, k: Index) -> None:
        self.k = k

    @property
    def _key(self) -> Hashable:
        return ("maps", self.k if isinstance(self.k, int) else None)

    @property
    def parts(self) -> Mapping[Hashable, Objective] | None:
        return {self._key: self}

    def part(self, output: object) -> Tensor:
        """The map of class k [N, ...]; all maps [N, K, ...] where samples have classes of their own."""
        maps = maps_of(output)
        k = index_in_range(self.k, "k", maps.shape[0], maps.shape[1], "class") if isinstance(self.k, int) else None
        return maps if k is None else maps[:, k]

    def values(self, output: object, activations: Activations) -> Tensor:
        return self.of_parts({self._key: self.part(output)})

    def of_parts(self, parts: Mapping[Hashable, Tensor]) -> Tensor:
        maps = parts[self._key]
        if isinstance(self.k, Tensor):
            k = index_in_range(self.k, "k", maps.shape[0], maps.shape[1], "class")
            rows = torch.arange(len(maps), device=maps.device)
            maps = maps[rows, k if isinstance(k, int) else self._beside(k, maps)]
        return self._of_map(maps)

    def _of_map(self, maps: Tensor) -> Tensor:
        """Values [N] from the maps [N, ...] of the samples' classes."""
        raise NotImplementedError


class _Region(_MapTarget):
    """The mean over a mask: [H, W] for all samples, or [N, H, W]."""

    def __init__(self, k: Index, mask: Tensor) -> None:
        super().__init__(k)
        self.mask = mask

    @property
    def _is_shared(self) -> bool:
        return self.mask.dim() < 3 or len(self.mask) == 1

    @property
    def samples(self) -> int | None:
        return sample_count(self.k) if self._is_shared else len(self.mask)

    def _of_map(self, maps: Tensor) -> Tensor:
        mask = self.mask[0] if self._is_shared and self.mask.dim() >= 3 else self.mask
        if tuple(mask.shape[0 if self._is_shared else 1 :]) != tuple(maps.shape[1:]):
            given = list(self.mask.shape) if self._is_shared else list(self.mask.shape[1:])
            raise ValueError(
                f"mask should have the size of the model's maps, {list(maps.shape[1:])}, got {given}; "
                'torch.nn.functional.interpolate(mask[None, None].float(), size, mode="nearest") resizes one'
            )
        if not self._is_shared and len(mask) != len(maps):
            raise ValueError(f"mask should be [H, W], or one per sample, {len(maps)}, got {list(self.mask.shape)}")
        # Sums in 16 bits would lose small values. For an empty mask, the zero sum keeps the graph.
        wide = map_dtype(maps.dtype)
        weight = self._beside(self.mask, maps).to(wide).reshape(1 if self._is_shared else len(maps), -1)
        total = (maps.reshape(len(maps), -1).to(wide) * weight).sum(1)
        return total / weight.sum(1).clamp(min=torch.finfo(wide).tiny)

    def missing(self, output: object) -> tuple[Tensor, str] | None:
        count = len(maps_of(output))
        empty = (self.mask == 0).reshape(1 if self._is_shared else len(self.mask), -1).all(1)
        return empty.expand(count) if self._is_shared else empty, "the mask of the region is empty"

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        mask = self.mask
        if not self._is_shared:
            if len(mask) != of:
                raise ValueError(f"mask should be [H, W], or one per sample, {of}, got {list(mask.shape)}")
            mask = mask[samples.to(mask.device)]
        return _Region(index_for_samples(self.k, "k", samples, of, "class"), mask)


class _Pixel(_MapTarget):
    """The value at ``position``, a number for each dimension behind the classes."""

    def __init__(self, k: Index, position: tuple[Index, ...]) -> None:
        super().__init__(k)
        self.position = position

    @property
    def samples(self) -> int | None:
        return sample_count(self.k, *self.position)

    def _of_map(self, maps: Tensor) -> Tensor:
        if maps.dim() - 1 != len(self.position):
            raise ValueError(
                f"pixel should have {maps.dim() - 1} numbers for maps {list(maps.shape[1:])}, got {len(self.position)}"
            )
        names = ("row", "column") if len(self.position) == 2 else ("position",) * len(self.position)
        where: list[int | Tensor] = []
        for at, name, size in zip(self.position, names, maps.shape[1:], strict=True):
            index = index_in_range(at, name, len(maps), size, f"{name} of the model's maps")
            where.append(index if isinstance(index, int) else self._beside(index, maps))
        return maps[(torch.arange(len(maps), device=maps.device), *where)]

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        position = tuple(index_for_samples(at, "position", samples, of, "position") for at in self.position)
        return _Pixel(index_for_samples(self.k, "k", samples, of, "class"), position)


def region_score(k: Index, mask: Tensor) -> Objective:
    """The mean score of a class over a mask: what makes a segmentation network see class ``k`` there.

    ``Σ_p m_p S_k(p) / Σ_p m_p``, as Vinogradova, Dibrov, Myers 2020, "Towards Interpretable Semantic Segmentation via
    Gradient-weighted Class Activation Mapping", https://arxiv.org/abs/2002.11434, with a mean for their sum.

    Args:
        k: the class: an int, or a tensor of ints [N], one per sample.
        mask: where: [H, W] for all samples, or [N, H, W], one per sample, of the size of the model's maps; bool, or
            weights of 0 or more. For volumes [1 or N, D, H, W], for signals [L]. The maps are the output [N, K, H, W]
            of the model, or what it holds under ``"out"`` or ``"logits"``.

    Returns:
        An objective with one value per sample, [N]. Of an empty mask it is 0, and methods say so.

    Raises:
        TypeError: ``k`` is not whole, ``mask`` no tensor, or of a dtype that is neither bool nor floating-point and
            holds other numbers than 0 and 1.
        ValueError: a ``k`` below 0, a negative or infinite weight; when it is used, a mask of another size than the
            maps.

    >>> scores = torch.arange(8.0).view(1, 2, 2, 2)
    >>> region_score(1, torch.tensor([[True, False], [True, False]])).values({"out": scores}, {})
    tensor([5.])
    """
    checks.tensor(mask, "mask", dims=(1, 2, 3, 4), layout="[H, W] or [N, H, W]", floating=False)
    weights = mask.detach()
    if weights.is_complex():
        raise TypeError(f"mask should be bool, or weights of 0 or more, got {mask.dtype}")
    if weights.dtype != torch.bool:
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ValueError("mask should hold finite weights of 0 or more, or be bool")
        if not weights.is_floating_point() and bool((weights > 1).any()):
            raise TypeError(f"mask should be bool, or weights of 0 or more, got {mask.dtype}: give mask == class")
    return _Region(required_index(k, "k"), weights)


def pixel(k: Index, row: Index, column: Index) -> Objective:
    """The score of a class at one pixel of a segmentation network's maps: ``S_k[n, row, column]``.

    Args:
        k: the class: an int, or a tensor of ints [N], one per sample.
        row, column: of the maps that the model returns (see :func:`region_score`), ints or tensors of ints [N].

    Returns:
        An objective with one value per sample, [N].

    Raises:
        TypeError: numbers that are not whole.
        ValueError: numbers below 0, or, when it is used, that the maps do not have.

    >>> pixel(1, 0, 1).values(torch.arange(8.0).view(1, 2, 2, 2), {})
    tensor([5.])
    """
    place = required_index(row, "row"), required_index(column, "column")
    return _Pixel(required_index(k, "k"), place)
