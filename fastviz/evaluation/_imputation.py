"""Fills in removed pixels from their neighbours: solves the linear systems of ROAD for many images together.

Each removed pixel is the weighted mean of its 8 neighbours, without those beyond the border: a symmetric positive
definite linear system on the graph of removed pixels. It is solved by conjugate gradients with a multigrid
preconditioner: on a CPU plane by plane in a native loop (:func:`fastviz.ops.fill_in`), otherwise in this module, for
many planes together, in float32 with corrections in float64 until the estimated error is small.

Planes of many systems are the channels of one image [1, K, h, w], so that a solver step is one depthwise convolution
over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastviz import ops

__all__ = ["imputed"]

_SIDE, _CORNER = 1 / 6, 1 / 12
"""Weights of the neighbours, as in the authors' code."""

_DAMPING = 0.8
"""Damping of the Jacobi steps; in a multigrid cycle they are stable below 1."""
_OVERCORRECTION = 1.4
"""Factor for coarse corrections, since grids that are constant over 2x2 blocks are too stiff; 1 to 1.8 were tried."""

_ACCURACY = 1e-6
"""Largest estimated error of a pixel, as a fraction of the largest absolute value of its image."""
_GAIN = 1e-4
"""The largest error reduction of one round in float32, about the limit of its precision."""
_ROUNDS, _ITERATIONS = 12, 200
_STEPS = 1000
"""The maximum number of steps of the native loop, which usually takes 5 to 20."""

_AT_ONCE = {"cpu": 8 * 3 * 224 * 224, "cuda": 256 * 3 * 224 * 224}
"""Total pixels of planes that are solved together: on a CPU as many as fit its caches."""


def imputed(images: Tensor, removed: Tensor, image: Tensor) -> Tensor:
    """Copies of images with removed pixels filled in, [Q, C, H, W], in the images' dtype.

    Rong et al. 2022, https://arxiv.org/abs/2202.00449, equation 5, without the noise: side neighbours weigh 1/6, corner
    neighbours 1/12, and at the border the remaining weights are normalised to sum to 1. Equal to a direct solver up to
    about 1e-6 of the image's largest value. If all pixels of an image are removed, they become the mean of their
    channel.

    Args:
        images: [N, C, H, W], finite.
        removed: bool [Q, H, W].
        image: int64 [Q], the image that each mask belongs to.
    """
    filled = images[image]
    if not len(filled):
        return filled
    counts = removed.flatten(1).sum(1)
    every = counts == removed[0].numel()
    filled[every] = filled[every].mean((2, 3), keepdim=True).expand_as(filled[every])
    # images with similar numbers of removed pixels take similar numbers of steps
    order = counts.argsort()
    order = order[(counts[order] > 0) & ~every[order]]
    at_once = max(1, _AT_ONCE.get(images.device.type, _AT_ONCE["cpu"]) // filled[0].numel())
    for first in range(0, len(order), at_once):
        part = order[first : first + at_once]
        solve = _solved_on_cpu if images.device.type == "cpu" else _solved
        filled[part] = solve(filled[part], removed[part]).to(images.dtype)
    return filled


def _solved_on_cpu(pictures: Tensor, removed: Tensor) -> Tensor:
    """The same as :func:`_solved`."""
    values = pictures.double().contiguous()
    # the error estimate may be too small by a small factor
    if bool((ops.fill_in(values, removed, 0.1 * _ACCURACY, _STEPS) < 0).any()):
        raise RuntimeError("the linear system of the removed pixels did not converge")
    return values


def _solved(pictures: Tensor, removed: Tensor) -> Tensor:
    """The ``pictures`` [B, C, H, W] with ``removed`` pixels [B, H, W] filled in, in float64."""
    C, H, W = pictures.shape[1:]
    planes = pictures.double().reshape(1, -1, H, W)
    largest = planes.flatten(2).abs().amax(2)[..., None, None].clamp(min=1e-30)
    unknown = removed.repeat_interleave(C, 0)[None]  # [1, B · C, H, W]
    planes = torch.where(unknown, 0.0, planes / largest)
    free = unknown.double()
    diagonal = free * _neighbours(planes.new_ones(1, 1, H, W))
    known = _neighbours(planes).mul_(free)
    grid = _Multigrid(free.float().contiguous(memory_format=torch.channels_last))
    found, residual, worst = torch.zeros_like(planes), known, 1.0
    for _ in range(_ROUNDS):
        # in float32, small residuals must be scaled to stand out from rounding errors
        scale = residual.flatten(2).abs().amax(2)[..., None, None].clamp(min=1e-300)
        gain = min(0.1, max(_GAIN, 0.1 * _ACCURACY / worst))
        correction, error = _conjugate_gradients(grid, (residual / scale).float(), gain)
        found.addcmul_(scale, correction.contiguous())
        worst = float((scale * error).max())
        if worst <= _ACCURACY:
            return (largest * found.add_(planes)).reshape(pictures.shape)
        residual = _neighbours(found).mul_(free).addcmul_(diagonal, found, value=-1).add_(known)
    raise RuntimeError("the linear system of the removed pixels did not converge")


def _neighbours(planes: Tensor) -> Tensor:
    """The weighted sum of the 8 neighbours of each pixel, zero beyond the border: (1, 2, 1) ⊗ (1, 2, 1) / 12 without
    the centre.
    """
    total = 2 * planes
    total[..., 1:, :] += planes[..., :-1, :]
    total[..., :-1, :] += planes[..., 1:, :]
    across = 2 * total
    across[..., 1:] += total[..., :-1]
    across[..., :-1] += total[..., 1:]
    return across.sub_(planes, alpha=4).div_(12)


def _conjugate_gradients(grid: _Multigrid, right: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """The solution for the ``right`` sides [1, K, H, W], in float32, and its estimated error, [1, K, 1, 1].

    It ends when the error has shrunk to about ``gain`` of its initial value.

    The preconditioned residual approximates the error, since the multigrid cycle approximates the inverse.
    """
    residual = right.contiguous(memory_format=torch.channels_last)
    found = torch.zeros_like(residual)
    estimate = grid.cycle(residual)
    direction = estimate.clone()
    product = _products(residual, estimate)
    enough = gain**2 * product
    for _ in range(_ITERATIONS):
        moved = grid.apply(direction)
        step = product / _products(direction, moved).clamp(min=1e-30)
        found.addcmul_(step, direction)
        residual.addcmul_(step, moved, value=-1)
        estimate = grid.cycle(residual)
        before, product = product, _products(residual, estimate)
        if bool((product <= enough).all()):
            break
        direction.mul_(product / before.clamp(min=1e-30)).add_(estimate)
    return found, estimate.contiguous().flatten(2).abs().amax(2)[..., None, None]


def _products(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((2, 3), keepdim=True)


@dataclass(frozen=True, eq=False)
class _Level:
    """One grid: the removed ``share`` of each block, the ``inverse`` of the diagonal times the damping (0 where nothing
    is removed), both for K planes, and the weights.
    """

    share: Tensor
    inverse: Tensor
    stencil: _Stencil


class _Stencil:
    """The weighted sum of the 8 neighbours of each pixel, with one weight for sides and one for corners."""

    def __init__(self, side: float, corner: float) -> None:
        self.side, self.corner = side, corner

    def __call__(self, planes: Tensor) -> Tensor:
        """The sums for ``planes`` [1, K, h, w], zero beyond the border."""
        # not a convolution, which a GPU may compute in TF32 with three digits
        rows = torch.zeros_like(planes)
        rows[..., 1:] += planes[..., :-1]
        rows[..., :-1] += planes[..., 1:]
        beside = self.corner * rows + self.side * planes
        total = self.side * rows
        total[..., 1:, :] += beside[..., :-1, :]
        total[..., :-1, :] += beside[..., 1:, :]
        return total


class _Multigrid:
    """A V-cycle for the systems of K planes: an approximate inverse, symmetric and positive definite.

    Each coarser grid is constant over blocks of 2x2. The weights between blocks are those of full blocks times the
    removed shares of both, so that every grid is one convolution; the coupling to known pixels is summed exactly. An
    inexact coarse grid costs steps, never accuracy.
    """

    def __init__(self, free: Tensor) -> None:
        side, corner = _SIDE, _CORNER
        stencil = _Stencil(side, corner)
        self._diagonal = free * stencil(torch.ones_like(free))
        anchored = self._diagonal - free * stencil(free)
        share = free
        self._levels: list[_Level] = []
        while True:
            diagonal = anchored + share * stencil(share)
            inverse = torch.where(diagonal > 1e-12, _DAMPING / diagonal.clamp(min=1e-12), 0.0)
            self._levels.append(_Level(share, inverse, stencil))
            if max(share.shape[2:]) <= 2:
                break
            share, anchored = _pooled(share), 4 * _pooled(anchored)
            side = 2 * side + 2 * corner
            stencil = _Stencil(side, corner)

    def apply(self, planes: Tensor) -> Tensor:
        """The matrix of the finest grid times ``planes``, which are 0 where nothing is removed."""
        moved = self._neighbour_sum(0, planes)
        return torch.addcmul(moved.neg_(), self._diagonal, planes)

    def cycle(self, residual: Tensor, number: int = 0) -> Tensor:
        """The approximate inverse of the matrix times ``residual``, on grid ``number``."""
        level = self._levels[number]
        found = level.inverse * residual
        if number + 1 == len(self._levels):
            for _ in range(4):
                self._smooth(number, found, residual)
            return found
        # a damped step from zero leaves (1 − damping) of the residual, plus the contribution of the neighbours
        left = self._neighbour_sum(number, found).add_(residual, alpha=1 - _DAMPING)
        coarse = self.cycle(_pooled(left), number + 1)
        upper = functional.interpolate(coarse, scale_factor=2, mode="nearest")
        upper = upper[..., : residual.shape[2], : residual.shape[3]]
        # known pixels stay unchanged; coarse blocks change as wholes, whatever their share
        found.add_(upper if number else upper * level.share, alpha=4 * _OVERCORRECTION)
        self._smooth(number, found, residual)
        return found

    def _smooth(self, number: int, found: Tensor, residual: Tensor) -> None:
        """One damped Jacobi step, in place."""
        pull = self._neighbour_sum(number, found).add_(residual)
        found.mul_(1 - _DAMPING).addcmul_(self._levels[number].inverse, pull)

    def _neighbour_sum(self, number: int, planes: Tensor) -> Tensor:
        """The neighbours' contribution to each pixel."""
        level = self._levels[number]
        # on the finest grid known pixels are already zero
        inside = level.share * planes if number else planes
        return level.stencil(inside).mul_(level.share)


def _pooled(planes: Tensor) -> Tensor:
    """Means over blocks of 2x2; odd sides are padded with zeros."""
    odd = planes.shape[2] % 2, planes.shape[3] % 2
    if any(odd):
        planes = functional.pad(planes, (0, odd[1], 0, odd[0]))
    return functional.avg_pool2d(planes, 2)
