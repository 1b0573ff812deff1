"""Contributions of an image's segments to the target: feature ablation, and Shapley values by sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine import incremental
from fastviz.engine.gradients.noise import generator
from fastviz.engine.incremental.window_grid import Fill
from fastviz.engine.masking.coalitions import Coalitions, coalitions
from fastviz.engine.masking.feature_boxes import segments as feature_boxes
from fastviz.engine.masking.segments import SEGMENTS
from fastviz.methods.attribution.segment_maps import SegmentMap, segment_map
from fastviz.targets.selection import Target

__all__ = ["feature_ablation", "shapley_sampling"]


_AT_ONCE = 32
"""Orders that are followed together: each holds a map of when its pixels change, so this bounds the memory."""


def feature_ablation(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    segments: int | Tensor = SEGMENTS,
    fill: Fill = 0.0,
    batch_size: int | None = None,
    progress: bool = False,
) -> SegmentMap:
    """The decrease of the target when one segment of the image is left out.

    ``S(x) − S(x with the segment filled)``: captum's ``FeatureAblation`` over segments; Zeiler, Fergus 2014,
    https://arxiv.org/abs/1311.2901, with segments instead of squares. If the model allows it and there is enough work,
    only the part that a segment's bounding box changes is recomputed (:func:`fastviz.engine.incremental.sweep`).

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        target: what to measure; None is the predicted class of each unchanged image. See :data:`fastviz.Target`.
        segments: whole numbers [H, W] or [N, H, W], where pixels with the same number form a segment; or the
            approximate number of superpixels per image, by scikit-image's SLIC.
        fill: the replacement for a segment: a number, a value for each channel [C], an image [C, H, W], one per image
            [N, C, H, W], ``"mean"`` or ``"blur"``, as for :func:`fastviz.occlusion`.
        batch_size: pictures in a pass; None is 16 on a CPU and 128 on a GPU.
        progress: show a progress bar on a terminal.

    Returns:
        The decreases, signed.

    Raises:
        TypeError: ``model``, ``x``, ``target``, ``segments`` or ``fill`` is of the wrong type.
        ValueError: a wrong shape or device; a class, layer, channel or position that does not exist.
        ModuleNotFoundError: superpixels without scikit-image.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> parts = torch.tensor([[0, 0], [1, 1]])
    >>> found = feature_ablation(model, torch.ones(1, 1, 2, 2), target=1, segments=parts)
    >>> torch.allclose(found.values[0], model[1].weight[1].view(2, 2).sum(1))
    True
    """
    with coalitions(model, x, target, segments, fill, batch_size) as cut:
        evaluations = sum(cut.counts)
        with bar(progress, evaluations, text="feature ablation") as advance:
            stats: dict[str, Any] = {"path": "dense"}
            if cut.scores.selection.layers or not evaluations:
                values = [_decreases(cut, at, advance) for at in range(len(cut.images))]
            else:
                values, stats = _swept_decreases(cut, batch_size, advance)
        return segment_map(cut, values, evaluations=evaluations + len(values), **stats)


def shapley_sampling(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    segments: int | Tensor = SEGMENTS,
    permutations: int = 25,
    fill: Fill = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> SegmentMap:
    """The mean contribution of each segment to the target when segments are added one by one, over random orders.

    ``1/M Σ_π S(before π(s) and s) − S(before π(s))``: an unbiased estimate of Shapley values; in each order the
    contributions sum to S(x) − S(fill). Castro, Gómez, Tejada 2009, "Polynomial calculation of the Shapley value based
    on sampling", https://doi.org/10.1016/j.cor.2008.04.004; captum's ``ShapleyValueSampling``. Consecutive states
    differ in one segment, and only the part that its bounding box changes is recomputed where that saves work
    (:func:`fastviz.engine.incremental.outputs_of_changes`). Arguments and errors as in :func:`feature_ablation`, and:

    Args:
        model, x, target, segments, fill, batch_size, progress: as there.
        permutations: orders per image, at least 1.
        seed: for the orders; torch's global generator is not used.

    Returns:
        The contributions, and in ``errors`` their standard errors (NaN for one permutation).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> parts = torch.tensor([[0, 0], [1, 1]])
    >>> found = shapley_sampling(model, torch.ones(1, 1, 2, 2), target=1, segments=parts, permutations=3)
    >>> torch.allclose(found.values[0], model[1].weight[1].view(2, 2).sum(1))
    True
    """
    checks.whole_number(permutations, "permutations", minimum=1)
    random = generator(seed)
    with coalitions(model, x, target, segments, fill, batch_size) as cut:
        orders = [torch.stack([torch.randperm(S, generator=random) for _ in range(permutations)]) for S in cut.counts]
        with bar(progress, sum(each.numel() for each in orders), text="shapley sampling") as advance:
            run = _GrowingImages(cut, batch_size, advance)
            added = [_contributions(cut, number, each, run) for number, each in enumerate(orders)]
        values, errors = [each.mean(0) for each in added], [each.std(0) / permutations**0.5 for each in added]
        return segment_map(cut, values, errors, evaluations=sum(each.numel() for each in orders), **run.stats)


def _decreases(cut: Coalitions, number: int, advance: Callable[[int], object]) -> Tensor:
    """The decrease without each segment, [S] or [T, S], by full passes."""
    rows = ~torch.eye(cut.counts[number], dtype=torch.bool)
    return (cut.scores.clean[number] - cut.values(number, rows, advance)).movedim(0, -1)


def _swept_decreases(
    cut: Coalitions, batch_size: int | None, advance: Callable[[int], object]
) -> tuple[list[Tensor], dict[str, object]]:
    """The decreases for all images, recomputing only what the bounding boxes of segments change."""
    scores, images = cut.scores, cut.images
    found = feature_boxes(cut.index[:, None])
    if found is None:  # too many boxes overlap
        return [_decreases(cut, at, advance) for at in range(len(images))], {"path": "dense"}
    decreases = scores.clean.new_zeros(len(images), *scores.clean.shape[1:], max(cut.counts))
    stats: dict[str, object] = {}
    read = scores.selection.scores_read
    for layer in found.layers:
        sample = layer.masks.to(images.device)

        def values(output: object, at: Tensor, sample: Tensor = sample) -> Tensor:
            return scores.selection.for_samples(sample[at], len(images)).values(output, {})

        swept = incremental.sweep(
            *(scores.model, images, layer.boxes.to(images.device), sample),
            torch.where(layer.covered.to(images.device), cut.fill, images),
            values,
            outputs=None if read is None else sorted(read),
            batch_size=batch_size,
            batches=scores.batches,
            advance=advance,
        )
        decreases[sample, ..., layer.features.to(images.device)] = scores.clean[sample] - swept.values
        stats = {key: swept.stats[key] for key in ("path", "reason")}
    return [decreases[at, ..., :count] for at, count in enumerate(cut.counts)], stats


def _contributions(cut: Coalitions, number: int, orders: Tensor, run: _GrowingImages) -> Tensor:
    """The contribution of each segment in each of the ``orders`` [M, S]: [M, S], or [M, T, S], in float64."""
    return torch.cat([_contributions_of(cut, number, some, run) for some in orders.split(_AT_ONCE)])


def _contributions_of(cut: Coalitions, number: int, orders: Tensor, run: _GrowingImages) -> Tensor:
    """The same, for all ``orders`` together."""
    rank = orders.argsort(1)
    states = run.values(number, rank).double()  # [M, S, ...]: before each segment is added
    whole = cut.scores.clean[number].double().expand_as(states[:, 0])
    steps = torch.cat([states, whole[:, None]], dim=1).diff(dim=1).movedim(1, -1)
    at = rank.to(steps.device)
    return steps.gather(-1, at if steps.dim() == 2 else at[:, None].expand_as(steps))


class _GrowingImages:
    """Evaluates images whose segments are added one by one, for one call."""

    def __init__(self, cut: Coalitions, batch_size: int | None, advance: Callable[[int], object]) -> None:
        self.cut, self.batch_size, self.advance = cut, batch_size, advance
        self.stats: dict[str, object] = {"path": "dense"}

    def values(self, number: int, rank: Tensor) -> Tensor:
        """Values [M, S, ...] of an image before each segment is added; ``rank`` [M, S] is each segment's place."""
        scores = self.cut.scores
        two = scores.images[number : number + 1].expand(2, -1, -1, -1)
        if scores.selection.layers or scores.batches.together(two) < 2:
            return self._dense(number, rank)
        M, S = rank.shape
        device = scores.images.device
        changes = incremental.Changes(
            rank.to(device)[:, self.cut.index[number]] + 1,
            S - 1,  # the last segment completes the image, whose value is known
            self.cut.fill[number : number + 1],
            image=torch.zeros(M, dtype=torch.int64, device=device),
            reveal=True,
        )

        def evaluate(output: object, sequence: Tensor) -> Tensor:
            return scores.selection.for_samples(torch.full_like(sequence, number), len(scores.images)).values(
                output, {}
            )

        chain = incremental.outputs_of_changes(
            *(scores.model, scores.images[number : number + 1], changes, evaluate),
            batch_size=self.batch_size,
            advance=self.advance,
        )
        self.stats = {key: chain.stats[key] for key in ("path", "reason")}
        return chain.values

    def _dense(self, number: int, rank: Tensor) -> Tensor:
        """The same by full passes."""
        M, S = rank.shape
        states = rank[:, None, :] < torch.arange(1, S)[None, :, None]
        # without any segment the value is the same in every order
        rows = torch.cat([torch.zeros(1, S, dtype=torch.bool), states.reshape(-1, S)])
        found = self.cut.values(number, rows, self.advance)
        none, inner = found[:1].expand(M, *found.shape[1:]), found[1:].view(M, S - 1, *found.shape[1:])
        return torch.cat([none[:, None], inner], dim=1)
