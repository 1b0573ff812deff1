"""The local engine: one process uses the device, and worker processes decode ahead of it."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from fastviz.jobs.engines.decoding import Decoder
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs import Item
from fastviz.jobs.job import Job

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = Generator[pa.RecordBatch, None, None]

__all__ = ["batches_of", "cores", "run"]

_MIN_FOR_WORKERS = 256
"""Number of inputs below which no workers are started, because starting them takes a second."""


def run(job: Job, explainer: Explainer, shards: Iterator[list[Item]], expected: int | None) -> Rows:
    """Finished rows of all inputs in ``shards``; ``expected`` is about how many there are."""
    workers = _workers(job, explainer.device, expected)
    with _threads(workers):
        decoder = Decoder(explainer.seen, explainer.shown, workers)
        ahead = decoder(batches_of(shards, explainer.batch_size))
        while True:
            began = time.perf_counter()
            decoded = next(ahead, None)
            explainer.waited += time.perf_counter() - began
            if decoded is None:
                return
            yield from explainer.rows(decoded)


def batches_of(shards: Iterator[list[Item]], batch_size: int) -> Iterator[list[Item]]:
    """Group the inputs into batches that start at multiples of ``batch_size``, whichever inputs are already done.

    A resumed run therefore computes the same batches, and the same bits, as an uninterrupted one.
    """
    for shard in shards:
        for _, batch in groupby(shard, key=lambda item: item.position // batch_size):
            yield list(batch)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(job: Job, device: torch.device, expected: int | None) -> int:
    """The number of decoding processes. On a CPU they take cores from the network, which needs most of them."""
    if job.source.is_python and job.workers is None:
        return 0  # a dataset may not be picklable, and a DataLoader has its own workers
    if job.workers is not None:
        return job.workers
    if expected is not None and expected < _MIN_FOR_WORKERS:
        return 0
    return cores() // 4 if device.type == "cpu" else max(1, min(16, cores() - 1))


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Let torch use as many threads as the workers leave cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, cores() - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
