"""Removed pixels filled in from their neighbours: the linear systems of ROAD, for many images at once.

Each removed pixel is the weighted mean of its 8 neighbours, those beyond the border left out: a linear system on the
graph of the removed pixels, symmetric and positive definite. It is solved by conjugate gradients with a multigrid cycle
as preconditioner: on a CPU plane by plane in one native loop (:func:`fastviz.ops.fill_in`), elsewhere here, for many
planes together, in float32, corrected in float64 until the estimated error is small.

Planes of many systems stand side by side as the channels of one image [1, K, h, w]: a step of the solver is then one
depthwise convolution over all of them.
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
"""Of the Jacobi steps; those of a multigrid cycle are stable below 1."""
_OVERCORRECTION = 1.4
"""Blocks of 2x2 pixels move as wholes on the coarser grid, which makes it too stiff; 1 to 1.8 were tried."""

_ACCURACY = 1e-6
"""Largest estimated error of a pixel, as a fraction of the largest absolute value of its image."""
_GAIN = 1e-4
"""By how much one round in float32 reduces the error at most, which is about what float32 can."""
_ROUNDS, _ITERATIONS = 12, 200
_STEPS = 1000
"""Most steps of the native loop, which takes some 5 to 20."""

_AT_ONCE = {"cpu": 8 * 3 * 224 * 224, "cuda": 256 * 3 * 224 * 224}
"""Pixels of all planes that are solved together: on a CPU as many as its caches hold."""


def imputed(images: Tensor, removed: Tensor, image: Tensor) -> Tensor:
    """Copies of images with pixels removed, and the removed ones filled in: [Q, C, H, W], of the images' dtype.

    Rong et al. 2022, https://arxiv.org/abs/2202.00449, equation 5, without the noise: sides weigh 1/6, corners 1/12,
    and at the border the weights of what is there are made to sum to 1. Equal to a direct solver to about 1e-6 of the
    image's largest value. Where all pixels are removed there is nothing to fill them in from: they become the mean of
    their channel.

    Args:
        images: [N, C, H, W], finite.
        removed: bool [Q, H, W].
        image: int64 [Q], which image each is about.
    """
    filled = images[image]
    if not len(filled):
        return filled
    counts = removed.flatten(1).sum(1)
    every = counts == removed[0].numel()
    filled[every] = filled[every].mean((2, 3), keepdim=True).expand_as(filled[every])
    # those with about as many pixels removed take about as many steps
    order = counts.argsort()
    order = order[(counts[order] > 0) & ~every[order]]
    at_once = max(1, _AT_ONCE.get(images.device.type, _AT_ONCE["cpu"]) // filled[0].numel())
    for first in range(0, len(order), at_once):
        part = order[first : first + at_once]
        solve = _solved_on_cpu if images.device.type == "cpu" else _solved
        filled[part] = solve(filled[part], removed[part]).to(images.dtype)
    return filled


def _solved_on_cpu(pictures: Tensor, removed: Tensor) -> Tensor:
    """As :func:`_solved`."""
    values = pictures.double().contiguous()
    # an estimate may be too small by a few times
    if bool((ops.fill_in(values, removed, 0.1 * _ACCURACY, _STEPS) < 0).any()):
        raise RuntimeError("the linear system of the removed pixels did not converge")
    return values


def _solved(pictures: Tensor, removed: Tensor) -> Tensor:
    """The ``pictures`` [B, C, H, W] with what is ``removed`` [B, H, W] filled in, in float64."""
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
        # float32 would not tell small residuals from rounding unless they are scaled
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
    """The weighted sum of the 8 neighbours of each pixel, zero beyond the border: (1, 2, 1) down and across, in 12ths,
    without the middle.
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

    It ends when the error is about ``gain`` of what it was.

    The preconditioned residual is about the error, since the multigrid cycle is about the inverse.
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
    """One grid: ``share`` of each block that is removed, the ``inverse`` of the diagonal (0 where nothing is removed)
    times the damping, both for K planes, and the weights of the neighbours.
    """

    share: Tensor
    inverse: Tensor
    stencil: _Stencil


class _Stencil:
    """The sum of the 8 neighbours of each pixel, those at its sides and at its corners with a weight each."""

    def __init__(self, side: float, corner: float) -> None:
        self.side, self.corner = side, corner

    def __call__(self, planes: Tensor) -> Tensor:
        """Of ``planes`` [1, K, h, w], zero beyond the border."""
        # no convolution, which a GPU may compute in TF32: three digits
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

    Each coarser grid has blocks of 2x2 that move as wholes. The weights between blocks are those of full blocks, times
    the shares of both that are removed, so that every grid is one convolution; what holds the removed pixels, the known
    ones beside them, is added up exactly. An inexact coarse grid costs steps, never accuracy.
    """

    def __init__(self, free: Tensor) -> None:
        side, corner = _SIDE, _CORNER
        stencil = _Stencil(side, corner)
        self._diagonal = free * stencil(torch.ones_like(free))
        held = self._diagonal - free * stencil(free)
        share = free
        self._levels: list[_Level] = []
        while True:
            diagonal = held + share * stencil(share)
            inverse = torch.where(diagonal > 1e-12, _DAMPING / diagonal.clamp(min=1e-12), 0.0)
            self._levels.append(_Level(share, inverse, stencil))
            if max(share.shape[2:]) <= 2:
                break
            share, held = _pooled(share), 4 * _pooled(held)
            side = 2 * side + 2 * corner
            stencil = _Stencil(side, corner)

    def apply(self, planes: Tensor) -> Tensor:
        """The matrix of the finest grid times ``planes``, which are 0 where nothing is removed."""
        moved = self._pull(0, planes)
        return torch.addcmul(moved.neg_(), self._diagonal, planes)

    def cycle(self, residual: Tensor, number: int = 0) -> Tensor:
        """About the inverse of the matrix times ``residual``, on the grid of this number."""
        level = self._levels[number]
        found = level.inverse * residual
        if number + 1 == len(self._levels):
            for _ in range(4):
                self._smooth(number, found, residual)
            return found
        # the damped step from zero leaves (1 − damping) of the residual, and what the neighbours add
        left = self._pull(number, found).add_(residual, alpha=1 - _DAMPING)
        coarse = self.cycle(_pooled(left), number + 1)
        upper = functional.interpolate(coarse, scale_factor=2, mode="nearest")
        upper = upper[..., : residual.shape[2], : residual.shape[3]]
        # pixels that are not removed stay as they are; coarse blocks move as wholes, whatever their share
        found.add_(upper if number else upper * level.share, alpha=4 * _OVERCORRECTION)
        self._smooth(number, found, residual)
        return found

    def _smooth(self, number: int, found: Tensor, residual: Tensor) -> None:
        """One damped Jacobi step, in place."""
        pull = self._pull(number, found).add_(residual)
        found.mul_(1 - _DAMPING).addcmul_(self._levels[number].inverse, pull)

    def _pull(self, number: int, planes: Tensor) -> Tensor:
        """What the neighbours add to each."""
        level = self._levels[number]
        # on the finest grid what is not removed is zero already
        inside = level.share * planes if number else planes
        return level.stencil(inside).mul_(level.share)


def _pooled(planes: Tensor) -> Tensor:
    """Means over blocks of 2x2; what an odd side lacks counts as zeros."""
    odd = planes.shape[2] % 2, planes.shape[3] % 2
    if any(odd):
        planes = functional.pad(planes, (0, odd[1], 0, odd[0]))
    return functional.avg_pool2d(planes, 2)
