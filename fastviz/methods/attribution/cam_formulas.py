"""What the methods of the CAM family make of a layer's maps A and the gradients G of the target for them.

A is [N, K, h, w] ([N, 1, K, h, w] for T targets per sample), G [N, K, h, w] or [N, T, K, h, w]. Each method weights the
maps and adds them up over the channels, or projects them on their first principal component.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GRADIENT", "Formula", "principal_component", "turned"]

_PLACES = (-2, -1)


@dataclass(frozen=True)
class Formula:
    """One method of the family; called with A and G it gives its map [N, h, w] or [N, T, h, w], 0 or more.

    Attributes:
        weighted: the maps, weighted, of the shape of G, from A and G.
        projected: whether they are projected on their first principal component; else added up over the channels.
        turns: whether the sign of the projection is that of its largest absolute value; else it is what it comes as.
    """

    weighted: Callable[[Tensor, Tensor], Tensor]
    projected: bool = False
    turns: bool = True

    def __call__(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """The map of the method, see the class."""
        weighted = self.weighted(maps, gradients)
        if not self.projected:
            return weighted.sum(-3).relu()
        found = principal_component(weighted)
        return (turned(found) if self.turns else found).relu()

    def smooth(self) -> Formula:
        """The same, projected ("eigen smoothing")."""
        return Formula(self.weighted, True)


def principal_component(maps: Tensor) -> Tensor:
    """The projection of [..., K, h, w] on its first principal component over the places, [..., h, w].

    The places are points in K dimensions, of which the mean is subtracted. Values that are no numbers count as 0.
    Singular values come from the CPU, so that every device gives the same.
    """
    points = torch.where(maps.isnan(), 0, maps).flatten(-2).mT
    points = points - points.mean(-2, keepdim=True)
    wide = points.float() if points.dtype in (torch.float16, torch.bfloat16) else points
    axis = torch.linalg.svd(wide.cpu(), full_matrices=False)[2][..., 0, :].to(wide)
    projected: Tensor = (wide @ axis[..., None])[..., 0].unflatten(-1, maps.shape[-2:])
    return projected.to(maps.dtype)


def turned(projection: Tensor) -> Tensor:
    """A projection, whose sign means nothing, with the sign that makes its largest absolute value positive."""
    low, high = projection.amin(_PLACES, keepdim=True), projection.amax(_PLACES, keepdim=True)
    return torch.where(low.abs() > high.abs(), -projection, projection)


def _grad_cam(A: Tensor, G: Tensor) -> Tensor:
    return G.mean(_PLACES, keepdim=True) * A


def _grad_cam_plus_plus(A: Tensor, G: Tensor) -> Tensor:
    squared = G.square()
    alpha = squared / (2 * squared + A.sum(_PLACES, keepdim=True) * squared * G + 1e-6)
    return (torch.where(G != 0, alpha, 0) * G.relu()).sum(_PLACES, keepdim=True) * A


def _xgrad_cam(A: Tensor, G: Tensor) -> Tensor:
    return (G * A / (A.sum(_PLACES, keepdim=True) + 1e-7)).sum(_PLACES, keepdim=True) * A


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
"""Name → formula, of those that need A and G, and nothing else."""
