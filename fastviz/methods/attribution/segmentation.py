"""The object that a network sees, cut out of its photograph: GrabCut, told by saliency where to begin."""

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
"""OpenCV begins to fit its colour models at random."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(notebook.NotebookResult):
    """Objects cut out of photographs: what :func:`segment` returns.

    With T targets per sample there is a dimension T after N in all of them.

    Attributes:
        mask: bool [N, H, W], whether a pixel belongs to the object; false everywhere where nothing was found.
        boxes: int64 [N, 4], top, left, bottom, right (half-open, in pixels) of the mask; zeros where it is empty.
        seeds: uint8 [N, H, W], what saliency said of each pixel before colours were looked at: 0 background, 1 object,
            2 probably background, 3 probably object.
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
    """Which pixels belong to the object that speaks for the target: a mask and a box for each image.

    Simonyan, Vedaldi, Zisserman 2014, "Deep Inside Convolutional Networks", section 3.2,
    https://arxiv.org/abs/1312.6034: pixels of high saliency are the object, those of low saliency the background, and
    GraphCut finds a border between them along the edges of the photograph that leaves on each side what has the colours
    of its seeds. The cut is OpenCV's GrabCut: Rother, Kolmogorov, Blake 2004, which learns the colours again from its
    own result in every iteration.

    Where we depart from the paper, because it cuts more objects right: saliency is that of guided backprop, smoothed;
    pixels above a third quantile count as object until their colours say otherwise; the seeds stay what they are; and
    the colours are learned more than once. The paper's own settings are ``saliency="saliency"``, ``smoothing=0`` and
    ``iterations=0``.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        target: what to explain; None is the predicted class of each sample. See :data:`fastviz.Target`.
        images: [N, 3, h, w] in 0 to 1, what ``x`` shows, at any size; masks have this size. None computes them from
            ``x`` with :func:`fastviz.models.preprocessing` of the model.
        saliency: ``"guided_backprop"`` (the largest absolute value over the channels), ``"saliency"``, or your own
            [N, H, W] or [N, T, H, W], 0 or more; the model is not run then.
        foreground: the object is what has a saliency at or above this quantile of the image.
        background: the background is what has one at or below this quantile.
        probable: of the rest, what is at or above this quantile is probably object.
        smoothing: standard deviation of the Gaussian that smooths the saliency, as a fraction of its shorter side; 0
            does not smooth.
        iterations: of GrabCut, after each of which the colours are learned again. With 0 they are learned from the
            seeds alone, and there is one cut, as in the paper.
        largest: whether only the largest connected part (of 8 neighbours) is kept, as in the paper.
        batch_size, precision: as in :func:`fastviz.input_gradient`.

    Returns:
        A :class:`Segmentation`, on the device of ``x``. Where the saliency is the same everywhere nothing is found. In
        a photograph of one colour there are no edges to follow: the object is what is nearer to its seeds.

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
    shown = _shown(model, x, images)
    smooth = _smoothed(tensors.resize_maps(maps.float(), *shown.shape[-2:]), smoothing)
    seeds = _seeds(smooth, background, probable, foreground)
    photographs = [
        np.ascontiguousarray(each) for each in (shown.flip(1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    ]
    columns = seeds.shape[1] if seeds.dim() == 4 else 1
    marks = seeds.view(-1, *seeds.shape[-2:]).numpy()

    def cut(number: int) -> Any:
        return _cut(cv2, photographs[number // columns], marks[number], iterations, largest)

    # OpenCV's random numbers belong to its threads: in threads of ours, those of the caller stay as they were.
    with ThreadPoolExecutor(max(1, min(len(marks), torch.get_num_threads()))) as pool:
        masks = [torch.from_numpy(each) for each in pool.map(cut, range(len(marks)))]
    mask = torch.stack(masks).view(seeds.shape) if masks else seeds.bool()
    return Segmentation(mask.to(x.device), _boxes(mask).to(x.device), seeds.to(x.device), smooth.to(x.device))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("segment needs OpenCV: pip install opencv-python-headless") from error
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
            raise ValueError(f"saliency should have {len(x)} maps, one an image, got {len(kind)}")
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


def _shown(model: nn.Module, x: Tensor, images: Tensor | None) -> Tensor:
    """What the photographs show, [N, 3, h, w] in 0 to 1, on the CPU."""
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
    """Maps [..., H, W] under a Gaussian whose standard deviation is this fraction of their shorter side."""
    sigma = fraction * min(maps.shape[-2:])
    if sigma == 0 or not maps.numel():
        return maps
    return tensors.gaussian_blur(maps.reshape(-1, 1, *maps.shape[-2:]), sigma).view(maps.shape)


def _seeds(maps: Tensor, background: float, probable: float, foreground: float) -> Tensor:
    """What saliency says of each pixel, uint8 [..., H, W]; a map without differences says background everywhere.

    Where so many values are equal that two quantiles are the same, what is above them is the object.
    """
    seeds = torch.full(maps.shape, PROBABLY_BACKGROUND, dtype=torch.uint8)
    if not maps.numel():
        return seeds
    # torch.quantile takes no more than 16 million values; the nearest value that is there does as well
    ordered = maps.flatten(-2).sort(-1).values
    low, middle, high = (
        ordered[..., round(quantile * (ordered.shape[-1] - 1)), None, None]
        for quantile in (background, probable, foreground)
    )
    seeds[maps >= middle] = PROBABLY_OBJECT
    seeds[maps >= high] = OBJECT
    seeds[maps <= low] = BACKGROUND
    return seeds


def _cut(cv2: Any, photograph: Any, seeds: Any, iterations: int, largest: bool) -> Any:
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
        # colours are learned from a picture of the seeds alone, one line high
        line, line_marks = photograph[known][None].copy(), marks[known][None].copy()
        cv2.grabCut(line, line_marks, None, *models, 1, cv2.GC_INIT_WITH_MASK)
        cv2.grabCut(photograph, marks, None, *models, 1, cv2.GC_EVAL_FREEZE_MODEL)
    mask = (marks == OBJECT) | (marks == PROBABLY_OBJECT)
    if largest:
        _, parts, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        mask = parts == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()
    return mask


def _boxes(mask: Tensor) -> Tensor:
    """The smallest boxes, int64 [..., 4], that hold masks [..., H, W]; zeros for an empty one."""
    boxes = []
    for lines in (mask.any(-1), mask.any(-2)):
        numbers = torch.arange(lines.shape[-1])
        last = torch.where(lines, numbers + 1, 0).amax(-1)
        first = torch.where(lines, numbers, lines.shape[-1]).amin(-1).minimum(last)
        boxes += [first, last]
    top, bottom, left, right = boxes
    return torch.stack([top, left, bottom, right], dim=-1)
