"""Patches: the places in many images that excite the units of a network most, traced back to the pixels they see."""

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
from fastviz.execution.precision import Precision, checked_precision
from fastviz.graph.receptive_field import ReceptiveField
from fastviz.images import streams
from fastviz.images.notebook import NotebookResult
from fastviz.images.streams import Source, Stream
from fastviz.vectors import top_k

__all__ = ["Patches", "open_stream", "patches"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLACES = {1: "(place,) in signals", 2: "(row, column)", 3: "(slice, row, column) in volumes"}
"""Of maps with so many axes."""


@dataclass(frozen=True, eq=False, repr=False)
class Patches(NotebookResult):
    """The strongest places of every channel of one layer, as :func:`patches` found them.

    Where a channel has fewer than k, the rest is empty: value −∞, image and position −1, boxes of zeros.

    Attributes:
        layer: torch's dotted name.
        values: [C, k], the activations, highest first.
        images: int64 [C, k], the position of each image in the source.
        positions: int64 [C, k, 2], row and column of the unit in the layer's map; of signals [C, k, 1], of volumes
            [C, k, 3].
        names: position of an image → its name, for the images that occur.
        input_size: height and width of the images as the network takes them, in pixels; length of signals; depth,
            height and width of volumes.
        receptive_field: the pixels that a unit depends on; None if that is the whole image, or not known.
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
        """int64 [C, k, 4]: top, left, bottom, right (half-open, in pixels) of what each unit sees of its image.

        Of signals [C, k, 2]: from, to; of volumes [C, k, 6]: front, top, left, back, bottom, right.
        """
        return self.fields.clamp(min=0).minimum(self.fields.new_tensor([*self.input_size, *self.input_size]))

    @property
    def fields(self) -> Tensor:
        """The same with what lies in the padding: below 0, and beyond the height or width, at the border."""
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
    """The k places in all images where each channel of a layer, or of several, is strongest.

    One pass over the images, for all channels of all layers at once; memory does not grow with their number. Girshick
    et al. 2014, "Rich feature hierarchies", https://arxiv.org/abs/1311.2524 (section 3.1), Springenberg et al. 2015,
    https://arxiv.org/abs/1412.6806.

    Activations are those that the layer returns, before an in-place rectifier behind it changes them. Of equal ones the
    first counts: in order of the images, then row by row. The batch size plays no part in that; the activations
    themselves may differ in their last bits with it, as torch chooses other kernels. A map (one image, one channel)
    that holds NaN, and values of −∞, give no place.

    Args:
        model: any module that takes images [N, C, H, W], signals [N, C, L] or volumes [N, C, D, H, W].
        source: files, folders and patterns, a dataset or a tensor of images, see
            :func:`fastviz.images.streams.batches`; or what that returned, whose batch size and bar are used then.
            Pictures of different sizes are brought to one by the model's preprocessing. What cannot be read is left
            out, with a warning for files given here. Signals and volumes: a tensor, or a dataset, DataLoader or list of
            [C, L] or [C, D, H, W] for a model whose convolutions are all of one or all of three axes.
        layer: torch's dotted name of a layer whose output is feature maps [N, C, H, W], of signals [N, C, L], of
            volumes [N, C, D, H, W]; where it is called several times, its last output counts.
        layers: several such names, in place of ``layer``. None, where ``layer`` is None too: every convolution, after
            the batch norm that follows it directly where one does (under the name of that), before the rectifier, which
            changes no order among positive values. Convolutions whose maps are single pixels (gates) are left out.
        k: places a channel.
        one_per_image: at most one place an image and channel; False takes neighbours in one image, too.
        position: row and column (of signals one number, of volumes three): only the unit there, of each channel.
        batch_size: images in a pass; None is 32.
        precision: see :func:`fastviz.input_gradient`.
        progress: show a progress bar on a terminal.

    Returns:
        :class:`Patches` for ``layer``; else a dictionary, layer name → :class:`Patches`. Where units depend on the
        whole image (behind squeeze-and-excitation gates), or the model cannot be traced to a graph, the box of each
        place is the whole image, and ``reason`` says why.

    Raises:
        TypeError: ``model`` or ``source`` is of the wrong type; a layer gives something else than one tensor.
        ValueError: no image that can be read; images of different sizes; a layer that does not exist (with the nearest
            names), is not called or gives no feature maps; no convolution; a ``position`` outside of a map.

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
    spot = None if position is None else _spot(position)
    stream = open_stream(model, source, batch_size, progress)
    watch: _Watch | None = None
    batches = Batches(model)
    with frozen_model(model), torch.no_grad():
        for batch in stream:
            if watch is None:
                chosen = _convolutions(model, batch.images[:1].clone()) if names is None else names
                watch = _Watch(_entries(model, chosen, batch.images), k, one_per_image, spot, batch.images, precision)
            at_once = batches.together(batch.images, partial(watch.outputs, model))
            for start in range(0, len(batch), at_once):
                watch.see(model, batch.part(start, start + at_once))
    if watch is None:
        reason = f"; the first: {stream.failures[0][1]}" if stream.failures else ""
        raise ValueError(f"source should hold at least one image that can be read, got none{reason}")
    if stream is not source and stream.failures:
        name, reason = stream.failures[0]
        warnings.warn(f"{len(stream.failures)} images could not be read; {name}: {reason}", stacklevel=2)
    found = watch.found(stream)
    return found if layer is None else found[layer]


def open_stream(model: nn.Module, source: Source | Stream, batch_size: int | None, progress: bool = False) -> Stream:
    """``source`` as a stream of batches for ``model``."""
    if isinstance(source, Stream):
        return source
    axes = _axes(checks.module(model), source)
    return streams.batches(source, model=model, batch_size=batch_size, progress=progress, axes=axes)


def _axes(model: nn.Module, source: Source) -> int:
    """How many axes the images of ``source`` have: 1 of signals, 3 of volumes."""
    slides = convolution_axes(model)
    if len(slides) == 1:
        return slides.pop()
    return source.dim() - 2 if isinstance(source, Tensor) and source.dim() in (3, 5) else 2


# -------------------------------------------------------------------------------------------------------- the pass


class _Watch:
    """The best places of each layer in the batches seen so far, of images like ``images``."""

    def __init__(
        self,
        layers: Mapping[str, graph.Layer],
        k: int,
        one_per_image: bool,
        spot: tuple[int, ...] | None,
        images: Tensor,
        precision: Precision,
    ) -> None:
        self._precision, self._dtype = precision, images.dtype
        self._layers, self._k, self._one_per_image, self._spot = layers, k, one_per_image, spot
        self._size = tuple(images.shape[2:])
        self._hooks: dict[str, Hook] = {name: partial(self._note, name) for name in layers}
        self._calls: Counter[str] = Counter()
        self._noted: dict[str, tuple[Tensor, Tensor]] = {}
        self._best: dict[str, top_k.TopK] = {}

    def see(self, model: nn.Module, batch: streams.Batch) -> None:
        """Run ``model`` on the ``batch`` and take in its places."""
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
            self._best[name].add(values, places + places.new_tensor([0, *(self._spot or (0,) * len(self._size))]))
        self._noted = {}

    def outputs(self, model: nn.Module, images: Tensor) -> list[object]:
        """What the layers give for ``images``, of which nothing is noted."""
        return forward.outputs(model, images, self._hooks, self._calls, self._precision)

    def found(self, stream: Stream) -> dict[str, Patches]:
        """What was seen of ``stream``."""
        numbers = torch.cat([best.places[..., 0].flatten() for best in self._best.values()]).unique().tolist()
        names = {
            number: str(number) if stream.names is None else stream.names[number] for number in numbers if number >= 0
        }
        return {
            name: Patches(
                layer=name,
                values=self._best[name].values,
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
        # What a layer gave before is replaced: its last call counts.
        maps = _maps(name, output, len(self._size))
        maps = maps if self._precision == "model" else maps.to(self._dtype)
        if self._spot is not None:
            maps = _unit(name, maps, self._spot)
        alone = self._one_per_image or self._spot is not None
        self._noted[name] = top_k.best_per_image(maps) if alone else top_k.best_places(maps, self._k)


def _maps(name: str, output: object, axes: int) -> Tensor:
    """The ``output`` of layer ``name``, if it is feature maps."""
    maps = floating_output(name, output)
    if maps.dim() != axes + 2 or not maps.numel():
        raise ValueError(
            f"layer {name!r} should give feature maps {checks.LAYOUTS[axes]}, got {list(maps.shape)}: name a "
            "convolution or another layer with maps (in transformers, the patch embedding)"
        )
    return maps


def _unit(name: str, maps: Tensor, spot: tuple[int, ...]) -> Tensor:
    size = maps.shape[2:]
    if len(spot) != len(size):
        raise ValueError(f"position should be {_PLACES[len(size)]}, got {spot!r}")
    if any(at >= side for at, side in zip(spot, size, strict=True)):
        raise ValueError(f"position should be inside the map of layer {name!r}, {'x'.join(map(str, size))}, got {spot}")
    return maps[(slice(None), slice(None), *(slice(at, at + 1) for at in spot))]


# ---------------------------------------------------------------------------------------------------- which layers


def _spot(position: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(position, (tuple, list)) or len(position) not in _PLACES:
        raise ValueError(f"position should be (row, column), got {position!r}")
    return tuple(checks.whole_number(each, "position", minimum=0) for each in position)


def _convolutions(model: nn.Module, image: Tensor) -> list[str]:
    """The convolutions in the order of their calls, by the name of the batch norm that takes just what one gave.

    Those whose maps are single pixels are left out.
    """
    chosen: dict[str, None] = {}
    outputs: list[tuple[weakref.ref[Tensor], int, str]] = []  # of convolutions, how often changed in place, of which

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
    """What the graph says of each layer, if its maps have their channels second."""
    size = tuple(images.shape[2:])
    axes = len(size)
    entries = {entry.name: entry for entry in graph.layers(model, size, images.shape[1])}
    convolved = {module.out_channels for module in model.modules() if isinstance(module, _CONVOLUTIONS)}
    found = {}
    for name in names:
        # One that the graph does not have is not called, or gives no tensor: the pass will say which.
        entry = found[name] = entries.get(name) or graph.Layer(name, "", (), 0, None, "the graph does not have it")
        if len(entry.shape) != axes + 1 or entry.layout == tuple(range(2, axes + 2)):
            continue
        # Without a layout, as behind gates over the whole image, the number of channels must speak for it.
        if entry.layout is not None or entry.shape[0] not in convolved:
            shape = ", ".join(map(str, entry.shape))
            raise ValueError(
                f"layer {name!r} should give feature maps {checks.LAYOUTS[axes]}; its output [N, {shape}] does not "
                "have, or is not known to have, its channels second: name a convolution"
            )
    return found
