"""Curves of the target as pixels are removed or shown in the order of a map: deletion, insertion, MoRF, LeRF."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.progress import Advance, bar
from fastviz.engine.incremental import Changes, outputs_of_changes
from fastviz.evaluation._maps import Channels, Regions, Ties, labels_of, pixel_maps, rank, region_means
from fastviz.evaluation._seeds import Seed
from fastviz.evaluation._substrate import Substrate, substitute
from fastviz.evaluation._values import Reading, Value, reading
from fastviz.images import arrays
from fastviz.images.notebook import NotebookResult, words
from fastviz.targets.selection import Target

__all__ = ["Curve", "Spacing", "deletion", "insertion", "region_perturbation"]

Spacing = Literal["fraction", "steps"]
"""The spacing of a curve's points for its area: by the fraction of pixels changed, or equal."""


@dataclass(frozen=True, eq=False, repr=False)
class Curve(NotebookResult):
    """The value for each image before the first change and after each change.

    Attributes:
        values: [N, S + 1], at least float32; probabilities from 0 to 1 by default.
        fractions: [N, S + 1], the fraction of the image's pixels that have changed, 0 to 1.
        area: [N], the area under the curve by the trapezoid rule, over a width of 1.
        clean: [N], the value for the unchanged image.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> curve = deletion(model, torch.ones(1, 1, 2, 2), torch.rand(1, 2, 2), target=1, step=1)
    >>> curve.fractions
    tensor([[0.0000, 0.2500, 0.5000, 0.7500, 1.0000]])
    """

    values: Tensor
    fractions: Tensor
    area: Tensor
    clean: Tensor

    @property
    def aopc(self) -> Tensor:
        """[N], the "area over the perturbation curve": mean over all S + 1 points of ``clean − value``.

        Samek et al. 2016, https://arxiv.org/abs/1509.06321, for one image.
        """
        return (self.clean[:, None] - self.values).mean(1)

    def shown(self) -> list[tuple[str, Tensor]]:
        """The curve of each image, at its own scale, with its ends and its area."""
        found = []
        for number, (values, area) in enumerate(zip(self.values, self.area.tolist(), strict=True)):
            caption = words(first=float(values[0]), last=float(values[-1]), area=area)
            curve = arrays.draw_signal(values.float().nan_to_num(), None, width=240)
            found.append((f"{number}: {caption}", curve))
        return found


def deletion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    step: int | float | None = None,
    regions: Regions = None,
    substrate: Substrate = 0.0,
    value: Value = "probability",
    spacing: Spacing = "fraction",
    ties: Ties = "first",
    channels: Channels = "max_abs",
    seed: Seed = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Curve:
    """How fast the target falls when a map's highest-ranked pixels are removed first: lower is better.

    Petsiuk, Das, Saenko 2018, "RISE", https://arxiv.org/abs/1806.07421, section 4.2. Pixels, with all their channels,
    are replaced ``step`` at a time until none is left.

    Numbers of other tools: torch-cam 0.5's ``DeletionInsertionMetric(steps=n)`` is ``step=⌈H·W/n⌉``, ``substrate=0.0``
    for both measures, with a softmax as its ``logits_fn``. The authors' code is ``step=224``, ``substrate=0.0`` for
    deletion and ``"blur"`` for insertion, ``spacing="steps"``, ``ties="last"``. Quantus' ``PixelFlipping`` is
    ``value="target"`` of an already normalised model, ``step=features_in_step``.

    Args:
        model: maps ``x`` to scores [N, K].
        x: [N, C, H, W], as the model takes it.
        maps: [N, h, w], or [N, C, h, w] (see ``channels``); resized to H×W if coarser, bilinear.
        target: one per sample; None is the predicted class of each unchanged image. See :data:`fastviz.Target`.
        step: pixels, or regions, that change at a time; below 1, the fraction of them, rounded up; None is W for pixels
            (for 224x224 pixels, 224 steps of 224) and 1 for regions.
        regions: change whole windows or segments, in the order of their mean map value, see
            :data:`fastviz.evaluation.Regions`.
        substrate: the replacement values, see :data:`fastviz.evaluation.Substrate`.
        value: see :data:`fastviz.evaluation.Value`.
        spacing: see :data:`fastviz.evaluation.Spacing`; the two differ where the last step is shorter.
        ties: which of equal pixels comes first.
        channels: see :data:`fastviz.evaluation.Channels`.
        seed: for a ``"uniform"`` substrate, see :data:`fastviz.evaluation.Seed`.
        batch_size: changed images in a pass; None is 8 on a CPU and 128 on a GPU.
        progress: show a progress bar on a terminal.

    Returns:
        A :class:`Curve` on the device of ``x``.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a wrong shape, number of maps, device or word; values of a map that are not finite; a class that
            does not exist; several targets per sample, or one inside the network.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> x, heat = torch.ones(1, 1, 2, 2), torch.rand(1, 2, 2)
    >>> deletion(model, x, heat, target=1).values.shape
    torch.Size([1, 3])
    """
    read = reading(model, x, target, value, batch_size)
    order = _order(read.images, maps, regions, step, ties, channels)
    return _single_curve(read, order, substrate, seed, False, spacing, batch_size, progress)


def insertion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    step: int | float | None = None,
    regions: Regions = None,
    substrate: Substrate = "blur",
    value: Value = "probability",
    spacing: Spacing = "fraction",
    ties: Ties = "first",
    channels: Channels = "max_abs",
    seed: Seed = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Curve:
    """How fast the target rises when a map's highest-ranked pixels are shown first: higher is better.

    Starts with the ``substrate``, by default the paper's blurred image, and ends with the image. Everything else,
    including the numbers of other tools, is as in :func:`deletion`.

    Returns:
        A :class:`Curve` on the device of ``x``.

    Raises:
        TypeError, ValueError: as :func:`deletion`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> insertion(model, torch.ones(1, 1, 2, 2), torch.rand(1, 2, 2), target=1, substrate=0.0).values.shape
    torch.Size([1, 3])
    """
    read = reading(model, x, target, value, batch_size)
    order = _order(read.images, maps, regions, step, ties, channels)
    return _single_curve(read, order, substrate, seed, True, spacing, batch_size, progress)


def region_perturbation(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    order: Literal["morf", "lerf"] = "morf",
    regions: Regions = 9,
    steps: int | None = 100,
    substrate: Substrate = "uniform",
    repeats: int = 1,
    value: Value = "target",
    spacing: Spacing = "steps",
    ties: Ties = "first",
    channels: Channels = "max_abs",
    seed: Seed = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Curve:
    """The target's value as regions are perturbed, the most relevant first (MoRF) or the least relevant first (LeRF).

    Samek et al. 2016, "Evaluating the visualization of what a Deep Neural Network has learned",
    https://arxiv.org/abs/1509.06321: 100 windows of 9x9 pixels are replaced by uniform noise in the order of their mean
    relevance; their measure is the curve's ``aopc``, large for a good map with ``"morf"``, small with ``"lerf"``. Their
    noise covers the value range of all pictures, ours that of each image and channel, so that it suits any
    preprocessing.

    Quantus' ``RegionPerturbation`` is ``regions=patch_size``, ``steps=regions_evaluation``.

    Args:
        model, x, maps, target, spacing, ties, channels, batch_size, progress: as in :func:`deletion`.
        order: ``"morf"`` or ``"lerf"``.
        regions: see :data:`fastviz.evaluation.Regions`; None perturbs single pixels.
        steps: the number of regions to perturb, one after another; None is all.
        substrate: see :data:`fastviz.evaluation.Substrate`.
        repeats: the number of curves with independent noise to average (the paper: 10).
        value: the paper uses the score before softmax.
        seed: for the noise.

    Returns:
        A :class:`Curve`.

    Raises:
        TypeError, ValueError: as :func:`deletion`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> region_perturbation(model, torch.rand(1, 1, 4, 4), torch.rand(1, 4, 4), target=1, regions=2).values.shape
    torch.Size([1, 5])
    """
    checks.one_of(order, "order", ("morf", "lerf"))
    checks.whole_number(repeats, "repeats", minimum=1)
    if steps is not None:
        checks.whole_number(steps, "steps", minimum=1)
    read = reading(model, x, target, value, batch_size)
    ranked = _order(read.images, maps, regions, 1, ties, channels, descending=order == "morf")
    if steps is not None:
        ranked = _Order(ranked.step, min(steps, ranked.steps))
    with bar(progress, repeats * _states(read, ranked), text="region perturbation", unit="images") as advance:
        found = [
            _curve(
                *(read, ranked, substitute(substrate, read.images, seed, repeat), False, spacing),
                *(batch_size, advance),
            )
            for repeat in range(repeats)
        ]
    values = torch.stack([curve.values for curve in found]).mean(0)
    fractions = found[0].fractions
    return Curve(values, fractions, _area(values, fractions, spacing), read.clean)


@dataclass(frozen=True, eq=False)
class _Order:
    """The step in which each pixel is replaced, int64 [N, H, W], starting from 1, and the number of steps."""

    step: Tensor
    steps: int


def _order(
    images: Tensor,
    maps: object,
    regions: Regions,
    step: int | float | None,
    ties: Ties,
    channels: Channels,
    *,
    descending: bool = True,
) -> _Order:
    heat = pixel_maps(maps, images, channels)
    heat = heat if descending else -heat
    labels = labels_of(regions, images)
    if labels is None:
        places = rank(heat.flatten(1), ties).reshape(heat.shape)
        count = heat[0].numel() if len(heat) else images.shape[2] * images.shape[3]
    else:
        means, _ = region_means(heat, labels)
        index = labels.expand(heat.shape).flatten(1)
        places = rank(means, ties).gather(1, index).reshape(heat.shape)
        count = means.shape[1]
    if step is None:
        step = images.shape[3] if labels is None else 1
    share = isinstance(step, float) and 0 < step < 1
    at_a_time = checks.whole_number(math.ceil(step * count) if share else step, "step", minimum=1)
    return _Order(places // at_a_time + 1, -(-count // at_a_time))


def _states(read: Reading, order: _Order) -> int:
    """How many images all curves take: each image before any change and after each change."""
    return len(read.images) * (order.steps + 1)


def _single_curve(
    read: Reading,
    order: _Order,
    substrate: Substrate,
    seed: Seed,
    reveal: bool,
    spacing: Spacing,
    batch_size: int | None,
    progress: bool,
) -> Curve:
    """The curve of insertion (``reveal``) or deletion, with a progress bar."""
    other = substitute(substrate, read.images, seed)
    text = "insertion" if reveal else "deletion"
    with bar(progress, _states(read, order), text=text, unit="images") as advance:
        return _curve(read, order, other, reveal, spacing, batch_size, advance)


def _curve(
    read: Reading,
    order: _Order,
    other: Tensor,
    reveal: bool,
    spacing: Spacing,
    batch_size: int | None,
    advance: Advance,
) -> Curve:
    checks.one_of(spacing, "spacing", ("fraction", "steps"))
    changes = Changes(order.step, order.steps, other, reveal=reveal)
    chain = outputs_of_changes(read.model, read.images, changes, read.of, batch_size=batch_size, advance=advance)
    values = chain.values
    changed = torch.zeros(len(values), order.steps + 2, dtype=torch.float64, device=values.device)
    step = order.step.clamp(max=order.steps + 1).flatten(1)
    changed.scatter_add_(1, step, torch.ones_like(step, dtype=torch.float64))
    fractions = (changed.cumsum(1)[:, :-1] / max(1, step.shape[1])).to(values.dtype)
    return Curve(values, fractions, _area(values, fractions, spacing), read.clean)


def _area(values: Tensor, fractions: Tensor, spacing: Spacing) -> Tensor:
    """The area under each curve over a width of 1, by trapezoids, in float64."""
    exact = values.double()
    if spacing == "steps":
        return torch.trapezoid(exact, dim=1).div(max(1, values.shape[1] - 1)).to(values.dtype)
    width = (fractions[:, -1:] - fractions[:, :1]).double()
    places = fractions.double() / torch.where(width > 0, width, 1)
    return torch.trapezoid(exact, places, dim=1).to(values.dtype)
