"""Patches: positions in many images that activate the units of a network most, with their receptive fields."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from fastviz import graph
from fastviz._util import checks
from fastviz.execution import forward
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import Hook, floating_output, hookable, hooked, layer_module
from fastviz.execution.inputs import convolution_axes, output_of
from fastviz.execution.precision import Precision, as_map, checked_precision
from fastviz.graph.receptive_field import ReceptiveField
from fastviz.images import streams
from fastviz.images.notebook import NotebookResult
from fastviz.images.streams import Source, Stream
from fastviz.vectors import top_k

__all__ = ["Patches", "open_stream", "patches"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLACES = {1: "(place,) in signals", 2: "(row, column)", 3: "(slice, row, column) in volumes"}
"""How ``position`` is given for maps with this number of axes."""


@dataclass(frozen=True, eq=False, repr=False)
class Patches(NotebookResult):
    """The strongest activations of every channel of one layer, found by :func:`patches`.

    If a channel has fewer than k, the rest is empty: value −∞, image and position −1, boxes of zeros.

    Attributes:
        layer: torch's dotted name.
        values: [C, k], the activations, highest first, at least float32.
        images: int64 [C, k], the position of each image in the source.
        positions: int64 [C, k, 2], row and column of the unit in the layer's map; for signals [C, k, 1], for volumes
            [C, k, 3].
        names: the names of these images, by position.
        input_size: height and width of the network's input, in pixels; the length of signals; depth, height and width
            of volumes.
        receptive_field: the pixels that a unit depends on; None if that is the whole image, or unknown.
        reason: why there is no receptive field; empty if there is one.

    >>> found = patches(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(2, 3, 8, 8), "0", k=2)
    >>> found.values.shape, found.boxes.shape, found.receptive_field.size
    (torch.Size([4, 2]), torch.Size([4, 2, 4]), (3, 3))
    """

    layer: str
    values: Tensor
    images: Tensor
    positions: Tensor
    names: Mapping[int, str]
    input_size: tuple[int, ...]
    receptive_field: ReceptiveField | None
    reason: str = ""

    @property
    def boxes(self) -> Tensor:
        """int64 [C, k, 4]: top, left, bottom, right (half-open, in pixels) of each unit's receptive field in its image.

        For signals [C, k, 2]: start, stop; for volumes [C, k, 6]: front, top, left, back, bottom, right.
        """
        return self.fields.clamp(min=0).minimum(self.fields.new_tensor([*self.input_size, *self.input_size]))

    @property
    def fields(self) -> Tensor:
        """The same with the padding included: at the border, values below 0 and beyond the height or width."""
        zeros = (0,) * len(self.input_size)
        field = self.receptive_field or ReceptiveField(self.input_size, zeros, zeros)
        stride, start, size = (self.positions.new_tensor(pair) for pair in (field.stride, field.start, field.size))
        corner = self.positions * stride + start
        return torch.cat([corner, corner + size], dim=-1).masked_fill(self.images[..., None] < 0, 0)


@overload
def patches(
    model: nn.Module,
    source: Source | Stream,
    layer: str,
    *,
    layers: None = None,
    k: int = 9,
    one_per_image: bool = True,
    position: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> Patches: ...
@overload
def patches(
    model: nn.Module,
    source: Source | Stream,
    layer: None = None,
    *,
    layers: Sequence[str] | None = None,
    k: int = 9,
    one_per_image: bool = True,
    position: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> dict[str, Patches]: ...
def patches(
    model: nn.Module,
    source: Source | Stream,
    layer: str | None = None,
    *,
    layers: Sequence[str] | None = None,
    k: int = 9,
    one_per_image: bool = True,
    position: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> Patches | dict[str, Patches]:
    """The k positions in all images where each channel of one or several layers is strongest.

    One pass over the images covers all channels of all layers; memory does not grow with the number of images. Girshick
    et al. 2014, "Rich feature hierarchies", https://arxiv.org/abs/1311.2524 (section 3.1), Springenberg et al. 2015,
    https://arxiv.org/abs/1412.6806.

    Activations are those that the layer returns, before a following in-place rectifier changes them. Of equal ones the
    first is used, in the order of the images, then in row-major order, whatever the batch size; but activations may
    differ in their last bits with the batch size, because torch chooses other kernels. Maps (of one image and channel)
    with NaN, and values of −∞, are ignored.

    Args:
        model: any module that takes images [N, C, H, W], signals [N, C, L] or volumes [N, C, D, H, W].
        source: files, folders and patterns, a dataset or a tensor of images, see
            :func:`fastviz.images.streams.batches`; or its result, whose batch size and progress bar are then used.
            Pictures of different sizes are resized by the model's preprocessing. Unreadable files are left out, with a
            warning if they were given here. Signals and volumes: a tensor, or a dataset, DataLoader or list of [C, L]
            or [C, D, H, W] for a model whose convolutions all have one or all have three axes.
        layer: torch's dotted name of a layer whose output is feature maps [N, C, H, W], for signals [N, C, L], for
            volumes [N, C, D, H, W]; if it is called several times, its last output is used.
        layers: several such names instead of ``layer``. If both are None: every convolution, after a directly following
            batch norm (under its name), before the rectifier, which does not change the order of positive values.
            Convolutions whose maps are single pixels (gates) are left out.
        k: positions per channel.
        one_per_image: at most one position per image and channel; False also allows neighbours in the same image.
        position: only use the unit of each channel at this row and column (one number for signals, three for volumes).
        batch_size: images in a pass; None is 32.
        precision: see :func:`fastviz.input_gradient`.
        progress: show a progress bar on a terminal.

    Returns:
        :class:`Patches` for ``layer``; otherwise a dictionary, layer name → :class:`Patches`. If units depend on the
        whole image (after squeeze-and-excitation gates), or the model cannot be traced to a graph, every box is the
        whole image, and ``reason`` says why.

    Raises:
        TypeError: ``model`` or ``source`` is of the wrong type; a layer does not return one tensor.
        ValueError: no readable image; images of different sizes; a layer that does not exist (the message lists the
            closest names), is not called or does not give feature maps; no convolution; a ``position`` outside the map.

    >>> image = torch.zeros(1, 1, 4, 4)
    >>> image[0, 0, 2, 3] = 7
    >>> found = patches(nn.Sequential(nn.AvgPool2d(1)), image, "0", k=1)
    >>> found.values.tolist(), found.boxes.tolist()
    ([[7.0]], [[[2, 3, 3, 4]]])
    """
    checks.whole_number(k, "k", minimum=1)
    checked_precision(precision)
    names = checks.layer_names(layer, layers)
    for name in names or ():
        layer_module(model, name)
    unit_position = None if position is None else _checked_position(position)
    stream = open_stream(model, source, batch_size, progress)
    finder: _PatchFinder | None = None
    batches = Batches(model)
    with frozen_model(model), torch.no_grad():
        for batch in stream:
            if finder is None:
                chosen = _convolutions(model, batch.images[:1].clone()) if names is None else names
                finder = _PatchFinder(
                    _entries(model, chosen, batch.images), k, one_per_image, unit_position, batch.images, precision
                )
            at_once = batches.together(batch.images, partial(finder.outputs, model))
            for start in range(0, len(batch), at_once):
                finder.add(model, batch.part(start, start + at_once))
    if finder is None:
        reason = f"; the first: {stream.failures[0][1]}" if stream.failures else ""
        raise ValueError(f"source should hold at least one image that can be read, got none{reason}")
    if stream is not source and stream.failures:
        name, reason = stream.failures[0]
        warnings.warn(f"{len(stream.failures)} images could not be read; {name}: {reason}", stacklevel=2)
    found = finder.found(stream)
    return found if layer is None else found[layer]


def open_stream(model: nn.Module, source: Source | Stream, batch_size: int | None, progress: bool = False) -> Stream:
    """``source`` as a stream of batches for ``model``."""
    if isinstance(source, Stream):
        return source
    axes = _axes(checks.module(model), source)
    return streams.batches(source, model=model, batch_size=batch_size, progress=progress, axes=axes)


def _axes(model: nn.Module, source: Source) -> int:
    """The number of axes of the images of ``source``: 1 for signals, 2 for pictures, 3 for volumes."""
    slides = convolution_axes(model)
    if len(slides) == 1:
        return slides.pop()
    return source.dim() - 2 if isinstance(source, Tensor) and source.dim() in (3, 5) else 2


# -------------------------------------------------------------------------------------------------------- the pass


class _PatchFinder:
    """Collects the strongest positions of each layer over batches of images like ``images``."""

    def __init__(
        self,
        layers: Mapping[str, graph.Layer],
        k: int,
        one_per_image: bool,
        unit_position: tuple[int, ...] | None,
        images: Tensor,
        precision: Precision,
    ) -> None:
        self._precision, self._dtype = precision, images.dtype
        self._layers, self._k, self._one_per_image, self._position = layers, k, one_per_image, unit_position
        self._size = tuple(images.shape[2:])
        self._hooks: dict[str, Hook] = {name: partial(self._note, name) for name in layers}
        self._calls: Counter[str] = Counter()
        self._noted: dict[str, tuple[Tensor, Tensor]] = {}
        self._best: dict[str, top_k.TopK] = {}

    def add(self, model: nn.Module, batch: streams.Batch) -> None:
        """Run ``model`` on the ``batch`` and add its positions."""
        if tuple(batch.images.shape[2:]) != self._size:
            raise ValueError(
                f"source should give images of one size, got {list(self._size)} and {list(batch.images.shape[2:])}"
            )
        forward.run(model, batch.images, self._hooks, self._calls, self._precision)
        numbers = torch.tensor(batch.indices, device=batch.images.device)
        for name, (values, places) in self._noted.items():
            if name not in self._best:
                axes = len(self._size)
                self._best[name] = top_k.TopK(self._k, len(values), axes=axes, dtype=values.dtype, device=values.device)
            places = torch.cat([numbers[places[..., :1]], places[..., 1:]], dim=2)
            self._best[name].add(values, places + places.new_tensor([0, *(self._position or (0,) * len(self._size))]))
        self._noted = {}

    def outputs(self, model: nn.Module, images: Tensor) -> list[object]:
        """The outputs of the layers for ``images``, without collecting positions."""
        return forward.outputs(model, images, self._hooks, self._calls, self._precision)

    def found(self, stream: Stream) -> dict[str, Patches]:
        """The result for ``stream``."""
        numbers = torch.cat([best.places[..., 0].flatten() for best in self._best.values()]).unique().tolist()
        names = {
            number: str(number) if stream.names is None else stream.names[number] for number in numbers if number >= 0
        }
        return {
            name: Patches(
                layer=name,
                values=as_map(self._best[name].values),
                images=self._best[name].places[..., 0],
                positions=self._best[name].places[..., 1:],
                names=names,
                input_size=self._size,
                receptive_field=layer.receptive_field,
                reason=layer.reason,
            )
            for name, layer in self._layers.items()
        }

    def _note(self, name: str, module: nn.Module, inputs: Any, output: object) -> None:
        # replaces earlier calls of the layer, so that its last call is used
        maps = _maps(name, output, len(self._size))
        maps = maps if self._precision == "model" else maps.to(self._dtype)
        if self._position is not None:
            maps = _unit(name, maps, self._position)
        alone = self._one_per_image or self._position is not None
        self._noted[name] = top_k.best_per_image(maps) if alone else top_k.best_places(maps, self._k)


def _maps(name: str, output: object, axes: int) -> Tensor:
    """The ``output`` of layer ``name``, checked to be feature maps."""
    maps = floating_output(name, output)
    if maps.dim() != axes + 2 or not maps.numel():
        raise ValueError(
            f"layer {name!r} should give feature maps {checks.LAYOUTS[axes]}, got {list(maps.shape)}: name a "
            "convolution or another layer with maps (in transformers, the patch embedding)"
        )
    return maps


def _unit(name: str, maps: Tensor, unit_position: tuple[int, ...]) -> Tensor:
    size = maps.shape[2:]
    if len(unit_position) != len(size):
        raise ValueError(f"position should be {_PLACES[len(size)]}, got {unit_position!r}")
    if any(at >= side for at, side in zip(unit_position, size, strict=True)):
        raise ValueError(
            f"position should be inside the map of layer {name!r}, {'x'.join(map(str, size))}, got {unit_position}"
        )
    return maps[(slice(None), slice(None), *(slice(at, at + 1) for at in unit_position))]


# ---------------------------------------------------------------------------------------------------- which layers


def _checked_position(position: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(position, (tuple, list)) or len(position) not in _PLACES:
        raise ValueError(f"position should be (row, column), got {position!r}")
    return tuple(checks.whole_number(each, "position", minimum=0) for each in position)


def _convolutions(model: nn.Module, image: Tensor) -> list[str]:
    """The convolutions in call order; one directly followed by a batch norm is replaced by the batch norm.

    Those whose maps are single pixels are left out.
    """
    chosen: dict[str, None] = {}
    outputs: list[tuple[weakref.ref[Tensor], int, str]] = []  # of convolutions: output, its version, name

    def note(name: str, module: nn.Module, inputs: Any, output: object) -> None:
        if not isinstance(output, Tensor) or output.dim() != image.dim() or output.shape[2:].numel() == 1:
            return
        if isinstance(module, _CONVOLUTIONS):
            chosen[name] = None
            outputs.append((weakref.ref(output), output._version, name))
            return
        for made, version, maker in outputs:
            tensor = made()
            if tensor is not None and inputs and inputs[0] is tensor and tensor._version == version and maker in chosen:
                del chosen[maker]
                chosen[name] = None

    kinds = (*_CONVOLUTIONS, nn.modules.batchnorm._BatchNorm)
    with hooked(model, {name: partial(note, name) for name in hookable(model, kinds)}):
        output_of(model, image)
    if not chosen:
        raise ValueError(
            "model should have convolutions (nn.Conv1d, nn.Conv2d, nn.Conv3d) that it calls; give the names of other "
            "layers"
        )
    return list(chosen)


def _entries(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, graph.Layer]:
    """The graph's entry for each layer, checked to have its channels second."""
    size = tuple(images.shape[2:])
    axes = len(size)
    entries = {entry.name: entry for entry in graph.layers(model, size, images.shape[1])}
    convolved = {module.out_channels for module in model.modules() if isinstance(module, _CONVOLUTIONS)}
    found = {}
    for name in names:
        # A layer missing in the graph is not called or gives no tensor; the pass will report which.
        entry = found[name] = entries.get(name) or graph.Layer(name, "", (), 0, None, "the graph does not have it")
        if len(entry.shape) != axes + 1 or entry.layout == tuple(range(2, axes + 2)):
            continue
        # Without a known layout, as after gates over the whole image, decide by the number of channels.
        if entry.layout is not None or entry.shape[0] not in convolved:
            shape = ", ".join(map(str, entry.shape))
            raise ValueError(
                f"layer {name!r} should give feature maps {checks.LAYOUTS[axes]}; its output [N, {shape}] does not "
                "have, or is not known to have, its channels second: name a convolution"
            )
    return found
