"""Means over noisy copies of images, a bounded number of copies at a time: memory does not grow with the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.execution.precision import as_map

__all__ = ["deviations", "generator", "moments", "noisy_copies"]


def generator(seed: int) -> torch.Generator:
    """A random generator of its own, on the CPU, so that a seed gives the same numbers on every device.

    Raises:
        TypeError, ValueError: ``seed`` is no whole number from 0 on.
    """
    return torch.Generator().manual_seed(checks.whole_number(seed, "seed", minimum=0))


def deviations(images: Tensor, noise: object) -> Tensor:
    """Standard deviation of the noise for each of ``images``, [N, 1, …]: a fraction of its span of values.

    Raises:
        TypeError, ValueError: ``noise`` is no number of 0 or more.
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
    """``samples`` noisy copies of the ``images`` [N, ...], [k, N, ...] at a time, with about ``at_once`` images.

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
    """The mean, and the mean square, of ``explain`` over noisy copies of the ``images``.

    Args:
        explain: gets images [B, ...] and the numbers of the images that they are copies of, int64 [B]; gives [B, ...].
        images: [N, ...].
        deviation: [N, 1, ...], of the noise of each.
        samples: copies of each.
        random: draws the noise.
        at_once: images at a time.
        advance: is called with the number of copies that are done.

    Returns:
        Two tensors [N, ...], in float32 at least: the sum of many numbers in 16 bits would lose the small ones.
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
