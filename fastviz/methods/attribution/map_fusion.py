"""Fusion of maps: of several layers, and of an image and its flipped and brightened copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.gradients import input_gradients
from fastviz.execution.inputs import input_batch
from fastviz.images import tensors
from fastviz.targets.selection import Target

__all__ = ["augmented", "fuse_maps", "map_size"]

_FACTORS = (0.9, 1.0, 1.1)


def fuse_maps(
    maps: Iterable[Tensor], *, how: Literal["mean", "product", "max"] = "mean", size: tuple[int, int] | None = None
) -> Tensor:
    """Fuses the maps of several layers into one: each is scaled to 0 to 1 and resized, then they are combined.

    ``"mean"`` is the method of pytorch-grad-cam, ``"product"`` that of RefineCAM (positions that are high in all
    layers), ``"max"`` that of torch-cam.

    Args:
        maps: one per layer, [N, h, w] or [N, T, h, w]; heights and widths may differ.
        how: how the values at a position are combined.
        size: height and width of the result; None is the largest height and width among the maps.

    Returns:
        [N, H, W], or [N, T, H, W], 0 to 1.

    Raises:
        TypeError, ValueError: no maps; maps that are not floating-point tensors, are not finite, or belong to different
            images.

    >>> coarse, fine = torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[0.0, 2.0, 2.0, 2.0]]])
    >>> fuse_maps([coarse, fine], how="product").tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    checks.one_of(how, "how", ("mean", "product", "max"))
    each = [checks.tensor(one, "maps") for one in maps]
    if not each:
        raise ValueError("maps should be those of at least one layer, got none")
    for one in each:
        if one.dim() not in (3, 4) or one.shape[:-2] != each[0].shape[:-2]:
            raise ValueError(
                f"maps should be [N, h, w] or [N, T, h, w] of the same images, got {[list(one.shape) for one in each]}"
            )
    height, width = map_size(size) or (max(one.shape[-2] for one in each), max(one.shape[-1] for one in each))
    scaled = torch.stack([tensors.resize_maps(tensors.normalize(one), height, width) for one in each])
    if how == "mean":
        return scaled.mean(0)
    return scaled.prod(0) if how == "product" else scaled.amax(0)


def augmented(method: Callable[..., Any], model: nn.Module, x: Tensor, target: Target = None, **options: Any) -> Tensor:
    """The mean map of an image and its flipped, darker and brighter copies, with less noise ("augmentation smoothing").

    Each of the six maps is flipped back if necessary and scaled to 0 to 1. The copies are those of pytorch-grad-cam:
    pixel values multiplied by 0.9, 1 and 1.1. All six go through the method as one batch.

    Args:
        method: a function of a model, images, a target and ``options`` that returns maps [N, h, w], such as
            :func:`fastviz.grad_cam`.
        model, x: the arguments of the method.
        target: as in :func:`fastviz.grad_cam`; for None, all copies use the class predicted for the original image.
        options: further arguments of the method; only one layer.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets per sample), 0 to 1.

    Raises:
        TypeError, ValueError: as the method; it does not return a tensor of maps.

    >>> from fastviz.methods.attribution.grad_cam import grad_cam
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> augmented(grad_cam, model, torch.ones(1, 1, 8, 8), 4).shape
    torch.Size([1, 6, 6])
    """
    images = input_batch(model, x)
    count = len(images)
    selection = targets.resolve(target, model)
    selection = input_gradients.with_predicted(model, selection, images, options.get("batch_size"))
    copies = torch.cat([each * factor for each in (images, images.flip(3)) for factor in _FACTORS])
    numbers = torch.arange(count, device=images.device).repeat(2 * len(_FACTORS))
    chosen = selection.for_samples(numbers, count)
    entries = list(chosen.objectives) if chosen.several else chosen.objectives[0]
    found = method(model, copies, entries, **options)
    if not isinstance(found, Tensor) or found.dim() not in (3, 4) or len(found) != len(copies):
        raise ValueError(f"method should give a tensor of maps [N, h, w], got {_what(found)}")
    scaled = tensors.normalize(found) if count else found
    plain, mirrored = scaled.unflatten(0, (2, len(_FACTORS), count))
    return torch.cat([plain, mirrored.flip(-1)]).mean(0)


def map_size(size: object, axes: int = 2) -> tuple[int, ...] | None:
    """The ``size`` that a caller wants for maps with this number of ``axes``, checked; None stays None."""
    if size is None:
        return None
    words = {1: "(length,)", 2: "(height, width) in pixels", 3: "(depth, height, width)"}[axes]
    if not isinstance(size, Sequence) or len(size) != axes:
        raise TypeError(f"size should be {words}, got {size!r}")
    return tuple(checks.whole_number(value, "size", minimum=1) for value in size)


def _what(found: object) -> str:
    return f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
