"""The graph of a model: its calls, and what each of them depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastviz._util import checks
from fastviz.graph import tracing
from fastviz.graph.calls import BATCH, call_name, is_random, shapes_of
from fastviz.graph.locality import classify
from fastviz.graph.reach import Reach
from fastviz.graph.tracing import NotTraceable, Recording
from fastviz.models.descriptions import preprocessing

__all__ = ["NotTraceable", "Trace", "example_images", "label", "reaches_of", "trace", "traced"]


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
