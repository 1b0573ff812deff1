"""The layers of a model as its forward pass uses them: shapes and receptive fields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from fastviz._util import checks
from fastviz.execution import exported
from fastviz.graph import model_graph, tracing
from fastviz.graph.calls import BATCH
from fastviz.graph.fingerprint import StructureCache, structure
from fastviz.graph.model_graph import NotTraceable, example_images
from fastviz.graph.reach import Layout
from fastviz.graph.receptive_field import NodeField, ReceptiveField, fields_of_nodes

__all__ = ["Layer", "layers", "receptive_field"]

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


def _found_layers(model: nn.Module, input_size: tuple[int, ...], channels: int) -> list[Layer]:
    try:
        found, recording = model_graph.traced(model, input_size, channels)
    except NotTraceable as error:
        missing = NodeField(None, str(error))
        known = {name: (shape, missing) for name, shape in _shapes_by_running(model, input_size, channels).items()}
    else:
        fields = fields_of_nodes(found)
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


def _of_output(call: tracing.Output, fields: dict[fx.Node, NodeField]) -> NodeField:
    return fields[call.node] if call.node in fields else NodeField(None, "it does not depend on the image")


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
