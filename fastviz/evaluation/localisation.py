"""Localisation measures: pointing game, energy inside the object, intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.evaluation._maps import Channels, own_maps, resized
from fastviz.images.notebook import NotebookResult

__all__ = [
    "Objects",
    "Pointing",
    "by_class",
    "energy_inside",
    "intersection_over_union",
    "object_masks",
    "pointing_game",
]

Objects = Tensor | Sequence[Tensor]
"""Positions of objects: masks, bool [N, H, W]; boxes [N, 4] of whole numbers, one per image (top, left, bottom, right
in pixels of the image, half-open); or a sequence of N tensors of boxes [n, 4], any number per image."""


@dataclass(frozen=True, eq=False, repr=False)
class Pointing(NotebookResult):
    """The result of :func:`pointing_game`.

    Attributes:
        hits: bool [N].
        counted: bool [N], whether the image has an object; images without one have no hit and are not counted.
        points: int64 [N, 2], row and column of the map's maximum, in pixels of the image.

    >>> heat = torch.zeros(1, 8, 8)
    >>> heat[0, 2, 5] = 1
    >>> pointing_game(heat, torch.tensor([[4, 4, 8, 8]]), tolerance=0).points
    tensor([[2, 5]])
    """

    hits: Tensor
    counted: Tensor
    points: Tensor

    @property
    def accuracy(self) -> float:
        """Fraction of hits among the counted images; NaN if there are none."""
        return float(self.hits[self.counted].double().mean())


def pointing_game(
    maps: Tensor,
    objects: Objects,
    *,
    size: tuple[int, int] | None = None,
    tolerance: float = 15.0,
    channels: Channels = "max_abs",
) -> Pointing:
    """Whether the maximum of each map lies on the object, or within a tolerance of it.

    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", https://arxiv.org/abs/1608.00507: a hit if a
    pixel of the object is within 15 pixels (Euclidean) of the maximum, as in their code and in TorchRay's. Of equal
    maxima, the first in row-major order is used. captum has no such measure; Quantus' ``PointingGame`` is
    ``tolerance=0``. The paper reports the mean over classes: :func:`by_class` of ``hits``.

    Args:
        maps: [N, h, w], or [N, C, h, w] (see ``channels``); resized (bilinear) to the objects' image.
        objects: see :data:`fastviz.evaluation.Objects`.
        size: height and width of the image in pixels, needed for boxes with coarse maps; None is that of the masks or
            maps.
        tolerance: in pixels of the image, 0 or more.
        channels: see :data:`fastviz.evaluation.Channels`.

    Returns:
        A :class:`Pointing`, one entry per image.

    Raises:
        TypeError, ValueError: a wrong type, shape or number; maps that are not finite; a box outside the image.

    >>> heat = torch.zeros(1, 8, 8)
    >>> heat[0, 2, 5] = 1
    >>> pointing_game(heat, torch.tensor([[4, 4, 8, 8]]), tolerance=2).hits
    tensor([True])
    """
    heat, masks = _both(maps, objects, size, channels)
    if tolerance != 0:
        checks.positive(tolerance, "tolerance")
    H, W = masks.shape[1:]
    place = heat.flatten(1).argmax(1)
    row, column = place // W, place % W
    rows, columns = torch.arange(H, device=heat.device), torch.arange(W, device=heat.device)
    squares = (rows - row[:, None])[:, :, None].square() + (columns - column[:, None])[:, None].square()
    near = squares <= tolerance**2
    return Pointing((near & masks).flatten(1).any(1), masks.flatten(1).any(1), torch.stack([row, column], 1))


def energy_inside(
    maps: Tensor,
    objects: Objects,
    *,
    size: tuple[int, int] | None = None,
    negative: Literal["drop", "absolute"] = "drop",
    channels: Channels = "max_abs",
) -> Tensor:
    """The fraction of each map that lies on the object: ``Σ inside / Σ all``, [N], from 0 to 1.

    Wang et al. 2020, "Score-CAM", https://arxiv.org/abs/1910.01279, the "energy-based pointing game". A random map
    scores the object's fraction of the image. Quantus' ``RelevanceMassAccuracy`` is the same; its ``abs`` is
    ``negative="absolute"``.

    Args:
        negative: whether values below zero are dropped or replaced by their absolute values.
        maps, objects, size, channels: as in :func:`pointing_game`.

    Returns:
        [N]; NaN if the image has no object or the map no energy.

    Raises:
        TypeError, ValueError: as :func:`pointing_game`.

    >>> energy_inside(torch.ones(1, 4, 4), torch.tensor([[0, 0, 2, 4]]))
    tensor([0.5000])
    """
    heat, masks = _both(maps, objects, size, channels)
    checks.one_of(negative, "negative", ("drop", "absolute"))
    energy = (heat.clamp(min=0) if negative == "drop" else heat.abs()).double()
    total = energy.flatten(1).sum(1)
    inside = (energy * masks).flatten(1).sum(1)
    valid = masks.flatten(1).any(1) & (total > 0)
    return torch.where(valid, inside / torch.where(total > 0, total, 1), torch.nan).to(heat.dtype)


def intersection_over_union(
    maps: Tensor,
    objects: Objects,
    *,
    size: tuple[int, int] | None = None,
    threshold: float = 0.2,
    of: Literal["maximum", "quantile", "object"] = "maximum",
    channels: Channels = "max_abs",
) -> Tensor:
    """Intersection over union of the object and the map's pixels above a threshold, [N], from 0 to 1.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", https://arxiv.org/abs/1512.04150, use
    the pixels above 20 % of the maximum (and then the box around their largest connected part, which is not done here).

    Args:
        threshold: 0 to 1, of the kind given by ``of``; not used for ``"object"``.
        of: ``"maximum"``: pixels above this fraction of the map's maximum; ``"quantile"``: pixels above this quantile
            of the map; ``"object"``: as many of the highest pixels as the object has (Quantus' ``TopKIntersection``
            with its area as k, but over the union), the first of equal ones.
        maps, objects, size, channels: as in :func:`pointing_game`.

    Returns:
        [N]; NaN if the image has no object.

    Raises:
        TypeError, ValueError: as :func:`pointing_game`; a threshold out of range.

    >>> heat = torch.zeros(1, 4, 4)
    >>> heat[0, :2] = 1
    >>> intersection_over_union(heat, torch.tensor([[0, 0, 4, 4]]))
    tensor([0.5000])
    """
    heat, masks = _both(maps, objects, size, channels)
    checks.one_of(of, "of", ("maximum", "quantile", "object"))
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold should be from 0 to 1, got {threshold}")
    flat, inside = heat.flatten(1), masks.flatten(1)
    if of == "maximum":
        chosen = flat > threshold * flat.amax(1, keepdim=True).clamp(min=0)
    elif of == "quantile":
        ordered = flat.sort(dim=1).values
        chosen = flat > ordered[:, [round(threshold * (flat.shape[1] - 1))]]
    else:
        order = flat.argsort(dim=1, descending=True, stable=True)
        places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
        chosen = torch.zeros_like(inside).scatter_(1, order, places < inside.sum(1, keepdim=True))
    union = (chosen | inside).sum(1).double()
    return torch.where(inside.any(1), (chosen & inside).sum(1) / union.clamp(min=1), torch.nan).to(heat.dtype)


def by_class(values: Tensor, classes: Tensor) -> dict[int, float]:
    """The mean of ``values`` [N] for each class in ``classes``, int64 [N]; NaN is ignored.

    Args:
        values: [N], floating-point or bool.
        classes: int64 [N], the class of each image.

    Returns:
        The mean by class, in ascending order; classes with only NaN are left out.

    Raises:
        RuntimeError: torch's, for tensors of different lengths.

    >>> by_class(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([7, 7, 2]))
    {2: 1.0, 7: 0.5}
    """
    found = {}
    for index in sorted(set(classes.tolist())):
        of_class = values[(classes == index).to(values.device)].double()
        of_class = of_class[~of_class.isnan()]
        if len(of_class):
            found[index] = float(of_class.mean())
    return found


def object_masks(objects: object, count: int, size: tuple[int, int]) -> Tensor:
    """``objects`` as masks, bool [N, H, W], for ``count`` images of this ``size``; boxes are clipped at the border.

    Raises:
        TypeError, ValueError: as :func:`pointing_game`.
    """
    if isinstance(objects, Tensor) and objects.dtype == torch.bool:
        if objects.shape != (count, *size):
            raise ValueError(f"objects should have shape {[count, *size]} as masks, got {list(objects.shape)}")
        return objects
    if isinstance(objects, Tensor):
        if objects.dim() != 2:
            raise ValueError(f"objects should be boxes [N, 4] or masks of bool [N, H, W], got {list(objects.shape)}")
        objects = [box[None] for box in objects]
    if not isinstance(objects, Sequence) or isinstance(objects, str):
        raise TypeError(f"objects should be a tensor or a sequence of them, got {type(objects).__name__}")
    if len(objects) != count:
        raise ValueError(f"objects should have one entry for each of {count} images, got {len(objects)}")
    return torch.stack([_mask(boxes, size) for boxes in objects]) if count else torch.zeros(0, *size, dtype=torch.bool)


def _mask(boxes: object, size: tuple[int, int]) -> Tensor:
    found = checks.tensor(boxes, "objects", dims=(2,), layout="[n, 4], boxes", floating=False)
    if found.shape[1] != 4:
        raise ValueError(f"objects should have 4 numbers per box, got {found.shape[1]}")
    mask = torch.zeros(size, dtype=torch.bool, device=found.device)
    for top, left, bottom, right in found.tolist():
        if not (top < bottom and left < right and bottom > 0 and right > 0 and top < size[0] and left < size[1]):
            raise ValueError(
                f"objects should be boxes (top, left, bottom, right) inside {size[0]}x{size[1]} pixels, "
                f"got {(top, left, bottom, right)}"
            )
        mask[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = True
    return mask


def _both(maps: object, objects: object, size: tuple[int, int] | None, channels: Channels) -> tuple[Tensor, Tensor]:
    """Maps [N, H, W] and masks [N, H, W] of the same size."""
    found = checks.tensor(maps, "maps", dims=(3, 4), layout="[N, h, w] or [N, C, h, w]")
    heat = own_maps(found, len(found), channels)
    if size is None:
        shape = objects.shape[1:] if isinstance(objects, Tensor) and objects.dtype == torch.bool else heat.shape[1:]
        if len(shape) != 2:
            raise ValueError(f"objects should have shape [N, H, W] as masks, got {[len(heat), *shape]}")
        size = (shape[0], shape[1])
    masks = object_masks(objects, len(heat), size).to(heat.device)
    return resized(heat, heat.new_empty(0, 1, *size)), masks
