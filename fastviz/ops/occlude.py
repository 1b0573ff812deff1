"""Copies of images, in each of which one box of pixels is replaced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._checks import called, check_like, check_supported, image_index_of, integers
from fastviz.ops._native import native
from fastviz.ops._registration import new_like, refuse_second_order, register

__all__ = ["occlude"]


def occlude(images: Tensor, boxes: Tensor, image_index: Tensor | None = None, fill: float | Tensor = 0.0) -> Tensor:
    """Copies of images, in each of which one box of pixels is replaced.

    ``output[p] = images[image_index[p]]``, with the pixels of ``boxes[p]`` taken from ``fill``. Differentiable in
    ``images`` and in a tensor ``fill``.

    Args:
        images: [N, C, H, W], or signals [N, C, L], or volumes [N, C, D, H, W].
        boxes: [P, 4], integers: top, left, bottom, right in pixels, half open; of signals [P, 2]: start, stop; of
            volumes [P, 6]: front, top, left, back, bottom, right. Boxes are clipped to the image; an empty box changes
            nothing. Boxes may overlap.
        image_index: [P], integers from 0 to N - 1; may be left out for one image. On the CPU an index out of range
            raises; on CUDA, where a check would have to wait, it gives a picture of NaN.
        fill: a number, one value per channel [C], or pictures [1 or N, C, H, W] (or signals, or volumes).

    Returns:
        [P, C, H, W], or P signals or volumes, in the memory order of ``images``.

    Raises:
        TypeError, ValueError: a shape, dtype or device that does not fit, with the name of the argument.

    Example:
        >>> boxes = torch.tensor([[0, 0, 1, 2]])
        >>> occlude(torch.ones(1, 1, 2, 2), boxes).tolist()
        [[[[0.0, 0.0], [1.0, 1.0]]]]
    """
    checks.image_batch(images, "images", axes=(1, 2, 3))
    check_supported(images, "images")
    sides = 2 * (images.dim() - 2)
    boxes = integers(boxes, "boxes", images, "images", f"[P, {sides}]", dims=2)
    if boxes.shape[1] != sides:
        raise ValueError(f"boxes should have shape [P, {sides}], got {list(boxes.shape)}")
    image_index = image_index_of(image_index, images, "images", boxes.shape[0])
    value, pictures = 0.0, None
    if isinstance(fill, Tensor):
        pictures = _fill_pictures(fill, images)
    elif isinstance(fill, bool) or not isinstance(fill, (int, float)):
        raise TypeError(f"fill should be a number or a tensor, got {fill!r}")
    else:
        value = float(fill)
    if images.dim() > 3:
        return called(native.occlude, images, boxes, image_index, pictures, value)
    # a signal is a picture of one row, which its boxes cover
    pictures = None if pictures is None else pictures.unsqueeze(2)
    return called(native.occlude, images.unsqueeze(2), boxes, image_index, pictures, value).squeeze(2)


def _fill_pictures(fill: Tensor, images: Tensor) -> Tensor:
    """A fill tensor [C] or [1 or N, C, H, W] as pictures."""
    n, c, *size = images.shape
    if not fill.is_floating_point():
        raise TypeError(f"fill should be a number or a floating-point tensor, got {fill.dtype}")
    check_like(fill, "fill", images, "images")
    if fill.dim() == 1 and fill.shape[0] == c:
        return fill.view(1, c, *[1] * len(size)).expand(1, c, *size)
    if fill.dim() == images.dim() and fill.shape[0] in (1, n) and fill.shape[1:] == images.shape[1:]:
        return fill
    wanted = ", ".join(map(str, (c, *size)))
    raise ValueError(f"fill should have shape [{c}] or [1 or {n}, {wanted}], got {list(fill.shape)}")


def _occlude_fake(
    images: Tensor, boxes: Tensor, image_index: Tensor | None, fill: Tensor | None, fill_value: float
) -> Tensor:
    return new_like(images, (boxes.shape[0], *images.shape[1:]))


def _occlude_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, boxes, image_index, fill, _ = inputs
    ctx.save_for_backward(boxes, image_index)
    ctx.images = images.shape[0]
    ctx.fills = None if fill is None else fill.shape[0]


def _occlude_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    boxes, image_index = ctx.saved_tensors
    grad_images = grad_fill = None
    if ctx.needs_input_grad[0]:
        grad_images = native._occlude_backward(grad, boxes, *_windows_of_images(boxes, image_index, ctx.images), False)
    if ctx.fills is not None and ctx.needs_input_grad[3]:
        index = image_index if ctx.fills > 1 else None
        grad_fill = native._occlude_backward(grad, boxes, *_windows_of_images(boxes, index, ctx.fills), True)
    return grad_images, None, None, grad_fill, None


def _windows_of_images(boxes: Tensor, image_index: Tensor | None, images: int) -> tuple[Tensor, Tensor]:
    """Window numbers sorted by image (kept in order within one), and where in them each image's begin."""
    windows = boxes.shape[0]
    if image_index is None:
        # One image only. A copy from the host could not be captured in a CUDA graph.
        starts = torch.arange(images + 1, device=boxes.device).clamp(max=1) * windows
        return torch.arange(windows, device=boxes.device), starts
    ordered, order = image_index.sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(images + 1, device=boxes.device))


@torch.library.register_fake("fastviz::_occlude_backward")
def _occlude_backward_fake(grad: Tensor, boxes: Tensor, order: Tensor, offsets: Tensor, inside: bool) -> Tensor:
    return new_like(grad, (offsets.shape[0] - 1, *grad.shape[1:]))


register("occlude", _occlude_fake, _occlude_setup, _occlude_backward)
refuse_second_order("occlude")
