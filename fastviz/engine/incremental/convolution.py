"""Convolutions of the incremental engine, with weights packed once and following operations fused."""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastviz._util.processor import packed_convolutions
from fastviz.engine.incremental.steps import Activation, Size, Slides, Step, pointwise
from fastviz.execution.fast_conv import winograd
from fastviz.graph.reach import Layout

__all__ = ["Conv", "in_best_order"]


class Conv(Step):
    """A convolution of the first source, plus the second source where there is one.

    On the CPU its weights are packed once for all inputs, and the sum and the activation run inside oneDNN's kernel.
    If oneDNN has no kernel for 16-bit values, the convolution runs in float32 and its result is rounded, which equals a
    16-bit kernel that sums in float32. A signal is computed as a picture of one row. Kernels of 3×3 between many
    channels run with a quarter of the products, see :mod:`fastviz.execution.fast_conv.winograd`.
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
        flops = 2.0 * weight.numel() * (1 if layout else math.prod(shape[1:]))
        super().__init__(label, f"conv{len(window)}d", [source], shape, layout, [window], flops)
        self.one_row = len(window) == 1
        self.weight = weight.unsqueeze(2) if self.one_row else weight
        self.bias = bias
        self.groups = groups
        self.window = window
        row = [1] if self.one_row else []
        self.stride = row + [slide.stride for slide in window]
        self.dilation = row + [slide.dilation for slide in window]
        self.border = [side for slide in reversed(window) for side in (slide.before, slide.after)]
        self._kernel: torch.dtype | None = None  # the dtype oneDNN computes in; None if it does not support it
        self._packed_by_size: dict[tuple[int, ...], Tensor] = {}
        self._packed_by_order: dict[bytes, Tensor] = {}
        self._transformable = False
        self._transformed: Tensor | None = None

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Multiply the output by ``scale`` and add ``shift``, [channels] both, at no extra cost."""
        kind = self.weight.dtype
        self.weight = (self.weight.double() * scale.view(-1, *[1] * (self.weight.dim() - 1))).to(kind)
        self.bias = (shift if self.bias is None else self.bias.double() * scale + shift).to(kind)

    def choose(self, channels: Tensor) -> Conv:
        """The same convolution with only these output channels. For groups of 1."""
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
            self.slides.append(pointwise(self.window))
        self.operation += "+add"

    def settle(self) -> None:
        """Fix the weights; they do not change any more."""
        self._kernel = _kernel_dtype(self.weight)
        dense = self.stride == self.dilation == [1, 1] and self.groups == 1  # Winograd's transforms are for two axes
        self._transformable = self._kernel is not None and dense and winograd.takes(self.weight)
        if self.weight.is_cuda:
            self.weight = in_best_order(self.weight)

    def full(self, inputs: Sequence[Tensor], *, clean: bool = False) -> Tensor:
        """See :meth:`Step.full`."""
        if all(slide.before == slide.after >= 0 for slide in self.window):
            return self._convolve(inputs, [slide.before for slide in self.window], direct=clean)
        nothing = [0] * len(self.window)
        return self._convolve([F.pad(inputs[0], self.border), *inputs[1:]], nothing, direct=clean)

    def part(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        """See :meth:`Step.part`."""
        return self._convolve(inputs, [0] * len(size))

    def _convolve(self, inputs: Sequence[Tensor], padding: list[int], *, direct: bool = False) -> Tensor:
        if not self.one_row:
            return self._convolved(inputs, padding, direct=direct)
        return self._convolved([each.unsqueeze(2) for each in inputs], [0, *padding], direct=direct).squeeze(2)

    def _convolved(self, inputs: Sequence[Tensor], padding: list[int], *, direct: bool) -> Tensor:
        if self._kernel is None:
            convolution = F.conv3d if self.weight.dim() == 5 else F.conv2d
            result = convolution(inputs[0], self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
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
        # oneDNN's kernel can fuse a sum only with a rectifier, not with other functions
        rectified = activation is not None and activation.name == "relu"
        result = torch.ops.mkldnn._convolution_pointwise.binary(
            inputs[0], inputs[1], weight, bias, *numbers, "add", 1.0, "relu" if rectified else None, [], ""
        )
        return result if rectified else self.finish(result)

    def _convolve_transformed(self, inputs: Sequence[Tensor], padding: list[int]) -> Tensor:
        if self._transformed is None:
            # In float64, because rounding errors in the kernels would shift all scores alike.
            self._transformed = winograd.transformed(self.weight.double()).float().contiguous()
        rectified = self.activation is not None and self.activation.name == "relu"
        other = inputs[1] if len(inputs) == 2 else None
        result = winograd.convolved(inputs[0], self._transformed, self.bias, padding, other, rectify=rectified)
        return result if rectified else self.finish(result)

    def _packed_for(self, x: Tensor, padding: list[int]) -> Tensor:
        """The weights in the order that oneDNN's kernel for this input wants.

        There are two or three orders for all sizes of input. Weights in another order would be reordered in each call,
        so slowly that a call can take four times as long.
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
    """The dtype in which oneDNN convolves with this ``weight`` on this processor; None if unsupported."""
    if weight.device.type != "cpu" or weight.numel() == 0:
        return None
    able = {torch.float32: [torch.float32], torch.bfloat16: [torch.bfloat16, torch.float32]}
    able[torch.float16] = [torch.float16, torch.float32]
    return next(filter(packed_convolutions, able.get(weight.dtype, [])), None)


def _order(packed: Tensor) -> bytes:
    """The order of a tensor packed by oneDNN: a copy of its descriptor, without the bytes between fields.

    It only decides which sizes of input share packed weights. If a oneDNN other than 3 lays its descriptor out in
    another way, which its first fields show, nothing is taken out: weights are then packed more often, and the numbers
    stay the same. This can go when torch compares such tensors itself.
    """
    descriptor = bytearray(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
    if len(descriptor) >= _DESCRIPTOR.size:
        axes, *sizes = _DESCRIPTOR.unpack_from(descriptor)
        if 0 < axes <= len(sizes) and math.prod(sizes[:axes]) == packed.numel():
            descriptor[_DESCRIPTOR.size - 4 : _DESCRIPTOR.size] = bytes(4)
    return bytes(descriptor)


_DESCRIPTOR = struct.Struct("=4xi12q4x4x")
"""The first fields of a descriptor of oneDNN 3: int kind, int ndims, int64 dims[12], int data_type, and 4 bytes that
nothing sets before the next int64."""


def in_best_order(x: Tensor) -> Tensor:
    """Maps in the fastest memory order for convolutions: channels last, except for float32 and float64 on a GPU.

    There, splice alone would be faster with channels last, where it reads 16 bytes at a time instead of 4; but cuDNN
    has no float32 convolutions for that order without TF32, and would reorder all maps before and after each
    convolution.
    """
    if x.is_cuda and x.dtype in (torch.float32, torch.float64):
        return x.contiguous()
    if x.dim() == 3:  # torch has no such order for signals, so use that of a picture of one row
        return x.unsqueeze(2).contiguous(memory_format=torch.channels_last).squeeze(2)
    return x.contiguous(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)
