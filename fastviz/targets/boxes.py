"""The score of a box: what makes a detection network see what it sees there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.targets.indices import Activations, Index, checked_index, index_for_samples, sample_count
from fastviz.targets.objectives import Objective
from fastviz.targets.outputs import detections

__all__ = ["box_score"]


class _Box(Objective):
    def __init__(self, box: Tensor, k: Index | None, overlap: float) -> None:
        self.box, self.k, self.overlap = box, k, overlap

    @property
    def samples(self) -> int | None:
        return len(self.box) if self.box.dim() == 2 else sample_count(self.k)

    def values(self, output: object, activations: Activations) -> Tensor:
        found = []
        for each, index in self._chosen(output):
            # Zero times the scores keeps the graph where there is no such box.
            found.append(each["scores"].sum() * 0.0 if index is None else each["scores"][index])
        return torch.stack(found) if found else self.box.new_zeros(0)

    def missing(self, output: object) -> tuple[Tensor, str] | None:
        gone = torch.tensor([index is None for _, index in self._chosen(output)], dtype=torch.bool)
        kind = "box" if self.k is None else "box of that class"
        return gone, f"no {kind} overlaps the given one by {self.overlap:g} or more"

    def _chosen(self, output: object) -> list[tuple[Mapping[str, Tensor], int | None]]:
        """The detections in each image, and the number of the box that overlaps most."""
        try:
            from torchvision.ops import box_iou  # costs time to import
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'box_score needs torchvision: pip install "fastviz[vision]"', name=error.name
            ) from error

        images = detections(output)
        count = self.samples
        if count is not None and count != len(images):
            raise ValueError(f"box and k should be one per sample, {len(images)}, got {count}")
        chosen = []
        for number, each in enumerate(images):
            boxes = each["boxes"].detach()
            box = self._beside(self.box, boxes).to(boxes.dtype)
            shares = box_iou((box if box.dim() == 1 else box[number])[None], boxes)[0]
            if self.k is not None:
                if "labels" not in each:
                    raise TypeError('model should return "labels" for a box of a class, got boxes without')
                k = self.k if isinstance(self.k, int) else int(self.k[number])
                shares = shares.masked_fill(each["labels"] != k, -1.0)
            best = int(shares.argmax()) if len(shares) else None
            chosen.append((each, best if best is not None and float(shares[best]) >= self.overlap else None))
        return chosen

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        box = self.box
        if box.dim() == 2:
            if len(box) != of:
                raise ValueError(f"box should be [4], or one per sample, {of}, got {list(box.shape)}")
            box = box[samples.to(box.device)]
        k = None if self.k is None else index_for_samples(self.k, "k", samples, of, "class")
        return _Box(box, k, self.overlap)


def box_score(box: Tensor, k: Index | None = None, *, overlap: float = 0.5) -> Objective:
    """The score of the box that overlaps most with a given one, in what a detection network returns.

    Overlap is intersection over union; if several boxes overlap equally, the first counts. The box is chosen again for
    each input; the gradient is that of its score, with the choice held fixed.

    Args:
        box: left, top, right and bottom in pixels, [4] or [N, 4], one per sample: torchvision's order.
        k: only boxes of this class (``"labels"``): an int, a tensor of ints [N], or None for any.
        overlap: the least overlap, above 0 and up to 1, for a box to be the one that is meant.

    Returns:
        An objective with one value per sample, [N]: 0 where there is no such box. Methods warn if that happens for an
        unchanged image, whose map is then zero. A network that returns only boxes above a score gives 0 below it.

    Raises:
        TypeError: ``box`` is no tensor of numbers, ``k`` not whole.
        ValueError: another shape, a box without area, an ``overlap`` out of range.

    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 8.0, 8.0]])
    >>> box_score(torch.tensor([2, 2, 7, 8])).values([{"boxes": boxes, "scores": torch.tensor([0.9, 0.4])}], {})
    tensor([0.4000])
    """
    checks.tensor(box, "box", dims=(1, 2), layout="[4] or [N, 4]", floating=False)
    if box.shape[-1] != 4 or box.is_complex() or box.dtype == torch.bool:
        raise ValueError(
            f"box should hold left, top, right and bottom, [4] or [N, 4], got {list(box.shape)} {box.dtype}"
        )
    places = box.detach().to(torch.promote_types(box.dtype, torch.float32))
    if not bool((places[..., 2:] > places[..., :2]).all()) or not bool(torch.isfinite(places).all()):
        raise ValueError(f"box should have right above left and bottom above top, got {box.tolist()}")
    checks.number(overlap, "overlap", low=0, high=1)
    if not overlap:
        raise ValueError("overlap should be above 0, got 0")
    return _Box(places, checked_index(k, "k"), float(overlap))
