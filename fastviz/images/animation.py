"""Animations: GIF files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor

from fastviz._util import checks
from fastviz._util.files import whole_file
from fastviz.images import tensors
from fastviz.images.pillow import picture_of

__all__ = ["save_gif"]


def save_gif(frames: Iterable[Tensor], path: str | os.PathLike[str], *, seconds: float = 0.08) -> None:
    """Write pictures as a looping GIF, each with its own best 256 colours.

    Frames are consumed one at a time, so a generator can make or read them on the fly. The file appears, or replaces an
    older one, only when it is complete.

    Args:
        frames: pictures [3, H, W] in 0 to 1, all of one size.
        path: ends in .gif; the folder exists.
        seconds: how long each is shown. GIF counts in hundredths, and most programs ignore anything below two.

    Raises:
        TypeError: a frame is not a floating-point tensor.
        ValueError: no frames, another shape or size, values outside 0 to 1, another ending, less than 0.02 seconds.
        OSError: the file cannot be written; names it.

    >>> import pathlib, tempfile, torch
    >>> path = pathlib.Path(tempfile.mkdtemp(), "grey.gif")
    >>> save_gif((torch.full((3, 8, 8), level / 4) for level in range(5)), path)
    >>> Image.open(path).n_frames
    5
    """
    file = Path(os.path.expanduser(path))
    if file.suffix.lower() != ".gif":
        raise ValueError(f"path should end in .gif, got {str(file)!r}")
    if checks.positive(seconds, "seconds") < 0.02:
        raise ValueError(f"seconds should be at least 0.02, got {seconds}")
    drawn = _drawn(frames)
    first = next(drawn, None)
    if first is None:
        raise ValueError("frames should hold at least one picture, got none")
    with whole_file(file) as stream:
        first.save(stream, "GIF", save_all=True, append_images=drawn, duration=round(100 * seconds) * 10, loop=0)


def _drawn(frames: Iterable[Tensor]) -> Iterator[Image.Image]:
    """The frames with 256 colours each."""
    size = None
    for frame in frames:
        checks.tensor(frame, "frames", dims=(3,), layout="[3, H, W] each")
        if frame.shape[0] != 3 or frame.shape != (size or frame.shape):
            wanted = "[3, H, W] each" if size is None else f"one size, {list(size)}"
            raise ValueError(f"frames should have shape {wanted}, got {list(frame.shape)}")
        size = frame.shape
        tensors.check_range(frame, "frames")
        picture = picture_of(tensors.eight_bits(frame))
        # An octree keeps the colours of small objects, which Pillow's default median cut turns grey.
        palette = picture.quantize(256, Image.Quantize.FASTOCTREE)
        yield picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
