"""Image files to a network's input, in worker processes ahead of the device."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastviz import images
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
        digest: SHA-256 of its bytes; None where they could not be read.
        x: the network's input [C, h, w]; None where ``error`` says why there is none.
        shown: the same crop to look at, uint8 [3, H, W]; None where no picture is wanted.
        label: as the item has it, or the dataset beside the image.
        error: why it cannot be explained.
    """

    item: Item
    digest: str | None = None
    x: Tensor | None = None
    shown: Tensor | None = None
    label: str | None = None
    error: str = ""


class Decoder(Dataset[Any]):
    """Decodes inputs: ``seen`` as the network takes them, ``shown`` to look at (None: not wanted)."""

    def __init__(self, seen: Preprocessing, shown: Preprocessing | None, workers: int = 0) -> None:
        self.seen, self.shown, self.workers = seen, shown, workers

    def __getitem__(self, item: Item) -> Decoded:
        """One input, read and prepared, or with the reason why it cannot be."""
        found = Decoded(item, label=item.label)
        try:
            content = item.place.read()
            if isinstance(content, bytes):
                self._decode(content, found)
            else:
                self._take(content, found)
        # What is no picture, or cannot be prepared; what Pillow and the file system raise is an OSError.
        except (ValueError, TypeError, OSError, MemoryError, LookupError) as error:
            found.x, found.error = None, " ".join(str(error).split()) or type(error).__name__
        return found

    def _decode(self, content: bytes, found: Decoded) -> None:
        found.digest = digest(content)
        views = [self.seen] if self.shown is None else [self.seen, self.shown]
        found.x, *more = images.read_views(content, views, name=found.item.uri)
        if more:
            found.shown = tensors.eight_bits(more[0])

    def _take(self, content: Any, found: Decoded) -> None:
        """An item of a dataset in Python."""
        found.x = image_of(content, f"item {found.item.id}", self.seen)
        found.digest = digest(found.x.contiguous().numpy().tobytes())
        if found.label is None:
            found.label = label_of(content)
        if self.shown is not None:
            found.shown = tensors.eight_bits(images.restore(found.x.float(), self.seen))

    def __call__(self, batches: Iterator[list[Item]]) -> Iterator[list[Decoded]]:
        """Each of the ``batches`` decoded, in order; a picture that kills its worker is one that failed."""
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
            for batch in lost:
                yield [self._alone(item) for item in batch]

    def _alone(self, item: Item) -> Decoded:
        """An input in a worker of its own, after one died."""
        with suppress(RuntimeError):
            for decoded in self._loader(iter([[item]]), 1):
                return cast(Decoded, decoded[0])
        return Decoded(item, label=item.label, error="the process that decoded it was killed")

    def _loader(self, batches: Iterator[list[Item]], workers: int) -> Iterator[Any]:
        with warnings.catch_warnings():
            # that there are more workers than cores: whoever asks for them knows
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader: DataLoader[Any] = DataLoader(
                self,
                batch_sampler=_Once(batches),
                num_workers=workers,
                collate_fn=_as_it_is,
                worker_init_fn=_one_thread,
                # connections to S3 do not bear a fork
                multiprocessing_context="spawn" if in_use() else None,
            )
            return iter(loader)


class _Once:
    """An iterator as a sampler of batches."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def _as_it_is(decoded: Sequence[Decoded]) -> Sequence[Decoded]:
    return decoded


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
