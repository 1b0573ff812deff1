"""Derivatives of objectives for images, and of images for what they are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz.execution.differentiation import differentiate

__all__ = ["gradients_of", "pulled_back"]

_NO_GRADIENT = (
    "the objective should depend on what is optimised, but has no gradient for it "
    "(is the target behind it, and does the model use torch.no_grad or detach?)"
)


def pulled_back(images: Tensor, gradients: Tensor, penalty: Tensor | None, leaf: Tensor) -> Tensor:
    """The images' ``gradients``, and those of minus the ``penalty``, for the ``leaf`` that both are made of."""
    if not images.requires_grad:
        raise ValueError(_NO_GRADIENT)
    outputs, weights = [images], [gradients]
    if penalty is not None:
        outputs, weights = [images, penalty], [gradients, -torch.ones_like(penalty)]
    (found,) = torch.autograd.grad(outputs, [leaf], weights, allow_unused=True)
    if found is None:
        raise ValueError(_NO_GRADIENT)
    return found


def gradients_of(values: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of the sum of ``values`` for the ``inputs``."""
    (found,) = differentiate(values.sum(), [inputs]) if values.requires_grad else (None,)
    if found is None:
        raise ValueError(_NO_GRADIENT)
    return found.contiguous()
