"""A job's number of inputs, time and table size, estimated from a few of its inputs."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

from fastviz.jobs.engines.decoding import Decoder
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs import Item
from fastviz.jobs.job import Job
from fastviz.jobs.progress import duration
from fastviz.jobs.resume import Pending
from fastviz.jobs.tables import folder
from fastviz.jobs.tables.done import Done
from fastviz.jobs.tables.schema import need_pyarrow
from fastviz.jobs.tables.writer import new_file

__all__ = ["Plan", "plan"]

_SECONDS = 20.0
"""The measurement ends after this time, or after one batch."""


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        todo: number of images to explain.
        done: number of images that are done.
        rows: rows per image in the tables.
        seconds: seconds per image.
        bytes: bytes on disk per image.
        measured: number of images that were measured.
        failed: number of these that cannot be explained.
        device: where the network runs.
        batch_size: images in a batch.
    """

    todo: int
    done: int
    rows: int
    seconds: float
    bytes: float
    measured: int
    failed: int
    device: str
    batch_size: int

    def words(self) -> dict[str, str]:
        """The plan as text: name → value."""
        words = {
            "to do": f"{self.todo} images, {self.rows} row{'s' if self.rows > 1 else ''} each",
            "done before": str(self.done),
            "device": f"{self.device}, batches of {self.batch_size} images",
        }
        if self.measured:
            total = self.bytes * self.todo
            words["time"] = f"{duration(self.seconds * self.todo)} ({1000 * self.seconds:.1f} ms per image)"
            words["size"] = f"{_size(total)} ({_size(self.bytes)} per image)"
            words["measured on"] = f"{self.measured} images" + (f", {self.failed} failed" if self.failed else "")
        return words


def plan(job: Job, *, retry_failed: bool = True) -> Plan:
    """What :func:`fastviz.jobs.run` would do now. Nothing is written.

    Args:
        job: the job.
        retry_failed: as in :func:`fastviz.jobs.run`.

    Returns:
        Counts, and time and size per image, measured in this process on the first images to do.

    Raises:
        ImportError, TypeError, ValueError, OSError: as the run would raise them.

    >>> import torch
    >>> found = plan(Job(torch.zeros(2, 3, 64, 64), "no such folder", methods="saliency"))
    >>> found.todo, found.done, found.rows
    (2, 0, 1)
    """
    need_pyarrow()
    home = job.home
    explainer = Explainer(job)
    folder.check(home, job.settings(explainer.weights, explainer.seen, explainer.target), overwrite=False)
    pending = Pending(job.source, Done.read(home, repair=False), retry_failed)
    first: list[Item] = []
    todo = 0
    for shard in pending.shards(explainer.batch_size):
        todo += len(shard)
        first += shard[: max(0, 1 + explainer.batch_size - len(first))]
    seconds, size, measured, failed = _measured(explainer, first)
    rows = len(job.options) * job.top_k
    place = (str(explainer.device), explainer.batch_size)
    return Plan(todo, pending.skipped, rows, seconds, size, measured, failed, *place)


def _measured(explainer: Explainer, items: list[Item]) -> tuple[float, float, int, int]:
    """Seconds and bytes per image, and how many images were measured and failed; the first one is a warm-up."""
    if not items:
        return 0.0, 0.0, 0, 0
    decoder = Decoder(explainer.seen, explainer.shown)
    batches: list[Any] = []
    if len(items) > 1:
        list(explainer.rows([decoder[items[0]]]))
        items = items[1:]
    began = time.perf_counter()
    for batch in explainer.rows([decoder[item] for item in items]):
        batches.append(batch)
        if time.perf_counter() - began > _SECONDS:
            break
    seconds = time.perf_counter() - began
    buffer = io.BytesIO()
    with new_file(buffer, explainer.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    images = len({name for batch in batches for name in batch.column("id").to_pylist()})
    failed = {
        name
        for batch in batches
        for name, status in zip(*(batch.column(each).to_pylist() for each in ("id", "status")), strict=True)
        if status != "ok"
    }
    return seconds / images, len(buffer.getvalue()) / images, images, len(failed)


def _size(count: float) -> str:
    """A number of bytes as text.

    >>> _size(2_500_000)
    '2.5 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
