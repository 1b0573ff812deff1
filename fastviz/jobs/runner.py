"""Many photographs × many methods: read ahead, explained in batches, written behind, resumable."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from fastviz import models
from fastviz._util import checks
from fastviz._util.device import choose_device
from fastviz._util.output_folder import printable
from fastviz._util.progress import bar
from fastviz.execution.hooks import layer_module
from fastviz.images.streams import ahead
from fastviz.jobs.arguments import choose_methods, find_photos, method_options
from fastviz.jobs.explainer import Explainer, Loaded
from fastviz.jobs.folder import JobFolder
from fastviz.jobs.results import Photo, Result, Settings

__all__ = ["Interrupted", "Summary", "explain"]

# A name that the file system cannot store fails its own photograph, not the job.
_BAD_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

_BATCH = 8

_READERS, _WRITERS = 4, 2


@dataclass
class Summary:
    """What a job did: counts of photographs, failures as (file, reason), seconds spent by method and in all."""

    done: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a job; ``summary`` says what was done until then."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


def explain(
    photos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    model: nn.Module | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Maps of every photograph by every method, as files in the folder ``out``; the summary of what was done.

    A few batches are in memory at a time, however many photographs there are. Results that ``out`` already holds (same
    settings, same photograph by its content) are kept and not computed again; those of photographs that are gone are
    removed. When the call is interrupted, every photograph that has its lines in ``results.jsonl`` has all its files,
    complete; what was damaged since is made again.

    Args:
        photos: files, folders and globs, see :func:`fastviz.images.find_images`.
        out: the folder to write, made if need be: see :mod:`fastviz.jobs.folder` for what is in it.
        settings: model, methods and target.
        model: the network to use instead of loading ``settings.model``; it stays on its device.
        device: where a loaded network runs: ``"auto"`` (a GPU if torch can use one), ``"cpu"``, ``"cuda"``, …
        batch_size: photographs in a forward pass, and for methods that run many passes a photograph (occlusion) passes
            at once; None is 8 photographs and each method's default.
        limit: explain only the first so many photographs; None for all.
        overwrite: replace what ``out`` holds instead of going on.
        progress: show a bar on a terminal.

    Returns:
        How many photographs were done and skipped, the failures, and the seconds spent.

    Raises:
        TypeError, ValueError: bad settings, an unknown name, no photographs, an ``out`` with other results, or into
            which another run is writing. Nothing has been written then.
        Interrupted: Ctrl-C, a KeyboardInterrupt with the summary.
        OSError: ``out`` cannot be written. A photograph that cannot be read is a failure in the summary instead.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (64, 64)).save(folder / "black.png")
    >>> explain([folder / "black.png"], folder / "out", Settings("demo", methods=("saliency",))).done
    1
    """
    start = time.perf_counter()
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    if limit is not None:
        checks.whole_number(limit, "limit", minimum=1)
    methods = choose_methods(settings.methods)
    settings = replace(settings, methods=tuple(method.name for method in methods))
    options = method_options(methods, settings, batch_size)
    place = choose_device(device)
    folder = JobFolder(Path(out), settings, overwrite=overwrite)
    found = find_photos(photos, Path(out))[:limit]
    if model is None:
        model = models.load_model(settings.model, settings.weights).to(place)
    if settings.layer is not None:
        layer_module(model, settings.layer)
    explainer = Explainer(model, methods, options, settings.target)

    summary = Summary(seconds={method.name: 0.0 for method in methods})
    try:
        with folder.locked():
            todo, summary.skipped = folder.start(found)
            done = summary.skipped * len(methods)
            with bar(progress, len(found) * len(methods), done=done, unit="maps") as explainer.advance:
                _run(explainer, folder, todo, batch_size or _BATCH, summary)
    except KeyboardInterrupt:
        raise Interrupted(summary) from None
    finally:
        summary.total_seconds = time.perf_counter() - start
    return summary


def _run(explainer: Explainer, folder: JobFolder, todo: Sequence[Photo], batch_size: int, summary: Summary) -> None:
    """Explain ``todo``: threads read ahead of the network, and others write behind it."""
    readers, writers = ThreadPoolExecutor(_READERS), ThreadPoolExecutor(_WRITERS)
    pending: deque[tuple[Photo, Future[list[Result]]]] = deque()

    def store(keep: int) -> None:
        while len(pending) > keep:
            photo, written = pending.popleft()
            try:
                results = written.result()
            except OSError as error:
                if error.errno not in _BAD_NAMES:
                    raise
                summary.failures.append((photo.name, str(error)))  # its steps on the bar are done
                continue
            folder.append(results)
            summary.done += 1
            for result in results:
                summary.seconds[result.method] += result.seconds

    def fail(photo: Photo, reason: str) -> None:
        summary.failures.append((photo.name, reason))
        explainer.advance(len(explainer.methods), printable(photo.name))

    try:
        for batch in _batches(ahead(readers, explainer.load, todo, 2 * batch_size), batch_size, fail):
            for explained in explainer.explain(batch):
                if isinstance(explained, tuple):
                    fail(*explained)
                    continue
                folder.prepare()
                pending.append((explained.photo, writers.submit(explainer.write, folder.out, explained)))
                store(batch_size)
        store(0)
    except BaseException:
        with suppress(OSError):  # what is finished is kept, as far as it can be written
            store(0)
        raise
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _batches(
    loaded: Iterable[Loaded | tuple[Photo, str]], size: int, fail: Callable[[Photo, str], None]
) -> Iterator[list[Loaded]]:
    """Batches of up to ``size`` photographs of one shape; those that could not be read go to ``fail``."""
    batch: list[Loaded] = []
    for each in loaded:
        if isinstance(each, tuple):
            fail(*each)
            continue
        if batch and (len(batch) == size or each.x.shape != batch[0].x.shape):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
