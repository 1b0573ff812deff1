"""Runs a job: an engine processes the remaining inputs, and a thread writes the tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fastviz._util import checks
from fastviz.jobs import engines, places
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.job import Job, read_yaml
from fastviz.jobs.progress import progress as shown_progress
from fastviz.jobs.resume import Pending
from fastviz.jobs.tables import folder
from fastviz.jobs.tables.done import Done
from fastviz.jobs.tables.schema import need_pyarrow
from fastviz.jobs.tables.vanished import drop_vanished
from fastviz.jobs.tables.writer import Writer

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Interrupted", "Summary", "TooManyFailures", "as_job", "run"]

_NAMED = 1000
"""Number of failures that a summary names; the tables have all of them."""


@dataclass
class Summary:
    """The result of a run of a job.

    Attributes:
        done: number of images explained.
        skipped: number of images that were done before.
        failed: number of images that failed now, or failed before and were not tried again.
        failures: (id, reason) of the first thousand images that failed now.
        removed: number of images whose rows were removed because their files are gone.
        doubled: the first thousand ids that were given more than once; each was done once.
        seconds: method → seconds, summed over the images.
        total_seconds: duration of the whole call.
        waited: seconds that the device waited for inputs.

    >>> Summary(done=3, failures=[("a.jpg", "it is not an image")], failed=1).failures[0]
    ('a.jpg', 'it is not an image')
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    removed: int = 0
    doubled: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    waited: float = 0.0

    @property
    def utilisation(self) -> float:
        """The fraction of the time in which the device was busy, 0 to 1."""
        return 1 - self.waited / self.total_seconds if self.total_seconds else 0.0


class Interrupted(KeyboardInterrupt):
    """Raised for Ctrl-C during a job; ``summary`` says what was done until then.

    >>> try:
    ...     raise Interrupted(Summary(done=2))
    ... except KeyboardInterrupt as stopped:
    ...     stopped.summary.done
    2
    """

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


class TooManyFailures(RuntimeError):  # noqa: N818 - the name is clear without it
    """Raised when more images failed than allowed; ``summary`` says what was done until then."""

    def __init__(self, summary: Summary, allowed: int) -> None:
        name, reason = summary.failures[-1]
        super().__init__(f"stopped: more than {allowed} images failed, the last one {name}: {reason}")
        self.summary = summary


def as_job(inputs: Any, out: str | os.PathLike[str] | None = None, **options: Any) -> Job:
    """The job that the arguments of :func:`run` describe."""
    if isinstance(inputs, Job):
        if out is not None or options:
            raise TypeError("inputs is a Job, so no other arguments of a job may be given")
        return inputs
    if isinstance(inputs, (str, os.PathLike)) and os.path.splitext(inputs)[1].lower() in (".yaml", ".yml"):
        options = read_yaml(inputs) | options
        inputs = options.pop("inputs", None)
        out = options.pop("out", None) if out is None else out
        if inputs is None:
            raise ValueError("inputs should be in the job file, got none")
    if out is None:
        raise ValueError("out should be a folder for the results, got None")
    return Job(inputs, out, **options)


def run(
    inputs: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    retry_failed: bool = True,
    max_failures: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> Summary:
    """Compute every method's map of every input, and write them as Parquet tables into the folder ``out``.

    Only a few batches are in memory at a time, however many inputs there are. Called again with the same arguments, the
    job resumes, whatever stopped it: each part of the tables is written atomically, and at most the last minute is
    computed again. An input is done if its rows exist and its content has not changed; rows of inputs whose files are
    gone are removed. Failed inputs get a row with the reason and are tried again in the next run.

    Args:
        inputs: see :class:`fastviz.jobs.Job`; or a Job; or the path of a YAML file with the arguments of a Job.
        out: the output folder, created if needed, for ``job.json``, ``part-00000.parquet`` …, ``stats.json``.
        retry_failed: try inputs again that failed in an earlier run.
        max_failures: stop when more images than this have failed; None never stops.
        overwrite: replace the contents of ``out`` instead of resuming.
        progress: show a progress bar on a terminal, otherwise a line every minute on standard error.
        options: the other fields of :class:`fastviz.jobs.Job`, by name.

    Returns:
        How many images were done, skipped and failed, and the seconds spent.

    Raises:
        ImportError: pyarrow is not installed.
        TypeError, ValueError: an argument is bad, a name is unknown, there are no inputs, ``out`` holds results with
            other settings (the message lists them), or another run is writing into it. Nothing is written in these
            cases.
        TooManyFailures: see ``max_failures``.
        Interrupted: Ctrl-C was pressed; a KeyboardInterrupt with the summary. Finished results are kept.
        OSError: ``out`` cannot be written. An input that cannot be read does not raise but gets a row with the reason.

    >>> import tempfile
    >>> summary = run(torch.zeros(2, 3, 64, 64), tempfile.mkdtemp(), methods="saliency")
    >>> summary.done, summary.failed
    (2, 0)
    """
    began = time.perf_counter()
    need_pyarrow()
    job = as_job(inputs, out, **options)
    if max_failures is not None:
        checks.whole_number(max_failures, "max_failures", minimum=0)
    home = job.home
    # These fail before the model is loaded, which takes time.
    folder.check(home, {}, overwrite=True)
    job.source.count()
    engines.engine(job.engine)
    explainer = Explainer(job)
    settings = job.settings(explainer.weights, explainer.seen, explainer.target)
    folder.check(home, settings, overwrite=overwrite)

    summary = Summary(seconds=dict.fromkeys(job.options, 0.0))
    try:
        with places.locked(home) as check:
            if folder.check(home, settings, overwrite=overwrite):  # again: another run may have ended meanwhile
                folder.clear(home)
            pending = Pending(job.source, Done.read(home), retry_failed)
            try:
                # Closing writes everything before the lock is released, however this ends.
                with closing(_work(job, explainer, pending, settings, progress, check)) as batches:
                    for batch in batches:
                        _count(batch, summary)
                        if max_failures is not None and summary.failed > max_failures:
                            raise TooManyFailures(summary, max_failures)
                summary.removed = drop_vanished(pending.done, job.source.paths()) if job.limit is None else 0
            finally:
                summary.skipped, summary.doubled = pending.skipped - pending.failed, pending.doubled
                summary.failed += pending.failed
                summary.waited, summary.total_seconds = explainer.waited, time.perf_counter() - began
                if (home / folder.JOB).exists():
                    folder.write_json(home / folder.STATS, _stats(summary, explainer))
    except KeyboardInterrupt:
        raise Interrupted(summary) from None
    return summary


def _work(
    job: Job,
    explainer: Explainer,
    pending: Pending,
    settings: dict[str, Any],
    progress: bool,
    check: Callable[[], None],
) -> Generator[pa.RecordBatch, None, None]:
    """The finished rows of all pending inputs; each batch is passed to the writer before it is yielded."""
    home = job.home
    expected = job.source.count()
    left = None if expected is None else expected - pending.done.names.total
    engine = engines.engine(job.engine)
    shards = _described(pending.shards(explainer.batch_size), home, job, settings)
    with (
        shown_progress(progress, expected, lambda: pending.skipped) as advance,
        Writer(home, explainer.schema, replaces=pending.replaces, check=check) as writer,
        closing(engine(job, explainer, shards, left)) as batches,  # its processes end with it
    ):
        for batch in batches:
            writer.write(batch)
            advance(len(set(batch.column("id").to_pylist())))
            yield batch


def _described(shards: Iterator[Any], home: places.Place, job: Job, settings: dict[str, Any]) -> Iterator[Any]:
    """``shards``. The job's description is written with the first shard, so that a start that fails leaves no file."""
    for shard in shards:
        if not (home / folder.JOB).exists():
            folder.write_json(home / folder.JOB, _description(job, settings))
        yield shard


def _description(job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    import numpy
    import PIL
    import pyarrow

    import fastviz

    inputs = job.source
    given = [os.fspath(one) for one in inputs.paths()] or type(job.inputs).__name__
    return {
        "fastviz_job": folder.SCHEMA_VERSION,
        "settings": settings,
        "parameters": {name: job.parameters(name) for name in job.options},
        "inputs": given,
        "weights": job.weights,
        "versions": {
            "fastviz": fastviz.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
            "pyarrow": pyarrow.__version__,
        },
    }


def _count(batch: pa.RecordBatch, summary: Summary) -> None:
    """Add finished rows to the summary."""
    ids = batch.column("id").to_pylist()
    reasons: dict[str, str] = {}
    columns = (batch.column(name).to_pylist() for name in ("method", "status", "error", "seconds"))
    for name, method, status, error, seconds in zip(ids, *columns, strict=True):
        if status != "ok":
            reasons.setdefault(name, error if method is None else f"{method}: {error}")
        if seconds is not None:
            summary.seconds[method] += seconds
    images = len(set(ids))
    summary.done += images - len(reasons)
    summary.failed += len(reasons)
    summary.failures += list(reasons.items())[: max(0, _NAMED - len(summary.failures))]


def _stats(summary: Summary, explainer: Explainer) -> dict[str, Any]:
    """The content of ``stats.json``, about the last run."""
    values = asdict(summary)
    values.pop("failures")
    rate = (summary.done + summary.failed) / summary.total_seconds if summary.total_seconds else 0.0
    return values | {
        "doubled": len(summary.doubled),
        "images_per_second": round(rate, 3),
        "utilisation": round(summary.utilisation, 4),
        "device": str(explainer.device),
        "threads": torch.get_num_threads(),
        "batch_size": explainer.batch_size,
    }
