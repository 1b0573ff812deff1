"""Many images as batches for a network: decoded ahead by threads, with only a few batches in memory."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fastviz import images
from fastviz._util import checks
from fastviz._util.batch_size import images_at_once
from fastviz._util.errors import one_line
from fastviz._util.progress import bar
from fastviz.images.items import INPUTS, Unbatched, image_of
from fastviz.images.paths import Paths

__all__ = ["Batch", "Source", "Stream", "ahead", "batches"]

Source = Paths | Tensor | Dataset[Any] | DataLoader[Any] | Sequence[Any]
"""Where images come from: files, folders and patterns; a dataset or DataLoader; a batch [N, C, H, W]. See
:func:`batches`."""

_READERS = 4
_END = object()

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a source.

    Attributes:
        images: [n, C, h, w], prepared for the model, on its device.
        names: one per image: the file's name as :func:`fastviz.load_images` gives it, else its position in words.
        indices: the position of each image in the source.
    """

    images: Tensor
    names: list[str]
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> Batch:
        """The images from ``start`` to before ``stop`` alone."""
        return Batch(self.images[start:stop], self.names[start:stop], self.indices[start:stop])


def batches(
    source: Source,
    *,
    model: nn.Module | None = None,
    batch_size: int | None = None,
    size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    axes: int = 2,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Stream:
    """The images of ``source`` in order, as batches for ``model``: to be used in a ``for`` loop, any number of times.

    While the network works on one batch, threads read the next: at most two batches ahead. They stop when the loop
        ends, for whatever reason. A picture that cannot be read is left out and noted in ``failures`` of what is
        returned.

    Args:
        source: files, folders and patterns (see :func:`fastviz.images.find_images`); a dataset, by index or by
            iteration, or a list; a DataLoader; or a tensor or NumPy array of images. Items are an image, a tuple or
            list that begins with one, or a dictionary that has one under ``"image"``, ``"pixel_values"``, ``"img"``,
            ``"images"``, ``"x"``, ``"input"`` or ``"inputs"``; a DataLoader's batches are the same of [N, ...].
            Pictures are prepared for the model as files are: Pillow's, and what is uint8, tensors [3 or 1, H, W] and
            NumPy arrays [H, W, 3 or 1], [H, W] or [3 or 1, H, W] (the last dimension counts first). What is
            floating-point, tensors and arrays [C, H, W], is taken as it is, as the network's input.
        model: prepares the pictures as :func:`fastviz.models.preprocessing` says; the images come in the dtype of its
            parameters and on their device. None: resized to 256 and cropped to 224x224, values 0 to 1.
        batch_size: images in a batch, None is 32; the last may have fewer, and so has one before an image of another
            size (only floating-point items, and models without a fixed size, can have several).
        size: as in :func:`fastviz.load_images`; not for floating-point images.
        limit: only the first images of the source, this many, readable or not; None for all.
        axes: of an image: 2. 1 is for signals [C, L] and 3 for volumes [C, D, H, W], which are taken as they are, from
            a tensor [N, ...], a dataset, a DataLoader or a list of floating-point tensors or arrays.
        device: where the images go; None is the model's, without a model the CPU.
        progress: show a bar on a terminal.

    A dataset is read by one thread, since it may not support several; a folder by four. A DataLoader uses its own
    workers and its own order, so one that shuffles gives another order each time.

    Returns:
        An iterable of :class:`Batch`, whose images are [n, C, h, w].

    Raises:
        TypeError: a ``source`` of another kind, or an item that is no image (while it is read; says which and what it
            is).
        ValueError: no images, other shapes.

    >>> [batch.names for batch in batches(torch.zeros(3, 3, 8, 8), batch_size=2)]
    [['0', '1'], ['2']]
    """
    return Stream(source, model, batch_size, size, limit, device, progress, axes)


class Stream:
    """What :func:`batches` returns: an iterable of :class:`Batch`, from the beginning in every loop.

    Attributes:
        preprocessing: how pictures are prepared; :func:`fastviz.images.restore` with it gives the picture back.
        files: the paths of the images, None where the source is not files.
        names: the name of every image of the source, None for a dataset without a length.
        failures: name and reason of the images that the last loop could not read, so far.
        device: where the images go.
        dtype: their dtype; None leaves it as the source has it.
        axes: of an image: 2; of signals 1, of volumes 3.
    """

    def __init__(
        self,
        source: Source,
        model: nn.Module | None,
        batch_size: int | None,
        size: int | tuple[int, int] | None,
        limit: int | None,
        device: torch.device | str | None,
        progress: bool,
        axes: int = 2,
    ) -> None:
        if axes not in INPUTS:
            raise ValueError(f"axes should be 1 (signals), 2 (images) or 3 (volumes), got {axes!r}")
        self.axes = axes
        self.preprocessing = images.settings_for(model if model is None else checks.module(model), size)
        self.failures: list[tuple[str, str]] = []
        self.files: list[Path] | None = None
        self.names: list[str] | None = None
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None) if model is not None else None
        self.dtype = None if parameter is None else parameter.dtype
        place = device or ("cpu" if parameter is None else parameter.device)
        self.device = checks.device(place, "model" if device is None else "device")
        self._batch_size = images_at_once(batch_size)
        self._limit = None if limit is None else checks.whole_number(limit, "limit", minimum=1)
        self._progress = progress
        self._items: Any = None
        self._order: Sequence[int] | None = None  # None: all
        kind, layout = INPUTS[axes]
        if axes == 2 and type(source).__module__ == "numpy" and hasattr(source, "shape") and len(source.shape) != 4:
            raise ValueError(f"source should have shape [N, H, W, 3] or [N, C, H, W], got {list(source.shape)}")
        if isinstance(source, Tensor):
            checks.device(source.device, "source")
            if source.dtype != torch.uint8 or axes != 2:
                checks.image_batch(source, "source", axes=(axes,))
                if 0 in source.shape[1:]:
                    raise ValueError(f"source should have a channel and a pixel, got shape {list(source.shape)}")
            elif source.dim() != 4 or source.shape[1] not in (1, 3):
                raise ValueError(f"source of uint8 should have shape [N, 3 or 1, H, W], got {list(source.shape)}")
            self._set_items(source[:limit], len(source))
        elif _are_paths(source) and axes != 2:
            raise TypeError(f"source should be a tensor, dataset or list of {kind} {layout}, got paths of files")
        elif _are_paths(source):
            files, names = images.find_named(source)  # type: ignore[arg-type]
            self.files, self.names = files[:limit], names[:limit]
        elif isinstance(source, DataLoader):
            self._items = Unbatched(source, axes)
        elif isinstance(source, IterableDataset):
            self._items = source
        elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, Mapping):
            self._set_items(source, len(source))  # type: ignore[arg-type]
        else:
            raise TypeError(
                "source should be paths, a tensor [N, C, H, W], a list of images, a torch Dataset or DataLoader, "
                f"got {type(source).__name__}"
            )

    def _set_items(self, items: Any, length: int) -> None:
        if not length:
            raise ValueError("source should hold at least one image, got none")
        self._items = items
        self.names = [str(index) for index in range(length)[: self._limit]]

    def __iter__(self) -> Iterator[Batch]:
        self.failures = failures = []
        order = self._positions()
        total = self._limit if order is None else len(order)
        pool = ThreadPoolExecutor(_READERS if self.files is not None else 1, thread_name_prefix="fastviz-read")
        try:
            with bar(self._progress, total, unit="images") as advance:
                waiting: list[tuple[int, Tensor]] = []
                for index, read in zip(count() if order is None else order, self._read(pool, order), strict=False):
                    if isinstance(read, str):
                        failures.append((self._name(index), read))
                        advance(1)
                        continue
                    if waiting and (len(waiting) == self._batch_size or waiting[0][1].shape != read.shape):
                        yield self._batch(waiting)
                        advance(len(waiting))
                        waiting = []
                    waiting.append((index, read))
                if waiting:
                    yield self._batch(waiting)
                    advance(len(waiting))
        finally:
            pool.shutdown(cancel_futures=True)

    def only(self, indices: Sequence[int]) -> Stream:
        """The images at these positions alone, with the positions and names that they have here."""
        if self.names is None:
            raise ValueError("source should be files, a tensor or a dataset with a length, to be read in part")
        part = copy.copy(self)
        part._order = list(indices)
        return part

    def image(self, which: int | str) -> Tensor:
        """One image by its position or name, as it is in the batches: [C, h, w].

        Raises:
            ValueError: it does not exist, or cannot be read (again): a dataset that only iterates.
        """
        if self.names is None:
            raise ValueError("source should be files, a tensor or a dataset with a length: others are read only once")
        if isinstance(which, str):
            which = self.names.index(checks.nearest(which, "image", self.names))
        if not 0 <= which < len(self.names):
            raise ValueError(f"image should be a position from 0 to {len(self.names) - 1}, got {which}")
        read = self._load(which)
        if isinstance(read, str):
            raise images.ImageError(read)
        image: Tensor = read.to(self.device, self.dtype)
        return image

    def picture(self, which: int | str) -> Tensor:
        """The same image for display: [3, h, w], float32 on the CPU in 0 to 1."""
        return images.restore(self.image(which).float().cpu(), self.preprocessing)

    def pictures(self, batch: Batch) -> Tensor:
        """The images of ``batch`` for display: [n, 3, h, w], float32, on the device, in 0 to 1."""
        return images.restore(batch.images.float(), self.preprocessing)

    # ------------------------------------------------------------------------------------------------- reading

    def _positions(self) -> Sequence[int] | None:
        """The positions to read; None for a dataset that only iterates."""
        return self._order if self._order is not None or self.names is None else range(len(self.names))

    def _read(self, pool: ThreadPoolExecutor, order: Sequence[int] | None) -> Iterator[Tensor | str]:
        """Each image, or why it cannot be read, in order."""
        if order is not None:
            yield from ahead(pool, self._load, order, 2 * self._batch_size)
            return
        iterator = iter(self._items)
        asked = count() if self._limit is None else range(self._limit)
        for read in ahead(pool, lambda at: self._next(iterator, at), asked, 2 * self._batch_size):
            if read is _END:
                break
            yield read

    def _load(self, index: int) -> Any:
        """The image at ``index`` as the network takes it, or why it cannot be read."""
        if self.files is None:
            return self._try(lambda: image_of(self._items[index], f"item {index}", self.preprocessing, self.axes))
        file = self.files[index]
        return self._try(lambda: images.read_prepared(file, self.preprocessing))

    def _next(self, iterator: Iterator[Any], index: int) -> Any:
        """The next image of a dataset that iterates, why it cannot be read, or ``_END``."""

        def get() -> Any:
            item = next(iterator, _END)
            return item if item is _END else image_of(item, f"item {index}", self.preprocessing, self.axes)

        return self._try(get)

    def _try(self, get: Callable[[], Any]) -> Any:
        """The result of ``get``, or the reason why the picture itself cannot be read."""
        try:
            return get()
        # Pillow raises an OSError for files that are not pictures.
        except (images.ImageError, OSError) as error:
            return one_line(error)

    def _name(self, index: int) -> str:
        return str(index) if self.names is None else self.names[index]

    def _batch(self, read: Sequence[tuple[int, Tensor]]) -> Batch:
        indices = [index for index, _ in read]
        stacked = torch.stack([image for _, image in read]).to(self.device, self.dtype)
        return Batch(stacked, [self._name(index) for index in indices], indices)


def ahead(
    pool: ThreadPoolExecutor, load: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """``load`` of each item, in their order, with at most ``depth`` done by ``pool`` before they are asked for."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(load, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _are_paths(source: object) -> bool:
    """Whether ``source`` is a path or several; a generator can only yield paths."""
    if isinstance(source, (str, os.PathLike)):
        return True
    if isinstance(source, (list, tuple)):
        return bool(source) and isinstance(source[0], (str, os.PathLike))
    return False
