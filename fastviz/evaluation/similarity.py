"""Similarity of maps: rank correlation, SSIM, HOG correlation, top-k intersection; agreement of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks
from fastviz.evaluation._maps import own_maps, resized, scaled
from fastviz.images.notebook import NotebookResult
from fastviz.vectors.ranks import correlation, ranks

__all__ = [
    "SIMILARITIES",
    "Agreement",
    "agreement",
    "hog_correlation",
    "rank_correlation",
    "ssim",
    "top_k_intersection",
]


def rank_correlation(first: Tensor, second: Tensor, *, absolute: bool = False) -> Tensor:
    """Spearman's rank correlation of each pair of maps, [N], −1 to 1; equal values share their mean rank, as in SciPy.

    Args:
        first: [N, h, w] or [N, C, h, w], finite.
        second: the same shape.
        absolute: rank absolute values; Adebayo et al. 2018 report both.

    Returns:
        [N]; NaN if a map is constant.

    Raises:
        TypeError, ValueError: not floating-point tensors, different shapes, values that are not finite.

    >>> heat = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> rank_correlation(heat, -(heat**3))
    tensor([-1.])
    """
    a, b = _pair(first, second)
    if absolute:
        a, b = a.abs(), b.abs()
    return correlation(ranks(a.flatten(1)), ranks(b.flatten(1))).to(a.dtype)


def ssim(first: Tensor, second: Tensor, *, window: int = 11, deviation: float = 1.5, scale: bool = True) -> Tensor:
    """The structural similarity of each pair of maps, [N], −1 to 1, 1 for equal maps.

    Wang et al. 2004, "Image Quality Assessment", https://doi.org/10.1109/TIP.2003.819861: means, variances and the
    covariance under a Gaussian window, ``K1 = 0.01``, ``K2 = 0.03``, averaged over the positions where the window lies
    inside the map. Maps smaller than the window use the largest odd window that fits.

    Args:
        first: [N, h, w], or [N, C, h, w], reduced to the largest absolute value over the channels.
        second: the same.
        window: side of the window, odd, in pixels.
        deviation: standard deviation of the Gaussian, in pixels.
        scale: first scale each map from 0 (its smallest value) to 1 (its largest); otherwise maps are assumed to have a
            range of 1.

    Returns:
        [N], −1 to 1.

    Raises:
        TypeError, ValueError: as :func:`rank_correlation`; an even window.

    >>> maps = torch.rand(2, 16, 16)
    >>> ssim(maps, maps)
    tensor([1., 1.])
    """
    a, b = _planes(first, second, scale)
    checks.whole_number(window, "window", minimum=1)
    checks.positive(deviation, "deviation")
    if window % 2 == 0:
        raise ValueError(f"window should be odd, got {window}")
    kernels = [_gaussian(min(window, side - 1 + side % 2), deviation) for side in a.shape[1:]]

    def mean(planes: Tensor) -> Tensor:
        down = functional.conv2d(planes[:, None], kernels[0].to(planes).view(1, 1, -1, 1))
        return functional.conv2d(down, kernels[1].to(planes).view(1, 1, 1, -1))[:, 0]

    first_mean, second_mean = mean(a), mean(b)
    first_variance, second_variance = mean(a * a) - first_mean**2, mean(b * b) - second_mean**2
    covariance = mean(a * b) - first_mean * second_mean
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * first_mean * second_mean + c1) * (2 * covariance + c2)
    lower = (first_mean**2 + second_mean**2 + c1) * (first_variance + second_variance + c2)
    return (upper / lower).flatten(1).mean(1).to(torch.promote_types(first.dtype, torch.float32))


def hog_correlation(
    first: Tensor, second: Tensor, *, cell: int = 16, block: int = 3, orientations: int = 9, scale: bool = True
) -> Tensor:
    """The correlation of the histograms of oriented gradients (HOG) of each pair of maps, [N], −1 to 1.

    Dalal, Triggs 2005, https://doi.org/10.1109/CVPR.2005.177, as scikit-image computes it: gradients by central
    differences (0 at the border), each pixel's magnitude assigned to one of the unsigned ``orientations``, means over
    cells, blocks of cells normalised by "L2-Hys". Adebayo et al. 2018 compare maps this way, with cells of 16 pixels.

    Args:
        first, second, scale: as in :func:`ssim`.
        cell: side of a cell, in pixels; maps must hold at least ``block`` cells per side.
        block: side of a block, in cells.
        orientations: bins over 180 degrees.

    Returns:
        [N]; NaN if the descriptor of a map is constant, as for a constant map.

    Raises:
        TypeError, ValueError: as :func:`rank_correlation`; maps too small for a block.

    >>> maps = torch.rand(2, 48, 48)
    >>> hog_correlation(maps, maps)
    tensor([1., 1.])
    """
    a, b = _planes(first, second, scale)
    for number, argument in ((cell, "cell"), (block, "block"), (orientations, "orientations")):
        checks.whole_number(number, argument, minimum=1)
    if min(a.shape[1:]) < cell * block:
        raise ValueError(
            f"maps should have at least {cell * block} pixels per side for {block} cells of {cell}, "
            f"got {a.shape[1]}x{a.shape[2]}; give a smaller cell, or resize them"
        )
    descriptors = [_hog(each, cell, block, orientations) for each in (a, b)]
    return correlation(*descriptors).to(torch.promote_types(first.dtype, torch.float32))


def top_k_intersection(first: Tensor, second: Tensor, *, k: int | float = 0.05, absolute: bool = False) -> Tensor:
    """The fraction of the ``k`` highest pixels of one map that are among those of the other, [N], 0 to 1.

    Ghorbani, Abid, Zou 2019, "Interpretation of Neural Networks is Fragile", https://arxiv.org/abs/1710.10547. The
    chance level is k divided by the number of pixels. Of equal values, the first in row-major order are used.

    Args:
        first, second: as in :func:`ssim`.
        k: how many pixels, or (below 1) which fraction of them, rounded up.
        absolute: rank absolute values.

    Returns:
        [N], 0 to 1.

    Raises:
        TypeError, ValueError: as :func:`rank_correlation`; k out of range.

    >>> top_k_intersection(torch.tensor([[[3.0, 2.0, 1.0, 0.0]]]), torch.tensor([[[3.0, 0.0, 1.0, 2.0]]]), k=2)
    tensor([0.5000])
    """
    a, b = _planes(first, second, scale=False)
    if absolute:
        a, b = a.abs(), b.abs()
    size = a[0:1].numel() if len(a) else a.shape[1] * a.shape[2]
    count = -int(-k * size // 1) if isinstance(k, float) and 0 < k < 1 else checks.whole_number(k, "k", minimum=1)
    if count > size:
        raise ValueError(f"k should be at most the number of pixels, {size}, got {count}")
    chosen = []
    for each in (a, b):
        order = each.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :count]
        chosen.append(torch.zeros(len(each), size, dtype=torch.bool, device=each.device).scatter_(1, order, True))
    return ((chosen[0] & chosen[1]).sum(1) / count).to(torch.promote_types(first.dtype, torch.float32))


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rank": rank_correlation,
    "rank_absolute": lambda first, second: rank_correlation(first, second, absolute=True),
    "ssim": ssim,
    "hog": hog_correlation,
    "top_k": top_k_intersection,
}
"""Similarities of two maps by name, as used by :func:`agreement` and parameter randomisation."""


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(NotebookResult):
    """The result of :func:`agreement`.

    Attributes:
        methods: the names of the M methods.
        values: name of a similarity → [M, M, N], of each pair of methods on each image; NaN where undefined.

    >>> found = agreement({"a": torch.rand(2, 16, 16), "b": torch.rand(2, 16, 16)}, similarities=["rank"])
    >>> found.values["rank"][0, 0].tolist()
    [1.0, 1.0]
    """

    methods: tuple[str, ...]
    values: Mapping[str, Tensor]

    def mean(self, similarity: str) -> Tensor:
        """[M, M], the mean over the images, ignoring NaN."""
        return self.values[similarity].nanmean(2)

    def with_others(self, similarity: str) -> Tensor:
        """[M, N], the mean similarity of each method with the others; NaN for a single method."""
        values = self.values[similarity].clone()
        values.diagonal(dim1=0, dim2=1).fill_(torch.nan)
        return values.nanmean(1)


def agreement(
    maps: Mapping[str, Tensor],
    *,
    size: tuple[int, int] | None = None,
    similarities: Sequence[str] = ("rank", "ssim", "top_k"),
) -> Agreement:
    """The agreement of methods on each image: similarities of all pairs of their maps.

    Args:
        maps: name of a method → [N, h, w], or [N, C, h, w], reduced to the largest absolute value over the channels.
        size: height and width to which all maps are resized (bilinear); None is the largest height and width among
            them.
        similarities: names among ``rank``, ``rank_absolute``, ``ssim``, ``hog`` and ``top_k`` (5 % of the pixels).

    Returns:
        An :class:`Agreement`: for each similarity [M, M, N], symmetric, in the order of the ``maps``.

    Raises:
        TypeError, ValueError: no maps, different numbers of them, values that are not finite, an unknown similarity.

    >>> found = agreement({"a": torch.rand(2, 16, 16), "b": torch.rand(2, 16, 16)}, similarities=["rank"])
    >>> found.methods, found.values["rank"].shape
    (('a', 'b'), torch.Size([2, 2, 2]))
    """
    if not maps:
        raise ValueError("maps should have at least one method, got none")
    names = tuple(maps)
    functions = {name: SIMILARITIES[checks.nearest(name, "similarity", SIMILARITIES)] for name in similarities}
    count = len(next(iter(maps.values())))
    own = {name: own_maps(each, count, argument=f"maps of {name!r}") for name, each in maps.items()}
    if size is None:
        size = (max(each.shape[1] for each in own.values()), max(each.shape[2] for each in own.values()))
    planes = [resized(each, each.new_empty(0, 1, *size)) for each in own.values()]
    values = {}
    for similarity, function in functions.items():
        table = torch.ones(len(names), len(names), count, dtype=torch.float64, device=planes[0].device)
        for row in range(len(names)):
            for column in range(row):
                found = function(planes[row], planes[column]).double()
                table[row, column] = table[column, row] = found
        values[similarity] = table
    return Agreement(names, values)


# ------------------------------------------------------------------------------------------------------ parts


def _pair(first: object, second: object) -> tuple[Tensor, Tensor]:
    found = []
    for value, argument in ((first, "first"), (second, "second")):
        each = checks.tensor(value, argument, dims=(3, 4), layout="[N, h, w] or [N, C, h, w]").detach()
        if not bool(each.isfinite().all()):
            raise ValueError(f"{argument} should be finite, got NaN or infinity")
        found.append(each.to(torch.promote_types(each.dtype, torch.float32)))
    if found[0].shape != found[1].shape:
        raise ValueError(f"second should have the shape of first, {list(found[0].shape)}, got {list(found[1].shape)}")
    return found[0], found[1]


def _planes(first: object, second: object, scale: bool) -> tuple[Tensor, Tensor]:
    """Maps [N, h, w] in float64, scaled or not."""
    a, b = (own_maps(each, len(each)).double() for each in _pair(first, second))
    return (scaled(a), scaled(b)) if scale else (a, b)


def _gaussian(side: int, deviation: float) -> Tensor:
    place = torch.arange(side, dtype=torch.float64) - side // 2
    weights = torch.exp(-0.5 * (place / deviation) ** 2)
    return weights / weights.sum()


def _hog(maps: Tensor, cell: int, block: int, orientations: int) -> Tensor:
    """The descriptor of each of the ``maps`` [N, H, W]: [N, D]."""
    N, H, W = maps.shape
    down, across = torch.zeros_like(maps), torch.zeros_like(maps)
    down[:, 1:-1] = maps[:, 2:] - maps[:, :-2]
    across[:, :, 1:-1] = maps[:, :, 2:] - maps[:, :, :-2]
    magnitude = torch.hypot(down, across)
    angle = torch.rad2deg(torch.atan2(down, across)) % 180
    bins = (angle / (180 / orientations)).long().clamp(max=orientations - 1)
    rows, columns = H // cell, W // cell
    spread: Any = torch.zeros(N, orientations, H, W, dtype=maps.dtype, device=maps.device)
    spread = spread.scatter_(1, bins[:, None], magnitude[:, None])[..., : rows * cell, : columns * cell]
    cells = functional.avg_pool2d(spread, cell)  # [N, orientations, rows, columns]
    blocks = cells.unfold(2, block, 1).unfold(3, block, 1)  # [N, orientations, ., ., block, block]
    flat = blocks.permute(0, 2, 3, 4, 5, 1).flatten(3)
    for limit in (0.2, None):
        flat = flat / (flat.square().sum(-1, keepdim=True) + 1e-10).sqrt()
        flat = flat.clamp(max=limit) if limit else flat
    return flat.flatten(1)
