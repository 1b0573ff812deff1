"""Steps: a network's operations in the incremental engine, on whole maps and on windows cut from them.

A step's output is a map with axes (``layout`` lists their dimensions: rows and columns of an image, one for a signal,
three for a volume), or anything else that has images in dimension 0 (``layout`` is None). ``full`` computes it from
whole inputs. ``part`` computes a rectangle of it from the windows that the rectangle reads, padding included;
``slides`` describes these windows for each source.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastviz.graph.reach import Layout
from fastviz.graph.sliding_window import Slide

__all__ = [
    "Activation",
    "Call",
    "Constant",
    "Input",
    "Mean",
    "Norm",
    "PadOrSlice",
    "Pool",
    "Shuffle",
    "Size",
    "Slides",
    "Step",
    "pointwise",
]

Slides = tuple[Slide, ...]
Size = tuple[int, ...]


def pointwise(axes: Sequence[object]) -> Slides:
    """For each of the ``axes``, the window that reads only its own position."""
    return tuple(Slide() for _ in axes)


@dataclass(frozen=True)
class Activation:
    """A pointwise function at the end of a step.

    Attributes:
        name: its name in oneDNN; empty if oneDNN cannot fuse it into a convolution.
        scalars: the parameters of the fused form.
        algorithm: the variant of the fused form.
        apply: the function; may overwrite its argument.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


class Step:
    """One operation; see the module's docstring.

    Attributes:
        label: torch's dotted name of the module it belongs to.
        operation: the name of the operation, for tables.
        sources: the steps it reads.
        shape: shape of the output for one image, without the batch.
        layout: dimensions of the axes, including the batch; None if the output is not a map.
        slides: the windows of each source that an output position reads; None if it reads its whole source.
        pad_value: the value that a window reads outside its map.
        takes_activation: whether an activation may overwrite the step's result; not if that may be a view.
        activation: applied to the result.
        flops: floating-point operations for one position of the output map (for the whole output if it is not a map).
        images_first: whether dimension 0 holds the images, one entry for each; if not, ``shape`` is the whole shape for
            one image.
    """

    pad_value: float = 0.0
    takes_activation = False

    def __init__(
        self,
        label: str,
        operation: str,
        sources: Sequence[Step],
        shape: tuple[int, ...],
        layout: Layout | None,
        slides: Sequence[Slides] | None = None,
        flops: float = 0.0,
    ) -> None:
        self.label = label
        self.operation = operation
        self.sources = list(sources)
        self.shape = shape
        self.layout = layout
        self.slides = None if layout is None else list(slides or itertools.repeat(pointwise(layout), len(self.sources)))
        self.flops = flops
        self.activation: Activation | None = None
        self.images_first = True

    @property
    def size(self) -> Size:
        """Positions of the output map along its axes; () if it is not a map."""
        return () if self.layout is None else tuple(self.shape[dim - 1] for dim in self.layout)

    @property
    def channels(self) -> int:
        """Values at one position of the output map; all values if it is not a map."""
        return math.prod(self.shape) // math.prod(self.size)

    def full(self, inputs: Sequence[Tensor], *, clean: bool = False) -> Tensor:
        """The output for whole inputs, [B, ...] each; with ``clean``, for the unchanged images, it is as precise as
        possible: all windows use the clean maps, so rounding errors in them would shift all scores alike.
        """
        return self.finish(self._full(inputs))

    def part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        """The rectangle of ``size`` of the output map, computed from the windows ``inputs``."""
        return self.finish(self._part(inputs, size))

    def finish(self, result: Tensor) -> Tensor:
        """``result`` with the activation applied."""
        return result if self.activation is None else self.activation.apply(result)

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def _part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        return self._full(inputs)


class Input(Step):
    """The images."""


class Constant(Step):
    """A map that is the same for all images: [1, channels, rows, columns], or with other axes."""

    def __init__(self, label: str, value: Tensor) -> None:
        super().__init__(label, "constant", [], tuple(value.shape[1:]), tuple(range(2, value.dim())))
        self.value = value


class Pool(Step):
    """Maximum or mean pooling; a signal is pooled as a picture of one row.

    ``divisor`` is the divisor of a mean. If it differs near the border (padding that is not counted, windows that
    extend beyond the map), it is a map of inverse divisors, and a second source.
    """

    takes_activation = True

    def __init__(
        self, label: str, source: Step, shape: tuple[int, ...], slides: Slides, *, whole: Callable[[Tensor], Tensor],
        maximum: bool, divisor: int | Constant = 1,
    ) -> None:  # fmt: skip
        sources = [source, divisor] if isinstance(divisor, Constant) else [source]
        operation = f"{'max' if maximum else 'avg'}_pool{len(slides)}d"
        layout = tuple(range(2, 2 + len(slides)))
        super().__init__(label, operation, sources, shape, layout, [slides, pointwise(layout)][: len(sources)])
        self.flops = float(math.prod(slide.kernel for slide in slides) * self.channels)
        self.maximum = maximum
        self.divisor = 1 if isinstance(divisor, Constant) else divisor
        self.whole = whole
        row = (Slide(),) if len(slides) == 1 else ()
        self.kernel = [slide.kernel for slide in (*row, *slides)]
        self.stride = [slide.stride for slide in (*row, *slides)]
        self.dilation = [slide.dilation for slide in (*row, *slides)]
        self.pad_value = -math.inf if maximum else 0.0

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.whole(inputs[0])

    def _part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        x = inputs[0].unsqueeze(2) if len(size) == 1 else inputs[0]
        largest, mean = (F.max_pool3d, F.avg_pool3d) if len(size) == 3 else (F.max_pool2d, F.avg_pool2d)
        if self.maximum:
            result = largest(x, self.kernel, self.stride, 0, self.dilation)
        else:
            result = mean(x, self.kernel, self.stride, divisor_override=self.divisor)
        result = result.squeeze(2) if len(size) == 1 else result
        return result.mul_(inputs[1]) if len(inputs) == 2 else result


class PadOrSlice(Step):
    """Padding with a number, or every n-th row and column of a map from a start."""

    def __init__(
        self, label: str, operation: str, source: Step, shape: tuple[int, ...], layout: Layout, slides: Slides,
        whole: Callable[[Tensor], Tensor], pad_value: float,
    ) -> None:  # fmt: skip
        super().__init__(label, operation, [source], shape, layout, [slides])
        self.whole = whole
        self.pad_value = pad_value
        self.window = slides
        self.steps = [slide.stride for slide in slides]

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.whole(inputs[0])

    def _part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        assert self.layout is not None
        index: list[slice] = [slice(None)] * inputs[0].dim()
        for dim, step in zip(self.layout, self.steps, strict=True):
            index[dim] = slice(None, None, step)
        return inputs[0][tuple(index)]


class Norm(Step):
    """A batch norm in evaluation mode: each channel times ``scale`` plus ``shift``."""

    takes_activation = True

    def __init__(self, label: str, source: Step, statistics: Sequence[Tensor | None], epsilon: float) -> None:
        super().__init__(label, "batch_norm", [source], source.shape, source.layout, flops=2.0 * source.shape[0])
        weight, bias, mean, variance = statistics
        assert mean is not None
        assert variance is not None
        # in float64, because rounding errors of a folded scale would affect all outputs of a convolution alike
        scale = (variance.double() + epsilon).rsqrt() * (1.0 if weight is None else weight.double())
        shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
        self.scale = scale
        self.shift = shift
        self._constants = (mean, variance, weight, bias, epsilon)

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        mean, variance, weight, bias, epsilon = self._constants
        return F.batch_norm(inputs[0], mean, variance, weight, bias, False, 0.0, epsilon)


class Shuffle(Step):
    """Channels interleaved from ``groups`` groups, kept in channels_last order if they have it."""

    def __init__(self, label: str, source: Step, groups: int) -> None:
        super().__init__(label, "channel_shuffle", [source], source.shape, source.layout)
        self.groups = groups

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        pixels = inputs[0].movedim(1, -1)
        dealt = pixels.reshape(*pixels.shape[:-1], self.groups, -1).transpose(-2, -1)
        return dealt.reshape(pixels.shape).movedim(-1, 1)


class Mean(Step):
    """The mean over all positions of a map, updated by the sum of the changes."""

    def __init__(self, label: str, source: Step, shape: tuple[int, ...], whole: Callable[[Tensor], Tensor]) -> None:
        super().__init__(label, "mean", [source], shape, None)
        self.whole = whole
        self.flops = float(math.prod(source.shape))

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.whole(inputs[0])


class Call(Step):
    """Any other operation, with the sizes of the batch and of the rectangle inserted as its size arguments."""

    def __init__(
        self,
        label: str,
        operation: str,
        sources: Sequence[Step],
        shape: tuple[int, ...],
        layout: Layout | None,
        call: Callable[[Sequence[Tensor], list[int]], Any],
        *,
        slides: Sequence[Slides] | None = None,
        flops: float = 0.0,
        fresh: bool = False,
    ) -> None:
        super().__init__(label, operation, sources, shape, layout, slides, flops=flops)
        self.call = call
        self.takes_activation = fresh

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        result: Tensor = self.call(inputs, [inputs[0].shape[0], *self.shape])
        return result

    def _part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        assert self.layout is not None
        shape = [inputs[0].shape[0], *self.shape]
        for dim, extent in zip(self.layout, size, strict=True):
            shape[dim] = extent
        result: Tensor = self.call(inputs, shape)
        return result
