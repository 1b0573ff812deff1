"""One map of several: of several layers, and of an image and its flipped and brightened copies."""

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

__all__ = ["augmented", "fuse_maps", "height_and_width"]

_FACTORS = (0.9, 1.0, 1.1)


def fuse_maps(
    maps: Iterable[Tensor], *, how: Literal["mean", "product", "max"] = "mean", size: tuple[int, int] | None = None
) -> Tensor:
    """One map of those of several layers: each is scaled to 0 to 1 and resized, then they are brought together.

    ``"mean"`` is the way of pytorch-grad-cam, ``"product"`` that of RefineCAM (places that all layers find),
    ``"max"`` that of torch-cam.

    Args:
        maps: of each layer [N, h, w], or [N, T, h, w]; heights and widths may differ.
        how: what is made of the values of a place.
        size: height and width of the result; None is the largest height and width among the maps.

    Returns:
        [N, H, W], or [N, T, H, W], 0 to 1.

    Raises:
        TypeError, ValueError: no maps; maps that are no floating-point tensors, of different images, or not finite.

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
    height, width = height_and_width(size) or (max(one.shape[-2] for one in each), max(one.shape[-1] for one in each))
    scaled = torch.stack([tensors.resize_maps(tensors.normalize(one), height, width) for one in each])
    if how == "mean":
        return scaled.mean(0)
    return scaled.prod(0) if how == "product" else scaled.amax(0)


def augmented(method: Callable[..., Any], model: nn.Module, x: Tensor, target: Target = None, **options: Any) -> Tensor:
    """The mean map of an image, its mirror image, and both darker and brighter: less noise ("augmentation smoothing").

    Each of the six maps is mirrored back and scaled to 0 to 1. The copies are those of pytorch-grad-cam; their pixel
    values are multiplied by 0.9, 1 and 1.1. All six go through the method as one batch.

    Args:
        method: such as :func:`fastviz.grad_cam`: of a model, images, a target and ``options``, it gives maps [N, h, w].
        model, x: as the method takes them.
        target: as in :func:`fastviz.grad_cam`; with None all copies are about the class predicted for the image itself.
        options: of the method, with one layer.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets per sample), 0 to 1.

    Raises:
        TypeError, ValueError: as the method; it gives no tensor of maps.

    >>> from fastviz.methods.attribution.cam import grad_cam
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> augmented(grad_cam, model, torch.ones(1, 1, 8, 8), 4).shape
    torch.Size([1, 6, 6])
    """
    images = input_batch(model, x)
    count = len(images)
    selection = targets.resolve(target, model)
    if selection.predicts:
        batch_size = options.get("batch_size")
        selection = selection.with_predicted(input_gradients.predicted(model, images, batch_size))
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


def height_and_width(size: object) -> tuple[int, int] | None:
    """The ``size`` of a map that a caller wants, checked: a pair of whole numbers, or None."""
    if size is None:
        return None
    if not isinstance(size, Sequence) or len(size) != 2:
        raise TypeError(f"size should be (height, width) in pixels, got {size!r}")
    height, width = (checks.whole_number(value, "size", minimum=1) for value in size)
    return height, width


def _what(found: object) -> str:
    return f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
