"""What methods give that put one number on each segment of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastviz.engine.masking.coalitions import Coalitions
from fastviz.engine.masking.segments import spread
from fastviz.execution.precision import map_dtype
from fastviz.images import notebook

__all__ = ["SegmentMap", "segment_map"]


@dataclass(frozen=True, eq=False, repr=False)
class SegmentMap(notebook.NotebookResult):
    """A number for each segment of each image, and the map of them.

    Attributes:
        attribution: [N, H, W], the number of the segment that each pixel belongs to.
        values: [N, S], the numbers; zeros beyond an image's own number of segments.
        segments: int64 [N, H, W], the segment of each pixel.
        baseline: [N], the target of the image as it is.
        errors: [N, S], the standard error of each number, for methods that draw samples; else None.
        stats: how it was computed: ``evaluations`` (pictures that the network saw), and what the method adds.

    With T targets a sample there is a dimension T behind N, in all but ``segments``.

    >>> index = torch.zeros(1, 2, 2, dtype=torch.int64)
    >>> SegmentMap(torch.ones(1, 2, 2), torch.ones(1, 1), index, torch.ones(1)).segments.shape
    torch.Size([1, 2, 2])
    """

    attribution: Tensor
    values: Tensor
    segments: Tensor
    baseline: Tensor
    errors: Tensor | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        maps, values = self.attribution.flatten(0, -3), self.baseline.flatten().tolist()
        captions = (f"{number}: {notebook.words(baseline=value)}" for number, value in enumerate(values))
        return [(caption, notebook.signed(each)) for caption, each in zip(captions, maps, strict=True)]


def segment_map(cut: Coalitions, values: list[Tensor], errors: list[Tensor] | None = None, **stats: Any) -> SegmentMap:
    """The result for the ``values`` of each image, [S] or [T, S]."""
    clean, dtype = cut.scores.clean, map_dtype(cut.images.dtype)
    if not values:
        maps = clean.new_zeros(*clean.shape, *cut.images.shape[2:])
        return SegmentMap(maps, clean.new_zeros(*clean.shape, 0), cut.index, clean, None, stats)
    attribution = spread([each.to(dtype) for each in values], cut.index)
    return SegmentMap(
        attribution, _padded(values, dtype), cut.index, clean, None if errors is None else _padded(errors, dtype), stats
    )


def _padded(values: list[Tensor], dtype: torch.dtype) -> Tensor:
    most = max(each.shape[-1] for each in values)
    return torch.stack([torch.nn.functional.pad(each.to(dtype), (0, most - each.shape[-1])) for each in values])
