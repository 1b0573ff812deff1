"""Windows of clean maps with dirty crops pasted in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._checks import MOST_VALUES, called, check_like, check_supported, image_index_of, integers
from fastviz.ops._native import native
from fastviz.ops._registration import new_like, refuse_derivative

__all__ = ["splice", "spliced"]


def splice(
    clean: Tensor,
    dirty: Tensor,
    dirty_origin: Tensor,
    window_origin: Tensor,
    window_size: tuple[int, ...],
    image_index: Tensor | None = None,
    pad_value: float = 0.0,
) -> Tensor:
    """Windows of clean maps with dirty crops pasted in: the gather of incremental inference.

    The value of window p at ``(y, x) = window_origin[p] + (i, j)`` is that of ``dirty[p]`` where the crop, which begins
    at ``dirty_origin[p]``, has one and the map reaches; else that of ``clean[image_index[p]]`` where the map reaches;
    else ``pad_value``. Not differentiable: sweeps need no gradients.

    Args:
        clean: [N, C, H, W], the maps of the unchanged images; or those of signals [N, C, L], or of volumes
            [N, C, D, H, W].
        dirty: [P, C, h, w], what changed in each window; of signals [P, C, l], of volumes [P, C, d, h, w].
        dirty_origin: [P, 2], integers: row and column of the crop in the map; may be negative. Of signals [P, 1], of
            volumes [P, 3].
        window_origin: the same for the window.
        window_size: height and width of the windows, in values of the map; (length,) for signals, depth, height and
            width for volumes.
        image_index: [P], integers; may be left out for one map. Out of range: see :func:`occlude`.
        pad_value: what stands outside of the map.

    Returns:
        [P, C, *window_size], in the memory order of ``clean``.

    Raises:
        TypeError, ValueError: a shape, dtype or device that does not fit, with the name of the argument.

    Example:
        >>> clean, dirty = torch.ones(1, 1, 2, 2), torch.full((1, 1, 1, 1), 5.0)
        >>> at = torch.tensor([[0, 0]])
        >>> splice(clean, dirty, at, at - 1, (3, 3)).tolist()
        [[[[0.0, 0.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 1.0]]]]
    """
    checks.image_batch(clean, "clean", axes=(1, 2, 3))
    axes = clean.dim() - 2
    checks.image_batch(dirty, "dirty", axes=(axes,))
    check_supported(clean, "clean")
    check_like(dirty, "dirty", clean, "clean")
    if dirty.shape[1] != clean.shape[1]:
        raise ValueError(f"dirty should have the {clean.shape[1]} channels of clean, got {dirty.shape[1]}")
    windows = dirty.shape[0]
    origins = []
    for origin, argument in ((dirty_origin, "dirty_origin"), (window_origin, "window_origin")):
        origin = integers(origin, argument, clean, "clean", f"[P, {axes}]", dims=2)
        if origin.shape[0] != windows or origin.shape[1] != axes:
            raise ValueError(f"{argument} should have shape [{windows}, {axes}], got {list(origin.shape)}")
        origins.append(origin)
    fits = isinstance(window_size, (tuple, list)) and len(window_size) == axes
    if not fits or any(not isinstance(side, (int, torch.SymInt)) or side < 0 for side in window_size):
        raise ValueError(f"window_size should be {_SIZES[axes]} of at least 0, got {window_size!r}")
    if not isinstance(pad_value, (int, float)):
        raise TypeError(f"pad_value should be a number, got {pad_value!r}")
    if math.prod((windows, clean.shape[1], *window_size)) > MOST_VALUES:
        raise ValueError(f"window_size should be so small that memory holds {windows} such windows, got {window_size}")
    image_index = image_index_of(image_index, clean, "clean", windows)
    return called(spliced, clean, dirty, *origins, window_size, image_index, float(pad_value))


def spliced(
    clean: Tensor,
    dirty: Tensor,
    dirty_origin: Tensor,
    window_origin: Tensor,
    window_size: tuple[int, ...],
    image_index: Tensor | None,
    pad_value: float,
) -> Tensor:
    """:func:`splice` without its checks of arguments, which take longer than the copy of a few small windows."""
    size = list(window_size)
    if clean.dim() > 3:
        found: Tensor = native.splice(clean, dirty, dirty_origin, window_origin, size, image_index, pad_value)
        return found
    # a signal is a picture of one row, where its windows begin
    clean, dirty, size = clean.unsqueeze(2), dirty.unsqueeze(2), [1, *size]
    found = native.splice(clean, dirty, dirty_origin, window_origin, size, image_index, pad_value)
    return found.squeeze(2)


_SIZES = {1: "a length", 2: "a height and a width", 3: "a depth, a height and a width"}


@torch.library.register_fake("fastviz::splice")
def _splice_fake(
    clean: Tensor,
    dirty: Tensor,
    dirty_origin: Tensor,
    window_origin: Tensor,
    window_size: list[int],
    image_index: Tensor | None,
    pad_value: float,
) -> Tensor:
    return new_like(clean, (dirty.shape[0], clean.shape[1], *window_size))


refuse_derivative("splice")
