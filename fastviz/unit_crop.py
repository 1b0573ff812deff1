"""The part of an image that is enough for one unit of a layer: computed alone, it gives the unit's very numbers.

A unit of a convolutional layer depends on its receptive field only. A box of the image that holds the field, begins at
a multiple of the layer's stride and reaches the border of the image wherever the field does, has the unit in its own
map with the value, and the gradient, that it has in the whole image: the windows of all layers before fall on the same
pixels, and padding touches the unit only where it does in the whole image.

That holds for layers whose every value depends on a window of the input that slides with it. What a network does is
therefore traced, without data, for the whole image and for each size of box; where the two differ in more than the
sizes of their maps (padding computed from the size of the input, views with numbers written out), or where anything
before the layer depends on the whole image, there is no crop, in words. Traces are remembered for as long as the model
lives and keeps its structure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fastviz import capture, checks, graph
from fastviz.fingerprint import Kept, structure
from fastviz.geometry import Field
from fastviz.graph import ReceptiveField
from fastviz.reach import BATCH, Reach, call_name, classify

__all__ = ["NoCrop", "UnitCrops", "calls_of_layers", "map_shape", "unit_crops"]

Box = tuple[int, int, int, int]
Size = tuple[int, int]


class NoCrop(ValueError):  # noqa: N818 - it says what is the case, not that something broke
    """Units of the layer cannot be computed on a part of the image; the message says why."""


@dataclass(frozen=True)
class UnitCrops:
    """Boxes of an image, one for each unit, and where the unit is in the map of its box.

    Attributes:
        boxes: top, left, bottom and right of each box, half open, in pixels; inside the image.
        positions: row and column of each unit in the layer's map of its box alone.
        field: the receptive field of the layer's units.
    """

    boxes: list[Box]
    positions: list[tuple[int, int]]
    field: ReceptiveField

    def groups(self) -> dict[Size, list[int]]:
        """Height and width → the numbers of the boxes of that size, which can be one batch.

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
        layer: torch's dotted name; where it is called several times, its last output counts.
        positions: row and column of each unit in the map of the whole image.
        size: height and width of the whole image in pixels.
        channels: of the image; None asks :func:`fastviz.models.preprocessing`.

    Raises:
        NoCrop: something before the layer depends on the whole image or on its size, the layer has no map, or the model
            cannot be traced.
        ValueError: no such layer, or a position outside the map.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))
    >>> crops = unit_crops(model, "2", [(0, 0), (3, 6)], (64, 64))
    >>> crops.boxes, crops.positions
    ([(0, 0, 8, 8), (8, 20, 20, 32)], [(0, 0), (1, 1)])
    """
    with _study(model, size, channels) as study:
        capture.layer_module(model, layer)
        field = study.field(layer)
        rows, columns = study.shapes[layer][1:]
        boxes, places = [], []
        for row, column in positions:
            if not (0 <= row < rows and 0 <= column < columns):
                raise ValueError(
                    f"positions should be inside the map of layer {layer!r}, {rows}x{columns}, got {(row, column)}"
                )
            box, place = field.crop((row, column), size)
            boxes.append(box)
            places.append(place)
        crops = UnitCrops(boxes, places, field)
        for height, width in crops.groups():
            study.check_crop(layer, (height, width))
    return crops


def map_shape(model: nn.Module, layer: str, size: Size, *, channels: int | None = None) -> tuple[int, ...]:
    """The shape of the output of ``layer`` for one image of this ``size``, for example (256, 13, 13).

    Raises:
        NoCrop: the layer is not called, or the model cannot be traced.
    """
    with _study(model, size, channels) as study:
        return study.shape(layer)


def calls_of_layers(
    model: nn.Module, layers: Sequence[str], size: Size, *, channels: int | None = None
) -> Mapping[str, int] | None:
    """How often a forward pass calls each of the ``layers``, so that it can stop after the last call.

    None where that cannot be said beforehand: models that cannot be traced (their course depends on data, they have
    hooks, scripted or compiled parts), and layers that are not called.

    >>> relu = nn.ReLU()
    >>> calls_of_layers(nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu), ["1"], (8, 8))
    {'1': 2}
    """
    try:
        with _study(model, size, channels) as study:
            return {name: study.calls[name] for name in layers} if set(layers) <= study.calls.keys() else None
    except NoCrop:
        return None


# ------------------------------------------------------------------------------------------------- what is remembered

_studies: Kept[_Study] = Kept(8)
_lock = threading.RLock()


@contextmanager
def _study(model: nn.Module, size: Size, channels: int | None) -> Iterator[_Study]:
    """What is known of ``model`` for images of this size, for one thread at a time."""
    if any(_cannot_be_copied(module) for module in checks.module(model).modules()):
        raise NoCrop("the model has hooks, or scripted or compiled parts, which have to see the whole image")
    with _lock:
        yield _studies.get(model, (tuple(size), channels), structure(model), lambda: _Study(model, size, channels))


def _cannot_be_copied(module: nn.Module) -> bool:
    return capture.has_hooks(module) or isinstance(module, torch.jit.ScriptModule) or capture.is_compiled(module)


class _Stop(BaseException):
    """Ends a pass where nothing after it is needed."""


class _Study:
    """A model, traced for images of one size."""

    def __init__(self, model: nn.Module, size: Size, channels: int | None) -> None:
        self.size = size
        self.calls: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._courses: dict[str, list[object]] = {}
        self._fields: dict[str, ReceptiveField | str] = {}
        self._checked: dict[tuple[str, Size], bool] = {}
        self._failure = ""
        try:
            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
            self._twin = graph.twin_of(model, self._mode)
            self._batch = graph.example_images(model, size, BATCH, channels)
            self._watch()
        except Exception as error:  # code that cannot run without data stops with errors of many classes
            reason = str(error).strip().splitlines() or [""]
            self._failure = f"the model cannot be traced: {type(error).__name__}: {reason[0]}"

    def shape(self, layer: str) -> tuple[int, ...]:
        if self._failure:
            raise NoCrop(self._failure)
        if layer not in self.shapes:
            raise NoCrop(f"layer {layer!r} gives no tensor in the forward pass")
        return self.shapes[layer]

    def field(self, layer: str) -> ReceptiveField:
        """The receptive field of the units of ``layer``, if boxes of the image can give them."""
        if len(self.shape(layer)) != 3:
            raise NoCrop(f"layer {layer!r} should have maps [N, K, h, w] as its output")
        if layer not in self._fields:
            try:
                self._fields[layer] = self._traced_field(layer)
            except NoCrop as error:
                self._fields[layer] = str(error)
            except Exception as error:  # as above
                self._fields[layer] = f"the model cannot be traced: {type(error).__name__}: {error}"
        found = self._fields[layer]
        if isinstance(found, str):
            raise NoCrop(f"units of layer {layer!r} have no crop: {found}")
        return found

    def check_crop(self, layer: str, size: Size) -> None:
        """Refuse a size of box for which the network does not do what it does for the whole image."""
        key = (layer, size)
        if key not in self._checked:
            try:
                self._checked[key] = min(size) > 0 and self._course(layer, size) == self._course(layer, self.size)
            except Exception:  # a network that cannot take a picture of this size says so in errors of many classes
                self._checked[key] = False
        if not self._checked[key]:
            raise NoCrop(f"up to layer {layer!r} the network treats a box of {size[0]}x{size[1]} pixels differently")

    def _watch(self) -> None:
        """Fill :attr:`calls` and :attr:`shapes` in one pass."""

        def note(name: str, output: object) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            self.shapes.pop(name, None)
            if isinstance(output, Tensor) and output.dim() and output.shape[0] == BATCH:
                self.shapes[name] = tuple(int(size) for size in output.shape[1:])

        modules = self._twin.named_modules(remove_duplicate=False)
        handles = [
            module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
            for name, module in modules
        ]
        try:
            self._run(self._batch)
        finally:
            for handle in handles:
                handle.remove()

    def _run(self, batch: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(batch.device.type, enabled=False), self._mode:
            self._twin(self._mode.from_tensor(batch))

    def _up_to(self, layer: str, run: Callable[[], object]) -> Tensor:
        """The last output of ``layer`` in what ``run`` does, which ends there."""
        outputs: list[Any] = []

        def note(module: nn.Module, inputs: object, output: object) -> None:
            outputs.append(output)
            if len(outputs) == self.calls[layer]:
                raise _Stop

        handle = self._twin.get_submodule(layer).register_forward_hook(note)
        try:
            run()
        except _Stop:
            pass
        finally:
            handle.remove()
        found: Tensor = outputs[-1]
        return found

    def _course(self, layer: str, size: Size) -> list[object]:
        """The calls up to ``layer`` for images of this size, without what is a size of a map in them."""
        whole = size == self.size
        if whole and layer in self._courses:
            return self._courses[layer]
        batch = self._batch.new_zeros((BATCH, self._batch.shape[1], *size))
        with _Calls() as seen:
            self._up_to(layer, lambda: self._run(batch))
        if whole:
            self._courses[layer] = seen.calls
        calls: list[object] = seen.calls
        return calls

    def _traced_field(self, layer: str) -> ReceptiveField:
        def forward(batch: Tensor) -> Tensor:
            return self._up_to(layer, lambda: self._twin(batch))

        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self._batch.device.type, enabled=False):
            # functionalize turns what works in place into calls that return what they made
            traced = make_fx(torch.func.functionalize(forward))(self._mode.from_tensor(self._batch))
        return _field_of_output(traced)


class _Calls(TorchDispatchMode):
    """Notes the calls that are made inside, with their arguments but not the sizes of maps."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[object] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        self.calls.append((name, None if name in _SIZED else _plain([*args, *(kwargs or {}).items()])))
        return func(*args, **(kwargs or {}))


# Calls whose arguments are sizes of maps, or ends of slices.
_SIZED = {f"aten::{name}" for name in ("view", "_unsafe_view", "reshape", "expand", "slice")}


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return Tensor, value.dim()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _field_of_output(traced: fx.GraphModule) -> ReceptiveField:
    """The receptive field of the positions of the graph's output, if every call before it slides with the input."""
    reaches: dict[fx.Node, Reach] = {}
    fields: dict[fx.Node, tuple[Field, Field]] = {}
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    needed = {output}
    for node in reversed(traced.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            reaches[node], fields[node] = Reach("pointwise", (2, 3)), (Field(), Field())
        elif node.op == "get_attr":
            reaches[node] = Reach("constant")
            node.meta["val"] = getattr(traced, str(node.target))
        elif node.op == "call_function":
            reaches[node] = reach = classify(node, reaches)
            sources = [fields[source] for source in node.all_input_nodes if source in fields]
            if node not in needed or reach.kind == "constant":
                continue
            if not _slides_with_input(node, reach) or not sources:
                raise NoCrop(f"{call_name(node)} depends on the whole image or on places in it")
            fields[node] = graph.joined_field(reach, sources)
    (made,) = output.all_input_nodes
    if made not in fields or reaches[made].layout != (2, 3):
        raise NoCrop("its output is no map of the image")
    rows, columns = fields[made]
    return ReceptiveField((rows.size, columns.size), (rows.stride, columns.stride), (rows.start, columns.start))


def _slides_with_input(node: fx.Node, reach: Reach) -> bool:
    """Whether the output moves with the input: adaptive windows, cuts and constants with places do not."""
    slides = reach.slides or ()
    cuts = any(slide.before < 0 or slide.after < 0 for slide in slides)
    return reach.is_local and not reach.positional and not cuts and "adaptive" not in call_name(node)
