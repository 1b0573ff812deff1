"""The formulas of the CAM family, for a layer's maps A and the target's gradients G for them.

A is [N, K, h, w] ([N, 1, K, h, w] for T targets per sample), G [N, K, h, w] or [N, T, K, h, w]. Each method weights the
maps and sums them over the channels, or projects them onto their first principal component.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GRADIENT", "Formula", "principal_component", "with_positive_peak"]

_POSITIONS = (-2, -1)


@dataclass(frozen=True)
class Formula:
    """One method of the family; called with A and G it returns its map [N, h, w] or [N, T, h, w], 0 or more.

    Attributes:
        weighted: computes the weighted maps, in the shape of G, from A and G.
        projected: whether they are projected onto their first principal component; otherwise they are summed over the
            channels.
        fixes_sign: whether the projection gets the sign that makes its largest absolute value positive; otherwise its
            sign is arbitrary.
    """

    weighted: Callable[[Tensor, Tensor], Tensor]
    projected: bool = False
    fixes_sign: bool = True

    def __call__(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """See the class."""
        weighted = self.weighted(maps, gradients)
        if not self.projected:
            return weighted.sum(-3).relu()
        found = principal_component(weighted)
        return (with_positive_peak(found) if self.fixes_sign else found).relu()

    def smooth(self) -> Formula:
        """The same formula with projection ("eigen smoothing")."""
        return Formula(self.weighted, True)


def principal_component(maps: Tensor) -> Tensor:
    """The projection of [..., K, h, w] onto its first principal component over the positions, [..., h, w].

    The positions are points in K dimensions, centred at their mean. NaN counts as 0. The singular value decomposition
    runs on the CPU, so that all devices give the same.
    """
    points = torch.where(maps.isnan(), 0, maps).flatten(-2).mT
    points = points - points.mean(-2, keepdim=True)
    wide = points.float() if points.dtype in (torch.float16, torch.bfloat16) else points
    axis = torch.linalg.svd(wide.cpu(), full_matrices=False)[2][..., 0, :].to(wide)
    projected: Tensor = (wide @ axis[..., None])[..., 0].unflatten(-1, maps.shape[-2:])
    return projected.to(maps.dtype)


def with_positive_peak(projection: Tensor) -> Tensor:
    """A projection, whose sign is arbitrary, with the sign that makes its largest absolute value positive."""
    low, high = projection.amin(_POSITIONS, keepdim=True), projection.amax(_POSITIONS, keepdim=True)
    return torch.where(low.abs() > high.abs(), -projection, projection)


def _grad_cam(A: Tensor, G: Tensor) -> Tensor:
    return G.mean(_POSITIONS, keepdim=True) * A


def _grad_cam_plus_plus(A: Tensor, G: Tensor) -> Tensor:
    squared = G.square()
    alpha = squared / (2 * squared + A.sum(_POSITIONS, keepdim=True) * squared * G + 1e-6)
    return (torch.where(G != 0, alpha, 0) * G.relu()).sum(_POSITIONS, keepdim=True) * A


def _xgrad_cam(A: Tensor, G: Tensor) -> Tensor:
    return (G * A / (A.sum(_POSITIONS, keepdim=True) + 1e-7)).sum(_POSITIONS, keepdim=True) * A


def _layer_cam(A: Tensor, G: Tensor) -> Tensor:
    return G.relu() * A


def _product(A: Tensor, G: Tensor) -> Tensor:
    return G * A


def _element_wise(A: Tensor, G: Tensor) -> Tensor:
    return (G * A).relu()


def _absolute(A: Tensor, G: Tensor) -> Tensor:
    return G.abs() * A


GRADIENT: dict[str, Formula] = {
    "grad_cam": Formula(_grad_cam),
    "grad_cam_plus_plus": Formula(_grad_cam_plus_plus),
    "xgrad_cam": Formula(_xgrad_cam),
    "layer_cam": Formula(_layer_cam),
    "hires_cam": Formula(_product),
    "element_wise_cam": Formula(_element_wise),
    "eigen_grad_cam": Formula(_product, projected=True),
    "seg_eigen_cam": Formula(_absolute, projected=True),
}
"""Formulas by name of the methods that need only A and G."""
