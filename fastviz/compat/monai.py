"""Drop-in replacement for MONAI's ``OcclusionSensitivity``: the same windows, weights and results, computed faster.

MONAI need not be installed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastviz._util.progress import Advance, bar
from fastviz.engine import incremental
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import fast_convolutions, in_fast_order

__all__ = ["OcclusionSensitivity"]

_DEVIATION = 0.25
"""Standard deviation of the covering Gaussian, as a fraction of the window's sides."""
_WEIGHT_DEVIATION = 0.125
"""Standard deviation of the Gaussian that weights overlapping windows, as a fraction of the window's sides."""
_MIN_WEIGHT = 1e-3


Cover: TypeAlias = Callable[[Tensor], Any]
"""A function from a window [1, C, ...] to what covers it: a tensor of the same shape, or a number."""


class OcclusionSensitivity:
    """MONAI's ``OcclusionSensitivity``: a network's output for a picture or volume while windows of it are covered.

    Arguments, results and errors are those of MONAI 1.1 and later, except that the results are plain tensors and the
    model keeps its mode if a call raises. Only what a window changes is recomputed
    (:func:`fastviz.engine.incremental.sweep`). Networks with further arguments run on whole pictures, in batches of
    ``n_batch`` if they treat images independently.

    Args:
        nn_module: the network.
        mask_size: side lengths of the windows in pixels, or one for all sides.
        n_batch: windows in a pass, if whole pictures go through the network.
        verbose: show a progress bar on a terminal.
        mode: what covers a window: a number; ``"gaussian"`` (the window times one minus a Gaussian);
            ``"mean_patch"``, ``"mean_img"``; or a function (image, window) that returns the covered window.
        overlap: overlap of neighbouring windows, at least 0 and below 1.
        activate: True for softmax, or sigmoid for one-channel pictures; False for none; or a function of the output.

    Raises:
        NotImplementedError: ``mode`` is unknown.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    >>> sensitivity, likeliest = OcclusionSensitivity(network, mask_size=4, verbose=False)(torch.rand(1, 1, 8, 8))
    >>> sensitivity.shape, likeliest.shape
    (torch.Size([1, 3, 8, 8]), torch.Size([1, 1, 8, 8]))
    """

    def __init__(
        self,
        nn_module: nn.Module,
        mask_size: int | Sequence[int] = 16,
        n_batch: int = 16,
        verbose: bool = True,
        mode: str | float | Callable[..., Any] = "gaussian",
        overlap: float = 0.6,
        activate: bool | Callable[..., Any] = True,
    ) -> None:
        if isinstance(mode, str) and mode not in ("gaussian", "mean_patch", "mean_img"):
            raise NotImplementedError(
                f"mode should be a number, a function, gaussian, mean_patch or mean_img, got {mode}"
            )
        self.nn_module, self.mask_size, self.n_batch, self.verbose = nn_module, mask_size, n_batch, verbose
        self.mode, self.overlap, self.activate = mode, overlap, activate

    def __call__(self, x: Tensor, b_box: Sequence[int] | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Mean output over the windows that cover each pixel, [1, K, ...], and its most probable class, [1, 1, ...].

        Args:
            x: one picture [1, C, H, W], volume [1, C, H, W, D] or signal.
            b_box: lower and upper bound along each axis, ``[min, max, ...]``; −1 is the border. Only windows near the
                box are evaluated, and the results are cropped to it.
            kwargs: further arguments of the network.

        Raises:
            ValueError: there is more than one picture, or a window is larger than the picture.
        """
        if x.shape[0] > 1:
            raise ValueError("Expected batch size of 1.")
        sides = x.dim() - 2
        mask = [self.mask_size] * sides if isinstance(self.mask_size, int) else [int(each) for each in self.mask_size]
        first, last = [0] * sides, list(x.shape[2:])
        if b_box is not None:
            # extend the box by half a window, within the picture
            first = [max(low - (side - 1) // 2, 0) for low, side in zip(b_box[::2], mask, strict=True)]
            last = [
                size if high == -1 else min(high + (side - 1) // 2, size)
                for high, side, size in zip(b_box[1::2], mask, x.shape[2:], strict=True)
            ]
            mask = [min(side, high - low) for side, low, high in zip(mask, first, last, strict=True)]
        extent = [high - low for low, high in zip(first, last, strict=True)]
        if any(side > size for side, size in zip(mask, extent, strict=True)):
            raise ValueError(f"Image (spatial shape) {extent} should be bigger than mask {mask}.")
        corners = _corners(extent, mask, self.overlap)
        with frozen_model(self.nn_module), torch.no_grad():
            outputs = self._outputs(x.detach(), [[c + f for c, f in zip(each, first, strict=True)] for each in corners],
                                    mask, kwargs)  # fmt: skip
        weight = _weights(mask, self.mode == "gaussian").to(outputs)
        total = outputs.new_zeros(outputs.shape[1], *extent)
        count = outputs.new_zeros(*extent)
        for corner, output in zip(corners, outputs, strict=True):
            place = _window(corner, mask)
            total[(slice(None), *place)] += output.view(-1, *[1] * sides) * weight
            count[place] += weight
        found = (total / count)[None]
        if b_box is not None:
            found = _cut(found, b_box, first, x.shape[2:])
        return found, found.argmax(dim=1, keepdim=True)

    def _outputs(self, x: Tensor, corners: list[list[int]], mask: list[int], options: dict[str, Any]) -> Tensor:
        """The network's outputs with each window covered, [P, K]."""
        cover = self._cover(x, mask)
        with bar(self.verbose, len(corners), text="occlusion sensitivity") as advance:
            if not options:
                with incremental.counted(self.nn_module, x):
                    clean = self.nn_module(x.clone())
                if isinstance(clean, Tensor) and clean.is_floating_point() and len(clean) == 1:
                    return self._incremental_outputs(x, corners, mask, cover, clean, advance)
            return self._full_outputs(x, corners, mask, cover, options, advance)

    def _incremental_outputs(
        self, x: Tensor, corners: list[list[int]], mask: list[int], cover: Cover, clean: Tensor, advance: Advance
    ) -> Tensor:
        """The same, computed only where a window changes something."""
        boxes = torch.tensor(
            [[*corner, *(at + side for at, side in zip(corner, mask, strict=True))] for corner in corners]
        )
        fill: float | Tensor
        if self.mode == "mean_img" or isinstance(self.mode, (int, float)):
            layers, fill = torch.zeros(len(corners), dtype=torch.int64), float(cover(x))
        else:
            # The fill depends on the window. Windows that do not overlap share a fill picture.
            layers = _non_overlapping_layers(boxes)
            fill = x.repeat(int(layers.max()) + 1, *[1] * (x.dim() - 1))
            for layer, corner in zip(layers.tolist(), corners, strict=True):
                place = (slice(None), *_window(corner, mask))
                fill[(slice(layer, layer + 1), *place)] = cover(x[(slice(None), *place)])
        count = int(layers.max()) + 1
        return incremental.sweep(
            self.nn_module,
            x.repeat(count, *[1] * (x.dim() - 1)),
            boxes.to(x.device),
            layers.to(x.device),
            fill,
            lambda output, number: self._activated(output, x),
            clean=clean.expand(count, *clean.shape[1:]),
            advance=advance,
        ).values

    def _full_outputs(
        self,
        x: Tensor,
        corners: list[list[int]],
        mask: list[int],
        cover: Cover,
        options: dict[str, Any],
        advance: Advance,
    ) -> Tensor:
        """The same with whole pictures, for networks with further arguments or other outputs."""
        model, batches, found = self.nn_module, Batches(self.nn_module), []
        together = self.n_batch
        if together > 1:
            together = min(
                together, self.n_batch * batches.together(x.expand(2, *x.shape[1:]), _forward(model, options))
            )
            together = 1 if batches.reason else together

        def compute(batch: Tensor) -> Any:
            with fast_convolutions(model, len(batch)):
                return self._activated(model(batch, **options), x)

        run = in_fast_order(model, "model", compute, None) if x.dim() == 4 else compute
        for start in range(0, len(corners), together):
            some = corners[start : start + together]
            batch = x.repeat(len(some), *[1] * (x.dim() - 1))
            for image, corner in zip(batch.split(1), some, strict=True):
                place = (slice(None), slice(None), *_window(corner, mask))
                image[place] = cover(image[place])
            found.append(run(batch))
            advance(len(some))
        return torch.cat(found)

    def _activated(self, output: Tensor, x: Tensor) -> Tensor:
        if callable(self.activate):
            return self.activate(output)  # type: ignore[no-any-return]
        if self.activate:
            return output.sigmoid() if x.shape[1] == 1 else output.softmax(1)
        return output

    def _cover(self, x: Tensor, mask: list[int]) -> Cover:
        """The function that covers a window [1, C, ...]."""
        mode = self.mode
        if mode == "gaussian":
            kernel = _gaussian_cover(mask).to(x)
            return lambda window: window * kernel
        if mode == "mean_img":
            mean = x.mean().item()
            return lambda window: mean
        if mode == "mean_patch":
            return lambda window: window.mean().item()
        if callable(mode):
            return lambda window: mode(x, window)
        assert isinstance(mode, (int, float))
        return lambda window: mode


def _window(corner: list[int], mask: list[int]) -> tuple[slice, ...]:
    return tuple(slice(at, at + side) for at, side in zip(corner, mask, strict=True))


def _non_overlapping_layers(boxes: Tensor) -> Tensor:
    """A layer index for each of the ``boxes`` [P, 2 · axes], int64 [P], so that boxes in a layer do not overlap."""
    begins, ends = boxes.chunk(2, dim=1)
    layers = torch.zeros(len(boxes), dtype=torch.int64)
    for at in range(1, len(boxes)):
        meets = ((begins[:at] < ends[at]) & (begins[at] < ends[:at])).all(1)
        taken = set(layers[:at][meets].tolist())
        layers[at] = next(layer for layer in itertools.count() if layer not in taken)
    return layers


def _forward(model: nn.Module, options: dict[str, Any]) -> Callable[[Tensor], object]:
    return lambda images: model(images.clone(), **options)


def _corners(extent: list[int], mask: list[int], overlap: float) -> list[list[int]]:
    """Where windows start: every ``mask · (1 − overlap)`` pixels up to the border; the last is moved inwards."""
    each = []
    for size, side in zip(extent, mask, strict=True):
        step = max(1, int(side * (1 - overlap))) if side != size else side
        count = next(at for at in range(math.ceil(size / step) + 1) if at * step + side >= size) + 1
        each.append([min(at * step, size - side) for at in range(count)])
    return [list(corner) for corner in itertools.product(*each)]


def _gaussian(side: int, deviation: float, middle: float) -> Tensor:
    place = torch.arange(side, dtype=torch.float32) - middle
    return torch.exp(-(place**2) / (2 * deviation**2))


def _weights(mask: list[int], gaussian: bool) -> Tensor:
    """The weight of a window at each of its pixels."""
    weight = torch.ones(mask)
    if not gaussian:
        return weight
    for axis, side in enumerate(mask):
        shape = [-1 if at == axis else 1 for at in range(len(mask))]
        weight = weight * _gaussian(side, _WEIGHT_DEVIATION * side, (side - 1) / 2).view(shape)
    return weight.clamp(min=max(float(weight[weight != 0].min()), _MIN_WEIGHT))


def _gaussian_cover(mask: list[int]) -> Tensor:
    """One minus a Gaussian around the window's centre, scaled to 0 to 1."""
    kernel = torch.ones(mask)
    for axis, side in enumerate(mask):
        shape = [-1 if at == axis else 1 for at in range(len(mask))]
        kernel = kernel * _smoothed_point(side, _DEVIATION * side).view(shape)
    flipped = -kernel
    low, high = flipped.min(), flipped.max()
    return (flipped - low) / (high - low) if high > low else torch.zeros_like(flipped)


def _smoothed_point(side: int, deviation: float) -> Tensor:
    """A unit impulse at the middle of ``side`` pixels, smoothed by a Gaussian that is integrated over each pixel."""
    edges = (torch.arange(side + 1, dtype=torch.float32) - side // 2 - 0.5) / (deviation * 2**0.5)
    return torch.erf(edges).diff() / 2


def _cut(found: Tensor, b_box: Sequence[int], first: list[int], size: Sequence[int]) -> Tensor:
    place: list[slice] = [slice(None), slice(None)]
    for low, high, begin, side in zip(b_box[::2], b_box[1::2], first, size, strict=True):
        start = max(low, 0) - begin
        place.append(slice(start, (high if high > 0 else side) - begin))
    return found[tuple(place)]
