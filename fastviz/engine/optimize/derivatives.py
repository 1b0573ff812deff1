"""Gradients of objectives with respect to images, and of images with respect to their parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz.execution.differentiation import differentiate

__all__ = ["gradients_of", "pulled_back"]

_NO_GRADIENT = (
    "the objective should depend on what is optimised, but has no gradient for it "
    "(does the model use torch.no_grad or detach?)"
)


def pulled_back(images: Tensor, gradients: Tensor, penalty: Tensor | None, leaf: Tensor) -> Tensor:
    """The vector-Jacobian product for ``leaf`` of the images' ``gradients``, minus the gradient of the ``penalty``."""
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
    """The gradient of the sum of ``values`` with respect to the ``inputs``."""
    (found,) = differentiate(values.sum(), [inputs]) if values.requires_grad else (None,)
    if found is None:
        raise ValueError(_NO_GRADIENT)
    return found.contiguous()
