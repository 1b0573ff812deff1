"""Segments of images, checked: given ones, or superpixels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz.images.superpixels import superpixels

__all__ = ["SEGMENTS", "numbered", "spread"]

SEGMENTS = 50
"""Superpixels an image where nothing else is said."""


def numbered(segments: object, images: Tensor) -> tuple[Tensor, list[int]]:
    """The segments of each image, numbered from 0 without gaps, int64 [N, H, W] on its device, and how many each has.

    Args:
        segments: a tensor of whole numbers [H, W] or [N, H, W], a segment being the pixels with the same number; or
            about how many superpixels (:func:`fastviz.images.superpixels.superpixels`).
        images: [N, C, H, W].

    Raises:
        TypeError: neither, or a tensor of other values.
        ValueError: a tensor of another shape; a number below 1.
    """
    N, _, H, W = images.shape
    if isinstance(segments, int) and not isinstance(segments, bool):
        labels = superpixels(images, segments)
    elif isinstance(segments, Tensor):
        if segments.is_floating_point() or segments.is_complex() or segments.dtype == torch.bool:
            raise TypeError(f"segments should be whole numbers, got {segments.dtype}")
        if segments.shape not in ((H, W), (N, H, W)):
            raise ValueError(f"segments should have shape [{H}, {W}] or [{N}, {H}, {W}], got {list(segments.shape)}")
        labels = segments.detach().long().cpu().expand(N, H, W)
    else:
        raise TypeError(f"segments should be a number or a tensor of whole numbers, got {type(segments).__name__}")
    found = [torch.unique(each, return_inverse=True) for each in labels]
    whole = torch.stack([index for _, index in found]) if found else labels.new_zeros(0, H, W)
    return whole.to(images.device), [len(numbers) for numbers, _ in found]


def spread(values: list[Tensor], index: Tensor) -> Tensor:
    """The value of the segment that each pixel belongs to: of [S] or [T, S] an image, [N, H, W] or [N, T, H, W]."""
    return torch.stack([each[..., at] for each, at in zip(values, index, strict=True)])
