"""The native operators: public function, fake implementation and autograd of each.

All run on the CPU and on CUDA, in float32, float64, float16 and bfloat16 (sums in float32 or wider), on contiguous and
channels_last tensors without a copy (other strides are made contiguous once), for any sizes including 0, and give the
same bits for the same input at any number of threads. They compile (``torch.compile(fullgraph=True)``), export and can
be captured in a CUDA graph. Derivatives of second order are refused, except those of :func:`gram`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._library import INSTRUCTIONS, check_instructions, libraries, load

__all__ = [
    "gram",
    "gram_loss",
    "guided_relu",
    "guided_relu_",
    "instructions",
    "libraries",
    "occlude",
    "patch_search",
    "splice",
    "total_variation",
]

load()
_ops = torch.ops.fastviz


def instructions() -> tuple[str, str]:
    """The instruction set that the operators use on the CPU, and the best one that this processor has.

    Of ``"baseline"``, ``"avx2"`` (x86-64-v3) and ``"avx512"`` (x86-64-v4). They are the same unless the environment
    variable ``FASTVIZ_CPU`` named a lesser one when fastviz was imported.

    >>> used, best = instructions()
    >>> used in ("baseline", "avx2", "avx512")
    True
    """
    used, best = _ops._instructions()
    return INSTRUCTIONS[used], INSTRUCTIONS[best]


check_instructions(instructions()[1])

Rule = Literal["plain", "guided", "deconvnet"]
Norm = Literal["isotropic", "l1", "l2"]
Border = Literal["crop", "zero"]
Reduction = Literal["none", "sum", "mean", "pixel_mean"]
Normalize = Literal["none", "hw", "chw"]


def occlude(images: Tensor, boxes: Tensor, image_index: Tensor | None = None, fill: float | Tensor = 0.0) -> Tensor:
    """Copies of images, in each of which one box of pixels is replaced.

    ``output[p] = images[image_index[p]]``, with the pixels of ``boxes[p]`` taken from ``fill``. Differentiable in
    ``images`` and in a tensor ``fill``.

    Args:
        images: [N, C, H, W].
        boxes: [P, 4], integers: top, left, bottom, right in pixels, half open. What lies outside of the image is cut
            off; an empty box changes nothing. Boxes may overlap.
        image_index: [P], integers from 0 to N - 1; may be left out for one image. On the CPU an index out of range
            raises; on CUDA, where looking would mean waiting, it gives a picture of NaN.
        fill: a number, one value a channel [C], or pictures [1 or N, C, H, W].

    Returns:
        [P, C, H, W], in the memory order of ``images``.

    Raises:
        TypeError, ValueError: a shape, dtype or device that does not fit, with the name of the argument.

    Example:
        >>> boxes = torch.tensor([[0, 0, 1, 2]])
        >>> occlude(torch.ones(1, 1, 2, 2), boxes).tolist()
        [[[[0.0, 0.0], [1.0, 1.0]]]]
    """
    checks.image_batch(images, "images")
    _check_supported(images, "images")
    boxes = _integers(boxes, "boxes", images, "images", "[P, 4]", dims=2)
    if boxes.shape[1] != 4:
        raise ValueError(f"boxes should have shape [P, 4], got {list(boxes.shape)}")
    image_index = _image_index(image_index, images, "images", boxes.shape[0])
    if not isinstance(fill, Tensor):
        if isinstance(fill, bool) or not isinstance(fill, (int, float)):
            raise TypeError(f"fill should be a number or a tensor, got {fill!r}")
        return _called(_ops.occlude, images, boxes, image_index, None, float(fill))
    return _called(_ops.occlude, images, boxes, image_index, _fill_pictures(fill, images), 0.0)


def splice(
    clean: Tensor,
    dirty: Tensor,
    dirty_origin: Tensor,
    window_origin: Tensor,
    window_size: tuple[int, int],
    image_index: Tensor | None = None,
    pad_value: float = 0.0,
) -> Tensor:
    """Windows of clean maps with dirty crops pasted in: the gather of incremental inference.

    The value of window p at ``(y, x) = window_origin[p] + (i, j)`` is that of ``dirty[p]`` where the crop, which begins
    at ``dirty_origin[p]``, has one and the map reaches; else that of ``clean[image_index[p]]`` where the map reaches;
    else ``pad_value``. Not differentiable: sweeps need no gradients.

    Args:
        clean: [N, C, H, W], the maps of the unchanged images.
        dirty: [P, C, h, w], what changed in each window.
        dirty_origin: [P, 2], integers: row and column of the crop in the map; may be negative.
        window_origin: [P, 2], integers: row and column of the window in the map; may be negative.
        window_size: height and width of the windows, in values of the map.
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
    checks.image_batch(clean, "clean")
    checks.image_batch(dirty, "dirty")
    _check_supported(clean, "clean")
    _check_like(dirty, "dirty", clean, "clean")
    if dirty.shape[1] != clean.shape[1]:
        raise ValueError(f"dirty should have the {clean.shape[1]} channels of clean, got {dirty.shape[1]}")
    windows = dirty.shape[0]
    origins = []
    for origin, argument in ((dirty_origin, "dirty_origin"), (window_origin, "window_origin")):
        origin = _integers(origin, argument, clean, "clean", "[P, 2]", dims=2)
        if origin.shape[0] != windows or origin.shape[1] != 2:
            raise ValueError(f"{argument} should have shape [{windows}, 2], got {list(origin.shape)}")
        origins.append(origin)
    pair = isinstance(window_size, (tuple, list)) and len(window_size) == 2
    if not pair or any(not isinstance(side, (int, torch.SymInt)) or side < 0 for side in window_size):
        raise ValueError(f"window_size should be a height and a width of at least 0, got {window_size!r}")
    if not isinstance(pad_value, (int, float)):
        raise TypeError(f"pad_value should be a number, got {pad_value!r}")
    if windows * clean.shape[1] * window_size[0] * window_size[1] > _MOST_VALUES:
        raise ValueError(f"window_size should be so small that memory holds {windows} such windows, got {window_size}")
    image_index = _image_index(image_index, clean, "clean", windows)
    return _called(_ops.splice, clean, dirty, *origins, list(window_size), image_index, float(pad_value))


def guided_relu(x: Tensor, rule: Rule = "guided", upper: float | None = None) -> Tensor:
    """ReLU of x, max(x, 0), with a chosen backward rule; bounded, min(max(x, 0), upper), if ``upper`` is given.

    With R the gradient that comes from above:

    - ``"plain"``: R·(x > 0), the derivative;
    - ``"guided"``: R·(x > 0)·(R > 0), Springenberg et al. 2015, https://arxiv.org/abs/1412.6806;
    - ``"deconvnet"``: R·(R > 0), Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901.

    The rule is that of the maximum; a bound has its derivative, so that R is first multiplied by (x < upper). All are
    strict at zero and at the bound. NaN stays NaN, as torch's ReLU has it: it counts as above 0, in x and in R. One bit
    a value is kept for the backward pass, none for ``"deconvnet"`` without a bound.

    Args:
        x: any shape.
        rule: the backward rule.
        upper: above 0, rounded to the dtype of ``x``; None is no bound.

    Returns:
        The shape and the memory order of ``x``.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or ``upper`` no number.
        ValueError: ``rule`` is not one of the three, or ``upper`` not above 0.

    Example:
        >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
        >>> guided_relu(x).backward(torch.tensor([1.0, -1.0, 1.0]))
        >>> x.grad.tolist()
        [0.0, 0.0, 1.0]
    """
    checks.tensor(x, "x")
    checks.one_of(rule, "rule", ("plain", "guided", "deconvnet"))
    if upper is not None:
        checks.positive(upper, "upper")
    _check_supported(x, "x")
    return _ops.guided_relu(x, rule, upper, _relu_keeps_mask(x, rule, upper))[0]


def _relu_keeps_mask(x: Tensor, rule: str, upper: float | None) -> bool:
    return (rule != "deconvnet" or upper is not None) and x.requires_grad and torch.is_grad_enabled()


class _InPlaceRectifier(torch.autograd.Function):
    """:func:`guided_relu` written over its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, upper: float | None, with_mask: bool) -> Tensor:
        ctx.rule, ctx.channels_last = rule, _is_channels_last(x)
        ctx.save_for_backward(_ops._guided_relu_in_place(x, rule, upper, with_mask))
        ctx.mark_dirty(x)
        # so that autograd refuses to use values that it kept from before
        torch.autograd.graph.increment_version(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return _ops._guided_relu_backward(grads[0], mask, ctx.rule, ctx.channels_last), None, None, None


def guided_relu_(x: Tensor, rule: Rule = "guided", upper: float | None = None) -> Tensor:
    """:func:`guided_relu` written over ``x``, which is returned: no memory for the output, and half of the traffic.

    For tensors that are no views, and not for code that ``torch.compile`` sees.

    Args:
        x: any shape, in contiguous or channels_last memory.
        rule: the backward rule.
        upper: above 0, rounded to the dtype of ``x``; None is no bound.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or ``upper`` no number.
        ValueError: ``x`` is in other memory; ``rule`` is not one of the three, or ``upper`` not above 0.

    >>> x = torch.tensor([-1.0, 2.0])
    >>> guided_relu_(x), x
    (tensor([0., 2.]), tensor([0., 2.]))
    """
    checks.tensor(x, "x")
    checks.one_of(rule, "rule", ("plain", "guided", "deconvnet"))
    if not (x.is_contiguous() or _is_channels_last(x)):
        raise ValueError(f"x should be in contiguous or channels_last memory, to be written over, got {x.stride()}")
    if upper is not None:
        checks.positive(upper, "upper")
    _check_supported(x, "x")
    result: Tensor = _InPlaceRectifier.apply(x, rule, upper, _relu_keeps_mask(x, rule, upper))
    return result


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
    being 0. Where the gradient does not exist (v = h = 0 with β < 2, |0|) it is 0. The value takes one pass over ``x``,
    the gradient another one; nothing but ``x`` is kept for it.

    The definitions of other libraries: kornia ``norm="l1", border="zero"``, each channel a picture of its own (its
    ``reduction="mean"`` is ``"pixel_mean"`` here); torchmetrics ``norm="l1", border="zero"`` and ``reduction="sum"`` or
    ``"mean"``; pystiche ``beta=exponent, reduction="pixel_mean"``, then the mean over the images.

    Args:
        x: [N, C, H, W].
        norm: see above.
        beta: the exponent β of the isotropic norm, above 0. 1, 2, 2.5 and 3 need no power function and are fastest.
        border: see above.
        reduction: ``"none"`` a value an image; ``"sum"`` and ``"mean"`` over the images; ``"pixel_mean"`` a value an
            image, divided by the number of terms (for l1 and l2 each direction by its own number, then added).

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
    _check_supported(x, "x")
    value: Tensor = _ops.total_variation(x, norm, beta, border == "crop", reduction == "pixel_mean")
    if reduction == "sum":
        return value.sum()
    return value.mean() if reduction == "mean" else value


def gram(features: Tensor, normalize: Normalize = "none") -> Tensor:
    """Gram matrix of each image's features: G_ij = Σ_k F_ik F_jk, F = features[n] with one row a channel.

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
    return _ops.gram(features, normalize)


def gram_loss(features: Tensor, target: Tensor, normalize: Normalize = "none") -> Tensor:
    """Squared Frobenius distance between each image's Gram matrix and a target: Σ_ij (G_ij − target_ij)².

    The style loss of a layer without its weight, Gatys, Ecker and Bethge 2015, https://arxiv.org/abs/1508.06576. One
    C×C matrix an image is kept for the backward pass. Differentiable in ``features`` only.

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
    _check_like(target, "target", features, "features")
    n, c = features.shape[0], features.shape[1]
    if target.shape[1] != c or target.shape[2] != c or target.shape[0] not in (1, n):
        raise ValueError(f"target should have shape [{n} or 1, {c}, {c}], got {list(target.shape)}")
    if target.requires_grad:
        raise ValueError("target should not require a gradient: gram_loss is differentiable in features only")
    return _ops.gram_loss(features, target, normalize)[0]


def patch_search(sample: Tensor, neighbourhood: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """How far each window of a sample is from a neighbourhood of which only some pixels are known.

    With u_ij = ``weights[i, j]`` where ``mask[i, j]``, else 0, the distance of the window that begins at (y, x) is

        Σ_ij u_ij Σ_c (sample[c, y+i, x+j] − neighbourhood[c, i, j])² / Σ_ij u_ij,

    the inner loop of Efros and Leung 1999, https://doi.org/10.1109/ICCV.1999.790383: a weighted mean over the known
    pixels, summed over the channels. It is 0 for every window where no weight is left, and exactly 0 for a window that
    equals the neighbourhood; differences are squared as they are, not by way of a correlation, which would round that
    away. Pixels of u_ij = 0 are not looked at, so that NaN may stand there. Not differentiable.

    Args:
        sample: [C, H, W].
        neighbourhood: [C, h, w], or several [B, C, h, w]; at most the size of the sample.
        mask: [h, w] or [B, h, w], bool: which pixels are known.
        weights: [h, w], 0 or more, finite; others raise on the CPU, and give NaN on CUDA.

    Returns:
        [H − h + 1, W − w + 1] or [B, H − h + 1, W − w + 1], contiguous; float64 for a float64 sample, else float32.

    Raises:
        TypeError, ValueError: a shape, dtype or device that does not fit, with the name of the argument.

    Example:
        >>> sample = torch.tensor([[[0.0, 1.0, 3.0]]])
        >>> mask = torch.tensor([[True, False]])
        >>> patch_search(sample, torch.tensor([[[1.0, 9.0]]]), mask, torch.ones(1, 2)).tolist()
        [[1.0, 0.0]]
    """
    checks.tensor(sample, "sample", dims=(3,), layout="[C, H, W]")
    _check_supported(sample, "sample")
    checks.tensor(neighbourhood, "neighbourhood", dims=(3, 4), layout="[C, h, w] or [B, C, h, w]")
    _check_like(neighbourhood, "neighbourhood", sample, "sample")
    channels, h, w = neighbourhood.shape[-3:]
    if channels != sample.shape[0]:
        raise ValueError(f"neighbourhood should have the {sample.shape[0]} channels of sample, got {channels}")
    if not (0 < h <= sample.shape[1] and 0 < w <= sample.shape[2]):
        raise ValueError(
            f"neighbourhood should have at least one pixel and at most the {list(sample.shape[1:])} of sample, "
            f"got {[h, w]}"
        )
    checks.tensor(mask, "mask", floating=False)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask should be a tensor of bool, got {mask.dtype}")
    wanted = [*neighbourhood.shape[:-3], h, w]
    if list(mask.shape) != wanted:
        raise ValueError(f"mask should have shape {wanted}, got {list(mask.shape)}")
    if mask.device != sample.device:
        raise ValueError(f"mask should be on the device of sample, {sample.device}, got {mask.device}")
    checks.tensor(weights, "weights", dims=(2,), layout=f"[{h}, {w}]")
    _check_like(weights, "weights", sample, "sample")
    if weights.shape != (h, w):
        raise ValueError(f"weights should have shape [{h}, {w}], got {list(weights.shape)}")
    if neighbourhood.dim() == 4:
        return _called(_ops.patch_search, sample, neighbourhood, mask, weights)
    return _called(_ops.patch_search, sample, neighbourhood[None], mask[None], weights)[0]


def grow_texture(
    canvas: tuple[Tensor, Tensor, Tensor],
    places: Tensor,
    chances: Tensor,
    sample: Tensor,
    usable: Tensor | None,
    weights: Tensor,
    epsilon: float,
    limit: float,
) -> None:
    """Fill pixels of ``canvas`` in turn, on the CPU.

    The loop of :func:`fastviz.synthesize_texture` in one call; csrc/kernels/kernels.h says what it computes. Windows
    are given up as soon as their sum over the first known pixels, those of the largest weight, is above that of the
    windows that can still be chosen; sums only grow, so that the choice is that of the full search.

    Args:
        canvas: values [C, H, W], which of them are filled [H, W] bool, and the window that each came from [H, W] int64
            or -1, contiguous. All three are written to.
        places: [n] int64, where in the canvas, in the order in which they are filled; half a window from its border.
        chances: [n] float64, from 0 to below 1.
        sample: [C, h, w], float32 or float64, finite.
        usable: [h − window + 1, w − window + 1] bool, or None: all.
        weights: [window, window], 0 or more.
        epsilon: how much worse than the best a window may be.
        limit: mean squared error that a pixel must be below.
    """
    _ops._grow_texture(*canvas, places, chances, sample, usable, weights, epsilon, limit)


def winograd_tiles(x: Tensor, padding: Sequence[int], tiles: Sequence[int], begin: int, end: int) -> Tensor:
    """What tiles of a 3×3 convolution read, transformed: [36, end − begin, C]; see
    :func:`fastviz.execution.fast_conv.winograd.convolved`.

    On the CPU only.

    Args:
        x: [N, C, H, W], float32, channels_last.
        padding: zeros above, and left.
        tiles: rows and columns of tiles of an image.
        begin, end: numbers of the tiles, counted image by image, row by row.
    """
    found: Tensor = _ops._winograd_tiles(x, *padding, *tiles, begin, end)
    return found


def winograd_maps(
    output: Tensor, product: Tensor, bias: Tensor | None, other: Tensor | None, rectify: bool, begin: int
) -> None:
    """Write tiles of a 3×3 convolution to ``output`` [N, K, h, w], channels_last, from number ``begin`` on.

    On the CPU only.

    Args:
        output: float32.
        product: [36, tiles, K]; the matrix products between both transforms.
        bias: [K].
        other: as ``output``; added.
        rectify: whether what is below 0 becomes 0.
    """
    _ops._winograd_maps(output, product, bias, other, rectify, begin)


_MOST_VALUES = 2**60
"""Of a tensor: a number of 64 bits does not count the bytes of more."""
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _check_supported(tensor: Tensor, argument: str) -> None:
    """The operators exist for the CPU and, where the library is loaded, for CUDA (and for fake and meta tensors)."""
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{argument} should be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    if tensor.device.type in ("cpu", "meta"):
        return
    if tensor.device.type != "cuda":
        raise ValueError(f"{argument} should be on the CPU or a CUDA device, got {tensor.device}")
    if libraries()["cuda"].startswith("not loaded"):
        raise ValueError(f"{argument} is on {tensor.device}, but the CUDA library is {libraries()['cuda']}")


def _check_like(tensor: Tensor, argument: str, other: Tensor, other_argument: str) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(f"{argument} should have the dtype of {other_argument}, {other.dtype}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{argument} should be on the device of {other_argument}, {other.device}, got {tensor.device}")


def _check_features(features: Tensor, normalize: str) -> None:
    checks.tensor(features, "features", dims=(3, 4), layout="[N, C, H, W] or [N, C, L]")
    checks.one_of(normalize, "normalize", ("none", "hw", "chw"))
    _check_supported(features, "features")


def _integers(value: Tensor, argument: str, other: Tensor, other_argument: str, layout: str, *, dims: int) -> Tensor:
    """``value`` as int64, if it is a tensor of whole numbers on the device of ``other``."""
    checks.tensor(value, argument, dims=(dims,), layout=layout, floating=False)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{argument} should be a tensor of integers, got {value.dtype}")
    if value.dtype == torch.uint64:
        raise TypeError(f"{argument} should be a tensor of int64 or narrower, got {value.dtype}")
    if value.device != other.device:
        raise ValueError(f"{argument} should be on the device of {other_argument}, {other.device}, got {value.device}")
    return value.long()


def _called(operator: Callable[..., Tensor], *arguments: object) -> Tensor:
    """What an operator gives; what it says of values that it looked at itself is a ValueError of one line.

    Looking here as well would take as long again, and could not be compiled.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        return operator(*arguments)
    except RuntimeError as error:
        said = re.search(r"(?:image_index|weights) should be .*", str(error))
        if said is None:
            raise
        raise ValueError(said.group()) from None


def _image_index(value: Tensor | None, images: Tensor, images_argument: str, windows: int) -> Tensor | None:
    if value is None:
        if images.shape[0] != 1 and windows != 0:
            raise ValueError(f"image_index is needed where {images_argument} has {images.shape[0]} pictures, got None")
        return None
    value = _integers(value, "image_index", images, images_argument, "[P]", dims=1)
    if value.shape[0] != windows:
        raise ValueError(f"image_index should have shape [{windows}], got {list(value.shape)}")
    return value


def _fill_pictures(fill: Tensor, images: Tensor) -> Tensor:
    """A fill tensor [C] or [1 or N, C, H, W] as pictures."""
    n, c, h, w = images.shape
    if not fill.is_floating_point():
        raise TypeError(f"fill should be a number or a floating-point tensor, got {fill.dtype}")
    _check_like(fill, "fill", images, "images")
    if fill.dim() == 1 and fill.shape[0] == c:
        return fill.view(1, c, 1, 1).expand(1, c, h, w)
    if fill.dim() == 4 and fill.shape[0] in (1, n) and fill.shape[1:] == images.shape[1:]:
        return fill
    raise ValueError(f"fill should have shape [{c}] or [1 or {n}, {c}, {h}, {w}], got {list(fill.shape)}")


# What follows tells torch of each operator its output without running it, and its derivative.


def _is_channels_last(x: Tensor) -> bool:
    """Whether the operators walk over x in channels_last order; a tensor that is both counts as contiguous."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, shape: Sequence[int | torch.SymInt], *, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor [.., .., .., ..] in the memory order of ``like``."""
    order = torch.channels_last if _is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=order)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _refuse_second_order(name: str) -> None:
    """Make a backward operator raise where its own derivative is asked for."""

    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(f"fastviz.ops.{name} has no derivative of second order (double backward)")

    torch.library.register_autograd(f"fastviz::_{name}_backward", backward)


def _register(name: str, fake: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    torch.library.register_fake(f"fastviz::{name}", fake)
    torch.library.register_autograd(f"fastviz::{name}", backward, setup_context=setup)


def _occlude_fake(
    images: Tensor, boxes: Tensor, image_index: Tensor | None, fill: Tensor | None, fill_value: float
) -> Tensor:
    return _empty(images, (boxes.shape[0], *images.shape[1:]))


def _occlude_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, boxes, image_index, fill, _ = inputs
    ctx.save_for_backward(boxes, image_index)
    ctx.images = images.shape[0]
    ctx.fills = None if fill is None else fill.shape[0]


def _occlude_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    boxes, image_index = ctx.saved_tensors
    grad_images = grad_fill = None
    if ctx.needs_input_grad[0]:
        grad_images = _ops._occlude_backward(grad, boxes, *_windows_of_images(boxes, image_index, ctx.images), False)
    if ctx.fills is not None and ctx.needs_input_grad[3]:
        index = image_index if ctx.fills > 1 else None
        grad_fill = _ops._occlude_backward(grad, boxes, *_windows_of_images(boxes, index, ctx.fills), True)
    return grad_images, None, None, grad_fill, None


def _windows_of_images(boxes: Tensor, image_index: Tensor | None, images: int) -> tuple[Tensor, Tensor]:
    """Window numbers sorted by image (kept in order within one), and where in them each image's begin."""
    windows = boxes.shape[0]
    if image_index is None:
        # all of the first image; nothing is copied from the host, which could not be recorded in a CUDA graph
        starts = torch.arange(images + 1, device=boxes.device).clamp(max=1) * windows
        return torch.arange(windows, device=boxes.device), starts
    ordered, order = image_index.sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(images + 1, device=boxes.device))


_register("occlude", _occlude_fake, _occlude_setup, _occlude_backward)


@torch.library.register_fake("fastviz::_occlude_backward")
def _(grad: Tensor, boxes: Tensor, order: Tensor, offsets: Tensor, inside: bool) -> Tensor:
    return _empty(grad, (offsets.shape[0] - 1, *grad.shape[1:]))


_refuse_second_order("occlude")


@torch.library.register_fake("fastviz::splice")
def _(
    clean: Tensor,
    dirty: Tensor,
    dirty_origin: Tensor,
    window_origin: Tensor,
    window_size: list[int],
    image_index: Tensor | None,
    pad_value: float,
) -> Tensor:
    return _empty(clean, (dirty.shape[0], clean.shape[1], *window_size))


def _splice_backward(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("fastviz.ops.splice has no derivative")


torch.library.register_autograd("fastviz::splice", _splice_backward)


def _guided_relu_fake(x: Tensor, rule: str, upper: float | None, with_mask: bool) -> tuple[Tensor, Tensor]:
    return _empty(x, x.shape), _relu_mask(x, rule, upper, with_mask)


@torch.library.register_fake("fastviz::_guided_relu_in_place")
def _relu_mask(x: Tensor, rule: str, upper: float | None, with_mask: bool) -> Tensor:
    return x.new_empty((x.numel() + 7) // 8 if with_mask else 0, dtype=torch.uint8)


def _guided_relu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.rule, _, _ = inputs
    ctx.channels_last = _is_channels_last(x)
    ctx.save_for_backward(output[1])


def _guided_relu_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return _ops._guided_relu_backward(grad, mask, ctx.rule, ctx.channels_last), None, None, None


_register("guided_relu", _guided_relu_fake, _guided_relu_setup, _guided_relu_backward)


@torch.library.register_fake("fastviz::_guided_relu_backward")
def _(grad: Tensor, mask: Tensor, rule: str, channels_last: bool) -> Tensor:
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device, memory_format=order)


_refuse_second_order("guided_relu")


def _total_variation_fake(x: Tensor, norm: str, beta: float, crop: bool, mean: bool) -> Tensor:
    return x.new_empty(x.shape[0], dtype=_sum_dtype(x))


def _total_variation_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.options = inputs
    ctx.save_for_backward(x)


def _total_variation_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return _ops._total_variation_backward(grad, x, *ctx.options), None, None, None, None


_register("total_variation", _total_variation_fake, _total_variation_setup, _total_variation_backward)


@torch.library.register_fake("fastviz::_total_variation_backward")
def _(grad: Tensor, x: Tensor, norm: str, beta: float, crop: bool, mean: bool) -> Tensor:
    return _empty(x, x.shape)


_refuse_second_order("total_variation")


def _gram_scale(features: Tensor, normalize: str) -> float:
    c, places = features.shape[1], features.shape[2:].numel()
    if normalize == "none" or c * places == 0:
        return 1.0
    return 1.0 / places if normalize == "hw" else 1.0 / (c * places)


def _matrix_times_features(matrix: Tensor, features: Tensor) -> Tensor:
    """M F for each image, in the memory order of the features; M [N, C, C] is symmetric."""
    if _is_channels_last(features):
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


_register("gram", _gram_fake, _gram_setup, _gram_backward)


def _gram_loss_fake(features: Tensor, target: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape[0], dtype=_sum_dtype(features)), _gram_fake(features, normalize)


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


_register("gram_loss", _gram_loss_fake, _gram_loss_setup, _gram_loss_backward)


@torch.library.register_fake("fastviz::patch_search")
def _(sample: Tensor, neighbourhood: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    h, w = neighbourhood.shape[2:]
    shape = (neighbourhood.shape[0], sample.shape[1] - h + 1, sample.shape[2] - w + 1)
    return sample.new_empty(shape, dtype=_sum_dtype(sample))


def _patch_search_backward(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("fastviz.ops.patch_search has no derivative")


torch.library.register_autograd("fastviz::patch_search", _patch_search_backward)


@torch.library.register_fake("fastviz::_grow_texture")
def _(*arguments: object) -> None:
    return None


@torch.library.register_fake("fastviz::_winograd_tiles")
def _(x: Tensor, top: int, left: int, tile_rows: int, tile_columns: int, begin: int, end: int) -> Tensor:
    return x.new_empty(36, end - begin, x.shape[1])


@torch.library.register_fake("fastviz::_winograd_maps")
def _(*arguments: object) -> None:
    return None
