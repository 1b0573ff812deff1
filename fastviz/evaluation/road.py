"""ROAD (remove and debias): the target's value after pixels are removed and filled in from their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.progress import Advance, bar
from fastviz.engine.incremental.passes import outputs_of_images
from fastviz.evaluation._imputation import imputed
from fastviz.evaluation._maps import Channels, Ties, pixel_maps, rank
from fastviz.evaluation._seeds import Seed, generator, seeds_of
from fastviz.evaluation._values import Value, reading
from fastviz.images.notebook import NotebookResult
from fastviz.targets.selection import Target

__all__ = ["Road", "impute", "road"]

_MAX_AHEAD = 64
"""The maximum number of images that are filled in ahead of the network; bounds the memory."""


@dataclass(frozen=True, eq=False, repr=False)
class Road(NotebookResult):
    """The result of :func:`road`.

    Attributes:
        removed: [P], percentages of pixels removed.
        morf: [N, P], the value with the most relevant pixels removed.
        lerf: [N, P], with the least relevant removed.
        clean: [N], the value of the unchanged image.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    >>> found = road(model, torch.rand(1, 1, 8, 8), torch.rand(1, 8, 8), target=1, removed=(20, 50))
    >>> found.removed, found.clean.shape
    (tensor([20., 50.]), torch.Size([1]))
    """

    removed: Tensor
    morf: Tensor
    lerf: Tensor
    clean: Tensor

    @property
    def combined(self) -> Tensor:
        """[N], the mean over the percentages of (LeRF − MoRF) / 2: higher is better."""
        return (self.lerf - self.morf).mean(1) / 2


def road(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    removed: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    noise: float = 0.01,
    removal: Literal["rank", "threshold"] = "rank",
    value: Value = "probability",
    ties: Ties = "first",
    channels: Channels = "max_abs",
    seed: Seed = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Road:
    """The target's value when pixels are removed and filled in from their neighbours, most or least relevant first.

    Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods" (ROAD),
    https://arxiv.org/abs/2202.00449: a filled-in pixel is the weighted mean of its neighbours, filled in or not, plus
    noise, so that neither its colour nor the shape of the removed region carries information.

    Numbers of other tools: pytorch-grad-cam's ``ROADCombined(percentiles=ps)`` is ``combined`` with ``removed=[100 - p
    for p in ps]``, ``removal="threshold"``; its ``ROADMostRelevantFirstAverage`` is ``(morf - clean[:,
    None]).mean(1)``, and so on. Its noise comes from torch's global generator, and it orders the least relevant pixels
    by ``1 - map`` in float32, where values below 6e-8 are equal. Quantus' ``ROAD`` is ``morf``.

    Args:
        model, x, maps, target, ties, channels, batch_size: as in :func:`fastviz.evaluation.deletion`.
        removed: percentages of pixels to remove, each above 0 and below 100.
        noise: standard deviation of the noise added to filled-in pixels, in units of ``x``.
        removal: ``"rank"``: exactly that many pixels; ``"threshold"``: all pixels at or above the percentile. With ties
            that can be all pixels; the image then becomes its mean colour.
        value: see :data:`fastviz.evaluation.Value`.
        seed: for the noise, see :data:`fastviz.evaluation.Seed`.
        progress: show a progress bar on a terminal.

    Returns:
        A :class:`Road` on the device of ``x``.

    Raises:
        TypeError, ValueError: as :func:`fastviz.evaluation.deletion`; a percentage out of range; images that are not
            finite.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    >>> road(model, torch.rand(1, 1, 8, 8), torch.rand(1, 8, 8), target=1, removed=(20, 50)).morf.shape
    torch.Size([1, 2])
    """
    shares = [_percentage(share) for share in removed]
    if not shares:
        raise ValueError("removed should have at least one percentage, got none")
    checks.one_of(removal, "removal", ("rank", "threshold"))
    if noise != 0:
        checks.positive(noise, "noise")
    read = reading(model, x, target, value, batch_size)
    heat = pixel_maps(maps, read.images, channels)
    _finite(read.images)
    N, P = len(heat), len(shares)
    seeds = seeds_of(seed, N)

    def values_without(sign: int, advance: Advance) -> Tensor:
        masks = _removed(sign * heat, shares, removal, ties)

        def filled(number: Tensor) -> Tensor:
            image = number // P
            pictures = imputed(read.images, masks[image, number % P], image)
            if noise:
                noisy = pictures + noise * _noise(pictures, number, seeds, P, sign)
                pictures = torch.where(masks[image, number % P][:, None], noisy, pictures)
            return pictures

        def value_of(output: Any, number: Tensor) -> Tensor:
            return read.of(output, number // P)

        take = _FilledAhead(filled, N * P).take
        values = outputs_of_images(
            model, take, N * P, value_of, like=read.images, batch_size=batch_size, advance=advance
        )
        return values.reshape(N, P)

    with bar(progress, 2 * N * P, text="ROAD", unit="images") as advance:
        found = [values_without(sign, advance) for sign in (1, -1)]
    return Road(torch.tensor(shares, device=heat.device), found[0], found[1], read.clean)


def impute(images: Tensor, removed: Tensor) -> Tensor:
    """The ``images`` with the pixels that are ``removed`` filled in from their neighbours, without noise.

    Args:
        images: [N, C, H, W], floating-point and finite.
        removed: bool [N, H, W]; an image whose pixels are all removed becomes its mean colour.

    Returns:
        [N, C, H, W], a new tensor with the dtype and device of ``images``.

    Raises:
        TypeError, ValueError: another type or shape; values that are not finite.

    >>> row = torch.tensor([[[[0.0, 9.0, 9.0, 3.0]]]])
    >>> impute(row, torch.tensor([[[False, True, True, False]]])).round(decimals=4)
    tensor([[[[0., 1., 2., 3.]]]])
    """
    checks.image_batch(images, "images")
    checks.tensor(removed, "removed", dims=(3,), layout="[N, H, W]", floating=False)
    if removed.dtype != torch.bool:
        raise TypeError(f"removed should be a tensor of bool, got {removed.dtype}")
    if removed.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"removed should have shape {[len(images), *images.shape[2:]]}, got {list(removed.shape)}")
    _finite(images)
    return imputed(images.detach(), removed.to(images.device), torch.arange(len(images), device=images.device))


class _FilledAhead:
    """Filled-in images in ascending order; the solver works on larger batches than the network."""

    def __init__(self, make: Callable[[Tensor], Tensor], count: int) -> None:
        self._make, self._count = make, count
        self._first = 0
        self._made: Tensor | None = None

    def take(self, number: Tensor) -> Tensor:
        """The images with these consecutive indices."""
        first, last = int(number[0]), int(number[-1])
        if self._made is None or not self._first <= first <= last < self._first + len(self._made):
            end = max(last + 1, min(first + _MAX_AHEAD, self._count))
            self._first = first
            self._made = self._make(torch.arange(first, end, device=number.device))
        return self._made[first - self._first : last + 1 - self._first]


def _percentage(share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"removed should hold numbers, got {share!r}")
    if not 0 < share < 100:
        raise ValueError(f"removed should be above 0 and below 100 per cent, got {share}")
    return float(share)


def _finite(images: Tensor) -> None:
    if not bool(images.isfinite().all()):
        raise ValueError("images should be finite to be filled in, got NaN or infinity")


def _removed(heat: Tensor, shares: Sequence[float], removal: str, ties: Ties) -> Tensor:
    """Which pixels are removed at each percentage: bool [N, P, H, W], the highest of ``heat`` [N, H, W]."""
    flat = heat.flatten(1)
    if removal == "rank":
        places = rank(flat, ties)
        counts = [round(share / 100 * flat.shape[1]) for share in shares]
        masks = [places < count for count in counts]
    else:
        # like numpy's percentile: linear interpolation between the two nearest values
        ordered = flat.sort(dim=1).values
        masks = []
        for share in shares:
            at = (100 - share) / 100 * (flat.shape[1] - 1)
            below = min(int(at), flat.shape[1] - 1)
            above = min(below + 1, flat.shape[1] - 1)
            threshold = torch.lerp(ordered[:, below], ordered[:, above], at - below)
            masks.append(flat >= threshold[:, None])
    return torch.stack(masks, 1).reshape(len(heat), len(shares), *heat.shape[1:])


def _noise(pictures: Tensor, number: Tensor, seeds: list[int], shares: int, sign: int) -> Tensor:
    """Standard normal noise for each picture, determined by its image's seed, its percentage and its order."""
    drawn = []
    for at in number.tolist():
        part = 2 * (at % shares) + (sign > 0)
        drawn.append(torch.randn(pictures.shape[1:], generator=generator(seeds[at // shares], part)))
    return torch.stack(drawn).to(pictures)
