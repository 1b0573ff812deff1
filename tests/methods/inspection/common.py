"""The best places of channels by a full sort, to compare patches with."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from fastviz.methods import Patches

Place = tuple[float, ...]
"""A value, its image, and its position along each axis."""


def by_sorting(maps: Tensor, k: int, *, one_per_image: bool) -> list[list[Place]]:
    """Each channel's k best places in ``maps`` [N, C, ...]: all of them sorted, equal ones by image and position."""
    found = []
    for channel in range(maps.shape[1]):
        every: list[Place] = []
        for image, each in enumerate(maps[:, channel]):
            positions = product(*map(range, each.shape))
            places = [(value, image, *at) for value, at in zip(each.flatten().tolist(), positions, strict=True)]
            places.sort(key=lambda place: (-place[0], *place[1:]))
            every += places[:1] if one_per_image else places
        found.append(sorted(every, key=lambda place: (-place[0], *place[1:]))[:k])
    return found


def as_places(values: Tensor, places: Tensor) -> list[list[Place]]:
    return [
        [(value, *place) for value, place in zip(*each, strict=True) if place[0] >= 0]
        for each in zip(values.tolist(), places.tolist(), strict=True)
    ]


def found_places(found: Patches) -> list[list[Place]]:
    return as_places(found.values, torch.cat([found.images[..., None], found.positions], dim=2))
