"""Means over noisy copies of images, in batches, so that memory does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.execution.precision import as_map

__all__ = ["deviations", "generator", "moments", "noisy_copies"]


def generator(seed: int) -> torch.Generator:
    """A new random generator, on the CPU, so that a seed gives the same numbers on every device.

    Raises:
        TypeError, ValueError: ``seed`` is not a whole number of 0 or more.
    """
    return torch.Generator().manual_seed(checks.whole_number(seed, "seed", minimum=0))


def deviations(images: Tensor, noise: object) -> Tensor:
    """Standard deviation of the noise for each of the ``images``, [N, 1, …]: a fraction of its range of values.

    Raises:
        TypeError, ValueError: ``noise`` is not a number of 0 or more.
    """
    if noise != 0:
        checks.positive(noise, "noise")
    assert isinstance(noise, (int, float))
    if not len(images):
        return images.new_zeros(0, *[1] * (images.dim() - 1))
    values = tuple(range(1, images.dim()))
    return noise * (images.amax(values, keepdim=True) - images.amin(values, keepdim=True))


def noisy_copies(
    images: Tensor, deviation: Tensor, samples: int, random: torch.Generator, at_once: int
) -> Iterator[Tensor]:
    """Yields ``samples`` noisy copies of the ``images`` [N, ...] in batches [k, N, ...] of about ``at_once`` images.

    The noise of a sample does not depend on ``at_once``.
    """
    copies = max(1, at_once // max(1, len(images)))
    for first in range(0, samples, copies):
        count = min(copies, samples - first)
        drawn = [torch.empty_like(images, device="cpu").normal_(generator=random) for _ in range(count)]
        yield torch.stack([images + deviation * each.to(images.device) for each in drawn])


def moments(
    explain: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    deviation: Tensor,
    samples: int,
    random: torch.Generator,
    at_once: int,
    advance: Callable[[int], object] = lambda copies: None,
) -> tuple[Tensor, Tensor]:
    """The mean and the mean square of ``explain`` over noisy copies of the ``images``.

    Args:
        explain: maps noisy images [B, ...] and the indices of their originals, int64 [B], to [B, ...].
        images: [N, ...].
        deviation: [N, 1, ...], standard deviation of the noise for each image.
        samples: copies per image.
        random: the generator of the noise.
        at_once: images in a batch.
        advance: called with the number of finished copies.

    Returns:
        Two tensors [N, ...], in at least float32, because sums in 16 bits would lose small numbers.
    """
    N = len(images)
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    with torch.inference_mode(False), torch.no_grad():
        for copies in noisy_copies(images, deviation, samples, random, at_once):
            found = explain(copies.flatten(0, 1), torch.arange(N).repeat(len(copies)))
            wide = as_map(found).unflatten(0, (len(copies), N))
            for each in wide:
                total, squares = total + each, squares + each * each
            advance(len(copies) * N)
    assert isinstance(total, Tensor)
    assert isinstance(squares, Tensor)
    return total / samples, squares / samples
