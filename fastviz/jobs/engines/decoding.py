"""Decode image files into a network's inputs, in worker processes that run ahead of the device."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastviz import images
from fastviz._util.errors import one_line
from fastviz.images import tensors
from fastviz.images.items import image_of
from fastviz.jobs.inputs.datasets import label_of
from fastviz.jobs.inputs.items import Item, digest
from fastviz.jobs.s3 import in_use
from fastviz.models.descriptions import Preprocessing

__all__ = ["Decoded", "Decoder"]


@dataclass
class Decoded:
    """An input that was read.

    Attributes:
        item: the input.
        digest: SHA-256 of its bytes; None if they could not be read.
        x: the network's input [C, h, w]; None if decoding failed.
        shown: the same crop for people, uint8 [3, H, W]; None if no picture is wanted.
        label: the label from the item or from the dataset.
        error: why decoding failed; empty if it did not.
    """

    item: Item
    digest: str | None = None
    x: Tensor | None = None
    shown: Tensor | None = None
    label: str | None = None
    error: str = ""


class Decoder(Dataset[Any]):
    """Decodes inputs with the preprocessing of the network, ``seen``, and that of pictures for people, ``shown`` (None
    if not wanted)."""

    def __init__(self, seen: Preprocessing, shown: Preprocessing | None, workers: int = 0) -> None:
        self.seen, self.shown, self.workers = seen, shown, workers

    def __getitem__(self, item: Item) -> Decoded:
        """One input, read and prepared, or with the reason why that failed."""
        found = Decoded(item, label=item.label)
        try:
            content = item.place.read()
            if isinstance(content, bytes):
                self._decode(content, found)
            else:
                self._take(content, found)
        # Content that is not a picture or cannot be prepared; Pillow and the file system raise OSError.
        except (ValueError, TypeError, OSError, MemoryError, LookupError) as error:
            found.x, found.error = None, one_line(error)
        return found

    def _decode(self, content: bytes, found: Decoded) -> None:
        found.digest = digest(content)
        views = [self.seen] if self.shown is None else [self.seen, self.shown]
        found.x, *more = images.read_views(content, views, name=found.item.uri)
        if more:
            found.shown = tensors.eight_bits(more[0])

    def _take(self, content: Any, found: Decoded) -> None:
        """Prepare an item of a Python dataset."""
        found.x = image_of(content, f"item {found.item.id}", self.seen)
        found.digest = digest(found.x.contiguous().numpy().tobytes())
        if found.label is None:
            found.label = label_of(content)
        if self.shown is not None:
            found.shown = tensors.eight_bits(images.restore(found.x.float(), self.seen))

    def __call__(self, batches: Iterator[list[Item]]) -> Iterator[list[Decoded]]:
        """Decode the ``batches`` in order. An image that kills its worker counts as failed."""
        if not self.workers:
            for batch in batches:
                yield [self[item] for item in batch]
            return
        waiting: deque[list[Item]] = deque()

        def given() -> Iterator[list[Item]]:
            for batch in batches:
                waiting.append(batch)
                yield batch

        first = next(batches, None)
        batches = batches if first is None else chain([first], batches)
        source = given()
        while True:
            try:
                for decoded in self._loader(source, self.workers):
                    waiting.popleft()
                    yield decoded
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
            lost = list(waiting)
            waiting.clear()
            single = self._one_by_one([item for batch in lost for item in batch])
            for batch in lost:
                yield list(islice(single, len(batch)))

    def _one_by_one(self, items: Sequence[Item]) -> Iterator[Decoded]:
        """Decode ``items`` in one worker, which gets an item when the one before is back: what it dies of is known."""
        left = deque(items)
        while left:
            try:
                for (decoded,) in self._loader(iter([[item] for item in left]), 1, ahead=1):
                    left.popleft()
                    yield decoded
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                item = left.popleft()
                yield Decoded(item, label=item.label, error="the process that decoded it was killed")

    def _loader(self, batches: Iterator[list[Item]], workers: int, ahead: int | None = None) -> Iterator[Any]:
        with warnings.catch_warnings():
            # The warning that there are more workers than cores: the user asked for them.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader: DataLoader[Any] = DataLoader(
                self,
                batch_sampler=_BatchSampler(batches),
                num_workers=workers,
                prefetch_factor=ahead,
                collate_fn=_identity,
                worker_init_fn=_one_thread,
                # connections to S3 do not survive a fork
                multiprocessing_context="spawn" if in_use() else None,
            )
            return iter(loader)


class _BatchSampler:
    """An iterator as a batch sampler."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def _identity(decoded: Sequence[Decoded]) -> Sequence[Decoded]:
    return decoded


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
