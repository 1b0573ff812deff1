"""The work of one pass of a model, counted once for each shape of images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastviz._util.by_model import ByModel
from fastviz.execution.batch_functions import called
from fastviz.execution.compiled import eager, has_compiled_parts

__all__ = ["Work", "counted", "known"]

_EFFICIENCY = 0.8
"""The speed on small rectangles relative to whole maps."""


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
        largest: the bytes of the largest of these tensors, for one image.
        spent: operations of full passes that sweeps have run since the last trace.
        whole: the least seconds per window of sweeps with full passes; infinite before the first.
        rectangles: the same for sweeps on rectangles, by kind (:func:`fastviz.engine.incremental.worth.timed`), and
            their number.
    """

    layers: list[_Layer]
    calls: int
    largest: float = 0.0
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
    work = Work([layer for layer in counter.layers if layer.flops], counter.calls, counter.largest / len(images))
    _known.setdefault(model, dict)[tuple(images.shape[1:])] = work


class _Counter(TorchFunctionMode):
    """Counts calls and operations, and tracks the growth of the part of a map that a window changes.

    It sees calls from Python; calls inside scripts and extensions are not counted.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.layers: list[_Layer] = []
        self.calls = 0
        self.largest = 0
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
            with torch._C.DisableTorchFunction():  # these queries should not reach other modes
                self.largest = max(self.largest, output.nbytes)
                if note is not None:
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
