"""Which fast convolutions and normalisations a pass uses, and the order of its images in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from fastviz._util.by_model import ByModel
from fastviz._util.modules import every_module
from fastviz.execution.compiled import has_compiled_parts
from fastviz.execution.fast_conv.frozen_batch_norm import FrozenBatchNorm
from fastviz.execution.fast_conv.strided import StridedGradient
from fastviz.execution.fast_conv.winograd import Winograd
from fastviz.execution.inputs import usable
from fastviz.execution.precision import Precision

__all__ = ["convolution_weights", "fast_convolutions", "image_gradients", "in_fast_order"]

_IMAGES = 4
"""From this many images on, transforming the weights pays."""

_MANY_WEIGHTS = 10_000_000
_FEW_IMAGES = 4
# Every convolution copies its weights into the order of its maps, forward and back. With so many weights that costs
# more than it gains for so few images: one image through a ResNet-18 (11 million) takes a sixth longer, through a
# GoogLeNet (6 million) a quarter less; with four images the ResNet is faster too.

# torch's and the compiler's messages for a view that the memory order does not allow.
_VIEW_FAILED = ("view size is not compatible", "Cannot view a tensor with shape")

_contiguous_only: ByModel[bool] = ByModel()
"""Models that have failed in channels_last memory."""

Result = TypeVar("Result")
More = ParamSpec("More")


@contextmanager
def image_gradients(model: nn.Module) -> Iterator[None]:
    """:class:`fastviz.execution.fast_conv.strided.StridedGradient` and
    :class:`fastviz.execution.fast_conv.frozen_batch_norm.FrozenBatchNorm` for passes of ``model``.

    They do nothing for a model with compiled parts, which would be compiled again. It belongs around the backward pass
    too: ``torch.utils.checkpoint`` computes parts of the forward pass again there, and has to compute them in the same
    way.
    """
    if has_compiled_parts(model):
        yield
        return
    with StridedGradient(), FrozenBatchNorm():
        yield


@contextmanager
def fast_convolutions(model: nn.Module, images: int) -> Iterator[None]:
    """The same, and for several images :class:`fastviz.execution.fast_conv.winograd.Winograd`.

    The rounding of an image then depends on the number of images in the batch. Where images are changed step by step
    such differences add up, so it is not for these.
    """
    several = images >= _IMAGES and not has_compiled_parts(model)
    with image_gradients(model), Winograd(keep=False) if several else nullcontext():
        yield


def convolution_weights(model: nn.Module) -> int:
    """The number of weights in the two-dimensional convolutions of ``model``."""
    weights = [module.weight for module in every_module(model) if isinstance(module, nn.Conv2d)]
    return sum(weight.numel() for weight in weights if not nn.parameter.is_lazy(weight))


def in_fast_order(
    model: nn.Module,
    precision: Precision,
    compute: Callable[Concatenate[Tensor, More], Result],
    argument: str | None = "x",
    weights: int | None = None,
) -> Callable[Concatenate[Tensor, More], Result]:
    """``compute``, called with its images in channels_last memory where convolutions are faster with that.

    They are faster on a CPU below double precision and wherever ``precision`` is reduced, unless a model with many
    weights, which have to be copied, gets few images. A model that calls ``view`` on its maps cannot use this order: it
    runs again with the images unchanged, and later calls remember that. Errors of the model name the ``argument``, see
    :func:`fastviz.execution.inputs.usable`. ``weights`` is :func:`convolution_weights` of the model, if it is known.
    """
    count = convolution_weights(model) if weights is None else weights

    def run(x: Tensor, /, *more: More.args, **options: More.kwargs) -> Result:
        with usable(model, x, argument):
            return in_order(x, *more, **options)

    def in_order(x: Tensor, /, *more: More.args, **options: More.kwargs) -> Result:
        faster = precision != "model" or (x.device.type == "cpu" and x.dtype != torch.float64)
        pays = 0 < count < _MANY_WEIGHTS or (count > 0 and len(x) >= _FEW_IMAGES)
        if faster and pays and x.dim() == 4 and model not in _contiguous_only:
            try:
                return compute(x.contiguous(memory_format=torch.channels_last), *more, **options)
            except RuntimeError as error:
                if not any(words in str(error) for words in _VIEW_FAILED):
                    raise
            _contiguous_only[model] = True
        return compute(x, *more, **options)

    return run
