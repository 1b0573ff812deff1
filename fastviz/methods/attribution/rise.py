"""RISE: the mean of random masks, each weighted by the target's value for the masked image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.gradients.noise import generator
from fastviz.engine.incremental.window_grid import Fill, filled_images
from fastviz.engine.masking.masked_mean import MaskedMean
from fastviz.engine.masking.random_masks import RandomMasks, random_masks
from fastviz.engine.masking.scores import Scores
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.full_precision import full_float32
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import map_dtype
from fastviz.images import notebook
from fastviz.targets.objectives import Objective, class_probability
from fastviz.targets.selection import Target

__all__ = ["RiseMap", "rise"]

_CHECKS = 16
"""How many times the stopping rule is checked, at equal intervals."""


@dataclass(frozen=True, eq=False, repr=False)
class RiseMap(notebook.NotebookResult):
    """The result of :func:`rise`.

    Attributes:
        attribution: [N, H, W], the weighted mean of the masks.
        baseline: [N], the target's value for the unchanged image.
        stats: ``masks``: how many were used for each image; ``agreement``: the estimated rank correlation of each map
            with the map from all masks (1 if all were used).

    With T targets per sample, both have a dimension T after N.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    >>> rise(model, torch.ones(1, 1, 8, 8), target=1, masks=20).stats["masks"]
    [20]
    """

    attribution: Tensor
    baseline: Tensor
    stats: dict[str, Any]

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        centred = self.attribution - self.attribution.mean((-2, -1), keepdim=True)
        return notebook.signed_maps(centred, "baseline", self.baseline)


def rise(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    fill: Fill = 0.0,
    stop: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> RiseMap:
    """The importance of each pixel: the mean of random masks, weighted by the target's value for the masked image.

    ``1/(M · keep) Σ_i S(x · m_i + fill · (1 − m_i)) m_i``, with smooth masks m_i: grids of ``cells`` x ``cells`` zeros
    and ones, enlarged (bilinear) and shifted. Petsiuk, Das, Saenko 2018, "RISE: Randomized Input Sampling for
    Explanation of Black-box Models", https://arxiv.org/abs/1806.07421. As in the paper, a class as target means its
    probability; ``fv.class_score(k)`` is its score.

    With ``stop`` fewer masks are run: the values of the others are predicted by a linear model of the mask, see
    :mod:`fastviz.engine.masking.masked_mean`; this is approximate.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        target: what to measure; None is the predicted class of each unchanged image. See :data:`fastviz.Target`.
        masks: their number M, at least 1; all images get the same masks.
        cells: grid cells per side, at least 2.
        keep: the probability that a cell is one, above 0 and below 1.
        fill: the replacement for masked values: a number, a value for each channel [C], an image [C, H, W], one per
            image [N, C, H, W], ``"mean"`` or ``"blur"``, as for :func:`fastviz.occlusion`.
        stop: stop once the estimated rank correlation with the map from all masks is at least this, above 0 and below
            1; checked up to 16 times. None uses all masks.
        seed: for the masks; torch's global generator is not used.
        batch_size: pictures in a pass; None is 16 on a CPU and 128 on a GPU.
        progress: show a progress bar on a terminal.

    Returns:
        The maps, and the number of masks for each.

    Raises:
        TypeError: ``model``, ``x``, ``target`` or another argument is of the wrong type.
        ValueError: a wrong shape or device; a class, layer, channel or position that does not exist; a number out of
            range.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    >>> rise(model, torch.ones(1, 1, 8, 8), target=1, masks=20).attribution.shape
    torch.Size([1, 8, 8])
    """
    images = input_batch(model, x)
    selection = targets.resolve(_as_probability(target), model)
    checks.whole_number(masks, "masks", minimum=1)
    checks.whole_number(cells, "cells", minimum=2)
    for value, argument in ((keep, "keep"), (stop, "stop")):
        if value is not None and not 0 < checks.number(value, argument) < 1:
            raise ValueError(f"{argument} should be above 0 and below 1, got {value}")
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    random = generator(seed)
    size = (images.shape[2], images.shape[3])
    fills = filled_images(fill, images, (-(-size[0] // cells), -(-size[1] // cells)))
    drawn = random_masks(masks, size, cells, keep, random)
    mean = MaskedMean(drawn, keep)
    with (
        frozen_model(model),
        torch.no_grad(),
        full_float32(images.device),
        bar(progress, len(images) * masks, text="rise") as advance,
    ):
        scores = Scores(model, images, selection, batch_size)
        each = [_of_image(scores, number, drawn, mean, fills[number], stop, advance) for number in range(len(images))]
    clean = scores.clean
    maps = torch.stack([found for found, _, _ in each]) if each else images.new_zeros(0, *size)
    maps = maps.to(images.device, map_dtype(images.dtype)).reshape(*clean.shape, *size)
    return RiseMap(maps, clean, {"masks": [tried for _, tried, _ in each], "agreement": [near for *_, near in each]})


def _of_image(
    scores: Scores,
    number: int,
    masks: RandomMasks,
    mean: MaskedMean,
    fill: Tensor,
    stop: float | None,
    advance: Callable[[int], object],
) -> tuple[Tensor, int, float]:
    """The maps of one image, [T, H, W], its number of masks, and the estimated agreement with all masks."""
    image, M = scores.images[number], len(masks)
    parts: list[Tensor] = []
    agreement = 1.0
    for at in torch.arange(M).split(M if stop is None else -(-M // _CHECKS)):

        def compose(some: Tensor, at: Tensor = at) -> Tensor:
            mask = masks.of(at[some])[:, None].to(image)
            return torch.lerp(fill.expand_as(image), image, mask)

        found = scores.composed(compose, number, len(at), advance)
        parts.append(found.reshape(len(at), -1).cpu())
        agreement = mean.agreement(torch.cat(parts)) if stop is not None else 1.0
        if stop is not None and agreement >= stop and len(parts) > 1:
            break
    values = torch.cat(parts)
    advance(M - len(values))
    return mean.maps(mean.weights(values)), len(values), agreement


def _as_probability(target: Target) -> Target:
    """Class indices as class probabilities; objectives unchanged."""
    if isinstance(target, Objective):
        return target
    if isinstance(target, Tensor) and target.dim() == 2:
        return [class_probability(column) for column in target.unbind(1)]
    if isinstance(target, Sequence) and not isinstance(target, str):
        return [_one_as_probability(each) for each in target]
    return _one_as_probability(target)


def _one_as_probability(target: Any) -> Objective:
    return target if isinstance(target, Objective) else class_probability(target)
