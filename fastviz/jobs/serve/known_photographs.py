"""The panel's own photographs: to choose from, and to search for the patches that activate a channel most."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from fastviz import images
from fastviz.images import tensors
from fastviz.images.pillow import encoded
from fastviz.jobs.inputs.items import FilePlace
from fastviz.jobs.serve.live_report import LiveReport
from fastviz.jobs.serve.uploads import LIMIT_PIXELS
from fastviz.models.descriptions import Preprocessing

__all__ = ["KnownPhotographs", "small"]

_SHOWN = 300


class KnownPhotographs(Dataset[Tensor]):
    """A dataset of photographs, which are read on access.

    Args:
        files: name → file; if empty, the images of the job are used.
        live: the report of the job.
        most: the maximum number of images from a job.
    """

    def __init__(self, files: dict[str, Path], live: LiveReport | None = None, most: int = 60) -> None:
        self._files, self._live, self._most = files, live, most
        self._check: Callable[[], None] = lambda: None
        self.refresh()

    def refresh(self) -> None:
        """Add the images that a running job has finished since."""
        self._lines = {} if self._files or self._live is None else self._live.some(self._most)
        self.names = list(self._files or self._lines)

    def checked(self, check: Callable[[], None]) -> KnownPhotographs:
        """The same photographs; ``check`` is called before each is read and can raise to stop."""
        found = copy.copy(self)
        found._check = check
        return found

    def content(self, number: int) -> tuple[str, bytes]:
        """Name and bytes of a photograph's file.

        Raises:
            LookupError: there is no photograph with this number.
            ImageError: it cannot be read.
        """
        if not 0 <= number < len(self.names):
            raise LookupError("There is no such photograph.")
        name = self.names[number]
        if self._live is not None and not self._files:
            return self._live.photograph(self._lines[name])
        return name, FilePlace(str(self._files[name])).read()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Tensor:
        """A photograph as uint8 [3, H, W], which :func:`fastviz.batches` preprocesses like a file."""
        self._check()
        name, content = self.content(number)
        return tensors.eight_bits(_read(content, name, None, None))


def small(name: str, content: bytes, square: int | None = None) -> bytes:
    """A picture file as a small JPEG: whole, or its central square with ``square`` pixels a side."""
    picture = _read(content, name, None if square is None else (square, square), square or _SHOWN)
    return encoded(images.picture_of(tensors.eight_bits(picture)), "JPEG", quality=85)


def _read(content: bytes, name: str, size: tuple[int, int] | None, resize: int | None) -> Tensor:
    """A picture [3, H, W] in 0 to 1."""
    view = Preprocessing(size, resize, (0.0,) * 3, (1.0,) * 3)
    return images.read_views(content, [view], limit_pixels=LIMIT_PIXELS, name=name)[0]
