"""Crops of an image that give exactly the value and gradient of one unit of a layer.

A unit of a convolutional layer depends only on its receptive field. If a box of the image contains the field, starts at
a multiple of the layer's stride and reaches the border of the image wherever the field does, its own map contains the
unit with the same value and gradient as in the whole image: the windows of all earlier layers fall on the same pixels,
and padding affects the unit only where it does in the whole image.

That holds for layers whose every value depends on a window of the input that slides with it. So the network is traced,
without data, for the whole image and for each size of box. If the two traces differ in more than map sizes (padding
computed from the input size, views with literal sizes), or if anything before the layer depends on the whole image,
cropping is refused with the reason. Traces are kept as long as the model exists and its structure does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from fastviz import graph
from fastviz._util import checks
from fastviz.execution.compiled import is_compiled
from fastviz.execution.hooks import has_hooks, layer_module
from fastviz.graph import model_graph, tracing
from fastviz.graph.calls import BATCH, call_name, shape_of
from fastviz.graph.fingerprint import StructureCache, structure
from fastviz.graph.reach import Reach
from fastviz.graph.receptive_field import ReceptiveField
from fastviz.graph.tracing import NotTraceable

__all__ = ["NoCrop", "UnitCrops", "calls_of_layers", "map_shape", "unit_crops"]

Box = tuple[int, int, int, int]
Size = tuple[int, int]


class NoCrop(ValueError):  # noqa: N818 - it states a fact, not a failure
    """Units of the layer cannot be computed on a crop; the message says why."""


@dataclass(frozen=True)
class UnitCrops:
    """Boxes of an image, one for each unit, and the unit's position in the map of its box.

    Attributes:
        boxes: top, left, bottom and right of each box, half-open, in pixels, inside the image.
        positions: row and column of each unit in the layer's map of its box alone.
        field: the receptive field of the layer's units.
    """

    boxes: list[Box]
    positions: list[tuple[int, int]]
    field: ReceptiveField

    def groups(self) -> dict[Size, list[int]]:
        """The indices of boxes by height and width; boxes of one size can form a batch.

        >>> UnitCrops([(0, 0, 3, 5), (4, 4, 7, 9), (0, 0, 2, 2)], [(0, 0)] * 3, ReceptiveField((5, 5), (1, 1), (0, 0)))\
.groups()
        {(3, 5): [0, 1], (2, 2): [2]}
        """
        found: dict[Size, list[int]] = {}
        for number, (top, left, bottom, right) in enumerate(self.boxes):
            found.setdefault((bottom - top, right - left), []).append(number)
        return found


def unit_crops(
    model: nn.Module, layer: str, positions: Sequence[tuple[int, int]], size: Size, *, channels: int | None = None
) -> UnitCrops:
    """For each of the ``positions`` in the map of ``layer``, the smallest box of the image that gives the unit there.

    The gradient of a unit for the pixels outside its box is zero.

    Args:
        model: the network; it is run in evaluation mode, without data, on a copy of its modules.
        layer: torch's dotted name; if it is called several times, its last output is used.
        positions: row and column of each unit in the map of the whole image.
        size: height and width of the whole image in pixels.
        channels: of the image; None uses :func:`fastviz.models.preprocessing`.

    Raises:
        NoCrop: something before the layer depends on the whole image or on its size, the layer has no map, or the model
            cannot be traced.
        ValueError: no such layer, or a position outside the map.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))
    >>> crops = unit_crops(model, "2", [(0, 0), (3, 6)], (64, 64))
    >>> crops.boxes, crops.positions
    ([(0, 0, 8, 8), (8, 20, 20, 32)], [(0, 0), (1, 1)])
    """
    study = _study(model, size, channels)
    layer_module(model, layer)
    field = study.field(layer)
    rows, columns = study.shapes[layer][1:]
    boxes, places = [], []
    for row, column in positions:
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(
                f"positions should be inside the map of layer {layer!r}, {rows}x{columns}, got {(row, column)}"
            )
        (top, left, bottom, right), (down, across) = field.crop((row, column), size)
        boxes.append((top, left, bottom, right))
        places.append((down, across))
    crops = UnitCrops(boxes, places, field)
    for height, width in crops.groups():
        study.check_crop(model, layer, (height, width))
    return crops


def map_shape(model: nn.Module, layer: str, size: Size, *, channels: int | None = None) -> tuple[int, ...]:
    """The shape of the output of ``layer`` for one image of this ``size``, for example (256, 13, 13).

    Raises:
        NoCrop: the layer is not called, or the model cannot be traced.
    """
    return _study(model, size, channels).shape(layer)


def calls_of_layers(
    model: nn.Module, layers: Sequence[str], size: Size, *, channels: int | None = None
) -> Mapping[str, int] | None:
    """How often a forward pass calls each of the ``layers``, so that it can stop after the last call.

    None if that is unknown: for models that cannot be traced (calls that depend on data, hooks, scripted or compiled
    parts), and for layers that are not called.

    >>> relu = nn.ReLU()
    >>> calls_of_layers(nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu), ["1"], (8, 8))
    {'1': 2}
    """
    try:
        calls = _study(model, size, channels).calls
    except NoCrop:
        return None
    return {name: calls[name] for name in layers} if set(layers) <= calls.keys() else None


# ------------------------------------------------------------------------------------------------- what is remembered

_studies: StructureCache[_Study] = StructureCache(8)


def _study(model: nn.Module, size: Size, channels: int | None) -> _Study:
    """The trace of ``model`` for images of this size."""
    if any(_sees_whole_images(module) for module in checks.module(model).modules()):
        raise NoCrop("the model has hooks, or scripted or compiled parts, which have to see the whole image")
    return _studies.get(model, (tuple(size), channels), structure(model), lambda: _Study(model, size, channels))


def _sees_whole_images(module: nn.Module) -> bool:
    return has_hooks(module) or isinstance(module, torch.jit.ScriptModule) or is_compiled(module)


class _Study:
    """A model traced for images of one size. Thread-safe, because all threads would record the same."""

    def __init__(self, model: nn.Module, size: Size, channels: int | None) -> None:
        self.size = size
        self.channels = channels
        self.calls: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._fields: dict[str, ReceptiveField | str] = {}
        self._checked: dict[tuple[str, Size], bool] = {}
        self._failure = ""
        try:
            self._trace, recording = model_graph.traced(model, size, channels)
        except NotTraceable as error:
            self._failure = str(error)
            return
        if self._trace.mixes == model_graph.COUNTS:
            self._failure = model_graph.COUNTS
        self._last = {name: calls[-1] for name, calls in recording.outputs.items()}
        self.calls = {name: len(calls) for name, calls in recording.outputs.items()}
        for name, last in self._last.items():
            if last.single and last.shape and last.shape[0] == BATCH:
                self.shapes[name] = last.shape[1:]

    def shape(self, layer: str) -> tuple[int, ...]:
        if self._failure:
            raise NoCrop(self._failure)
        if layer not in self.shapes:
            raise NoCrop(f"layer {layer!r} gives no tensor in the forward pass")
        return self.shapes[layer]

    def field(self, layer: str) -> ReceptiveField:
        """The receptive field of the units of ``layer``, if crops can give them."""
        if len(self.shape(layer)) != 3:
            raise NoCrop(f"layer {layer!r} should have maps [N, K, h, w] as its output")
        if layer not in self._fields:
            try:
                self._fields[layer] = _field_of(self._trace, self._last[layer].node)
            except NoCrop as error:
                self._fields[layer] = str(error)
        found = self._fields[layer]
        if isinstance(found, str):
            raise NoCrop(f"units of layer {layer!r} have no crop: {found}")
        return found

    def check_crop(self, model: nn.Module, layer: str, size: Size) -> None:
        """Refuse a box size for which the network computes differently than for the whole image."""
        key = (layer, size)
        if key not in self._checked:
            self._checked[key] = min(size) > 0 and self._does_the_same(model, layer, size)
        if not self._checked[key]:
            raise NoCrop(f"up to layer {layer!r} the network treats a box of {size[0]}x{size[1]} pixels differently")

    def _does_the_same(self, model: nn.Module, layer: str, size: Size) -> bool:
        batch = graph.example_images(model, size, BATCH, self.channels)
        try:
            recording = tracing.record(model, batch, (layer, self.calls[layer]))
        except NotTraceable:  # the network does not accept pictures of this size
            return False
        count = self._last[layer].calls
        return _course(recording.graph, recording.outputs[layer][-1].calls) == _course(self._trace.graph, count)


# Calls whose arguments are sizes of maps, or ends of slices.
_SIZED = {"view", "_unsafe_view", "reshape", "expand", "slice", "unflatten", "full"}


def _course(made: fx.Graph, count: int) -> list[object]:
    """The first calls, without map sizes."""
    calls = [node for node in made.nodes if node.op == "call_function"][:count]
    return [
        (call_name(node), None if call_name(node) in _SIZED else _plain([*node.args, *node.kwargs.items()]))
        for node in calls
    ]


def _plain(value: object) -> object:
    if isinstance(value, fx.Node):
        return fx.Node, len(shape_of(value))
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return type(value) if isinstance(value, torch.ScriptObject) else value


def _field_of(traced: graph.Trace, output: fx.Node | None) -> ReceptiveField:
    """The receptive field of the positions of ``output``, if every call before it slides with the input."""
    if output is None:
        raise NoCrop("its output is no map of the image")
    needed = {output}
    for node in reversed(traced.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    for node in traced.graph.nodes:
        if node not in needed or node.op != "call_function" or traced.reaches[node].kind == "constant":
            continue
        if not _slides_with_input(node, traced.reaches[node]):
            raise NoCrop(f"{call_name(node)} depends on the whole image or on places in it")
    found = graph.fields_of_nodes(traced).get(output)
    if found is None or found.field is None or found.layout != (2, 3):
        raise NoCrop((found and found.reason) or "its output is no map of the image")
    return found.field


def _slides_with_input(node: fx.Node, reach: Reach) -> bool:
    """Whether the output moves with the input; adaptive windows, slices and positional constants do not."""
    slides = reach.slides or ()
    cuts = any(slide.before < 0 or slide.after < 0 for slide in slides)
    return reach.is_local and not reach.positional and not cuts and "adaptive" not in call_name(node)
