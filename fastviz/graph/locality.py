"""What one call of a recorded graph depends on: the same position, a sliding window, or everything.

The calls are ATen's, functional (no in-place ones), for a batch of :data:`BATCH` images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from fastviz.graph.batch_rules import SPLITS, Place, einsum_terms, filled_images, images_apart, is_pointwise
from fastviz.graph.calls import BATCH, axes, axis, call_arguments, call_name, image_dims, is_random, shape_of
from fastviz.graph.reach import Layout, Reach
from fastviz.graph.sliding_window import Slide

__all__ = ["classify", "convolution_slides"]

Known = Mapping[fx.Node, Reach]
Rule = Callable[[fx.Node, dict[str, Any], Known], "Reach | None"]


def classify(node: fx.Node, known: Known) -> Reach:
    """The reach of ``node``, given that of every node before it; placeholders and outputs are the caller's."""
    sources = [known[source] for source in node.all_input_nodes]
    if any(source.kind == "opaque" for source in sources) or is_random(node):
        return Reach("opaque")
    if all(source.kind == "constant" for source in sources):
        if not image_dims(node):
            return Reach("constant")
        filled = filled_images(node)
        return Reach("opaque") if filled is None else Reach("filled", images=filled)
    if node.target is operator.getitem:
        return _getitem(node, known)
    moving = {source: known[source] for source in node.all_input_nodes if known[source].kind != "constant"}
    place = images_apart(node, {source: Place(reach.images, reach.ahead) for source, reach in moving.items()})
    if place is None:
        return Reach("opaque")
    maps = [reach for reach in moving.values() if reach.kind != "filled"]
    if not maps:
        return Reach("filled", images=place.dim) if place.ahead == 1 else Reach("opaque")
    rule = _elementwise if is_pointwise(node.target) else _LOCAL_RULES.get(call_name(node))
    if rule is not None and all(reach.is_local for reach in maps) and place == Place(0) and _is_map(node):
        reach = rule(node, call_arguments(node), known)
        if reach is not None and shape_of(node)[0] == BATCH:
            return reach
    return Reach("global", images=place.dim, ahead=place.ahead)


def _is_map(node: fx.Node) -> bool:
    """Whether windows can be cut from it, which complex numbers do not allow."""
    value = node.meta["val"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return not any(isinstance(each, Tensor) and each.is_complex() for each in values)


def _getitem(node: fx.Node, known: Known) -> Reach:
    source, index = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    reach, dims = known[source], image_dims(node)
    if len(dims) != 1:
        return Reach("opaque")
    if reach.is_local and (index == 0 or call_name(source) not in _POSITIONS):
        return Reach("pointwise", reach.layout)
    # indices into the whole map are only right if the whole map is present
    return Reach("filled" if reach.kind == "filled" else "global", images=dims[0], ahead=reach.ahead)


_POSITIONS = {
    *(f"{kind}{axes}d{more}" for axes in (1, 2, 3)
      for kind, more in (("max_pool", "_with_indices"), ("adaptive_max_pool", ""))),
}  # fmt: skip
"""Calls whose second result numbers the positions of the whole map."""


def _source(value: Any, known: Known) -> tuple[fx.Node, Layout, int] | None:
    """The node, its layout and its number of dimensions, if ``value`` is a map that depends on the input."""
    if isinstance(value, fx.Node) and (layout := known[value].layout) is not None:
        return value, layout, len(shape_of(value))
    return None


def _elementwise(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    if call_name(node) in ("prelu", "_prelu_kernel"):
        return _channelwise(node, arguments, known)
    out = shape_of(node)
    maps = [source for source in node.all_input_nodes if known[source].is_local]
    layout = known[maps[0]].layout
    assert layout is not None
    for source in maps:
        shape = shape_of(source)
        same_places = known[source].layout == layout and len(shape) == len(out)
        if not same_places or any(shape[dim] != out[dim] for dim in layout):
            return None
    positional = any(_has_places(source, layout, len(out)) for source in node.all_input_nodes if source not in maps)
    return Reach("joining" if len(maps) > 1 else "pointwise", layout, positional=positional)


def _has_places(constant: fx.Node, layout: Layout, ndim: int) -> bool:
    """Whether a constant, broadcast to ``ndim`` dimensions, differs from row to row or column to column."""
    shape = shape_of(constant)
    offset = ndim - len(shape)
    return any(dim >= offset and shape[dim - offset] != 1 for dim in layout)


def _channelwise(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Batch norm, PReLU and channel shuffle, which act by the index in dimension 1."""
    found = _source(arguments.get("input", arguments.get("self")), known)
    if found is None or 1 in found[1] or arguments.get("training", False):
        return None
    return Reach("pointwise", found[1])


def _over_last(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Linear layers and layer norms: they mix the last dimensions only."""
    found = _source(arguments["input"], known)
    if found is None:
        return None
    _, layout, ndim = found
    mixed = len(arguments.get("normalized_shape") or (0,))
    return Reach("pointwise", layout) if max(layout) < ndim - mixed else None


def _over_dims(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Softmax and reductions over dimensions that are not rows, columns or images."""
    found = _source(arguments["self"], known)
    dims = arguments.get("dim", arguments.get("dims"))
    if found is None or dims is None or dims == []:
        return None
    _, layout, ndim = found
    mixed = axes(dims, ndim)
    if mixed & {0, *layout}:
        return None
    if len(shape_of(node)) == ndim:
        return Reach("pointwise", layout)
    return Reach("pointwise", _without(layout, mixed))


def _without(layout: Layout, removed: set[int]) -> Layout:
    return tuple(dim - sum(gone < dim for gone in removed) for dim in layout)


def _cat(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Concatenation, and stacking along a new dimension."""
    found = [source for source in (_source(value, known) for value in arguments["tensors"]) if source is not None]
    layouts = {(layout, ndim) for _, layout, ndim in found}
    if len(layouts) != 1:
        return None
    layout, ndim = layouts.pop()
    positional = len(found) < len(arguments["tensors"])
    if call_name(node) == "stack":
        dim = axis(arguments["dim"], ndim + 1)
        return Reach("joining", tuple(at + (at >= dim) for at in layout), positional=positional) if dim else None
    if axis(arguments["dim"], ndim) in (0, *layout):
        return None
    return Reach("joining", layout, positional=positional)


def _scatter(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Channels written into a map, as ``y[:, 0] = x`` does."""
    base, source = _source(arguments["self"], known), _source(arguments["src"], known)
    if base is None or source is None:
        return None
    _, layout, ndim = base
    dim = axis(arguments["dim"], ndim)
    removed = {dim} if call_name(node) == "select_scatter" else set()
    return Reach("joining", layout) if dim not in layout and _without(layout, removed) == source[1] else None


def _einsum(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """A product with one map, whose rows and columns stay and are not combined with a constant."""
    terms = einsum_terms(node)
    maps = [at for at, operand in enumerate(arguments["tensors"]) if known[operand].kind != "constant"]
    if terms is None or len(maps) != 1:
        return None
    layout = known[arguments["tensors"][maps[0]]].layout
    assert layout is not None
    letters = [terms[0][maps[0]][dim] for dim in layout]
    others = "".join(term for at, term in enumerate(terms[0]) if at != maps[0])
    if any(letter in others or terms[1].count(letter) != 1 for letter in letters):
        return None
    return Reach("pointwise", tuple(terms[1].index(letter) for letter in letters))


def _matmul(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """A linear layer over the last dimension."""
    found = _source(arguments["self"], known)
    other = arguments["other"]
    if found is None or known[other].kind != "constant" or len(shape_of(other)) != 2:
        return None
    return Reach("pointwise", found[1]) if max(found[1]) < found[2] - 1 else None


def _index(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Channels chosen by one list."""
    found = _source(arguments["self"], known)
    given = [(dim, index) for dim, index in enumerate(arguments["indices"]) if index is not None]
    if found is None or len(given) != 1 or given[0][0] in found[1] or len(shape_of(given[0][1])) != 1:
        return None
    return Reach("pointwise", found[1]) if len(shape_of(node)) == found[2] else None


def _split(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None:
        return None
    _, layout, ndim = found
    dim = axis(arguments["dim"], ndim)
    if dim in (0, *layout):
        return None
    removes = call_name(node) in ("unbind", "select")
    return Reach("pointwise", _without(layout, {dim}) if removes else layout)


def _reorder(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Permute, transpose, squeeze and unsqueeze."""
    found = _source(arguments["self"], known)
    if found is None:
        return None
    source, layout, ndim = found
    order = list(range(ndim))  # old dimension at each new one; -1 for a new dimension
    name = call_name(node)
    if name == "permute":
        order = [axis(dim, ndim) for dim in arguments["dims"]]
    elif name == "transpose":
        first, second = axis(arguments["dim0"], ndim), axis(arguments["dim1"], ndim)
        order[first], order[second] = second, first
    elif name == "unsqueeze":
        order.insert(axis(arguments["dim"], ndim + 1), -1)
    elif name == "squeeze":
        dims = arguments.get("dim", range(ndim))
        dims = dims if isinstance(dims, Sequence) else [dims]
        sizes = shape_of(source)
        gone = {axis(dim, ndim) for dim in dims if sizes[axis(dim, ndim)] == 1}
        order = [dim for dim in order if dim not in gone]
    if order[0] != 0 or not set(layout) <= set(order):
        return None
    return Reach("pointwise", tuple(order.index(dim) for dim in layout))


def _view(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """A view stays local if the map's axes remain whole dimensions, with as many entries before them as before."""
    found = _source(arguments["self"], known)
    if found is None:
        return None
    source, layout, _ = found
    before, after = shape_of(source), shape_of(node)
    places: list[int] = []
    for dim in layout:
        ahead = math.prod(before[:dim])
        fits = [at for at, size in enumerate(after) if size == before[dim] and math.prod(after[:at]) == ahead]
        fits = [at for at in fits if not places or at > places[-1]]
        if not fits:
            return None
        places.append(fits[-1] if len(layout) > 1 and dim == layout[-1] else fits[0])
    return Reach("pointwise", tuple(places))


def _expand(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None:
        return None
    before, after = shape_of(found[0]), shape_of(node)
    same = len(before) == len(after) and all(before[dim] == after[dim] for dim in found[1])
    return Reach("pointwise", found[1]) if same else None


def _slice(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None:
        return None
    source, layout, ndim = found
    dim = axis(arguments["dim"], ndim)
    if dim == 0:
        return Reach("pointwise", layout) if shape_of(source) == shape_of(node) else None
    if dim not in layout:
        return Reach("pointwise", layout)
    size = shape_of(source)[dim]
    start, end = arguments["start"] or 0, arguments["end"]
    start = max(0, min(size, axis(start, size)))
    end = size if end is None else max(start, min(size, axis(end, size)))
    cut = Slide(stride=arguments["step"], before=-start, after=end - size)
    if cut.is_pointwise:
        return Reach("pointwise", layout)
    return Reach("windowed", layout, tuple(cut if at == dim else Slide() for at in layout))


def _pad(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None or arguments.get("mode", "constant") != "constant":
        return None
    _, layout, ndim = found
    amounts = list(arguments["pad"])
    pairs = {ndim - 1 - at // 2: (amounts[at], amounts[at + 1]) for at in range(0, len(amounts), 2)}
    if pairs.get(0, (0, 0)) != (0, 0):
        return None
    slides = tuple(Slide(before=before, after=after) for before, after in (pairs.get(dim, (0, 0)) for dim in layout))
    if all(slide.is_pointwise for slide in slides):
        return Reach("pointwise", layout)
    return Reach("windowed", layout, slides)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """A number for each axis: those of a list, or the same one."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return tuple(values) if len(values) == axes else tuple(values[:1] * axes)


def _windows(node: fx.Node, layout: Layout, slides: tuple[Slide, ...]) -> Reach | None:
    if layout != tuple(range(2, len(shape_of(node)))):
        return None
    return (
        Reach("pointwise", layout) if all(slide.is_pointwise for slide in slides) else Reach("windowed", layout, slides)
    )


def _convolution(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["input"], known)
    slides = convolution_slides(node)
    if found is None or slides is None or known[arguments["weight"]].kind != "constant":
        return None
    return _windows(node, found[1], slides)


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")


def convolution_slides(node: fx.Node) -> tuple[Slide, ...] | None:
    """The windows of a convolution over [N, C, ...], local or not; None if ``node`` is something else."""
    axes = len(shape_of(node)) - 2
    if call_name(node) not in _CONVOLUTIONS or axes not in (1, 2, 3):
        return None
    arguments = call_arguments(node)
    if arguments.get("transposed", False):
        return None
    kernel = shape_of(arguments["weight"])[2:]
    stride, dilation = _each(arguments["stride"], axes), _each(arguments["dilation"], axes)
    padding = arguments["padding"]
    slides = []
    for at in range(axes):
        if isinstance(padding, str):
            total = dilation[at] * (kernel[at] - 1) if padding == "same" else 0
            before, after = total // 2, total - total // 2
        else:
            before = after = _each(padding, axes)[at]
        slides.append(Slide(kernel[at], stride[at], before, after, dilation[at]))
    return tuple(slides)


def _pool(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None:
        return None
    axes = len(found[1])
    if _POOLED.get(call_name(node)) != axes or found[2] != axes + 2:
        return _pool_of_channels(node, arguments, known)
    kernel, padding = _each(arguments["kernel_size"], axes), _each(arguments["padding"], axes)
    stride = _each(arguments["stride"], axes) if arguments["stride"] else kernel
    dilation = _each(arguments.get("dilation", 1), axes)
    ceil = arguments["ceil_mode"]
    slides = (Slide(kernel[at], stride[at], padding[at], padding[at], dilation[at], ceil) for at in range(axes))
    return _windows(node, found[1], tuple(slides))


def _adaptive_pool(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None or found[2] != len(found[1]) + 2 or found[2] != len(shape_of(node)):
        return None
    slides = []
    for size, outputs in zip(shape_of(found[0])[2:], shape_of(node)[2:], strict=True):
        if size % outputs or (outputs == 1 and size > 1):
            return None
        slides.append(Slide(size // outputs, size // outputs))
    return _windows(node, found[1], tuple(slides))


def _pool_of_channels(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Pools over three dimensions that leave rows and columns alone, as local response norms do."""
    found = _source(arguments["self"], known)
    if found is None or _POOLED.get(call_name(node)) != 3 or found[2] != 5 or len(found[1]) != 2 or 2 in found[1]:
        return None
    kernel = arguments["kernel_size"]
    whole = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    for name, number in whole.items():
        numbers = list(arguments.get(name, [1]) or kernel)
        if any(numbers[dim - 2 if len(numbers) == 3 else 0] != number for dim in found[1]):
            return None
    return Reach("pointwise", found[1])


def _unshuffled(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None or len(found[1]) != 2:
        return None
    factor = int(arguments["downscale_factor"])
    return _windows(node, found[1], (Slide(factor, factor), Slide(factor, factor)))


_POOLED = {
    f"{kind}_pool{axes}d{more}": axes
    for axes in (1, 2, 3)
    for kind, more in (("avg", ""), ("max", ""), ("max", "_with_indices"))
}
"""Pools by the number of axes that they slide along."""

_CHANNELWISE = (
    *("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "channel_shuffle"),
)
_OVER_DIMS = (
    *("softmax", "_softmax", "log_softmax", "_log_softmax", "mean", "sum", "amax", "amin", "linalg_vector_norm"),
    *("all", "any", "argmax", "argmin", "cummax", "cummin", "cumprod", "cumsum", "flip", "glu", "index_select"),
    *("kthvalue", "logcumsumexp", "logsumexp", "max", "median", "min", "norm", "prod", "repeat_interleave", "roll"),
    *("sort", "argsort", "std", "topk", "var"),
)

_LOCAL_RULES: dict[str, Rule] = {
    **dict.fromkeys(_CHANNELWISE, _channelwise),
    **dict.fromkeys(("linear", "layer_norm", "rms_norm"), _over_last),
    **dict.fromkeys(_OVER_DIMS, _over_dims),
    **dict.fromkeys((*SPLITS, "select"), _split),
    **dict.fromkeys(("permute", "transpose", "unsqueeze", "squeeze"), _reorder),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten"), _view),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_POOLED, _pool),
    **dict.fromkeys((f"adaptive_{kind}_pool{axes}d" for kind in ("avg", "max") for axes in (1, 2, 3)), _adaptive_pool),
    **dict.fromkeys(("cat", "stack"), _cat),
    **dict.fromkeys(("slice_scatter", "select_scatter"), _scatter),
    "einsum": _einsum,
    "expand": _expand,
    "index": _index,
    "matmul": _matmul,
    "index_put": _elementwise,
    "pixel_unshuffle": _unshuffled,
    "slice": _slice,
}
