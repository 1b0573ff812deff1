"""The mean of masks weighted by the network's scores, estimated before all masks have been scored.

All masks are known without the network. The scores of masks that have not been run are predicted by a linear model of
the mask, fitted to those that have; the known prediction errors correct the mean (the regression estimator of survey
sampling, Cochran 1977, chapter 7). Once all masks have been run, the estimate is the mean itself.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from fastviz.engine.masking.random_masks import RandomMasks
from fastviz.vectors.ranks import correlation, ranks

__all__ = ["MaskedMean"]

_COARSE = 28
"""Rows and columns at which maps are compared; enough because masks are smooth."""

_FEATURES = 14
"""Rows and columns of a mask's features for the linear model."""

_PENALTY = 1e-2
"""Ridge penalty of the linear model, as a fraction of the mean square of its features times the number of masks."""

_SPLITS = 4
"""How many random splits into halves estimate the error of the mean."""

_CHUNK = 32
"""Masks that are held at once, in full size."""


class MaskedMean:
    """``1/(M · keep) Σ_i value_i · mask_i`` over M masks, estimated from the values of the first n masks.

    Args:
        masks: all M masks.
        keep: the masks' mean.
    """

    def __init__(self, masks: RandomMasks, keep: float) -> None:
        self.masks, self.keep = masks, keep

    @cached_property
    def _small(self) -> tuple[Tensor, Tensor]:
        """All masks [M, pixels] with fewer rows and columns, and what the linear model sees of them, [M, 1 + features].

        They take memory for each mask, and are needed only where not all masks may be tried.
        """
        step = max(1, min(self.masks.size) // _COARSE)
        coarse = [self.masks.of(at, step) for at in torch.arange(len(self.masks)).split(_CHUNK)]
        rows, columns = (min(_FEATURES, side) for side in coarse[0].shape[1:])
        seen = torch.cat([functional.adaptive_avg_pool2d(each[:, None], (rows, columns)).flatten(1) for each in coarse])
        seen = seen.double() - self.keep
        features = torch.cat([torch.ones(len(seen), 1, dtype=torch.float64), seen], dim=1)
        return torch.cat([each.flatten(1) for each in coarse]), features

    def weights(self, values: Tensor) -> Tensor:
        """The weight of each mask, [M, T], from the ``values`` [n, T] of the first n masks."""
        return self._weights(values, torch.arange(len(values)))

    def _weights(self, values: Tensor, tried: Tensor) -> Tensor:
        M, n = len(self.masks), len(tried)
        if n == M:
            return values.double()
        features = self._small[1]
        seen = features[tried]
        square = seen.T @ seen
        penalty = torch.full((len(square),), _PENALTY * float(square.diagonal()[1:].mean()), dtype=torch.float64)
        penalty[0] = 0  # the intercept has no penalty
        found = torch.linalg.solve(square + torch.diag(penalty), seen.T @ values.double())
        weights: Tensor = features @ found
        weights[tried] += (values.double() - weights[tried]) * (M / n)
        return weights

    def maps(self, weights: Tensor) -> Tensor:
        """The weighted mean at every pixel, float64 [T, H, W], for the ``weights`` [M, T]."""
        total = torch.zeros(weights.shape[1], self.masks.size[0] * self.masks.size[1], dtype=torch.float64)
        for at in torch.arange(len(self.masks)).split(_CHUNK):
            total += (weights[at].T.float() @ self.masks.of(at).flatten(1)).double()
        return (total / (len(self.masks) * self.keep)).view(-1, *self.masks.size)

    def agreement(self, values: Tensor) -> float:
        """The estimated rank correlation of the map from ``values`` [n, T] with that from all masks; the lowest of T.

        The masks that have been run are split into halves at random, with a fixed seed. The error of the mean over n of
        M masks is about half the difference between the halves, times ``√(1 − n/M)``, with unknown sign. So the map is
        compared with itself plus and minus that error.
        """
        n, M = len(values), len(self.masks)
        if n == M:
            return 1.0
        here = self._at_coarse(self._weights(values, torch.arange(n)))
        random = torch.Generator().manual_seed(0)
        found = []
        for _ in range(_SPLITS):
            order = torch.randperm(n, generator=random)
            halves = [self._at_coarse(self._weights(values[at], at)) for at in (order[: n // 2], order[n // 2 :])]
            error = (halves[0] - halves[1]) / 2 * (1 - n / M) ** 0.5
            found += [correlation(ranks(here), ranks(other)) for other in (here + error, here - error)]
        return float(torch.stack(found).mean(0).min())

    def _at_coarse(self, weights: Tensor) -> Tensor:
        return weights.T @ self._small[0].double()
