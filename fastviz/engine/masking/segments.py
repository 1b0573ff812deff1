"""Segments of images: given ones, checked, or superpixels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz.images.superpixels import superpixels

__all__ = ["SEGMENTS", "label_maps", "numbered", "spread"]

SEGMENTS = 50
"""The default number of superpixels per image."""


def label_maps(labels: Tensor, argument: str, images: Tensor) -> Tensor:
    """``labels`` [H, W] or [N, H, W] of the pixels of the ``images``, checked, as int64 [1 or N, H, W].

    Raises:
        TypeError: not whole numbers; the message names the ``argument``.
        ValueError: another shape.
    """
    N, _, H, W = images.shape
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{argument} should be whole numbers, got {labels.dtype}")
    if labels.shape not in ((H, W), (N, H, W)):
        raise ValueError(f"{argument} should have shape [{H}, {W}] or [{N}, {H}, {W}], got {list(labels.shape)}")
    return labels.detach().long().reshape(-1, H, W)


def numbered(segments: object, images: Tensor) -> tuple[Tensor, list[int]]:
    """The segments of each image, numbered from 0 without gaps, int64 [N, H, W] on its device, and how many each has.

    Args:
        segments: a tensor of whole numbers [H, W] or [N, H, W], where pixels with the same number form a segment; or
            the approximate number of superpixels (:func:`fastviz.images.superpixels.superpixels`).
        images: [N, C, H, W].

    Raises:
        TypeError: neither, or a tensor of other values.
        ValueError: a tensor of another shape; a number below 1.
    """
    N, _, H, W = images.shape
    if isinstance(segments, int) and not isinstance(segments, bool):
        labels = superpixels(images, segments)
    elif isinstance(segments, Tensor):
        labels = label_maps(segments, "segments", images).cpu().expand(N, H, W)
    else:
        raise TypeError(f"segments should be a number or a tensor of whole numbers, got {type(segments).__name__}")
    found = [torch.unique(each, return_inverse=True) for each in labels]
    whole = torch.stack([index for _, index in found]) if found else labels.new_zeros(0, H, W)
    return whole.to(images.device), [len(numbers) for numbers, _ in found]


def spread(values: list[Tensor], index: Tensor) -> Tensor:
    """The value of each pixel's segment, [N, H, W] or [N, T, H, W], from values [S] or [T, S] per image."""
    return torch.stack([each[..., at] for each, at in zip(values, index, strict=True)])
