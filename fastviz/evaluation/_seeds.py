"""Seeds per image, so that random numbers do not depend on an image's batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastviz._util import checks

__all__ = ["Seed", "generator", "seeds_of"]

Seed = int | Sequence[int]
"""One number, to which i is added for image i of the batch, or a number for each image."""


def seeds_of(seed: Seed, count: int) -> list[int]:
    """The seed of each of ``count`` images.

    Raises:
        TypeError, ValueError: not whole numbers of 0 or more; a wrong number of them.
    """
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise ValueError(f"seed should be one number, or one for each of {count} images, got {len(seed)}")
        return [checks.whole_number(each, "seed", minimum=0) for each in seed]
    first = checks.whole_number(seed, "seed", minimum=0)
    return [first + number for number in range(count)]


def generator(seed: int, part: int = 0) -> torch.Generator:
    """A separate generator for each ``part`` of an image's random numbers; part 0 uses the seed itself."""
    # on the CPU, so that all devices get the same numbers
    return torch.Generator().manual_seed(seed + 1_000_003 * part)
