"""The exported graph of a model, its layers with their shapes, and the receptive field of any of them."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastviz import capture, checks
from fastviz.fingerprint import Kept, structure
from fastviz.geometry import Field, clip
from fastviz.models import preprocessing
from fastviz.reach import BATCH, Layout, Reach, call_name, classify, shape_of

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
    "twin_of",
]

# torch.export keeps state that two threads must not change at once
_EXPORT_LOCK = threading.RLock()

# For a few sizes of images of each model: a trace of a large network takes seconds.
_layers: Kept[list[Layer]] = Kept(4)


class NotTraceable(ValueError):  # noqa: N818 - it says what is the case, not that something broke
    """The model cannot be exported to a graph; the message says why."""


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a unit of a layer depends on.

    Unit (i, j) depends on rows ``start[0] + i * stride[0]`` and the ``size[0] - 1`` after it, and on columns likewise.
    Rows and columns outside the image are padding. Where a window is dilated, or where branches with different fields
    join, the field is the smallest rectangle with all pixels.

    Attributes:
        size: height and width in pixels.
        stride: pixels between the fields of neighbouring units, down and across.
        start: top and left of the field of unit (0, 0); negative by the padding.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]

    def box(self, position: tuple[int, int], input_size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """Top, left, bottom and right (half open, in pixels) of the field of the unit at ``position``.

        Args:
            position: row and column of the unit in its map.
            input_size: height and width to cut the field to; None keeps what lies in the padding.

        >>> ReceptiveField(size=(7, 7), stride=(2, 2), start=(-3, -3)).box((0, 1))
        (-3, -1, 4, 6)
        """
        rows, columns = (field.interval(unit) for field, unit in zip(self._fields(), position, strict=True))
        if input_size is not None:
            rows, columns = clip(rows, input_size[0]), clip(columns, input_size[1])
        return rows[0], columns[0], rows[1], columns[1]

    def crop(
        self, position: tuple[int, int], input_size: tuple[int, int]
    ) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """A box of the image that is enough for one unit, and where the unit is in the map of that box alone.

        The box holds the unit's field, cut to the image, and begins at a multiple of the stride, so that the windows of
        all layers before fall on the same pixels as in the whole image; padding touches the unit only where it does
        in the whole image.

        Returns:
            The box (top, left, bottom, right) in pixels and the unit's (row, column) in the map of that box.

        >>> ReceptiveField(size=(11, 11), stride=(4, 4), start=(-3, -3)).crop((10, 0), (224, 224))
        ((36, 0, 48, 8), (1, 0))
        """
        top, left, bottom, right = self.box(position, input_size)
        top, left = top - top % self.stride[0], left - left % self.stride[1]
        return (top, left, bottom, right), (position[0] - top // self.stride[0], position[1] - left // self.stride[1])

    def _fields(self) -> tuple[Field, Field]:
        rows, columns = (Field(*numbers) for numbers in zip(self.size, self.stride, self.start, strict=True))
        return rows, columns


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
        layout: which dimensions of the output, the batch being 0, are rows and columns: (2, 3) for maps [N, C, H, W];
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
        graph: the graph, for a batch of ``fastviz.reach.BATCH`` images; in the metadata of a node, ``val`` is its
            output without data.
        constants: the values of its parameters, buffers and other constants by the placeholder's name; the model's own
            tensors, not copies.
        image: the placeholder of the images.
        reaches: what each node depends on.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    image: fx.Node
    reaches: dict[fx.Node, Reach]


def trace(model: nn.Module, input_size: tuple[int, int] | None = None, channels: int | None = None) -> Trace:
    """The graph of ``model`` in evaluation mode, for images of ``input_size`` (height, width) in pixels.

    Works on a copy that shares the parameters; the model is not touched. A size or number of channels that is not given
    is that of :func:`fastviz.models.preprocessing`.

    Raises:
        NotTraceable: the model does not export, takes more than images or gives more than one tensor.
    """
    batch = example_images(model, input_size, BATCH, channels)
    twin = twin_of(model)
    try:
        # while torch exports, it switches oneDNN off for all threads: their numbers may differ in the last bits
        with _EXPORT_LOCK, torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(twin, (batch,), strict=False).run_decompositions({})
    except Exception as error:  # export stops with errors of many classes, none of them ours
        reason = str(error).strip().splitlines() or [""]
        raise NotTraceable(f"the model does not export: {type(error).__name__}: {reason[0]}") from error
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1 or signature.buffers_to_mutate:
        raise NotTraceable("the model takes more than images, gives more than one tensor or changes its own buffers")
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {name: held[path].detach() for name, path in sources.items()}
    for name, path in signature.inputs_to_lifted_tensor_constants.items():
        constants[name] = program.constants[path]
    graph = program.graph
    (image,) = (node for node in graph.nodes if node.op == "placeholder" and node.name == signature.user_inputs[0])
    reaches: dict[fx.Node, Reach] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            reaches[node] = Reach("pointwise", (2, 3)) if node is image else Reach("constant")
        elif node.op != "output":
            reaches[node] = classify(node, reaches)
    return Trace(graph, constants, image, reaches)


def layers(model: nn.Module, input_size: tuple[int, int] | None = None, channels: int | None = None) -> list[Layer]:
    """Every module that the forward pass calls and that gives a tensor, in the order of ``model.named_modules()``.

    What was found is remembered for as long as the model lives and keeps its structure
    (:func:`fastviz.fingerprint.structure`).

    Args:
        model: the network; not touched.
        input_size: height and width of the image in pixels; None asks :func:`fastviz.models.preprocessing`
            (``fastviz.models.describe`` registers your own model's).
        channels: of the image; None asks there, too.

    >>> [layer.shape for layer in layers(nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU()), (65, 65))]
    [(8, 31, 31), (8, 31, 31)]
    """
    batch = example_images(checks.module(model), input_size, 1, channels)
    size = (batch.shape[2], batch.shape[3])
    key = (size, batch.shape[1], batch.dtype, batch.device)
    return list(_layers.get(model, key, structure(model), lambda: _found_layers(model, size, batch.shape[1])))


def _found_layers(model: nn.Module, input_size: tuple[int, int], channels: int) -> list[Layer]:
    calls = _calls(model, input_size, channels)
    try:
        fields = _fields_of_modules(trace(model, input_size, channels))
        missing = ""
    except NotTraceable as error:
        fields, missing = {}, str(error)
    found = []
    for name, module in model.named_modules():
        if not name or name not in calls:
            continue
        call = calls[name]
        traced = fields.get(name) or fields.get(call.maker)
        if traced is None:
            traced = _Traced(call.shape, None, missing or "it passes on what no layer made")
        elif traced.shape != call.shape:
            traced = _Traced(call.shape, None, "its output is not the last value that it computes")
        found.append(
            Layer(
                name=name,
                kind=type(module).__name__,
                shape=call.shape,
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                receptive_field=traced.field,
                reason=traced.reason,
                layout=traced.layout,
            )
        )
    return found


def receptive_field(model: nn.Module, layer: str, input_size: tuple[int, int] | None = None) -> ReceptiveField:
    """The pixels that a unit of ``layer`` depends on.

    Args:
        model: the network; not touched.
        layer: torch's dotted name of a module; where it runs several times, its last output counts.
        input_size: height and width of the image in pixels; None asks :func:`fastviz.models.preprocessing`.

    Raises:
        ValueError: no such layer (with the nearest names), or its units depend on the whole image, or the model does
            not export (the message says which).

    >>> receptive_field(nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=1), nn.MaxPool2d(3, 2)), "1", (64, 64))
    ReceptiveField(size=(9, 9), stride=(4, 4), start=(-1, -1))
    """
    known = {entry.name: entry for entry in layers(model, input_size)}
    entry = known[checks.nearest(layer, "layer", known)]
    if entry.receptive_field is None:
        raise ValueError(f"layer {layer!r} has no receptive field: {entry.reason}")
    return entry.receptive_field


@dataclass(frozen=True)
class _Call:
    """What a forward pass showed of one module: the output's shape, and the first module that gave that very tensor."""

    shape: tuple[int, ...]
    maker: str


@dataclass(frozen=True)
class _Traced:
    """What the graph says of one module: the output's shape, and the receptive field or why there is none."""

    shape: tuple[int, ...]
    field: ReceptiveField | None
    reason: str = ""
    layout: Layout | None = None


def example_images(
    model: nn.Module, input_size: tuple[int, int] | None, batch: int, channels: int | None = None
) -> Tensor:
    """Images of zeros [batch, C, H, W] in the dtype and on the device of the model's parameters.

    A size or number of channels that is not given is that of :func:`fastviz.models.preprocessing`.
    """
    known = preprocessing(model)
    if input_size is not None:
        if not isinstance(input_size, (tuple, list)) or len(input_size) != 2:
            raise ValueError(f"input_size should be (height, width), got {input_size!r}")
        for side in input_size:
            checks.whole_number(side, "input_size", minimum=1)
    if channels is not None:
        checks.whole_number(channels, "channels", minimum=1)
    size = input_size or known.size
    if size is None:
        raise ValueError("input_size should be given for a model whose preprocessing has no size, got None")
    parameter = next((value for value in model.parameters() if value.is_floating_point()), torch.empty(0))
    return torch.zeros(batch, channels or len(known.mean), *size, dtype=parameter.dtype, device=parameter.device)


def twin_of(model: nn.Module, mode: FakeTensorMode | None = None) -> nn.Module:
    """A copy of the modules in evaluation mode and without hooks, around the same parameters and copies of the buffers.

    With a ``mode``, parameters and buffers are stand-ins without data.
    """
    held: dict[int, object] = {}
    for value in (*model.parameters(), *model.buffers()):
        same = value if isinstance(value, nn.Parameter) else value.clone()
        held[id(value)] = same if mode is None else mode.from_tensor(value)
    twin = copy.deepcopy(model, held).eval()
    for module in twin.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
    return twin


def _calls(model: nn.Module, input_size: tuple[int, int] | None, channels: int | None) -> dict[str, _Call]:
    """What one forward pass calls, by module name; without data where the model allows it, else on one image."""
    batch = example_images(model, input_size, BATCH, channels)
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        twin = twin_of(model, mode)
        with mode:
            return _watched_pass(twin, mode.from_tensor(batch))
    except Exception:  # code that looks at values cannot run without them; errors of the model itself come again below
        devices = [batch.device] if batch.is_cuda else []
        with torch.random.fork_rng(devices), capture.usable(model, batch[:1], "images"):
            return _watched_pass(twin_of(model), batch[:1])


def _watched_pass(twin: nn.Module, batch: Tensor) -> dict[str, _Call]:
    calls: dict[str, _Call] = {}
    # tensor → the module that made it; tensors are kept, so that none gets the id of one before
    makers: dict[int, tuple[Tensor, str]] = {id(batch): (batch, "")}

    def note(name: str, output: object) -> None:
        result = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(result, Tensor):
            _, maker = makers.setdefault(id(result), (result, name))
            calls[name] = _Call(_per_image(tuple(int(size) for size in result.shape), len(batch)), maker)

    for name, module in twin.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
    with torch.no_grad():
        twin(batch)
    return calls


def _per_image(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """The shape without its batch; where the batch is part of the first dimension, one image's share of that."""
    if not shape or shape[0] % batch:
        return shape
    return shape[1:] if shape[0] == batch else (shape[0] // batch, *shape[1:])


def _fields_of_modules(traced: Trace) -> dict[str, _Traced]:
    """What the graph says of each module, by name: its last node's receptive field; "" is the image itself."""
    fields: dict[fx.Node, tuple[Field, Field]] = {traced.image: (Field(), Field())}
    reasons: dict[fx.Node, str] = {}
    found = {"": _Traced(shape_of(traced.image)[1:], _receptive_field(*fields[traced.image]), layout=(2, 3))}
    for node in traced.graph.nodes:
        if node.op != "call_function" or traced.reaches[node].kind == "constant":
            continue
        sources = [source for source in node.all_input_nodes if traced.reaches[source].kind != "constant"]
        reason = next((reasons[source] for source in sources if source in reasons), "")
        names = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
        if not reason:
            try:
                fields[node] = joined_field(traced.reaches[node], [fields[source] for source in sources])
            except ValueError as error:
                reason = f"{call_name(node)} in {names[-1] if names else 'the model'!r} {error}"
        if reason:
            reasons[node] = reason
        field, layout = (None, None) if reason else (_receptive_field(*fields[node]), traced.reaches[node].layout)
        found.update((name, _Traced(_per_image(shape_of(node), BATCH), field, reason, layout)) for name in names)
    return found


def _receptive_field(rows: Field, columns: Field) -> ReceptiveField:
    return ReceptiveField((rows.size, columns.size), (rows.stride, columns.stride), (rows.start, columns.start))


def joined_field(reach: Reach, sources: list[tuple[Field, Field]]) -> tuple[Field, Field]:
    """The field, of rows and of columns, of what one call makes of maps with the fields ``sources``.

    Raises:
        ValueError: the call depends on the whole map, or the strides of the sources differ.
    """
    if not reach.is_local:
        raise ValueError("makes every unit depend on the whole image")
    rows, columns = sources[0]
    for other_rows, other_columns in sources[1:]:
        rows, columns = rows.join(other_rows), columns.join(other_columns)
    if reach.slides is not None:
        rows, columns = rows.through(reach.slides[0]), columns.through(reach.slides[1])
    return rows, columns
