"""Gram matrices of features, and their distance from a target."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._checks import check_like, check_supported
from fastviz.ops._native import native
from fastviz.ops._registration import is_channels_last, register, sum_dtype

__all__ = ["gram", "gram_loss"]

Normalize = Literal["none", "hw", "chw"]


def gram(features: Tensor, normalize: Normalize = "none") -> Tensor:
    """Gram matrix of each image's features: G_ij = Σ_k F_ik F_jk, F = features[n] with one row per channel.

    Gatys, Ecker and Bethge 2015, https://arxiv.org/abs/1505.07376. Half of the products are computed, the other half
    is mirrored; products and sums of float16 and bfloat16 features run in float32.

    Args:
        features: [N, C, H, W] or [N, C, L].
        normalize: ``"none"`` the sum itself; ``"hw"`` divided by H·W (pystiche's ``normalize=True``); ``"chw"`` by
            C·H·W.

    Returns:
        [N, C, C], symmetric, in the dtype of ``features``.

    Raises:
        TypeError, ValueError: a shape, dtype or word that does not fit, with the name of the argument.

    Example:
        >>> gram(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])).tolist()
        [[[5.0, 2.0], [2.0, 1.0]]]
    """
    _check_features(features, normalize)
    return native.gram(features, normalize)


def gram_loss(features: Tensor, target: Tensor, normalize: Normalize = "none") -> Tensor:
    """Squared Frobenius distance between each image's Gram matrix and a target: Σ_ij (G_ij − target_ij)².

    The style loss of a layer without its weight, Gatys, Ecker and Bethge 2015, https://arxiv.org/abs/1508.06576. One
    C×C matrix per image is kept for the backward pass. Differentiable in ``features`` only.

    Args:
        features: [N, C, H, W] or [N, C, L].
        target: [N or 1, C, C], as :func:`gram` makes it with the same ``normalize``; need not be symmetric.
        normalize: see :func:`gram`.

    Returns:
        [N], float64 for float64 features, else float32.

    Raises:
        TypeError, ValueError: a shape, dtype or word that does not fit, with the name of the argument; a ``target``
            that requires a gradient.

    Example:
        >>> features = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
        >>> gram_loss(features, torch.zeros(1, 2, 2)).tolist()
        [34.0]
    """
    _check_features(features, normalize)
    checks.tensor(target, "target", dims=(3,), layout="[N or 1, C, C]")
    check_like(target, "target", features, "features")
    n, c = features.shape[0], features.shape[1]
    if target.shape[1] != c or target.shape[2] != c or target.shape[0] not in (1, n):
        raise ValueError(f"target should have shape [{n} or 1, {c}, {c}], got {list(target.shape)}")
    if target.requires_grad:
        raise ValueError("target should not require a gradient: gram_loss is differentiable in features only")
    return native.gram_loss(features, target, normalize)[0]


def _check_features(features: Tensor, normalize: str) -> None:
    checks.tensor(features, "features", dims=(3, 4), layout="[N, C, H, W] or [N, C, L]")
    checks.one_of(normalize, "normalize", ("none", "hw", "chw"))
    check_supported(features, "features")


def _gram_scale(features: Tensor, normalize: str) -> float:
    c, places = features.shape[1], features.shape[2:].numel()
    if normalize == "none" or c * places == 0:
        return 1.0
    return 1.0 / places if normalize == "hw" else 1.0 / (c * places)


def _matrix_times_features(matrix: Tensor, features: Tensor) -> Tensor:
    """M F for each image, in the memory order of the features; M [N, C, C] is symmetric."""
    if is_channels_last(features):
        n, c, h, w = features.shape
        places_first = features.permute(0, 2, 3, 1).reshape(n, h * w, c)
        return torch.bmm(places_first, matrix).view(n, h, w, c).permute(0, 3, 1, 2)
    return torch.bmm(matrix, features.flatten(2)).view(features.shape)


def _gram_fake(features: Tensor, normalize: str) -> Tensor:
    return features.new_empty(features.shape[0], features.shape[1], features.shape[1])


def _gram_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, ctx.normalize = inputs
    ctx.save_for_backward(features)


def _gram_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (features,) = ctx.saved_tensors
    matrix = (grad + grad.mT) * _gram_scale(features, ctx.normalize)
    return _matrix_times_features(matrix, features), None


def _gram_loss_fake(features: Tensor, target: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape[0], dtype=sum_dtype(features)), _gram_fake(features, normalize)


def _gram_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, _, ctx.normalize = inputs
    ctx.save_for_backward(features, output[1])


def _gram_loss_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    features, difference = ctx.saved_tensors
    if torch.is_grad_enabled():
        raise RuntimeError("fastviz.ops.gram_loss has no derivative of second order (double backward, create_graph)")
    # The operator kept D + D^T of the difference D = G - target; the loss has the derivative 2 s (D + D^T) F.
    factor = (2 * _gram_scale(features, ctx.normalize)) * grad
    matrix = difference * factor.to(difference.dtype).view(-1, 1, 1)
    return _matrix_times_features(matrix, features), None, None


register("gram", _gram_fake, _gram_setup, _gram_backward)
register("gram_loss", _gram_loss_fake, _gram_loss_setup, _gram_loss_backward)
