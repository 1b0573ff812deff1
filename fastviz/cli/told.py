"""The options ``--mean``, ``--std``, ``--size`` and ``--labels`` of every command that takes a network."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

__all__ = ["tells_of_the_network"]

Command = TypeVar("Command", bound=Callable[..., None])

_OPTIONS: dict[str, Any] = {
    "mean": Annotated[
        str | None,
        typer.Option(help="The mean that is subtracted: one number per channel, separated by commas, 0 to 1."),
    ],
    "std": Annotated[str | None, typer.Option(help="What it is divided by, in the same form.")],
    "size": Annotated[str | None, typer.Option(help="Height and width of the input in pixels: 224, or 160x224.")],
    "labels": Annotated[Path | None, typer.Option(help="The names of the classes: a file with one per line, or JSON.")],
}


def tells_of_the_network(command: Command) -> Command:
    """Add these options to ``command``, except those that it has itself. Its networks are loaded accordingly. A
    decorator that goes below ``app.command()``.
    """
    signature = inspect.signature(command, eval_str=True)
    added = {name: kind for name, kind in _OPTIONS.items() if name not in signature.parameters}

    @functools.wraps(command)
    def told(**arguments: Any) -> None:
        from fastviz.models import cards

        given = {name: arguments.pop(name) for name in added}
        with cards.telling(_card(**given)):
            command(**arguments)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in added.items()
    ]
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
    told.__signature__ = signature.replace(parameters=[*keywords, *more])  # type: ignore[attr-defined]
    told.__annotations__ = {each.name: each.annotation for each in [*keywords, *more]}
    return told  # type: ignore[return-value]


def _card(mean: str | None = None, std: str | None = None, size: str | None = None, labels: Path | None = None) -> Any:
    from fastviz.models import cards

    return cards.Card(
        _floats(mean, "--mean"),
        _floats(std, "--std"),
        None if size is None else _size(size),
        labels=None if labels is None else cards.read_labels(labels.expanduser()),
    )


def _floats(words: str | None, argument: str) -> tuple[float, ...] | None:
    if words is None:
        return None
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError:
        raise ValueError(f"{argument} should be numbers separated by commas, got {words!r}") from None


def _size(words: str) -> tuple[int, int]:
    parts = words.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--size should be such as 224 or 160x224 (height x width), got {words!r}")
    return int(parts[0]), int(parts[-1])
