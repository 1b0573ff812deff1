"""The bar that long calls show on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Advance", "bar"]


class Advance(Protocol):
    """Tells a bar how many more steps are done and, if given, what is being worked on."""

    def __call__(self, steps: int, text: str | None = None) -> None: ...


def _silent(steps: int, text: str | None = None) -> None:
    pass


@contextmanager
def bar(wanted: bool, total: int | None, *, done: int = 0, text: str = "", unit: str = "") -> Iterator[Advance]:
    """A function to report finished steps to; it moves a bar if one is ``wanted`` and standard error is a terminal.

    Args:
        wanted: False shows nothing anywhere.
        total: the total number of steps; None if unknown.
        done: steps that were done before.
        text: text to the left of the bar, until the function is given another.
        unit: what is counted, in words.

    >>> with bar(False, 10) as advance:
    ...     advance(3)
    """
    if not wanted:
        yield _silent
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _silent
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total, completed=done)
        yield lambda steps, text=None: progress.update(task, advance=steps, description=text)
