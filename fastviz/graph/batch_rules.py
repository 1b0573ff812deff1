"""Whether a call keeps the images of a batch apart: a proof for each kind of call, not a test on data.

The images stand in one dimension of every tensor, the same number of entries for each, one image after the other:
[N, C, H, W] for maps, [N * windows, tokens, C] where a transformer works in windows, [tokens, N, C] where it is
sequence first. The sizes show which dimension of an output that is (see :func:`fastviz.graph.calls.image_dims`). A rule
then proves that the entries of an image depend on that image alone. A call without a rule counts as mixing.

:mod:`fastviz.execution.batch_calls` has rules of its own for calls made on real images. Those may look at values
(whether a constant with an entry for each image is the same for all, say), and only answer yes or no. Here there are no
values yet, the number of images is a symbol, and the steps of a sweep are built from the places of the images. A test
checks that no model that mixes images by those rules counts as separate by these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from fastviz.graph.calls import BATCH, axes, axis, call_arguments, call_name, image_dims, shape_of

__all__ = ["SPLITS", "Place", "einsum_terms", "filled_images", "has_rule", "images_apart", "is_pointwise"]


class Place(NamedTuple):
    """Where a tensor holds the images.

    Attributes:
        dim: the dimension, of ``ahead`` × images × some number of entries.
        ahead: how often the whole batch is repeated in it: 1, except for [tokens * N, C].
    """

    dim: int
    ahead: int = 1


Moving = Mapping[fx.Node, int]
"""The sources that differ from image to image, and the dimension of each that holds the images."""

Rule = Callable[[fx.Node, dict[str, Any], Moving, int], bool]


def images_apart(node: fx.Node, moving: Mapping[fx.Node, Place]) -> Place | None:
    """The place of the images in the output of ``node``, if the call keeps them separate; else None."""
    dims, name, pointwise = image_dims(node), call_name(node), is_pointwise(node.target)
    if len(dims) != 1:
        return None
    if name in _VIEWS:
        return _viewed(node, moving, dims[0])
    ahead = {place.ahead for place in moving.values()}
    if len(ahead) != 1 or (ahead != {1} and not pointwise and name not in _IN_PLACE):
        return None
    rule = _elementwise if pointwise else _RULES.get(name)
    places = {source: place.dim for source, place in moving.items()}
    kept = rule is not None and rule(node, call_arguments(node), places, dims[0])
    return Place(dims[0], *ahead) if kept else None


def has_rule(target: object) -> bool:
    """Whether calls of ``target`` (an overload of an ATen operation) can be understood as they are."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.removeprefix("aten::")
    return is_pointwise(target) or name in _RULES or name in _FILLS or name in _VIEWS


def is_pointwise(target: object) -> bool:
    """Whether ``target`` computes every value from the values at the same place."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.removeprefix("aten::")
    of_two = name in ("max", "min") and target._schema.overload_name == "other"
    return of_two or torch.Tag.pointwise in target.tags or name in _POINTWISE


def filled_images(node: fx.Node) -> int | None:
    """The dimension of the images in something that is made without them and is the same for each; else None.

    Sources of ``node`` are constants. ``arange(len(x))``, say, is not the same for each.
    """
    dims, name = image_dims(node), call_name(node)
    if len(dims) != 1:
        return None
    if name in _FILLS:
        return dims[0]
    if name in ("expand", "repeat"):
        (source,) = node.all_input_nodes
        shape = shape_of(source)
        at = dims[0] - (len(shape_of(node)) - len(shape))
        return dims[0] if at < 0 or shape[at] == 1 else None
    return None


_FILLS = {"empty", "full", "ones", "zeros"}

_POINTWISE = {
    *("alias", "alpha_dropout", "clone", "complex", "_conj", "conj", "contiguous", "copy", "detach", "dropout", "fill"),
    *("feature_alpha_dropout", "feature_dropout", "hardswish", "lift_fresh", "lift_fresh_copy", "log_sigmoid"),
    *("masked_fill", "polar", "prelu", "_prelu_kernel", "resolve_conj", "rrelu", "rsub", "to", "_to_copy", "where"),
}  # fmt: skip

_VIEWS = {
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as_real"),
    "view_as_complex",
}

_IN_PLACE = {"linear", "layer_norm", "softmax", "split", "chunk", "unbind", "select", "slice"}
"""Calls that keep the dimension of the images, whatever else it holds."""

SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
"""Calls that give a list of parts."""


def _elementwise(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """All sources hold the images in the same dimension; constants lack it, or have size 1 there."""
    out = shape_of(node)
    if call_name(node) in ("prelu", "_prelu_kernel"):  # its weights belong to dimension 1
        return set(moving) == {arguments.get("self")} and images == 0
    for source, dim in moving.items():
        shape = shape_of(source)
        if len(out) - len(shape) + dim != images or shape[dim] != out[images]:
            return False
    return True


def _over_dims(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Reductions, softmax, sorting, splitting, gathering and the like: over dimensions that are not the images."""
    given = [arguments.get(name) for name in ("dim", "dims", "dimension")]
    found = next((value for value in given if value is not None), None)
    if found is None or found == []:
        return False
    if call_name(node) == "slice" and shape_of(node) == shape_of(next(iter(moving))):
        return True
    return all(dim not in axes(found, len(shape_of(source))) for source, dim in moving.items())


def _aligned(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """As above, with the images at the same place in all sources."""
    sizes = {shape_of(source)[dim] for source, dim in moving.items()} | {shape_of(node)[images]}
    if call_name(node).startswith("scatter") and arguments["index"] not in moving:
        return False  # it would write to the first images only
    return _over_dims(node, arguments, moving, images) and set(moving.values()) == {images} and len(sizes) == 1


def _stacked(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    new = axis(arguments["dim"], len(shape_of(node)))
    return all(dim + (dim >= new) == images for dim in moving.values())


def _select_scatter(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    base, source = arguments["self"], arguments["src"]
    dim = axis(arguments["dim"], len(shape_of(base)))
    places = {each: at + (each is source and at >= dim) for each, at in moving.items()}
    return dim != images and set(places.values()) == {images}


def _selected(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Entries of the only moving source, by an index that is constant."""
    return set(moving) == {arguments["self"]} and _over_dims(node, arguments, moving, images)


def _indexed(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    if set(moving) != {arguments["self"]}:
        return False
    (dim,) = moving.values()
    indices = arguments["indices"]
    return dim >= len(indices) or indices[dim] is None


def _viewed(node: fx.Node, moving: Mapping[fx.Node, Place], images: int) -> Place | None:
    """A view keeps the images if the dimensions before them hold as many entries as before."""
    ((source, place),) = moving.items()
    ahead = math.prod(shape_of(source)[: place.dim]) * place.ahead
    before = math.prod(shape_of(node)[:images])
    fits = before and ahead % before == 0 and shape_of(node)[images] % (ahead // before * BATCH) == 0
    return Place(images, ahead // before) if fits else None


def _permuted(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    ((source, dim),) = moving.items()
    ndim = len(shape_of(source))
    order = list(range(ndim))
    if "dims" in arguments:
        order = [axis(each, ndim) for each in arguments["dims"]]
    elif ndim > 1:
        first, second = axis(arguments.get("dim0", 0), ndim), axis(arguments.get("dim1", 1), ndim)
        order[first], order[second] = second, first
    return order[images] == dim


def _expanded(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Repeating along other dimensions than that of the images."""
    ((source, dim),) = moving.items()
    shape, out = shape_of(source), shape_of(node)
    return len(out) - len(shape) + dim == images and shape[dim] == out[images]


def _first(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Layers for [N, C, ...]: every source that depends on the images holds them first."""
    return images == 0 and all(dim == 0 and shape_of(source)[0] == shape_of(node)[0] for source, dim in moving.items())


def _layer(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Convolutions and batch norms: their weights are constant, and statistics come from no batch."""
    source, weight = arguments["input"], arguments.get("weight")
    if set(moving) - {source} or arguments.get("training", False) or not _first(node, arguments, moving, images):
        return False
    has_batch = len(shape_of(source)) == len(shape_of(weight)) if "stride" in arguments and weight is not None else True
    return has_batch


def _of_rank(ndim: int) -> Rule:
    def rule(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
        return _first(node, arguments, moving, images) and all(len(shape_of(source)) >= ndim for source in moving)

    return rule


def _over_last(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Linear layers and layer norms."""
    source = arguments["input"]
    if set(moving) != {source}:
        return False
    mixed = len(arguments.get("normalized_shape") or (0,))
    return moving[source] == images < len(shape_of(source)) - mixed


def _padded(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    ((source, dim),) = moving.items()
    amounts = list(arguments.get("pad") or arguments.get("padding") or [])
    while amounts and amounts[-1] == 0:
        amounts.pop()
    return dim == images < len(shape_of(source)) - (len(amounts) + 1) // 2


def _matrices(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Products of matrices, or of stacks of them: the images are rows, columns, or number the matrices."""
    operands = [arguments[name] for name in ("mat1", "batch1", "self", "x1", "input") if name in arguments][:1]
    operands += [arguments[name] for name in ("mat2", "batch2", "other", "x2", "vec") if name in arguments][:1]
    added = arguments.get("self") if operands[0] is not arguments.get("self") else None
    if len(operands) != 2:
        return False
    if (
        isinstance(added, fx.Node)
        and added in moving
        and moving[added] + len(shape_of(node)) - len(shape_of(added)) != images
    ):
        return False
    left, right = operands
    for operand in {left, right} & set(moving):
        ndim, dim = len(shape_of(operand)), moving[operand]
        inner = ndim - 1 if operand is left or ndim == 1 else ndim - 2
        if dim == inner:
            return False
        stacked = dim < ndim - 2
        if not stacked and (left in moving and right in moving):
            return False  # each row with each column
        if dim - ndim != images - len(shape_of(node)) and stacked:
            return False
    return True


def _attention(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    out = len(shape_of(node))
    return images < out - 2 and all(dim - len(shape_of(source)) == images - out for source, dim in moving.items())


def einsum_terms(node: fx.Node) -> tuple[list[str], str] | None:
    """The letters of each operand and of the output, Greek ones for an ellipsis; None if they do not fit."""
    arguments = call_arguments(node)
    left, arrow, output = str(arguments["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    for at, operand in enumerate(arguments["tensors"]):
        count = len(shape_of(operand)) - len(terms[at].replace("...", ""))
        terms[at] = terms[at].replace("...", _ELLIPSIS[len(_ELLIPSIS) - count :])
    count = max(sum(letter in _ELLIPSIS for letter in term) for term in terms)
    if not arrow:
        letters = sorted(set(left) - set(",."))
        output = "..." + "".join(letter for letter in letters if left.count(letter) == 1)
    output = output.replace("...", _ELLIPSIS[len(_ELLIPSIS) - count :])
    return (terms, output) if len(output) == len(shape_of(node)) else None


_ELLIPSIS = "αβγδεζηθ"


def _einsum(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    terms = einsum_terms(node)
    if terms is None:
        return False
    letter = terms[1][images]
    pairs = zip(arguments["tensors"], terms[0], strict=True)
    return all(operand not in moving or term[moving[operand]] == letter for operand, term in pairs)


def _embedding(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    return set(moving) == {arguments["indices"]} and moving[arguments["indices"]] == images


def _recurrent(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """Recurrent layers, for [N, steps, C] or [steps, N, C], with states [layers, N, C]."""
    source = arguments.get("input")
    if not isinstance(source, fx.Node) or len(shape_of(source)) != 3:
        return False
    states = arguments["hx"] if isinstance(arguments["hx"], (list, tuple)) else [arguments["hx"]]
    places = dict.fromkeys(states, 1) | {source: 0 if arguments.get("batch_first") else 1}
    return all(places.get(each) == dim for each, dim in moving.items()) and images == places[source]


def _masked_put(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    """One number written to where a mask of the same shape says, as ``y[y < 0] = 0`` does."""
    base, indices, value = arguments["self"], arguments["indices"], arguments["values"]
    same = len(indices) == 1 and isinstance(indices[0], fx.Node) and shape_of(indices[0]) == shape_of(base)
    number = value not in moving and math.prod(shape_of(value)) == 1
    return (
        same and number and indices[0].meta["val"].dtype == torch.bool and _elementwise(node, arguments, moving, images)
    )


def _one_hot(node: fx.Node, arguments: dict[str, Any], moving: Moving, images: int) -> bool:
    return arguments["num_classes"] > 0 and set(moving.values()) == {images}


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "index_put": _masked_put,
    "one_hot": _one_hot,
    **dict.fromkeys(
        (
            *("all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "argsort", "count_nonzero", "cummax"),
            *(
                "cummin",
                "cumprod",
                "cumsum",
                "_fft_r2c",
                "_fft_c2c",
                "flip",
                "glu",
                "kthvalue",
                "linalg_vector_norm",
                "log_softmax",
            ),
            *("_log_softmax", "logcumsumexp", "logsumexp", "max", "mean", "median", "min", "mode", "narrow", "nansum"),
            *("norm", "prod", "repeat_interleave", "roll", "rot90", "select", "slice", "softmax", "_softmax", "sort"),
            *("std", "std_mean", "sum", "topk", "unfold", "var", "var_mean", "fft_fft", "fft_ifft", "fft_fft2"),
            *("fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_rfft", "fft_irfft", "fft_rfftn", "fft_irfftn", "nanmean"),
            *("_fft_c2r", "_safe_softmax"),
            *("fft_fftn", "fft_ifftn", "fft_fftshift", "fft_ifftshift", *SPLITS),
        ),
        _over_dims,
    ),
    **dict.fromkeys(("cat", "gather", "scatter", "scatter_add", "slice_scatter"), _aligned),
    "select_scatter": _select_scatter,
    **dict.fromkeys(("index_select", "index_fill", "index_add", "index_copy"), _selected),
    "index": _indexed,
    **dict.fromkeys(("permute", "transpose", "t"), _permuted),
    **dict.fromkeys(("expand", "repeat"), _expanded),
    **dict.fromkeys(
        (
            *("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
            *("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
            "cudnn_batch_norm",
        ),
        _layer,
    ),
    "torchvision::deform_conv2d": lambda node, arguments, moving, images: (
        not {arguments["weight"], arguments["bias"]} & set(moving) and _first(node, arguments, moving, images)
    ),
    "bucketize": lambda node, arguments, moving, images: (
        set(moving) == {arguments["self"]} and _elementwise(node, arguments, moving, images)
    ),
    **dict.fromkeys(("tril", "triu"), lambda node, arguments, moving, images: images < len(shape_of(node)) - 2),
    "stack": _stacked,
    **dict.fromkeys(
        (
            *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
            *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "group_norm"),
            *("adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
            *("_adaptive_avg_pool2d", "instance_norm", "channel_shuffle", "affine_grid_generator"),
            *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
            *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact1d"),
            *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa"),
            *("_upsample_bicubic2d_aa", "max_pool1d_with_indices"),
        ),
        _first,
    ),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "im2col", "max_unpool2d", "grid_sampler"), _of_rank(4)),
    "grid_sampler_2d": _of_rank(4),
    "col2im": _of_rank(3),
    **dict.fromkeys(("linear", "layer_norm", "rms_norm"), _over_last),
    **dict.fromkeys(
        (
            *("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
            *("replication_pad1d", "replication_pad2d", "replication_pad3d", "_pad_circular"),
        ),
        _padded,
    ),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm", "mv"), _matrices),
    "cdist": lambda node, arguments, moving, images: (
        images < len(shape_of(node)) - 2 and _matrices(node, arguments, moving, images)
    ),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "embedding": _embedding,
}
