"""Segmentation of the object that a network sees: GrabCut seeded by saliency."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.gradients import input_gradients
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.images import notebook, tensors
from fastviz.images.preprocessing import restore
from fastviz.models.descriptions import preprocessing
from fastviz.ops import Rule
from fastviz.targets.selection import Target

__all__ = ["BACKGROUND", "OBJECT", "PROBABLY_BACKGROUND", "PROBABLY_OBJECT", "Segmentation", "segment"]

BACKGROUND, OBJECT, PROBABLY_BACKGROUND, PROBABLY_OBJECT = range(4)
"""The values of :attr:`Segmentation.seeds`; OpenCV's GrabCut has the same."""

_RULES: dict[str, Rule | None] = {"guided_backprop": "guided", "saliency": None}

_SEED = 0
"""OpenCV initialises its colour models at random."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(notebook.NotebookResult):
    """The result of :func:`segment`: objects segmented in photographs.

    With T targets per sample, all attributes have a dimension T after N.

    Attributes:
        mask: bool [N, H, W], whether a pixel belongs to the object; all false if nothing was found.
        boxes: int64 [N, 4], top, left, bottom, right (half-open, in pixels) of the mask; zeros if it is empty.
        seeds: uint8 [N, H, W], the class of each pixel by saliency alone: 0 background, 1 object, 2 probably
            background, 3 probably object.
        saliency: [N, H, W], after smoothing.

    >>> picture = torch.zeros(1, 3, 32, 32)
    >>> picture[:, 0, 8:24, 10:20] = 1.0
    >>> segment(nn.Identity(), picture, images=picture, saliency=picture[:, 0], smoothing=0.05).mask.sum()
    tensor(160)
    """

    mask: Tensor
    boxes: Tensor
    seeds: Tensor
    saliency: Tensor

    @property
    def attribution(self) -> Tensor:
        """The mask as numbers, 1 for the object and 0 elsewhere."""
        return self.mask.to(self.saliency.dtype)

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        masks, boxes = self.mask.flatten(0, -3).float(), self.boxes.flatten(0, -2).tolist()
        return [
            (f"{number}: box {box}", mask[None]) for number, (mask, box) in enumerate(zip(masks, boxes, strict=True))
        ]


def segment(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    images: Tensor | None = None,
    saliency: str | Tensor = "guided_backprop",
    foreground: float = 0.95,
    background: float = 0.30,
    probable: float = 0.80,
    smoothing: float = 1 / 32,
    iterations: int = 5,
    largest: bool = True,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Segmentation:
    """The pixels of the object that supports the target: a mask and a box for each image.

    Simonyan, Vedaldi, Zisserman 2014, "Deep Inside Convolutional Networks", section 3.2,
    https://arxiv.org/abs/1312.6034: pixels of high saliency are the object, those of low saliency the background, and
    GraphCut finds a border between them along the edges of the photograph, so that each side has the colours of its
    seeds. The cut is OpenCV's GrabCut: Rother, Kolmogorov, Blake 2004, which refits its colour models to its own result
    in every iteration.

    We depart from the paper where that segments more objects correctly: saliency is smoothed guided backprop; pixels
    above a third quantile start as probable object; the seeds stay fixed; and the colour models are fitted more than
    once. The paper's settings are ``saliency="saliency"``, ``smoothing=0`` and ``iterations=0``.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        target: what to explain; None is the predicted class of each sample. See :data:`fastviz.Target`.
        images: [N, 3, h, w] in 0 to 1, the photographs of ``x`` at any size; masks have this size. None computes them
            from ``x`` with :func:`fastviz.models.preprocessing` of the model.
        saliency: ``"guided_backprop"`` (the largest absolute value over the channels), ``"saliency"``, or your own maps
            [N, H, W] or [N, T, H, W], 0 or more, for which the model is not run.
        foreground: pixels with a saliency at or above this quantile of the image are object.
        background: pixels at or below this quantile are background.
        probable: of the rest, pixels at or above this quantile are probably object.
        smoothing: standard deviation of the Gaussian that smooths the saliency, as a fraction of its shorter side; 0 is
            no smoothing.
        iterations: GrabCut iterations, after each of which the colour models are refitted. With 0 they are fitted to
            the seeds alone, followed by one cut, as in the paper.
        largest: keep only the largest connected component (with 8 neighbours), as in the paper.
        batch_size, precision: as in :func:`fastviz.input_gradient`.

    Returns:
        A :class:`Segmentation`, on the device of ``x``. If the saliency is constant, nothing is found. A photograph of
        one colour has no edges to follow; the object is then the part closer to its seeds.

    Raises:
        ImportError: OpenCV is not installed.
        TypeError, ValueError: as :func:`fastviz.guided_backprop`; quantiles that are not in order; ``images`` or
            ``saliency`` of another shape, outside 0 to 1 or not finite.

    Warns:
        RectifierWarning: as :func:`fastviz.guided_backprop`.

    >>> picture = torch.zeros(1, 3, 32, 32)
    >>> picture[:, 0, 8:24, 10:20] = 1.0
    >>> found = segment(nn.Identity(), picture, images=picture, saliency=picture[:, 0], smoothing=0.05)
    >>> found.boxes.tolist()
    [[8, 10, 24, 20]]
    """
    cv2 = _opencv()
    _check_quantiles(background, probable, foreground)
    checks.whole_number(iterations, "iterations", minimum=0)
    if smoothing != 0:
        checks.positive(smoothing, "smoothing")
    maps = _saliency(model, x, target, saliency, batch_size, precision)
    shown = _photographs(model, x, images)
    smooth = _smoothed(tensors.resize_maps(maps.float(), *shown.shape[-2:]), smoothing)
    seeds = _seeds(smooth, background, probable, foreground)
    photographs = [
        np.ascontiguousarray(each) for each in (shown.flip(1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    ]
    columns = seeds.shape[1] if seeds.dim() == 4 else 1
    marks = seeds.view(-1, *seeds.shape[-2:]).numpy()

    def cut(number: int) -> Any:
        return _grab_cut(cv2, photographs[number // columns], marks[number], iterations, largest)

    # OpenCV's random state is per thread, so running in our own threads leaves the caller's unchanged.
    with ThreadPoolExecutor(max(1, min(len(marks), torch.get_num_threads()))) as pool:
        masks = [torch.from_numpy(each) for each in pool.map(cut, range(len(marks)))]
    mask = torch.stack(masks).view(seeds.shape) if masks else seeds.bool()
    return Segmentation(mask.to(x.device), _boxes(mask).to(x.device), seeds.to(x.device), smooth.to(x.device))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError('segment needs OpenCV: pip install "fastviz[segment]"') from error
    return cv2


def _check_quantiles(background: object, probable: object, foreground: object) -> None:
    values = (background, probable, foreground)
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise TypeError(f"background, probable and foreground should be numbers, got {values}")
    low, middle, high = values
    if not 0 <= low <= middle <= high <= 1 or low == high:  # type: ignore[operator]
        raise ValueError(
            f"background, probable and foreground should be quantiles from 0 to 1 in this order, got {values}"
        )


def _saliency(
    model: nn.Module,
    x: Tensor,
    target: Target,
    kind: str | Tensor,
    batch_size: int | None,
    precision: Precision,
) -> Tensor:
    """Saliency [N, H, W] or [N, T, H, W], on the CPU."""
    checks.device(checks.image_batch(x).device, "x")
    if isinstance(kind, Tensor):
        checks.tensor(kind, "saliency", dims=(3, 4), layout="[N, H, W] or [N, T, H, W]")
        checks.device(kind.device, "saliency")
        if len(kind) != len(x):
            raise ValueError(f"saliency should have {len(x)} maps, one per image, got {len(kind)}")
        found = kind
    else:
        rule = _RULES[checks.one_of(kind, "saliency", _RULES)]
        batch, selection = input_batch(model, x), targets.resolve(target, model)
        found = input_gradients.input_gradients(
            model, batch, selection, rule=rule, batch_size=batch_size, precision=precision, stacklevel=3
        )
        found = found.abs().amax(-3)
    if not found.isfinite().all():
        raise ValueError("saliency should be finite, got NaN or infinity")
    return found.detach().cpu()


def _photographs(model: nn.Module, x: Tensor, images: Tensor | None) -> Tensor:
    """The photographs, [N, 3, h, w] in 0 to 1, on the CPU."""
    if images is None:
        settings = preprocessing(model)
        if len(settings.mean) != x.shape[1]:
            raise ValueError(f"images should be given for a model whose input has {x.shape[1]} channels, got None")
        images = restore(x, settings)
    checks.device(checks.image_batch(images, "images").device, "images")
    if len(images) != len(x) or images.shape[1] != 3:
        raise ValueError(f"images should have shape [{len(x)}, 3, h, w], got {list(images.shape)}")
    if len(images):
        tensors.check_range(images, "images")
    return images.detach().float().cpu().clamp(0, 1)


def _smoothed(maps: Tensor, fraction: float) -> Tensor:
    """Maps [..., H, W] blurred by a Gaussian whose standard deviation is this fraction of their shorter side."""
    sigma = fraction * min(maps.shape[-2:])
    if sigma == 0 or not maps.numel():
        return maps
    return tensors.gaussian_blur(maps.reshape(-1, 1, *maps.shape[-2:]), sigma).view(maps.shape)


def _seeds(maps: Tensor, background: float, probable: float, foreground: float) -> Tensor:
    """The seed of each pixel by its saliency, uint8 [..., H, W]; a constant map gives background everywhere.

    If two quantiles coincide because of equal values, pixels above them are object.
    """
    seeds = torch.full(maps.shape, PROBABLY_BACKGROUND, dtype=torch.uint8)
    if not maps.numel():
        return seeds
    # torch.quantile takes at most 16 million values; the nearest existing value works as well
    ordered = maps.flatten(-2).sort(-1).values
    low, middle, high = (
        ordered[..., round(quantile * (ordered.shape[-1] - 1)), None, None]
        for quantile in (background, probable, foreground)
    )
    seeds[maps >= middle] = PROBABLY_OBJECT
    seeds[maps >= high] = OBJECT
    seeds[maps <= low] = BACKGROUND
    return seeds


def _grab_cut(cv2: Any, photograph: Any, seeds: Any, iterations: int, largest: bool) -> Any:
    """The mask of one photograph: uint8 [H, W, 3] (blue, green, red) and its seeds, uint8 [H, W]."""
    marks = seeds.copy()
    if not (marks == OBJECT).any():
        return np.zeros(marks.shape, bool)
    cv2.setRNGSeed(_SEED)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    if iterations:
        cv2.grabCut(photograph, marks, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    else:
        known = (seeds == OBJECT) | (seeds == BACKGROUND)
        # colour models are fitted to a picture of the seeds alone, one line high
        line, line_marks = photograph[known][None].copy(), marks[known][None].copy()
        cv2.grabCut(line, line_marks, None, *models, 1, cv2.GC_INIT_WITH_MASK)
        cv2.grabCut(photograph, marks, None, *models, 1, cv2.GC_EVAL_FREEZE_MODEL)
    mask = (marks == OBJECT) | (marks == PROBABLY_OBJECT)
    if largest:
        _, parts, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        mask = parts == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()
    return mask


def _boxes(mask: Tensor) -> Tensor:
    """The bounding boxes, int64 [..., 4], of masks [..., H, W]; zeros for an empty mask."""
    boxes = []
    for lines in (mask.any(-1), mask.any(-2)):
        numbers = torch.arange(lines.shape[-1])
        last = torch.where(lines, numbers + 1, 0).amax(-1)
        first = torch.where(lines, numbers, lines.shape[-1]).amin(-1).minimum(last)
        boxes += [first, last]
    top, bottom, left, right = boxes
    return torch.stack([top, left, bottom, right], dim=-1)
