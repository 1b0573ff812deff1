"""Total variation of images: how much neighbouring pixels differ."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._checks import check_supported
from fastviz.ops._native import native
from fastviz.ops._registration import new_like, refuse_second_order, register, sum_dtype

__all__ = ["Norm", "total_variation"]

Norm = Literal["isotropic", "l1", "l2"]
Border = Literal["crop", "zero"]
Reduction = Literal["none", "sum", "mean", "pixel_mean"]


def total_variation(
    x: Tensor,
    *,
    norm: Norm = "isotropic",
    beta: float = 2.0,
    border: Border = "crop",
    reduction: Reduction = "none",
) -> Tensor:
    """Total variation of each image: how much neighbouring pixels differ, summed over channels and pixels.

    With v = x[i+1, j] − x[i, j] and h = x[i, j+1] − x[i, j]:

    - ``norm="isotropic"``: Σ (v² + h²)^(β/2), Mahendran and Vedaldi 2015, https://arxiv.org/abs/1412.0035;
    - ``norm="l1"``: Σ |v| + |h|;
    - ``norm="l2"``: Σ v² + h².

    ``border="crop"`` sums over the pixels that have both neighbours, ``"zero"`` over all of them, a missing difference
    being 0. Where the gradient does not exist (v = h = 0 with β < 2, |0|) it is 0. The value takes one pass over ``x``
    and the gradient another, which needs nothing but ``x``.

    The definitions of other libraries: kornia ``norm="l1", border="zero"``, each channel a picture of its own (its
    ``reduction="mean"`` is ``"pixel_mean"`` here); torchmetrics ``norm="l1", border="zero"`` and ``reduction="sum"`` or
    ``"mean"``; pystiche ``beta=exponent, reduction="pixel_mean"``, then the mean over the images.

    Args:
        x: [N, C, H, W].
        norm: see above.
        beta: the exponent β of the isotropic norm, above 0. 1, 2, 2.5 and 3 need no power function and are fastest.
        border: see above.
        reduction: ``"none"``: one value per image; ``"sum"``, ``"mean"``: over the images; ``"pixel_mean"``: one value
            per image, divided by the number of terms (for l1 and l2 each direction by its own number, then added).

    Returns:
        [N] for ``"none"`` and ``"pixel_mean"``, else a scalar; float64 for float64 images, else float32.

    Raises:
        TypeError, ValueError: a shape, dtype or word that does not fit, with the name of the argument.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]])).tolist()
        [25.0]
    """
    checks.image_batch(x)
    checks.one_of(norm, "norm", ("isotropic", "l1", "l2"))
    checks.one_of(border, "border", ("crop", "zero"))
    checks.one_of(reduction, "reduction", ("none", "sum", "mean", "pixel_mean"))
    beta = checks.positive(beta, "beta")
    check_supported(x, "x")
    value: Tensor = native.total_variation(x, norm, beta, border == "crop", reduction == "pixel_mean")
    if reduction == "sum":
        return value.sum()
    return value.mean() if reduction == "mean" else value


def _total_variation_fake(x: Tensor, norm: str, beta: float, crop: bool, mean: bool) -> Tensor:
    return x.new_empty(x.shape[0], dtype=sum_dtype(x))


def _total_variation_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.options = inputs
    ctx.save_for_backward(x)


def _total_variation_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return native._total_variation_backward(grad, x, *ctx.options), None, None, None, None


@torch.library.register_fake("fastviz::_total_variation_backward")
def _total_variation_backward_fake(grad: Tensor, x: Tensor, norm: str, beta: float, crop: bool, mean: bool) -> Tensor:
    return new_like(x, x.shape)


register("total_variation", _total_variation_fake, _total_variation_setup, _total_variation_backward)
refuse_second_order("total_variation")
