"""Decides whether tracing a model is worthwhile for a sweep, from one pass of the model.

A trace takes longer than many sweeps. The decision is based on counts, not on timing: operations of a pass, calls to
trace, and the growth of a window's rectangle from convolution to convolution; so it is reproducible. If tracing is not
worthwhile for one sweep, its work is recorded, and the model is traced once the total is large compared with tracing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastviz._util.by_model import ByModel
from fastviz.engine.incremental.job import even_batches, whole_passes
from fastviz.engine.incremental.network import is_there
from fastviz.execution.batch_functions import called
from fastviz.execution.compiled import eager, has_compiled_parts

__all__ = ["Work", "beside_clean", "counted", "known", "refusal", "slower", "spend", "timed"]

_RATE = {"cpu": 5e10, "cuda": 1e13}
"""Floating-point operations per second in full passes, of a CPU thread or a GPU."""

_TRACE = (0.25, 0.0025)
"""Seconds to trace a model and plan for it: fixed, and per call of a pass."""

_EFFICIENCY = 0.8
"""The speed on small rectangles relative to whole maps."""

_LOST = 0.03
"""The fraction of the time spent on a model that tracing may take if it is not worthwhile for one sweep."""

_SLOWER = 0.95
"""The measured gain below which a sweep on rectangles was not worthwhile."""

_TRIES = 2
"""How many sweeps on rectangles of one kind run before their speed is considered."""

_LEAST_WINDOWS = 16
"""The minimum number of windows to measure the speed of a sweep."""


@dataclass(frozen=True)
class _Layer:
    """A convolution or matrix product: its operations, map positions by axis, and the growth of windows in pixels."""

    flops: float
    size: tuple[int, ...]
    growth: float


@dataclass
class Work:
    """Measurements of a model for images of one shape.

    Attributes:
        layers: its layers with their operations.
        calls: the number of torch calls in a pass that return tensors.
        spent: operations of full passes that sweeps have run since the last trace.
        whole: the least seconds per window of sweeps with full passes; infinite before the first.
        rectangles: the same for sweeps on rectangles, by kind (:func:`_kind`), and their number.
    """

    layers: list[_Layer]
    calls: int
    spent: float = 0.0
    whole: float = math.inf
    rectangles: dict[tuple[int, ...], tuple[int, float]] = field(default_factory=dict)

    @property
    def operations(self) -> float:
        """Of one image."""
        return sum(layer.flops for layer in self.layers)

    def gain(self, window: tuple[float, ...], size: tuple[int, ...]) -> float:
        """A lower bound of the gain by rectangles of a ``window`` in an image of this ``size``, as far as known."""
        work = 0.0
        for layer in self.layers:
            share = 1.0
            for side, image, rows in zip(window, size, layer.size or (1,) * len(size), strict=True):
                share *= min(1.0, ((side + layer.growth) * rows / image + 1) / rows)
            work += layer.flops * min(1.0, share / _EFFICIENCY)
        return self.operations / work if work else 1.0


_known: ByModel[dict[tuple[int, ...], Work]] = ByModel()
_lock = threading.Lock()


def known(model: nn.Module, images: Tensor) -> Work | None:
    """The result of :func:`counted` for images of this shape."""
    return (_known.get(model) or {}).get(tuple(images.shape[1:]))


@contextmanager
def counted(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Count the work of one pass of ``model`` over ``images`` inside the context, unless known; a failed pass is
    ignored.

    Use it inside :meth:`fastviz.execution.batches.Batches.watched`, which makes many calls itself.
    """
    if known(model, images) is not None or not len(images):
        yield
        return
    counter = _Counter(images)
    if has_compiled_parts(model):  # compiled code refuses to run under a mode, so its layers are counted separately
        with torch.no_grad(), counter:
            eager(model)(images.detach().clone())
        yield
    else:
        with counter:
            yield
    work = Work([layer for layer in counter.layers if layer.flops], counter.calls)
    _known.setdefault(model, dict)[tuple(images.shape[1:])] = work


def refusal(model: nn.Module, images: Tensor, boxes: Tensor, begun: int = 0, least: float = 1.0) -> str:
    """Why a model should not be traced for a sweep over ``boxes``; empty if it is worthwhile.

    Args:
        model: the network.
        images: [N, C, H, W], or signals or volumes.
        boxes: int64 [P, 2 · axes].
        begun: how many windows full passes can skip; a sweep on rectangles computes all, so that each call gives the
            same.
        least: a lower bound of the gain by steps on whole images.
    """
    work = known(model, images)
    if work is None or not work.calls:
        return "nothing is known of the cost of a pass"
    device = images.device.type
    rate = _RATE[device] * (torch.get_num_threads() if device == "cpu" else 1)
    trace = (_TRACE[0] + _TRACE[1] * work.calls) * rate
    gain = max(least, work.gain(tuple(_sides(boxes).tolist()), tuple(images.shape[2:])))
    dense = work.operations * len(boxes)
    saved = work.operations * (len(boxes) - begun) - dense / gain
    if gain > 1.05 and (saved >= trace or (work.spent + dense) * _LOST >= trace):
        return ""
    return (
        f"tracing would cost more than it saves: some {trace / rate:.1f} s before {dense / rate:.2f} s of whole "
        f"passes, which rectangles would shorten by a factor of {gain:.1f} or more"
    )


def slower(work: Work | None, boxes: Tensor) -> str:
    """Why a traced model should still run full passes; empty if it should not.

    The fastest time of each method is compared, because a busy machine slows either down at times.
    """
    if work is None:
        return ""
    count, seconds = work.rectangles.get(_kind(boxes), (0, math.inf))
    gain = work.whole / seconds
    if count < _TRIES or gain >= _SLOWER:
        return ""
    return f"earlier sweeps on rectangles ran at {gain:.2f} times the speed of whole passes"


def timed(work: Work | None, boxes: Tensor, seconds: float, dense_seconds: float | None) -> None:
    """Record the time of a sweep over ``boxes``, if it was long enough to measure.

    Args:
        work: the measurements of the model for these images.
        boxes: int64 [P, 4].
        seconds: per window, without preparation.
        dense_seconds: for a sweep on rectangles, the model's time for one image; None for full passes.
    """
    if work is None or len(boxes) < _LEAST_WINDOWS:
        return
    with _lock:
        if dense_seconds is None:
            work.whole = min(work.whole, seconds)
            return
        work.whole = min(work.whole, dense_seconds)
        count, least = work.rectangles.get(_kind(boxes), (0, math.inf))
        work.rectangles[_kind(boxes)] = count + 1, min(least, seconds)


def _kind(boxes: Tensor) -> tuple[int, ...]:
    """The kind of a sweep: sweeps with about as many windows of about the same size share one."""
    return *_sides(boxes).round().int().tolist(), len(boxes).bit_length()


def _sides(boxes: Tensor) -> Tensor:
    """The mean lengths of the boxes along each axis; 0 for none."""
    axes = boxes.shape[1] // 2
    return (boxes[:, axes:] - boxes[:, :axes]).double().sum(0) / max(1, len(boxes))


def spend(work: Work | None, windows: int) -> None:
    """Record full passes for this many windows."""
    if work is not None:
        with _lock:
            work.spent += work.operations * windows


def beside_clean(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    batch_size: int | None = None,
    trace: Literal["auto", "always", "never"] = "auto",
) -> int:
    """How many of the first windows to add to the pass over the clean images, if a sweep starts with full passes.

    A separate pass for one image costs as much as several more images in a batch. The number is 0 if there are steps,
    or if tracing is already known to be worthwhile.

    Args:
        model: the network.
        images: [N, C, H, W], or signals or volumes.
        boxes: all windows, int64 [P, 2 · axes].
        batch_size: images in a pass; None is :func:`fastviz.engine.incremental.job.whole_passes`.
        trace: as in :func:`fastviz.engine.incremental.sweep`.
    """
    work = known(model, images)
    if trace == "always" or not len(images):
        return 0
    if trace == "auto":
        traced = is_there(model, images)
        if slower(work, boxes) == "" if traced else work is not None and not refusal(model, images, boxes):
            return 0
    even = even_batches(len(images) + len(boxes), batch_size or whole_passes(model, images))
    return min(len(boxes), max(0, even - len(images)))


class _Counter(TorchFunctionMode):
    """Counts calls and operations, and tracks the growth of the part of a map that a window changes.

    It sees calls from Python; calls inside scripts and extensions are not counted.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.layers: list[_Layer] = []
        self.calls = 0
        self._axis = -1 if images.dim() == 3 else -2  # growth is counted along a signal, or along rows
        self._count, self._height = len(images), images.shape[self._axis]
        self._size = tuple(images.shape[2:])
        self._growth = 0.0
        self._averaged = False  # the map is averaged, so from here every value changes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        output = result[0] if isinstance(result, tuple) and result else result
        if isinstance(output, Tensor):
            self.calls += 1
            note = _NOTED.get(func)
            if note is not None:
                with torch._C.DisableTorchFunction():  # these queries should not reach other modes
                    note(self, (*args, *kwargs.values()), output, kwargs)
        return result

    def _convolution(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        image, weight = args[0], args[1]
        if result.dim() != len(self._size) + 2:
            self._growth = math.inf
        elif result.shape[2:].numel() > 1:
            if self._averaged:
                self._growth = math.inf
            dilation = named.get("dilation", args[5] if len(args) > 5 else 1)
            apart = dilation if isinstance(dilation, int) else max(dilation)
            self._grow((max(weight.shape[2:]) - 1) * apart + 1, image.shape[self._axis])
            self._size = tuple(result.shape[2:])
        self._note(2.0 * result.numel() * weight[0].numel())

    def _transposed(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        self._growth = math.inf
        self._note(2.0 * args[0].numel() * args[1][0].numel())

    def _pool(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        kernel = named.get("kernel_size", args[1])
        if args[0].dim() == len(self._size) + 2:
            self._grow(kernel if isinstance(kernel, int) else max(kernel), args[0].shape[self._axis])

    def _average(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        self._averaged |= args[0].dim() >= len(self._size) + 2 and result.numel() * 4 < args[0].numel()

    def _linear(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        """Matrix products: of one vector per image on everything; of tokens or pixels on the rectangle."""
        flops = 2.0 * result.numel() * args[0].shape[-1]
        if result[..., 0].numel() == self._count or self._averaged:
            self.layers.append(_Layer(flops / self._count, (), math.inf))
        else:
            self._note(flops)

    def _product(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        if args[0].dim() <= 2:
            self._linear(args, result, named)
            return
        self._growth = math.inf
        self._note(2.0 * result.numel() * args[0].shape[-1])

    def _attention(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        self._growth = math.inf
        query, key = args[0], args[1]
        self._note(4.0 * query.numel() * key.shape[-2])

    def _attention_layer(self, args: tuple[Any, ...], result: Tensor, named: dict[str, Any]) -> None:
        """Attention of [L, N, E]: products with four matrices, and of tokens with each other."""
        self._growth = math.inf
        query, key = args[0], args[1]
        self._note(query.numel() * (8.0 * query.shape[-1] + 4.0 * key.shape[0]))

    def _grow(self, kernel: int, rows: int) -> None:
        self._growth += (kernel - 1) * self._height / max(1, rows)

    def _note(self, flops: float) -> None:
        self.layers.append(_Layer(flops / self._count, self._size, self._growth))


_NOTED = {
    function: note
    for names, note in (
        ("conv1d conv2d conv3d", _Counter._convolution),
        ("conv_transpose1d conv_transpose2d conv_transpose3d", _Counter._transposed),
        ("max_pool1d avg_pool1d max_pool2d avg_pool2d max_pool3d avg_pool3d", _Counter._pool),
        ("mean amax adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", _Counter._average),
        ("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", _Counter._average),
        ("linear", _Counter._linear),
        ("matmul __matmul__ mm bmm", _Counter._product),
        ("scaled_dot_product_attention", _Counter._attention),
        ("multi_head_attention_forward", _Counter._attention_layer),
    )
    for function in called(names)
}
"""What to record for each call, given all arguments in order, the result, and the keyword arguments."""
