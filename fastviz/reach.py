"""What one call of an exported graph depends on: the same position, a sliding window, or everything.

The calls are ATen's, functional (no in-place ones), for a batch of :data:`BATCH` images.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fastviz.geometry import Slide

__all__ = ["BATCH", "Layout", "Reach", "call_arguments", "call_name", "classify", "convolution_slides", "shape_of"]

BATCH = 23
"""Images in the batch that models are exported with: a number that no other dimension is likely to have."""

Layout = tuple[int, int]
"""The dimensions of a tensor that are rows and columns of a map."""

Kind = Literal["constant", "pointwise", "windowed", "joining", "global", "opaque"]


@dataclass(frozen=True)
class Reach:
    """What the output of one call depends on.

    Attributes:
        kind: ``"constant"``: not on the input; ``"pointwise"``: each position on the same one of one map;
            ``"joining"``: on the same one of several maps; ``"windowed"``: on a window; ``"global"``: on everything of
            its own image; ``"opaque"``: perhaps on other images of the batch, or on chance.
        layout: which dimensions are rows and columns; None for constant, global and opaque ones.
        slides: the window along rows and columns; None unless ``"windowed"``.
        positional: whether a constant takes part whose values differ from position to position.
    """

    kind: Kind
    layout: Layout | None = None
    slides: tuple[Slide, Slide] | None = None
    positional: bool = False

    @property
    def is_local(self) -> bool:
        """Whether the output is a map whose positions depend on parts of the input map only."""
        return self.layout is not None


Known = Mapping[fx.Node, Reach]
Rule = Callable[[fx.Node, dict[str, Any], Known], "Reach | None"]


def classify(node: fx.Node, known: Known) -> Reach:
    """The reach of ``node``, given that of every node before it; placeholders and outputs are the caller's."""
    if node.op == "get_attr":
        return Reach("constant")
    sources = [known[source] for source in node.all_input_nodes]
    if any(source.kind == "opaque" for source in sources) or _is_random(node):
        return Reach("opaque")
    if all(source.kind == "constant" for source in sources):
        # made for this batch size, so wrong for any other
        depends_on_batch = any(BATCH in shape for shape in _shapes(node))
        return Reach("opaque") if depends_on_batch else Reach("constant")
    if node.target is operator.getitem:
        return _getitem(node, known)
    arguments = call_arguments(node)
    rule = _LOCAL_RULES.get(call_name(node))
    moving = [source for source in sources if source.kind != "constant"]
    if rule is not None and all(source.is_local for source in moving):
        reach = rule(node, arguments, known)
        if reach is not None and shape_of(node)[0] == BATCH:
            return reach
    return Reach("global") if _is_batchwise(node, arguments, known) else Reach("opaque")


def call_name(node: fx.Node) -> str:
    """The name of the operation that ``node`` calls, without its overload: ``"conv2d"``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return getattr(target, "__name__", str(target))


def call_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of the call by name, with the defaults of those that are not given."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(index): value for index, value in enumerate(node.args)}
    bound: dict[str, Any] = {}
    for index, parameter in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            bound[parameter.name] = node.args[index]
        else:
            bound[parameter.name] = node.kwargs.get(parameter.name, parameter.default_value)
    return bound


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of the node's (first) output for a batch of :data:`BATCH` images; () if it is not a tensor."""
    shapes = _shapes(node)
    return shapes[0] if shapes else ()


def _shapes(node: fx.Node) -> list[tuple[int, ...]]:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tuple(int(size) for size in item.shape) for item in values if isinstance(item, Tensor)]


def _is_random(node: fx.Node) -> bool:
    """Whether the call draws random numbers."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    arguments = call_arguments(node)
    return arguments.get("train") is not False and arguments.get("dropout_p") != 0.0


def _getitem(node: fx.Node, known: Known) -> Reach:
    source, index = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    if index != 0 and call_name(source) not in _SPLITS:
        return Reach("opaque")  # indices of a max-pool and the like, which count positions of the whole map
    reach = known[source]
    return Reach("pointwise", reach.layout) if reach.is_local else reach


def _axis(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def _source(value: Any, known: Known) -> tuple[fx.Node, Layout, int] | None:
    """The node, its layout and its number of dimensions, if ``value`` is a map that depends on the input."""
    if isinstance(value, fx.Node) and (layout := known[value].layout) is not None:
        return value, layout, len(shape_of(value))
    return None


def _elementwise(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    out = shape_of(node)
    maps = [source for source in node.all_input_nodes if known[source].is_local]
    layout = known[maps[0]].layout
    assert layout is not None
    for source in maps:
        shape = shape_of(source)
        same_places = known[source].layout == layout and len(shape) == len(out)
        if not same_places or any(shape[dim] != out[dim] for dim in layout):
            return None
    positional = False
    for source in node.all_input_nodes:
        if known[source].kind == "constant":
            shape = shape_of(source)
            offset = len(out) - len(shape)
            positional |= any(dim >= offset and shape[dim - offset] != 1 for dim in layout)
    return Reach("joining" if len(maps) > 1 else "pointwise", layout, positional=positional)


def _channelwise(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Batch norm, PReLU and channel shuffle: what they do depends on the place in dimension 1."""
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
    mixed = len(arguments.get("normalized_shape", (0,)))
    return Reach("pointwise", layout) if max(layout) < ndim - mixed else None


def _over_dims(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Softmax and reductions over dimensions that are not rows, columns or images."""
    found = _source(arguments["self"], known)
    dims = arguments.get("dim")
    if found is None or dims is None or dims == []:
        return None
    _, layout, ndim = found
    mixed = {_axis(dim, ndim) for dim in (dims if isinstance(dims, Sequence) else [dims])}
    if mixed & {0, *layout}:
        return None
    if len(shape_of(node)) == ndim:
        return Reach("pointwise", layout)
    return Reach("pointwise", _without(layout, mixed))


def _without(layout: Layout, removed: set[int]) -> Layout:
    rows, columns = (dim - sum(gone < dim for gone in removed) for dim in layout)
    return rows, columns


def _cat(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """Concatenation, and stacking along a new dimension."""
    found = [_source(value, known) for value in arguments["tensors"]]
    if any(source is None for source in found):
        return None
    layouts = {(source[1], source[2]) for source in found if source is not None}
    if len(layouts) != 1:
        return None
    layout, ndim = layouts.pop()
    if call_name(node) == "stack":
        dim = _axis(arguments["dim"], ndim + 1)
        rows, columns = (at + (at >= dim) for at in layout)
        return Reach("joining", (rows, columns)) if dim else None
    if _axis(arguments["dim"], ndim) in (0, *layout):
        return None
    return Reach("joining", layout)


def _split(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None:
        return None
    _, layout, ndim = found
    dim = _axis(arguments["dim"], ndim)
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
        order = [_axis(dim, ndim) for dim in arguments["dims"]]
    elif name == "transpose":
        first, second = _axis(arguments["dim0"], ndim), _axis(arguments["dim1"], ndim)
        order[first], order[second] = second, first
    elif name == "unsqueeze":
        order.insert(_axis(arguments["dim"], ndim + 1), -1)
    elif name == "squeeze":
        dims = arguments.get("dim", range(ndim))
        dims = dims if isinstance(dims, Sequence) else [dims]
        sizes = shape_of(source)
        gone = {_axis(dim, ndim) for dim in dims if sizes[_axis(dim, ndim)] == 1}
        order = [dim for dim in order if dim not in gone]
    if order[0] != 0 or not set(layout) <= set(order):
        return None
    return Reach("pointwise", (order.index(layout[0]), order.index(layout[1])))


def _view(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    """A view stays local if rows and columns are whole dimensions of it, with as much before them as they had."""
    found = _source(arguments["self"], known)
    if found is None:
        return None
    source, layout, _ = found
    before, after = shape_of(source), shape_of(node)
    places = []
    for dim in layout:
        ahead = _product(before[:dim])
        fits = [at for at, size in enumerate(after) if size == before[dim] and _product(after[:at]) == ahead]
        if not fits:
            return None
        places.append(fits[-1] if dim == layout[1] else fits[0])
    return Reach("pointwise", (places[0], places[1])) if places[0] < places[1] else None


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _expand(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    return Reach("pointwise", found[1]) if found and shape_of(found[0]) == shape_of(node) else None


def _slice(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None:
        return None
    source, layout, ndim = found
    dim = _axis(arguments["dim"], ndim)
    if dim == 0:
        return Reach("pointwise", layout) if shape_of(source) == shape_of(node) else None
    if dim not in layout:
        return Reach("pointwise", layout)
    size = shape_of(source)[dim]
    start, end = arguments["start"] or 0, arguments["end"]
    start = max(0, min(size, _axis(start, size)))
    end = size if end is None else max(start, min(size, _axis(end, size)))
    cut = Slide(stride=arguments["step"], before=-start, after=end - size)
    if cut.is_pointwise:
        return Reach("pointwise", layout)
    slides = (cut, Slide()) if dim == layout[0] else (Slide(), cut)
    return Reach("windowed", layout, slides)


def _pad(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None or arguments.get("mode", "constant") != "constant":
        return None
    _, layout, ndim = found
    amounts = list(arguments["pad"])
    pairs = {ndim - 1 - at // 2: (amounts[at], amounts[at + 1]) for at in range(0, len(amounts), 2)}
    if pairs.get(0, (0, 0)) != (0, 0):
        return None
    rows, columns = (Slide(before=before, after=after) for before, after in (pairs.get(dim, (0, 0)) for dim in layout))
    if rows.is_pointwise and columns.is_pointwise:
        return Reach("pointwise", layout)
    return Reach("windowed", layout, (rows, columns))


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return (values[0], values[-1])


def _windows(node: fx.Node, layout: Layout, slides: tuple[Slide, Slide]) -> Reach | None:
    if layout != (2, 3):
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


def convolution_slides(node: fx.Node) -> tuple[Slide, Slide] | None:
    """The windows of a convolution over [N, C, H, W], local or not; None if ``node`` is something else."""
    if call_name(node) not in ("conv2d", "convolution") or len(shape_of(node)) != 4:
        return None
    arguments = call_arguments(node)
    if arguments.get("transposed", False):
        return None
    kernel = shape_of(arguments["weight"])[2:]
    stride, dilation, padding = _pair(arguments["stride"]), _pair(arguments["dilation"]), arguments["padding"]
    slides = []
    for axis in range(2):
        if isinstance(padding, str):
            total = dilation[axis] * (kernel[axis] - 1) if padding == "same" else 0
            before, after = total // 2, total - total // 2
        else:
            before = after = _pair(padding)[axis]
        slides.append(Slide(kernel[axis], stride[axis], before, after, dilation[axis]))
    return slides[0], slides[1]


def _pool(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None or found[2] != 4:
        return None
    kernel, padding = _pair(arguments["kernel_size"]), _pair(arguments["padding"])
    stride = _pair(arguments["stride"]) if arguments["stride"] else kernel
    dilation = _pair(arguments.get("dilation", 1))
    rows, columns = (
        Slide(kernel[axis], stride[axis], padding[axis], padding[axis], dilation[axis], arguments["ceil_mode"])
        for axis in range(2)
    )
    return _windows(node, found[1], (rows, columns))


def _adaptive_pool(node: fx.Node, arguments: dict[str, Any], known: Known) -> Reach | None:
    found = _source(arguments["self"], known)
    if found is None or found[2] != 4:
        return None
    slides = []
    for size, outputs in zip(shape_of(found[0])[2:], shape_of(node)[2:], strict=True):
        if size % outputs or (outputs == 1 and size > 1):
            return None
        slides.append(Slide(size // outputs, size // outputs))
    return _windows(node, found[1], (slides[0], slides[1]))


_ELEMENTWISE = {
    *(
        "abs",
        "add",
        "alias",
        "celu",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clone",
        "contiguous",
        "detach",
        "div",
        "dropout",
    ),
    *(
        "elu",
        "erf",
        "exp",
        "gelu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log",
        "log_sigmoid",
        "maximum",
    ),
    *(
        "minimum",
        "mish",
        "mul",
        "neg",
        "pow",
        "reciprocal",
        "relu",
        "relu6",
        "rsqrt",
        "rsub",
        "selu",
        "sigmoid",
        "silu",
    ),
    *("softplus", "softsign", "sqrt", "square", "sub", "tanh", "threshold", "to", "_to_copy", "where"),
}
_SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
_REDUCTIONS = {
    "softmax",
    "_softmax",
    "log_softmax",
    "_log_softmax",
    "mean",
    "sum",
    "amax",
    "amin",
    "linalg_vector_norm",
}

_LOCAL_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(
        (
            "batch_norm",
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "prelu",
            "_prelu_kernel",
            "channel_shuffle",
        ),
        _channelwise,
    ),
    **dict.fromkeys(("linear", "layer_norm"), _over_last),
    **dict.fromkeys(_REDUCTIONS, _over_dims),
    **dict.fromkeys((*_SPLITS, "select"), _split),
    **dict.fromkeys(("permute", "transpose", "unsqueeze", "squeeze"), _reorder),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten"), _view),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("conv2d", "convolution"), _convolution),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), _pool),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys(("cat", "stack"), _cat),
    "expand": _expand,
    "slice": _slice,
}

_BATCHWISE = {
    *_LOCAL_RULES,
    *("bmm", "matmul", "scaled_dot_product_attention", "group_norm", "instance_norm", "conv_transpose2d", "max", "var"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "pixel_shuffle", "reflection_pad2d", "std"),
    *("replication_pad2d", "roll", "flip"),
}


def _is_batchwise(node: fx.Node, arguments: dict[str, Any], known: Known) -> bool:
    """Whether each image goes its own way: dimension 0 counts images before and after, and nothing mixes them."""
    if call_name(node) not in _BATCHWISE or arguments.get("training", False):
        return False
    outputs = _shapes(node)
    if call_name(node) not in _SPLITS:
        outputs = outputs[:1]  # a batch norm's others are empty; no one reads them
    if not outputs or any(not shape or shape[0] != BATCH for shape in outputs):
        return False
    for source in node.all_input_nodes:
        shape = shape_of(source)
        if known[source].kind == "constant":
            continue
        if not shape or shape[0] != BATCH or (call_name(node) in _ELEMENTWISE and len(shape) != len(outputs[0])):
            return False
    first = next((shape_of(source) for source in node.all_input_nodes if known[source].kind != "constant"), ())
    if call_name(node) == "permute":
        return _axis(arguments["dims"][0], len(first)) == 0
    for name in ("dim", "dims", "dim0", "dim1"):
        value = arguments.get(name)
        dims = value if isinstance(value, Sequence) else [value]
        if any(isinstance(dim, int) and _axis(dim, len(first)) == 0 for dim in dims):
            return call_name(node) in ("slice", "squeeze") and len(outputs[0]) == len(first)
        if name == "dim" and "dim" in arguments and value in (None, []):
            return False
    return True
