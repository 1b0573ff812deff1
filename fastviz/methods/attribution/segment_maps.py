"""The result of methods that assign a number to each segment of an image."""

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
    """A number for each segment of each image, and the map of these numbers.

    Attributes:
        attribution: [N, H, W], for each pixel the value of its segment.
        values: [N, S], the value of each segment; zeros beyond an image's number of segments.
        segments: int64 [N, H, W], the index of each pixel's segment.
        baseline: [N], the target's value for the unchanged image.
        errors: [N, S], the standard error of each value for sampling methods; else None.
        stats: how it was computed: ``evaluations`` (images that the network evaluated) and entries of the method.

    With T targets per sample, all but ``segments`` have a dimension T after N.

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
        return notebook.signed_maps(self.attribution, "baseline", self.baseline)


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
