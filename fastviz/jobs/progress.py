"""Progress of a job: a bar on a terminal, otherwise a line every minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["MINUTE", "duration", "progress"]

MINUTE = 60.0
"""Seconds between lines."""


@contextmanager
def progress(wanted: bool, total: int | None, done: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """Yields a function that is called with each number of finished images.

    Args:
        wanted: whether to show anything.
        total: number of all images, including those done before; None if unknown.
        done: returns how many images were found to be done before, so far.
    """
    if not wanted:
        yield lambda images: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console, total, done) as advance:
            yield advance
    else:
        yield _Lines(total, done)


@contextmanager
def _bar(console: object, total: int | None, done: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    from rich import progress as rich

    columns = (
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("images"),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(elapsed_when_finished=False),
    )
    began = time.monotonic()
    with rich.Progress(*columns, console=console, transient=True) as shown:  # type: ignore[arg-type]
        task = shown.add_task("", total=total, rate="")
        made = 0

        def advance(images: int) -> None:
            nonlocal made
            made += images
            rate = made / max(1e-6, time.monotonic() - began)
            shown.update(task, completed=made + done(), rate=f"{rate:.1f} per second")

        yield advance


class _Lines:
    """A line on standard error every minute."""

    def __init__(self, total: int | None, done: Callable[[], int]) -> None:
        self._total, self._done = total, done
        self._began = self._last = time.monotonic()
        self._made = 0

    def __call__(self, images: int) -> None:
        self._made += images
        now = time.monotonic()
        if now - self._last < MINUTE:
            return
        self._last = now
        at = self._made + self._done()
        rate = self._made / max(1e-6, now - self._began)
        words = f"fastviz: {at} images, {rate:.1f} per second"
        if self._total is not None and rate > 0:
            left = duration((self._total - at) / rate)
            words = f"fastviz: {at} of {self._total} images, {rate:.1f} per second, {left} left"
        print(words, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time as text.

    >>> duration(75), duration(8000), duration(300_000)
    ('1 min 15 s', '2 h 13 min', '3 d 11 h')
    """
    whole = max(0, round(seconds))
    for unit, name, smaller, other in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {other}"
    return f"{whole} s"
