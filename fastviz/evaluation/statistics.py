"""Means with confidence bands, and rankings of methods, by bootstrap over the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.evaluation.measures import MEASURES, RANDOM
from fastviz.images.notebook import NotebookResult

__all__ = ["Band", "Standing", "Standings", "bootstrap", "standings"]

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True, eq=False, repr=False)
class Band(NotebookResult):
    """Means over images with a confidence band; each attribute is [...] for values [N, ...].

    Attributes:
        mean: [...], over the images.
        low: [...], lower end of the band.
        high: [...], upper end.

    >>> band = bootstrap(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    >>> band.mean, bool((band.low <= band.high).all())
    (tensor([1., 1.], dtype=torch.float64), True)
    """

    mean: Tensor
    low: Tensor
    high: Tensor


def bootstrap(values: Tensor, *, level: float = _LEVEL, resamples: int = _RESAMPLES, seed: int = 0) -> Band:
    """The mean of ``values`` [N, ...] over the images with its bootstrap confidence band; NaN is ignored.

    The band contains the fraction ``level`` of the means of ``resamples`` draws of N images with replacement (Efron
    1979, the percentile method). It only shows how much the mean depends on the choice of images.

    Args:
        values: [N, ...], floating-point, one entry per image.
        level: fraction of the resampled means inside the band, above 0 and below 1.
        resamples: how many draws.
        seed: for the draws.

    Returns:
        A :class:`Band` of three tensors [...]; NaN if there is no value.

    Raises:
        TypeError, ValueError: not a floating-point tensor, no image, a level that is not above 0 and below 1.

    >>> band = bootstrap(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    >>> float(band.mean), bool(band.low < 0.5 < band.high)
    (0.5, True)
    """
    checks.tensor(values, "values")
    if not values.dim() or not len(values):
        raise ValueError(f"values should have at least one image, got shape {list(values.shape)}")
    if not 0 < level < 1:
        raise ValueError(f"level should be above 0 and below 1, got {level}")
    exact = values.double().flatten(1) if values.dim() > 1 else values.double()[:, None]
    means = _resampled(exact, resamples, seed)
    low, high = means.nanquantile(_edges(level, means), dim=0)
    shape = values.shape[1:]
    return Band(exact.nanmean(0).reshape(shape), low.reshape(shape), high.reshape(shape))


def _resampled(values: Tensor, resamples: int, seed: int) -> Tensor:
    """The means of resamples of ``values`` [N, K]: [resamples, K]; NaN if a resample has no value."""
    checks.whole_number(resamples, "resamples", minimum=1)
    N = len(values)
    chosen = torch.randint(N, (resamples, N), generator=torch.Generator().manual_seed(seed)).to(values.device)
    counts = torch.zeros(resamples, N, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
    finite = ~values.isnan()
    return (counts @ values.nan_to_num(0.0)) / (counts @ finite.double())


@dataclass(frozen=True)
class Standing:
    """The rank of a method by one measure.

    Attributes:
        method, measure: their names.
        mean, low, high: the mean over the images and its band.
        images: how many images have a value.
        place: rank by the mean, 1 for the best; 0 for measures without a better direction, and for ``"random"``.
        tied: whether the band of its difference from the best, image by image, contains 0 (true for the best).

    >>> Standing("saliency", "deletion", mean=0.2, low=0.1, high=0.3, images=50, place=1, tied=True).place
    1
    """

    method: str
    measure: str
    mean: float
    low: float
    high: float
    images: int
    place: int
    tied: bool


@dataclass(frozen=True)
class Standings:
    """The result of :func:`standings`.

    Attributes:
        each: one entry for each method and measure.
        overall: method → mean place over the measures with its band ``(mean, low, high)``, best first, without
            ``"random"``.

    >>> Standings(each=(), overall={"saliency": (1.0, 1.0, 1.5)}).overall["saliency"][0]
    1.0
    """

    each: tuple[Standing, ...]
    overall: Mapping[str, tuple[float, float, float]]


def standings(found: Any, *, level: float = _LEVEL, resamples: int = _RESAMPLES, seed: int = 0) -> Standings:
    """Rankings of methods, by each measure and by all, with confidence bands over the images.

    All methods use the same resamples, so that they are compared on the same images.

    Args:
        found: a table of :func:`fastviz.evaluate`, or its rows.
        level, resamples, seed: as in :func:`bootstrap`.

    Returns:
        A :class:`Standings`.

    Raises:
        TypeError, ValueError: ``found`` is not such a table; as :func:`bootstrap`.

    >>> from torch import nn
    >>> from fastviz.evaluation import evaluate
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    >>> found = evaluate(model, torch.rand(3, 3, 4, 4), ["saliency", "random"], ["deletion"])
    >>> sorted(each.method for each in standings(found, resamples=10).each)
    ['random', 'saliency']
    """
    values, methods, measures = _arranged(found)
    ranked = [method for method in methods if method != RANDOM]
    each: list[Standing] = []
    places: list[Tensor] = []
    for measure in measures:
        by_method = torch.stack([values[method, measure] for method in methods], 1)  # [N, M]
        band = bootstrap(by_method, level=level, resamples=resamples, seed=seed)
        order: dict[str, tuple[int, bool]] = {}
        better = MEASURES[measure].better if measure in MEASURES else None
        if better is not None and ranked:
            sign = 1.0 if better == "higher" else -1.0
            good = sign * torch.stack([values[method, measure] for method in ranked], 1)
            order = dict(zip(ranked, _ordered(good, level, resamples, seed), strict=True))
            means = torch.cat([good.nanmean(0)[None], _resampled(good, resamples, seed)])
            places.append(_places(means))
        counts = (~by_method.isnan()).sum(0)
        for at, method in enumerate(methods):
            mean, low, high = (float(edge[at]) for edge in (band.mean, band.low, band.high))
            place, tied = order.get(method, (0, False))
            each.append(Standing(method, measure, mean, low, high, int(counts[at]), place, tied))
    return Standings(tuple(each), _overall(places, ranked, level))


def _ordered(good: Tensor, level: float, resamples: int, seed: int) -> list[tuple[int, bool]]:
    """The place of each method by its mean of ``good`` [N, M], and whether it is tied with the best."""
    means = good.nanmean(0).nan_to_num(-torch.inf)
    best = int(means.argmax())
    lead = bootstrap(good[:, best : best + 1] - good, level=level, resamples=resamples, seed=seed)
    return [(1 + int((means > mean).sum()), bool(low <= 0)) for mean, low in zip(means, lead.low, strict=True)]


def _overall(places: Sequence[Tensor], methods: Sequence[str], level: float) -> dict[str, tuple[float, float, float]]:
    """Method → mean place over the measures with its band; row 0 of ``places`` is for all images, the rest for
    resamples."""
    if not places:
        return {}
    means = torch.stack(list(places)).mean(0)  # [1 + resamples, M]
    low, high = means[1:].quantile(_edges(level, means), dim=0)
    order = means[0].argsort(stable=True).tolist()
    return {methods[at]: (float(means[0, at]), float(low[at]), float(high[at])) for at in order}


def _edges(level: float, like: Tensor) -> Tensor:
    return torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=like.dtype, device=like.device)


def _places(means: Tensor) -> Tensor:
    """The place of each method in each row of ``means`` [R, M], 1 for the highest; ties get their mean place."""
    filled = means.nan_to_num(-torch.inf)
    above = (filled[:, None, :] > filled[:, :, None]).sum(2)
    equal = (filled[:, None, :] == filled[:, :, None]).sum(2)
    return above.double() + (equal + 1) / 2


def _arranged(found: Any) -> tuple[dict[tuple[str, str], Tensor], list[str], list[str]]:
    """Values [N] by (method, measure), in the same order of images, NaN where missing; the methods; the measures."""
    listed: Iterable[Mapping[str, Any]] = found.to_pylist() if hasattr(found, "to_pylist") else found
    values: dict[tuple[str, str], dict[int, float]] = {}
    images: dict[int, None] = {}
    methods: dict[str, None] = {}
    measures: dict[str, None] = {}
    for row in listed:
        images[row["index"]] = methods[row["method"]] = measures[row["measure"]] = None
        values.setdefault((row["method"], row["measure"]), {})[row["index"]] = row["value"]
    if not images:
        raise ValueError("found should have at least one row, got none")
    order: Sequence[int] = sorted(images)
    arranged = {
        (method, measure): torch.tensor(
            [values.get((method, measure), {}).get(index, torch.nan) for index in order], dtype=torch.float64
        )
        for method in methods
        for measure in measures
    }
    return arranged, list(methods), list(measures)
