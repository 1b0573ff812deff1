"""The graph of a model, its layers with their shapes, and the receptive field of any of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastviz._util import checks
from fastviz.execution import exported
from fastviz.graph import tracing
from fastviz.graph.calls import BATCH, call_name, is_random, shapes_of
from fastviz.graph.fingerprint import StructureCache, structure
from fastviz.graph.locality import classify
from fastviz.graph.reach import Layout, Reach
from fastviz.graph.receptive_field import ReceptiveField
from fastviz.graph.sliding_window import Field
from fastviz.graph.tracing import NotTraceable, Recording
from fastviz.models.descriptions import preprocessing

__all__ = [
    "Layer",
    "NotTraceable",
    "ReceptiveField",
    "Trace",
    "example_images",
    "joined_field",
    "layers",
    "receptive_field",
    "trace",
]

# Kept for a few image sizes of each model, since tracing a large network takes seconds.
_layers: StructureCache[list[Layer]] = StructureCache(4)


@dataclass(frozen=True)
class Layer:
    """One module of a model, as the forward pass uses it.

    Attributes:
        name: torch's dotted name.
        kind: the class of the module, for example ``"Conv2d"``.
        shape: shape of the output for one image, for example (64, 112, 112); where the module runs several times, of
            its last output.
        parameters: number of parameters, those of its children included.
        receptive_field: the pixels that a unit depends on; None where that is the whole image, or not known.
        reason: why there is no receptive field; empty if there is one.
        layout: which dimensions of the output, the batch being 0, are axes of a map: (2, 3) for maps [N, C, H, W];
            None where there is no receptive field.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    receptive_field: ReceptiveField | None
    reason: str = ""
    layout: Layout | None = None


@dataclass(frozen=True)
class Trace:
    """A model as a graph of functional ATen calls.

    Attributes:
        graph: the graph, for a batch of ``fastviz.graph.calls.BATCH`` images; in the metadata of a node, ``val`` is its
            output without data.
        constants: the values of its parameters, buffers and other constants by the placeholder's name; the model's own
            tensors, not copies.
        image: the placeholder of the images.
        reaches: what each node depends on.
        mixes: the call that may mix the images of a batch or draws random numbers, in words; empty if the images
            provably stay separate, in batches of any size.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    image: fx.Node
    reaches: dict[fx.Node, Reach]
    mixes: str = ""


def trace(model: nn.Module, input_size: tuple[int, ...] | None = None, channels: int | None = None) -> Trace:
    """The graph of ``model`` in evaluation mode, for images of ``input_size`` (height, width) in pixels.

    Signals have a size of one number, volumes of three. The model is not touched. A size or number of channels that is
    not given is that of :func:`fastviz.models.preprocessing`.

    Raises:
        NotTraceable: the model cannot be traced, or gives something other than one tensor.
    """
    found, _ = traced(model, input_size, channels)
    (output,) = (node for node in found.graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise NotTraceable("the model gives more than one tensor, or none")
    return found


def traced(model: nn.Module, input_size: tuple[int, ...] | None, channels: int | None) -> tuple[Trace, Recording]:
    """The graph and the modules' outputs, whatever the model returns. It is recorded for a batch and for one image; the
    second pass shows what depends on the number of images.

    Raises:
        NotTraceable: the model cannot be traced.
    """
    batch = example_images(model, input_size, BATCH, channels)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recording = tracing.record(model, batch, mode=mode)
    differs = compare(recording, tracing.record(model, batch[:1], mode=mode))
    reaches = reaches_of(recording.graph, recording.image)
    mixes = differs or _mixing_call(recording.graph, reaches)
    return Trace(recording.graph, recording.constants, recording.image, reaches, mixes), recording


def compare(many: Recording, single: Recording) -> str:
    """Note in the nodes of ``many``, for a batch, which dimensions grow with the number of images.

    Args:
        many: the calls for :data:`fastviz.graph.calls.BATCH` images.
        single: those for one.

    Returns:
        Why the model's calls depend on the number of images; empty if they do not.
    """
    twins: dict[fx.Node, fx.Node] = {}
    if len(many.graph.nodes) != len(single.graph.nodes):
        return COUNTS
    for node, other in zip(many.graph.nodes, single.graph.nodes, strict=True):
        twins[node] = other
        if node.op != other.op or (node.op == "call_function" and node.target != other.target):
            return COUNTS
        if node.name in many.constants and not _equal(many.constants[node.name], single.constants[other.name]):
            return COUNTS
        sized = call_name(node) in _SIZED
        if not _same((node.args, node.kwargs), (other.args, other.kwargs), twins, sized=sized):
            return COUNTS
        shapes, others = shapes_of(node), shapes_of(other)
        grown = [_growing(shape, its) for shape, its in zip(shapes, others, strict=True)]
        if None in grown:
            return COUNTS
        node.meta["images"] = grown[0] if grown else ()
    return ""


COUNTS = "code that looks at the number of images may mix the images of a batch"


def _equal(constant: Tensor, other: Tensor) -> bool:
    return constant is other or (constant.shape == other.shape and torch.equal(constant, other))


def _growing(shape: tuple[int, ...], single: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions that are :data:`BATCH` times as long; None if others differ."""
    if len(shape) != len(single):
        return None
    grown = [dim for dim, size in enumerate(shape) if size != single[dim]]
    return tuple(grown) if all(shape[dim] == BATCH * single[dim] for dim in grown) else None


_SIZED = {
    *("view", "reshape", "_unsafe_view", "expand", "repeat", "unflatten", "full", "slice", "affine_grid_generator"),
}  # fmt: skip
"""Calls whose arguments may be sizes of batches."""


def _same(value: Any, other: Any, twins: dict[fx.Node, fx.Node], *, sized: bool) -> bool:
    """Whether two calls have the same arguments, except for batch sizes where those are allowed (``sized``)."""
    if isinstance(value, fx.Node):
        return twins[value] is other
    if isinstance(value, (list, tuple)):
        same_length = isinstance(other, (list, tuple)) and len(value) == len(other)
        return same_length and all(_same(a, b, twins, sized=sized) for a, b in zip(value, other, strict=True))
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key], twins, sized=sized) for key in value)
    if sized and isinstance(value, int) and isinstance(other, int) and value == BATCH * other:
        return True
    if isinstance(value, torch.ScriptObject):  # packed weights cannot be compared
        return type(value) is type(other)
    return bool(value == other) or (value != value and other != other)


def reaches_of(graph: fx.Graph, image: fx.Node) -> dict[fx.Node, Reach]:
    """What each node of ``graph`` depends on."""
    reaches: dict[fx.Node, Reach] = {}
    for node in graph.nodes:
        if node is image:
            reaches[node] = Reach("pointwise", tuple(range(2, len(shapes_of(node)[0]))))
        elif node.op == "placeholder":
            reaches[node] = Reach("constant")
        elif node.op != "output":
            reaches[node] = classify(node, reaches)
    return reaches


def _mixing_call(graph: fx.Graph, reaches: dict[fx.Node, Reach]) -> str:
    """The first call that is not proved to keep images separate, and its place."""
    node = next((node for node in graph.nodes if node in reaches and reaches[node].kind == "opaque"), None)
    if node is None:
        return ""
    where = f"{call_name(node)} in {label(node) or 'the model'!r}"
    return f"{where} draws random numbers" if is_random(node) else f"{where} may mix the images of a batch"


def label(node: fx.Node) -> str:
    """The name of the module that the call stands in."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return stack[-1] if stack else ""


def layers(model: nn.Module, input_size: tuple[int, ...] | None = None, channels: int | None = None) -> list[Layer]:
    """Every module that the forward pass calls and that gives a tensor, in the order of ``model.named_modules()``.

    The result is kept as long as the model lives and its structure stays the same
    (:func:`fastviz.graph.fingerprint.structure`).

    Args:
        model: the network; not touched.
        input_size: height and width of the image in pixels, length of a signal, or depth, height and width of a volume;
            None asks :func:`fastviz.models.preprocessing` (``fastviz.models.describe`` registers your own model's).
        channels: of the image; None asks there, too, and falls back on those of the first convolution if the model
            cannot take that many.

    Returns:
        A :class:`Layer` for each: its name, its kind, the shape of its output for one image, its receptive field.

    Raises:
        ValueError: the model is a script, or does not take such an image.

    >>> [layer.shape for layer in layers(nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU()), (65, 65))]
    [(8, 31, 31), (8, 31, 31)]
    """
    batch = example_images(checks.module(model), input_size, 1, channels)
    size = tuple(batch.shape[2:])
    key = (size, batch.shape[1], batch.dtype, batch.device)
    return list(_layers.get(model, key, structure(model), lambda: _found_layers(model, size, batch.shape[1])))


def _found_layers(model: nn.Module, input_size: tuple[int, ...], channels: int) -> list[Layer]:
    try:
        found, recording = traced(model, input_size, channels)
    except NotTraceable as error:
        missing = _Traced(None, str(error))
        known = {name: (shape, missing) for name, shape in _shapes_by_running(model, input_size, channels).items()}
    else:
        fields = _fields_of_nodes(found)
        known = {
            name: (_per_image(calls[-1].shape, BATCH), _of_output(calls[-1], fields))
            for name, calls in recording.outputs.items()
            if calls[-1].shape is not None
        }
    result = []
    for name, module in model.named_modules():
        # what torch.compile wraps is traced without the wrapper
        if name and (inner := f"{name}.".replace("_orig_mod.", "").removesuffix(".")) in known:
            shape, fields_of = known[inner]
            count = sum(parameter.numel() for parameter in module.parameters())
            result.append(
                Layer(name, type(module).__name__, shape, count, fields_of.field, fields_of.reason, fields_of.layout)
            )
    return result


def _of_output(call: tracing.Output, fields: dict[fx.Node, _Traced]) -> _Traced:
    return fields[call.node] if call.node in fields else _Traced(None, "it does not depend on the image")


def receptive_field(
    model: nn.Module, layer: str, input_size: tuple[int, ...] | None = None, channels: int | None = None
) -> ReceptiveField:
    """The pixels that a unit of ``layer`` depends on.

    Args:
        model: the network; not touched.
        layer: torch's dotted name of a module; where it runs several times, its last output counts.
        input_size: height and width of the image in pixels; None asks :func:`fastviz.models.preprocessing`.
        channels: as for :func:`layers`.

    Returns:
        Size and stride in pixels, and where the field of the first unit starts (below 0 in the padding).

    Raises:
        ValueError: no such layer (with the nearest names), or its units depend on the whole image, or the model cannot
            be traced (the message says which).

    >>> receptive_field(nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=1), nn.MaxPool2d(3, 2)), "1", (64, 64))
    ReceptiveField(size=(9, 9), stride=(4, 4), start=(-1, -1))
    """
    known = {entry.name: entry for entry in layers(model, input_size, channels)}
    entry = known[checks.nearest(layer, "layer", known)]
    if entry.receptive_field is None:
        raise ValueError(f"layer {layer!r} has no receptive field: {entry.reason}")
    return entry.receptive_field


@dataclass(frozen=True)
class _Traced:
    """The receptive field of an output by the graph, or why there is none."""

    field: ReceptiveField | None
    reason: str = ""
    layout: Layout | None = None


def example_images(
    model: nn.Module, input_size: tuple[int, ...] | None, batch: int, channels: int | None = None
) -> Tensor:
    """Images of zeros [batch, C, H, W] in the dtype and on the device of the model's parameters.

    For a size of one number they are signals [batch, C, L], for three volumes [batch, C, D, H, W].

    A size that is not given is that of :func:`fastviz.models.preprocessing`, and so are the channels, or those of the
    first convolution where the model cannot take so many.
    """
    checks.not_exporting()
    known = preprocessing(model)
    if input_size is not None:
        if not isinstance(input_size, (tuple, list)) or len(input_size) not in (1, 2, 3):
            raise ValueError(
                f"input_size should be (height, width), (length,) of a signal or (depth, height, width) of a volume, "
                f"got {input_size!r}"
            )
        for side in input_size:
            checks.whole_number(side, "input_size", minimum=1)
    if channels is not None:
        checks.whole_number(channels, "channels", minimum=1)
    size = input_size or known.size
    if size is None:
        raise ValueError("input_size should be given for a model whose preprocessing has no size, got None")
    parameter = next((value for value in model.parameters() if value.is_floating_point()), torch.empty(0))
    count = channels or _usual_channels(model, size, len(known.mean))
    return torch.zeros(batch, count, *size, dtype=parameter.dtype, device=parameter.device)


def _usual_channels(model: nn.Module, size: tuple[int, ...], described: int) -> int:
    """The channels that ``model`` is described with, or those of its first convolution where only they work."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = (getattr(module, "in_channels", 0) for module in model.modules() if isinstance(module, kinds))
    first = next(found, 0) or described
    if first == described or _runs(model, size, described) or not _runs(model, size, first):
        return described
    return first


def _runs(model: nn.Module, size: tuple[int, ...], channels: int) -> bool:
    try:
        tracing.record(model, example_images(model, size, 1, channels))
    except NotTraceable:
        return False
    return True


def _shapes_by_running(model: nn.Module, input_size: tuple[int, ...], channels: int) -> dict[str, tuple[int, ...]]:
    """The outputs for one image, by module name, of a model that cannot be traced: a copy of it runs."""
    if exported.fixed_batch(model) is not None:
        raise ValueError("model should not be exported for a fixed batch: give the module it was made from")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model should not be a script, whose layers cannot be seen: give the module it was made from")
    image = example_images(model, input_size, 1, channels)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(first, Tensor):
            shapes[name] = _per_image(tuple(first.shape), 1)

    twin = tracing.twin_of(model, copy_buffers=True)
    for name, module in tracing.watchable(twin):
        module.register_forward_hook(partial(note, name))
    try:
        with torch.random.fork_rng([image.device] if image.is_cuda else []), torch.no_grad():
            twin(image)
    except tracing.FAILURES as error:
        words = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"input_size and channels should be those of images that the model takes, got {input_size} and {channels}: "
            f"{words}"
        ) from error
    return shapes


def _per_image(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """The shape without its batch; where the batch is part of the first dimension, one image's share of that."""
    if not shape or shape[0] % batch:
        return shape
    return shape[1:] if shape[0] == batch else (shape[0] // batch, *shape[1:])


def _fields_of_nodes(traced: Trace) -> dict[fx.Node, _Traced]:
    """The receptive field of every call that depends on the image, by the graph."""
    layout = traced.reaches[traced.image].layout or ()
    fields: dict[fx.Node, tuple[Field, ...]] = {traced.image: tuple(Field() for _ in layout)}
    found = {traced.image: _Traced(_receptive_field(fields[traced.image]), layout=layout)}
    for node in traced.graph.nodes:
        if node.op != "call_function" or traced.reaches[node].kind in ("constant", "filled"):
            continue
        sources = [source for source in node.all_input_nodes if source in found]
        reason = next((found[source].reason for source in sources if found[source].reason), "")
        if not reason:
            try:
                fields[node] = joined_field(traced.reaches[node], [fields[source] for source in sources])
            except ValueError as error:
                reason = f"{call_name(node)} in {label(node) or 'the model'!r} {error}"
        known = not reason
        field, axes = (_receptive_field(fields[node]), traced.reaches[node].layout) if known else (None, None)
        found[node] = _Traced(field, reason, axes)
    return found


def _receptive_field(fields: tuple[Field, ...]) -> ReceptiveField:
    sizes, strides, starts = zip(*((each.size, each.stride, each.start) for each in fields), strict=True)
    return ReceptiveField(sizes, strides, starts)


def joined_field(reach: Reach, sources: list[tuple[Field, ...]]) -> tuple[Field, ...]:
    """The field, along each axis, of what one call makes of maps with the fields ``sources``.

    Raises:
        ValueError: the call depends on the whole map, or the strides of the sources differ.
    """
    if not reach.is_local:
        raise ValueError("makes every unit depend on the whole image")
    joined = sources[0]
    for other in sources[1:]:
        joined = tuple(field.join(another) for field, another in zip(joined, other, strict=True))
    if reach.slides is not None:
        joined = tuple(field.through(slide) for field, slide in zip(joined, reach.slides, strict=True))
    return joined
