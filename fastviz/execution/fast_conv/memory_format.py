"""How passes that ask for gradients of images compute their convolutions, and what normalizes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from fastviz.execution import capture
from fastviz.execution.fast_conv.frozen_batch_norm import FrozenBatchNorm
from fastviz.execution.fast_conv.strided import StridedGradient
from fastviz.execution.fast_conv.winograd import Winograd

__all__ = ["fast_convolutions", "image_gradients"]

_IMAGES = 4
"""From so many on the transforms of the weights are worth their time."""


@contextmanager
def image_gradients(model: nn.Module) -> Iterator[None]:
    """:class:`fastviz.execution.fast_conv.strided.StridedGradient` and
    :class:`fastviz.execution.fast_conv.frozen_batch_norm.FrozenBatchNorm` for passes of ``model``.

    Nothing where it is compiled: it would be anew. It belongs around the backward pass too: what
    ``torch.utils.checkpoint`` computes again has to be computed in the same way.
    """
    if _is_compiled(model):
        yield
        return
    with StridedGradient(), FrozenBatchNorm():
        yield


@contextmanager
def fast_convolutions(model: nn.Module, images: int) -> Iterator[None]:
    """The same, and for several images :class:`fastviz.execution.fast_conv.winograd.Winograd`.

    How an image is rounded then depends on how many are beside it: not for images that are changed step by step, where
    that adds up.
    """
    several = images >= _IMAGES and not _is_compiled(model)
    with image_gradients(model), Winograd(keep=False) if several else nullcontext():
        yield


def _is_compiled(model: nn.Module) -> bool:
    return any(capture.is_compiled(module) for module in model.modules())
