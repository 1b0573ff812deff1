"""Textures grown pixel by pixel from a sample, and holes in pictures filled in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastviz import ops
from fastviz._util import checks
from fastviz._util.progress import bar

__all__ = ["fill_hole", "synthesize_texture"]

_START_SIDE = 3
"""Side of the initial patch of the sample, in pixels."""
_BOUND_FACTOR = 1.1
"""The factor for the error bound after a round without a good enough pixel."""
_MAX_DISTANCES = 1 << 22
"""The maximum number of distances in memory."""
_LARGEST = 1e15
"""Squares of larger values do not fit float32."""


def synthesize_texture(
    sample: Tensor,
    size: int | Sequence[int],
    *,
    window: int = 11,
    epsilon: float = 0.1,
    max_error: float = 0.3,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """A picture [C, height, width] that looks like a larger or smaller piece of the texture in ``sample``.

    Efros, Leung 1999, "Texture Synthesis by Non-parametric Sampling", https://doi.org/10.1109/ICCV.1999.790383. A
    random 3×3 patch of the sample is placed in the middle and grows pixel by pixel. For a pixel p, with ω(p) the window
    of pixels around it and G a Gaussian of standard deviation window / 6.4,

        d(ω(p), v) = Σ_known G · (ω(p) − v)² / Σ_known G, over all windows v that lie in the sample,

    summed over the channels (:func:`fastviz.ops.patch_search`); p becomes the middle pixel of a window chosen uniformly
    from those with d ≤ (1 + epsilon) · min d. Pixels are filled in rounds: a round covers the pixels that touch a known
    pixel (at a side or a corner), those with the most known pixels among their eight neighbours first, in random order
    among equals. A pixel whose chosen window has a large error, d / C ≥ ``max_error``, waits for the next round; a
    round that fills no pixel raises the bound by a tenth. Windows beyond the border of the picture have fewer known
    pixels.

    Pixels of a round outside each other's windows are searched for together, and on the CPU the search drops windows
    early that cannot be chosen; the result is the same as that of consecutive full searches. It only depends on
    ``seed``; but another device may round distances differently, and a different choice for one pixel changes
    everything that grows from it.

    It works best if the sample is all texture, with details smaller than the window. As the paper shows, it can get
    stuck in one part of the sample and repeat it, or copy the sample verbatim; another seed or window size may help.

    Args:
        sample: [C, H, W], floating-point, C ≥ 1; ``max_error`` assumes values from 0 to 1.
        size: height and width in pixels, or one number for both.
        window: side of the windows, odd, from 3 to the shorter side of the sample. It should cover the largest regular
            structure of the texture: a smaller window loses it, a larger one copies the sample.
        epsilon: how much worse than the best a window may be, 0 or more. 0 copies the sample, large values give noise.
        max_error: see above; above 0.
        seed: for the random numbers.
        progress: show a progress bar on a terminal.

    Returns:
        [C, height, width], pixels of the sample, on its device. A sample of one colour gives that colour.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a sample that is not [C, H, W], is smaller than the window, or has NaN or values above 1e15; an even
            window; a number out of range.

    >>> stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 16, 16)
    >>> synthesize_texture(stripes, (4, 6), window=5)[0, 0].diff().abs()
    tensor([1., 1., 1., 1., 1.])
    """
    options = _options(sample, "sample", window, epsilon, max_error, seed)
    height, width = _size(size)
    C, H, W = sample.shape
    generator = torch.Generator().manual_seed(seed)
    picture = sample.new_zeros(C, height, width)
    known = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = min(_START_SIDE, height), min(_START_SIDE, width)
    top, left = (int(torch.randint(limit, (), generator=generator)) for limit in (H - rows + 1, W - columns + 1))
    y, x = (height - rows) // 2, (width - columns) // 2
    picture[:, y : y + rows, x : x + columns] = sample[:, top : top + rows, left : left + columns]
    known[y : y + rows, x : x + columns] = True
    return _grown(picture, known, _Source(sample, None, options), generator, progress)


def fill_hole(
    image: Tensor,
    hole: Tensor,
    *,
    window: int = 11,
    epsilon: float = 0.1,
    max_error: float = 0.3,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """``image`` with a hole filled in from the rest: [C, H, W].

    Grows the texture as :func:`synthesize_texture` does (Efros, Leung 1999, https://doi.org/10.1109/ICCV.1999.790383),
    from the border of the hole inwards. The sample is the picture itself: all its windows without a pixel of the hole.

    Args:
        image: [C, H, W], floating-point; values 0 to 1. The values in the hole are ignored.
        hole: [H, W], bool: the pixels to fill, one or several pieces of any shape.
        window, epsilon, max_error, seed, progress: see :func:`synthesize_texture`.

    Returns:
        [C, H, W], ``image`` with its own pixels outside the hole, in its dtype and on its device.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: as :func:`synthesize_texture`; a hole of another size, without a pixel, or so large that it touches
            every window.

    >>> image = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 16, 16)
    >>> hole = torch.zeros(16, 16, dtype=torch.bool)
    >>> hole[3:6, 4:7] = True
    >>> bool((fill_hole(image.masked_fill(hole, 0.5), hole, window=5) == image).all())
    True
    """
    checks.device(checks.tensor(hole, "hole", dims=(2,), layout="[H, W]", floating=False).device, "hole")
    if hole.dtype != torch.bool:
        raise TypeError(f"hole should be a tensor of bool, got {hole.dtype}")
    checks.tensor(image, "image", dims=(3,), layout="[C, H, W]")
    if hole.shape != image.shape[1:]:
        raise ValueError(f"hole should have the shape {list(image.shape[1:])} of image, got {list(hole.shape)}")
    if not hole.any():
        raise ValueError("hole should mark at least one pixel, got none")
    clean = image.masked_fill(hole.to(image.device), 0)
    options = _options(clean, "image", window, epsilon, max_error, seed)
    usable = F.max_pool2d(hole.float()[None], window, stride=1)[0] == 0
    if not usable.any():
        raise ValueError(f"hole should leave at least one window of {window}x{window} pixels free, got none")
    generator = torch.Generator().manual_seed(seed)
    return _grown(clean, ~hole.cpu(), _Source(clean, usable, options), generator, progress)


# -------------------------------------------------------------------------------------------------------- growth


@dataclass(frozen=True)
class _Options:
    window: int
    epsilon: float
    max_error: float


class _Source:
    """The sample for the search: its windows, which of them may be used, and their middle pixels."""

    def __init__(self, sample: Tensor, usable: Tensor | None, options: _Options) -> None:
        window, reach = options.window, options.window // 2
        # Results are values of the sample, which a wider dtype does not change.
        self.sample = sample.detach().to(torch.promote_types(sample.dtype, torch.float32)).contiguous()
        self.usable = None if usable is None else usable.to(sample.device)
        self.middles = self.sample[:, reach : sample.shape[1] - reach, reach : sample.shape[2] - reach].flatten(1)
        self.options = options
        place = torch.arange(window, dtype=torch.float64) - reach
        bell = torch.exp(-place.square() / (2 * (window / 6.4) ** 2))
        self.weights = torch.outer(bell, bell).to(self.sample)

    def choose(self, neighbourhoods: Tensor, known: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        """Middle pixels [C, B] of windows similar to the neighbourhoods [B, C, w, w], and their mean errors [B].

        Of the k windows that are good enough, in row-major order, number ⌊k · chance⌋ is chosen.
        """
        distances = ops.patch_search(self.sample, neighbourhoods, known, self.weights).flatten(1)
        if self.usable is not None:
            distances.masked_fill_(~self.usable.flatten(), torch.inf)
        best = distances.amin(1, keepdim=True)
        number = (distances <= best * (1 + self.options.epsilon)).cumsum(1, dtype=torch.int32)
        count = number[:, -1:]
        wanted = (chances[:, None] * count).int().clamp(max=count - 1) + 1
        chosen = torch.searchsorted(number, wanted)
        return self.middles[:, chosen[:, 0]], distances.gather(1, chosen)[:, 0] / len(self.middles)


class _Canvas:
    """A growing picture, padded with pixels that are never known, so that every pixel has a full window."""

    def __init__(self, picture: Tensor, known: Tensor, window: int) -> None:
        self.size, self.reach = known.shape, window // 2
        self.stride = known.shape[1] + 2 * self.reach
        self.values = F.pad(picture, (self.reach,) * 4).flatten(1)
        self.filled = F.pad(known, (self.reach,) * 4).flatten().to(picture.device)
        self.sources = torch.full(self.filled.shape, -1)
        side = torch.arange(window, device=picture.device) - self.reach
        self.around = (side[:, None] * self.stride + side).flatten()

    def places(self, pixels: Tensor) -> Tensor:
        """The flat indices in ``values`` and ``filled`` of the ``pixels`` [n, 2], row and column."""
        return ((pixels[:, 0] + self.reach) * self.stride + pixels[:, 1] + self.reach).to(self.values.device)

    def picture(self) -> Tensor:
        return self._inner(self.values).contiguous()

    def known(self) -> Tensor:
        """A copy of which pixels are filled, [H, W] on the CPU."""
        return self._inner(self.filled[None])[0].to("cpu", copy=True)

    def planes(self, flat: Tensor) -> Tensor:
        """``flat`` [n, H · W] as [n, H, W], including the padding."""
        return flat.view(len(flat), -1, self.stride)

    def _inner(self, flat: Tensor) -> Tensor:
        height, width = self.size
        rows = self.planes(flat)
        return rows[:, self.reach : self.reach + height, self.reach : self.reach + width]


def _grown(picture: Tensor, known: Tensor, source: _Source, generator: torch.Generator, progress: bool) -> Tensor:
    """``picture`` with all pixels filled; ``known`` [H, W], on the CPU, marks the given ones."""
    canvas = _Canvas(picture.detach().to(source.sample), known, source.options.window)
    fill = _fill_in_batches if picture.is_cuda else _fill_in_turn
    limit = source.options.max_error
    number = int(known.sum())
    with bar(progress, known.numel(), done=number, text="texture", unit="pixels") as advance:
        while number < known.numel():
            pixels = _round(known, generator)
            chances = torch.rand(len(pixels), generator=generator, dtype=torch.float64).to(picture.device)
            fill(canvas, pixels, chances, source, limit)
            known = canvas.known()
            before, number = number, int(known.sum())
            advance(number - before)
            if number == before:
                limit *= _BOUND_FACTOR
    return canvas.picture().to(picture.dtype)


def _fill_in_turn(canvas: _Canvas, pixels: Tensor, chances: Tensor, source: _Source, limit: float) -> None:
    """Fill the ``pixels`` [n, 2] whose error is below ``limit``, one after the other; on the CPU."""
    filled, sources = (canvas.planes(flat[None])[0] for flat in (canvas.filled, canvas.sources))
    ops.grow_texture(
        (canvas.planes(canvas.values), filled, sources),
        canvas.places(pixels),
        chances,
        source.sample,
        source.usable,
        source.weights,
        source.options.epsilon,
        limit,
    )


def _fill_in_batches(canvas: _Canvas, pixels: Tensor, chances: Tensor, source: _Source, limit: float) -> None:
    """The same on any device, in batches of pixels outside each other's windows."""
    places = canvas.places(pixels)
    together = max(1, _MAX_DISTANCES // source.middles.shape[1])
    for batch in _independent(pixels, canvas.size, canvas.reach):
        for part in batch.to(places.device).split(together):
            here = places[part]
            windows = here[:, None] + canvas.around
            values = canvas.values.index_select(1, windows.flatten()).view(-1, len(here), *source.weights.shape)
            known = canvas.filled[windows].view(-1, *source.weights.shape)
            found, error = source.choose(values.movedim(0, 1), known, chances[part])
            good = error < limit
            canvas.values[:, here] = torch.where(good, found, canvas.values[:, here])
            canvas.filled[here] = good


def _round(known: Tensor, generator: torch.Generator) -> Tensor:
    """The unknown pixels [n, 2] that touch known ones, in the order in which they are filled."""
    neighbours = F.conv2d(known.float()[None, None], torch.ones(1, 1, 3, 3), padding=1)[0, 0]
    pixels = ((neighbours > 0) & ~known).nonzero()
    pixels = pixels[torch.randperm(len(pixels), generator=generator)]
    order = neighbours[pixels[:, 0], pixels[:, 1]].argsort(descending=True, stable=True)
    return pixels[order]


def _independent(pixels: Tensor, size: Sequence[int], reach: int) -> Iterator[Tensor]:
    """Batches of indices of the ``pixels`` [n, 2]; a pixel comes after all earlier ones in its window."""
    number = torch.arange(len(pixels))
    grid = torch.full((size[0] + 2 * reach, size[1] + 2 * reach), len(pixels))
    grid[pixels[:, 0] + reach, pixels[:, 1] + reach] = number
    side = torch.arange(2 * reach + 1)
    rows = pixels[:, 0, None, None] + side[:, None]
    near = grid[rows, pixels[:, 1, None, None] + side].flatten(1)  # [n, window²], n for none
    # Entries without an earlier pixel point to one that never waits; columns that no pixel needs are dropped.
    near = torch.where(near < number[:, None], near, len(pixels))
    near = near.topk(int((near < len(pixels)).sum(1).max()), dim=1, largest=False, sorted=False).values
    waits = torch.ones(len(pixels) + 1, dtype=torch.bool)
    waits[-1] = False
    while len(number):
        blocked = waits[near].any(1)
        ready = number[~blocked]
        waits[ready] = False
        number, near = number[blocked], near[blocked]
        yield ready


# ----------------------------------------------------------------------------------------------------- arguments


def _options(image: Tensor, argument: str, window: int, epsilon: float, max_error: float, seed: int) -> _Options:
    checks.tensor(image, argument, dims=(3,), layout="[C, H, W]")
    checks.device(image.device, argument)
    checks.whole_number(window, "window", minimum=3)
    checks.whole_number(seed, "seed", minimum=0)
    if window % 2 == 0:
        raise ValueError(f"window should be odd, so that it has a middle pixel, got {window}")
    if min(image.shape[1:]) < window or image.shape[0] == 0:
        raise ValueError(
            f"{argument} should have a channel and at least {window}x{window} pixels, as the window has, "
            f"got shape {list(image.shape)}"
        )
    if not image.isfinite().all():
        raise ValueError(f"{argument} should be finite, got NaN or infinity")
    if image.abs().max() > _LARGEST:
        raise ValueError(f"{argument} should have values of at most {_LARGEST:g}, got {float(image.abs().max()):g}")
    return _Options(window, checks.number(epsilon, "epsilon", low=0), checks.positive(max_error, "max_error"))


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two, each at least 1."""
    pair = size if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"size should be one number or (height, width), got {len(pair)} numbers")
    return checks.whole_number(pair[0], "size", minimum=1), checks.whole_number(pair[1], "size", minimum=1)
