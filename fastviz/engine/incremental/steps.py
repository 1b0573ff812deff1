"""The operations of a network as the incremental engine runs them: on whole maps, and on windows cut from them.

A step's output is a map with rows and columns (``layout`` says which dimensions those are), or anything else that has
images in dimension 0 (``layout`` is None). ``full`` computes it from whole inputs. ``part`` computes a rectangle of it
from the windows that the rectangle reads, padding included; ``slides`` says, source by source, which windows those are.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastviz._util.processor import packed_convolutions
from fastviz.execution.fast_conv import winograd
from fastviz.graph.reach import Layout
from fastviz.graph.sliding_window import Slide

__all__ = [
    "Activation",
    "Call",
    "Constant",
    "Conv",
    "Cut",
    "Input",
    "Mean",
    "Norm",
    "Pool",
    "Shuffle",
    "Slides",
    "Step",
    "memory_order",
]

Slides = tuple[Slide, Slide]
Size = tuple[int, int]

POINTWISE: Slides = (Slide(), Slide())


@dataclass(frozen=True)
class Activation:
    """A function of single values, done last in a step.

    Attributes:
        name: what oneDNN calls it; empty if oneDNN cannot do it in a convolution.
        scalars: the parameters of the fused form.
        algorithm: the variant of the fused form.
        apply: the function; may overwrite its argument.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


class Step:
    """One operation; see the module's first lines.

    Attributes:
        label: the module that it stands in, torch's dotted name.
        operation: what it does, for tables.
        sources: the steps it reads.
        shape: shape of the output for one image, without the batch.
        layout: dimensions of rows and columns, the batch counted; None if the output is no map.
        slides: the windows of each source that an output position reads; None where it reads all of its source.
        pad_value: what a window reads outside of its map.
        takes_activation: whether an activation may overwrite what the step computes; not if that may be a view.
        activation: applied to the result.
        flops: floating-point operations for one position of the output map (for all of the output if it is no map).
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
        self.slides = None if layout is None else list(slides or itertools.repeat(POINTWISE, len(self.sources)))
        self.flops = flops
        self.activation: Activation | None = None
        self.images_first = True

    @property
    def size(self) -> Size:
        """Rows and columns of the output map; (1, 1) if it is no map."""
        if self.layout is None:
            return (1, 1)
        return self.shape[self.layout[0] - 1], self.shape[self.layout[1] - 1]

    @property
    def channels(self) -> int:
        """Values at one position of the output map; all values if it is no map."""
        return math.prod(self.shape) // math.prod(self.size)

    def full(self, inputs: Sequence[Tensor], *, clean: bool = False) -> Tensor:
        """The output for whole inputs, [B, ...] each; ``clean``: of the images themselves, as precisely as can be.

        All windows lie in the clean maps, so that what is rounded there shifts all scores alike.
        """
        return self.finish(self._full(inputs))

    def part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        """The rectangle of ``size`` of the output map that the windows ``inputs`` give."""
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
    """A map that is the same for all images: [1, channels, rows, columns]."""

    def __init__(self, label: str, value: Tensor) -> None:
        super().__init__(label, "constant", [], tuple(value.shape[1:]), (2, 3))
        self.value = value


class Conv(Step):
    """A convolution of the first source, plus the second source where there is one.

    On the CPU its weights are packed once for all inputs, and the sum and the activation run inside oneDNN's kernel.
    Where that has no kernel for values of 16 bits, it gets them as float32, and what it gives is rounded: as a kernel
    for them does, which sums in float32.
    Kernels of 3×3 between many channels run with a quarter of the products, see
    :mod:`fastviz.execution.fast_conv.winograd`.
    """

    takes_activation = True

    def __init__(
        self,
        label: str,
        source: Step,
        shape: tuple[int, ...],
        layout: Layout | None,
        window: Slides,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
    ) -> None:
        flops = 2.0 * weight.numel() * (1 if layout else shape[1] * shape[2])
        super().__init__(label, "conv2d", [source], shape, layout, [window], flops)
        self.weight = weight
        self.bias = bias
        self.groups = groups
        self.window = window
        self.stride = [slide.stride for slide in window]
        self.dilation = [slide.dilation for slide in window]
        rows, columns = window
        self.border = [columns.before, columns.after, rows.before, rows.after]
        self._kernel: torch.dtype | None = None  # what oneDNN computes in; None where it does not
        self._packed_by_size: dict[tuple[int, ...], Tensor] = {}
        self._packed_by_order: dict[bytes, Tensor] = {}
        self._transformable = False
        self._transformed: Tensor | None = None

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Multiply the output by ``scale`` and add ``shift``, [channels] both, at no extra cost."""
        kind = self.weight.dtype
        self.weight = (self.weight.double() * scale.view(-1, 1, 1, 1)).to(kind)
        self.bias = (shift if self.bias is None else self.bias.double() * scale + shift).to(kind)

    def choose(self, channels: Tensor) -> Conv:
        """The same convolution with these channels of the output only. For groups of 1."""
        chosen = copy.copy(self)
        chosen.flops = self.flops * len(channels) / len(self.weight)
        chosen.shape = (len(channels), *self.shape[1:])
        chosen.weight = self.weight[channels]
        chosen.bias = None if self.bias is None else self.bias[channels]
        chosen._packed_by_size, chosen._packed_by_order, chosen._transformed = {}, {}, None
        chosen.settle()
        return chosen

    def add(self, other: Step) -> None:
        """Add the output of ``other``, a map of the same shape, before the activation."""
        self.sources.append(other)
        if self.slides is not None:
            self.slides.append(POINTWISE)
        self.operation += "+add"

    def settle(self) -> None:
        """Fix the weights: they change no more."""
        self._kernel = _kernel_dtype(self.weight)
        dense = self.stride == self.dilation == [1, 1] and self.groups == 1
        self._transformable = self._kernel is not None and dense and winograd.takes(self.weight)
        if self.weight.is_cuda:
            self.weight = self.weight.contiguous(memory_format=memory_order(self.weight))

    def full(self, inputs: Sequence[Tensor], *, clean: bool = False) -> Tensor:
        """See :meth:`Step.full`."""
        left, right, top, bottom = self.border
        if left == right >= 0 and top == bottom >= 0:
            return self._convolve(inputs, [top, left], direct=clean)
        return self._convolve([F.pad(inputs[0], self.border), *inputs[1:]], [0, 0], direct=clean)

    def part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        """See :meth:`Step.part`."""
        return self._convolve(inputs, [0, 0])

    def _convolve(self, inputs: Sequence[Tensor], padding: list[int], *, direct: bool = False) -> Tensor:
        if self._kernel is None:
            result = F.conv2d(inputs[0], self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
            return self.finish(result.add_(inputs[1]) if len(inputs) == 2 else result)
        if self._transformable and not direct and winograd.pays(inputs[0], padding):
            return self._convolve_transformed(inputs, padding)
        return self._convolve_packed([each.to(self._kernel) for each in inputs], padding).to(self.weight.dtype)

    def _convolve_packed(self, inputs: Sequence[Tensor], padding: list[int]) -> Tensor:
        activation = self.activation
        weight = self._packed_for(inputs[0], padding)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        numbers = (padding, self.stride, self.dilation, self.groups)
        if len(inputs) == 1:
            last = activation if activation is not None and activation.name else Activation("none", lambda x: x)
            result = torch.ops.mkldnn._convolution_pointwise(
                inputs[0], weight, bias, *numbers, last.name, list(last.scalars), last.algorithm
            )
            return result if last is activation else self.finish(result)
        # oneDNN's kernel knows a sum followed by a rectifier, but by no other function
        rectified = activation is not None and activation.name == "relu"
        result = torch.ops.mkldnn._convolution_pointwise.binary(
            inputs[0], inputs[1], weight, bias, *numbers, "add", 1.0, "relu" if rectified else None, [], ""
        )
        return result if rectified else self.finish(result)

    def _convolve_transformed(self, inputs: Sequence[Tensor], padding: list[int]) -> Tensor:
        if self._transformed is None:
            # In float64: what is rounded in the kernels would shift all scores alike.
            self._transformed = winograd.transformed(self.weight.double()).float().contiguous()
        rectified = self.activation is not None and self.activation.name == "relu"
        other = inputs[1] if len(inputs) == 2 else None
        result = winograd.convolved(inputs[0], self._transformed, self.bias, padding, other, rectify=rectified)
        return result if rectified else self.finish(result)

    def _packed_for(self, x: Tensor, padding: list[int]) -> Tensor:
        """The weights in the order that oneDNN's kernel for this input wants.

        There are two or three orders for all sizes of input. Weights in another than the wanted one would be reordered
        in each call, by code so slow that a call can take four times as long.
        """
        size = (x.shape[0] == 1, *x.shape[2:], *padding)
        packed = self._packed_by_size.get(size)
        if packed is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight.to(x.dtype), padding, self.stride, self.dilation, self.groups, list(x.shape)
            )
            packed = self._packed_by_order.setdefault(_order(packed), packed)
            self._packed_by_size[size] = packed
        return packed


def _kernel_dtype(weight: Tensor) -> torch.dtype | None:
    """The type that oneDNN convolves with this ``weight`` in on this processor; None if it does not."""
    if weight.device.type != "cpu" or weight.numel() == 0:
        return None
    able = {torch.float32: [torch.float32], torch.bfloat16: [torch.bfloat16, torch.float32]}
    able[torch.float16] = [torch.float16, torch.float32]
    return next(filter(packed_convolutions, able.get(weight.dtype, [])), None)


def _order(packed: Tensor) -> bytes:
    """What tells the order of a tensor that oneDNN packed: its descriptor, without the bytes that only fill it up."""
    descriptor = bytearray(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
    # dnnl_memory_desc: int ndims (4 bytes of filling), int64 dims[12], int data_type (4 bytes of filling), ...
    descriptor[4:8] = descriptor[108:112] = bytes(4)
    return bytes(descriptor)


def memory_order(x: Tensor) -> torch.memory_format:
    """The order of maps that convolutions are fastest in: channels last, but for float32 and float64 on a GPU.

    There, splice alone would be faster with channels last, where it reads 16 bytes at a time instead of 4; but cuDNN
    has no float32 convolutions for that order without TF32, and would turn all maps around before and after each.
    """
    wide = x.dtype in (torch.float32, torch.float64)
    return torch.contiguous_format if x.is_cuda and wide else torch.channels_last


class Pool(Step):
    """A maximum or a mean over windows.

    ``divisor`` is what a mean divides sums by. Where it differs near the border (padding that does not count, windows
    that stick out of the map) it is a map of the divisors' inverse, and a second source.
    """

    takes_activation = True

    def __init__(
        self, label: str, source: Step, shape: tuple[int, ...], slides: Slides, *, whole: Callable[[Tensor], Tensor],
        maximum: bool, divisor: int | Constant = 1,
    ) -> None:  # fmt: skip
        sources = [source, divisor] if isinstance(divisor, Constant) else [source]
        operation = "max_pool2d" if maximum else "avg_pool2d"
        super().__init__(label, operation, sources, shape, (2, 3), [slides, POINTWISE][: len(sources)])
        self.flops = float(slides[0].kernel * slides[1].kernel * self.channels)
        self.maximum = maximum
        self.divisor = 1 if isinstance(divisor, Constant) else divisor
        self.whole = whole
        self.kernel = [slide.kernel for slide in slides]
        self.stride = [slide.stride for slide in slides]
        self.dilation = [slide.dilation for slide in slides]
        self.pad_value = -math.inf if maximum else 0.0

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.whole(inputs[0])

    def _part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        if self.maximum:
            return F.max_pool2d(inputs[0], self.kernel, self.stride, 0, self.dilation)
        result = F.avg_pool2d(inputs[0], self.kernel, self.stride, divisor_override=self.divisor)
        return result.mul_(inputs[1]) if len(inputs) == 2 else result


class Cut(Step):
    """Padding with a number, or every n-th row and column of a map from a start on."""

    def __init__(
        self, label: str, operation: str, source: Step, shape: tuple[int, ...], layout: Layout, slides: Slides,
        whole: Callable[[Tensor], Tensor], pad_value: float,
    ) -> None:  # fmt: skip
        super().__init__(label, operation, [source], shape, layout, [slides])
        self.whole = whole
        self.pad_value = pad_value
        self.window = slides
        self.steps = (slides[0].stride, slides[1].stride)

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
        # in float64: folded into a convolution, the rounding of the scale would be the same for all its outputs
        scale = (variance.double() + epsilon).rsqrt() * (1.0 if weight is None else weight.double())
        shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
        self.scale = scale
        self.shift = shift
        self._constants = (mean, variance, weight, bias, epsilon)

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        mean, variance, weight, bias, epsilon = self._constants
        return F.batch_norm(inputs[0], mean, variance, weight, bias, False, 0.0, epsilon)


class Shuffle(Step):
    """Channels dealt out from ``groups`` groups in turn, kept in channels_last order if they come so."""

    def __init__(self, label: str, source: Step, groups: int) -> None:
        super().__init__(label, "channel_shuffle", [source], source.shape, source.layout)
        self.groups = groups

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        pixels = inputs[0].permute(0, 2, 3, 1)
        dealt = pixels.reshape(*pixels.shape[:3], self.groups, -1).transpose(3, 4)
        return dealt.reshape(pixels.shape).permute(0, 3, 1, 2)


class Mean(Step):
    """The mean over rows and columns of a map; a change of the map changes it by the sum of what changed."""

    def __init__(self, label: str, source: Step, shape: tuple[int, ...], whole: Callable[[Tensor], Tensor]) -> None:
        super().__init__(label, "mean", [source], shape, None)
        self.whole = whole
        self.flops = float(math.prod(source.shape))

    def _full(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.whole(inputs[0])


class Call(Step):
    """Any other operation, called with the sizes of the batch and of the rectangle put in where it names sizes."""

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
        shape[self.layout[0]], shape[self.layout[1]] = size
        result: Tensor = self.call(inputs, shape)
        return result
