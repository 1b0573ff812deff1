"""The slow definitions, from the papers, in plain torch: what `fastviz.ops` must equal. Tests and benchmarks use them.

Those of operators have the signatures of `fastviz.ops`; arguments are not checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "gram",
    "gram_loss",
    "guided_relu",
    "integrated_gradients",
    "occlude",
    "patch_search",
    "shapley_values",
    "splice",
    "total_variation",
]


def occlude(images: Tensor, boxes: Tensor, image_index: Tensor | None = None, fill: float | Tensor = 0.0) -> Tensor:
    """A copy of an image for each box, the box's pixels taken from the fill."""
    n, c, *size = images.shape
    axes = len(size)
    index = torch.zeros(len(boxes), dtype=torch.long, device=images.device) if image_index is None else image_index
    if not isinstance(fill, Tensor):
        fill = torch.full((c,), fill, dtype=images.dtype, device=images.device)
    if fill.dim() == 1:
        fill = fill.view(1, c, *[1] * axes)
    fill = fill.expand(n, c, *size)
    sides = [side.view(-1, *[1] * (axes + 1)) for side in boxes.unbind(1)]
    inside = torch.ones(1, dtype=torch.bool, device=images.device)
    for axis, length in enumerate(size):
        place = torch.arange(length, device=images.device).view(-1, *[1] * (axes - 1 - axis))
        inside = inside & (place >= sides[axis]) & (place < sides[axis + axes])
    return torch.where(inside, fill[index], images[index])


def splice(
    clean: Tensor,
    dirty: Tensor,
    dirty_origin: Tensor,
    window_origin: Tensor,
    window_size: tuple[int, ...],
    image_index: Tensor | None = None,
    pad_value: float = 0.0,
) -> Tensor:
    """Windows of clean maps with dirty crops pasted in, value by value."""
    _, channels, *size = clean.shape
    windows = torch.full((len(dirty), channels, *window_size), pad_value, dtype=clean.dtype, device=clean.device)
    # channels last, to be read and written all at once
    target, new, old = (each.movedim(1, -1) for each in (windows, dirty, clean))
    for p in range(len(dirty)):
        image = 0 if image_index is None else int(image_index[p])
        for place in itertools.product(*map(range, window_size)):
            at = tuple(start + step for start, step in zip(window_origin[p].tolist(), place, strict=True))
            if not all(0 <= each < length for each, length in zip(at, size, strict=True)):
                continue
            inside = tuple(each - start for each, start in zip(at, dirty_origin[p].tolist(), strict=True))
            if all(0 <= each < length for each, length in zip(inside, dirty.shape[2:], strict=True)):
                target[(p, *place)] = new[(p, *inside)]
            else:
                target[(p, *place)] = old[(image, *at)]
    return windows


class _GuidedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, rule: str, upper: float | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule, ctx.upper = rule, upper  # type: ignore[attr-defined]
        return x.clamp(0, upper)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        rule, upper = ctx.rule, ctx.upper  # type: ignore[attr-defined]
        # Comparisons with NaN are false: where x or the gradient is NaN, the gradient passes.
        if upper is not None:
            grad = grad.masked_fill(x >= upper, 0)
        if rule != "deconvnet":
            grad = grad.masked_fill(x <= 0, 0)
        if rule != "plain":
            grad = grad.masked_fill(grad <= 0, 0)
        return grad, None, None


def guided_relu(x: Tensor, rule: str = "guided", upper: float | None = None) -> Tensor:
    """ReLU, bounded or not, with the backward rules of Springenberg et al. 2015 and Zeiler and Fergus 2014."""
    result: Tensor = _GuidedRelu.apply(x, rule, upper)
    return result


def total_variation(
    x: Tensor,
    *,
    norm: str = "isotropic",
    beta: float = 2.0,
    border: str = "crop",
    reduction: str = "none",
) -> Tensor:
    """Mahendran and Vedaldi 2015 for "isotropic"; sums of absolute or squared differences for "l1" and "l2"."""
    vertical = x[..., 1:, :] - x[..., :-1, :]
    horizontal = x[..., :, 1:] - x[..., :, :-1]
    if border == "crop":
        vertical, horizontal = vertical[..., :-1], horizontal[..., :-1, :]
    if norm == "isotropic":
        if border == "zero":
            vertical = torch.nn.functional.pad(vertical, (0, 0, 0, 1))
            horizontal = torch.nn.functional.pad(horizontal, (0, 1))
        squares = vertical**2 + horizontal**2
        # The power's own derivative at 0 is infinite for beta < 2; the definition takes 0 there.
        positive = squares > 0
        parts = [torch.where(positive, torch.where(positive, squares, 1.0) ** (beta / 2), 0.0)]
    elif norm == "l1":
        parts = [vertical.abs(), horizontal.abs()]
    else:
        parts = [vertical**2, horizontal**2]
    values = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for part in parts:
        total = part.flatten(1).sum(1)
        values = values + (total / max(part[0].numel(), 1) if reduction == "pixel_mean" and len(x) else total)
    if reduction == "sum":
        return values.sum()
    return values.mean() if reduction == "mean" else values


def gram(features: Tensor, normalize: str = "none") -> Tensor:
    """G = F F^T for each image, Gatys, Ecker and Bethge 2015."""
    rows = features.flatten(2)
    divisor = {"none": 1, "hw": rows.shape[2], "chw": rows.shape[1] * rows.shape[2]}[normalize]
    return torch.bmm(rows, rows.mT) / max(divisor, 1)


def gram_loss(features: Tensor, target: Tensor, normalize: str = "none") -> Tensor:
    """Squared Frobenius distance of each image's Gram matrix to the target."""
    return (gram(features, normalize) - target).square().sum((1, 2))


def patch_search(sample: Tensor, neighbourhood: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the squared differences over the known pixels, window by window, Efros and Leung 1999."""
    if neighbourhood.dim() == 4:
        pairs = zip(neighbourhood, mask, strict=True)
        each = [patch_search(sample, one, known, weights) for one, known in pairs]
        empty = sample.new_zeros(0, *(s - n + 1 for s, n in zip(sample.shape[1:], weights.shape, strict=True)))
        return torch.stack(each) if each else empty
    h, w = weights.shape
    used = weights * mask
    counts = used != 0
    distances = sample.new_zeros(sample.shape[1] - h + 1, sample.shape[2] - w + 1)
    for y in range(distances.shape[0]):
        for x in range(distances.shape[1]):
            squares = (sample[:, y : y + h, x : x + w] - neighbourhood).square().sum(0)
            if counts.any():
                distances[y, x] = (used * squares)[counts].sum() / used.sum()
    return distances


def integrated_gradients(
    score: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, places: Tensor, weights: Tensor
) -> Tensor:
    """``(x − x') Σ_k w_k ∂S/∂x (x' + a_k (x − x'))`` for one image [C, H, W], one place after another."""
    total = torch.zeros_like(x)
    for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
        point = (baseline + place * (x - baseline)).requires_grad_()
        total += weight * torch.autograd.grad(score(point[None])[0], point)[0]
    return (x - baseline) * total


def shapley_values(value: Callable[[frozenset[int]], float], players: int) -> list[float]:
    """What each player adds, the mean over all orders of joining: Shapley 1953, by its definition."""
    orders = list(itertools.permutations(range(players)))
    total = [0.0] * players
    for order in orders:
        for at, player in enumerate(order):
            total[player] += value(frozenset(order[: at + 1])) - value(frozenset(order[:at]))
    return [each / len(orders) for each in total]
