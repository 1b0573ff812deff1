"""What a small file beside the weights, or options, say about a network: how to prepare images, and the classes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fastviz._util import checks
from fastviz.models.descriptions import class_names, describe, preprocessing
from fastviz.models.preparation import Preprocessing

__all__ = ["Card", "apply", "beside", "read", "read_labels", "telling"]


@dataclass(frozen=True)
class Card:
    """What a file or options say about a network; for None, what is otherwise known of it applies.

    Attributes:
        mean: one number per channel, in units of a picture with values 0 to 1; subtracted.
        std: one number per channel; divided by.
        size: height and width of the input in pixels.
        resize: length in pixels to which the shorter side is resized before the centre crop of ``size``. None: the
            longer side of ``size``, if that is given.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        labels: the names of the classes, index = class.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    labels: tuple[str, ...] | None = None

    def over(self, other: Card) -> Card:
        """This card, completed by the ``other``."""
        told = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        if "size" in told and "resize" not in told:
            told["resize"] = None  # the other's belongs to the other's size
        return replace(other, **told)


_KEYS = tuple(each.name for each in fields(Card))

_told: ContextVar[Card | None] = ContextVar("told", default=None)


@contextmanager
def telling(card: Card) -> Iterator[None]:
    """Within the ``with`` block, :func:`fastviz.load_model` describes what it loads by ``card``: for options of a
    command."""
    token = _told.set(card)
    try:
        yield
    finally:
        _told.reset(token)


def apply(model: nn.Module, weights: str | os.PathLike[str] | None) -> None:
    """Describe ``model`` by the file beside its ``weights`` and by the current options, which take precedence.

    Raises:
        ValueError: they contradict each other, or do not fit the network.
    """
    card = (_told.get() or Card()).over(Card() if weights is None else beside(weights))
    if card == Card():
        return
    known = preprocessing(model)
    if card.mean is not None or card.std is not None or card.size or card.resize or card.interpolation:
        size = card.size or known.size
        resize = card.resize or (known.resize if card.size is None else max(card.size))
        mean, std = _as_many(card.mean or known.mean, card.std or known.std)
        known = Preprocessing(size, resize, mean, std, card.interpolation or known.interpolation)
        describe(model, preprocessing=known)
    if card.labels is not None:
        describe(model, class_names=card.labels)
        _check_labels(model, known)


def _as_many(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both with the same length: a single number holds for all channels."""
    channels = max(len(mean), len(std))
    return mean * channels if len(mean) == 1 else mean, std * channels if len(std) == 1 else std


def _check_labels(model: nn.Module, settings: Preprocessing) -> None:
    """A pass over a black image shows the number of classes; a network that cannot be run raises its own error
    later."""
    black = torch.zeros(1, len(settings.mean), *(settings.size or (224, 224)))
    black = black.to(next((each for each in model.parameters() if each.is_floating_point()), black))
    try:
        with torch.no_grad():
            scores = model(black)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return
    names = class_names(model)
    if isinstance(scores, torch.Tensor) and scores.dim() == 2 and scores.shape[1] != len(names):
        raise ValueError(f"labels should have one name for each of the {scores.shape[1]} classes, got {len(names)}")


def beside(weights: str | os.PathLike[str]) -> Card:
    """The card in the file beside a file of ``weights``: ``NAME.toml`` or ``NAME.json`` for ``NAME.safetensors``.

    A file with none of a card's keys belongs to another program and is ignored.

    Raises:
        ValueError: it cannot be read, or mixes a card's keys with unknown ones.
    """
    path = Path(os.path.expanduser(weights))
    for ending in (".toml", ".json"):
        there = path.with_suffix(ending)
        if path.is_file() and there.is_file() and there != path:
            return read(there)
    return Card()


def read(path: Path) -> Card:
    """The card in a file, TOML or JSON by its ending; an empty one where it holds none of a card's words.

    Raises:
        ValueError: it cannot be read, a word of another kind, or one that no card has.
    """
    found = _table(path)
    if not isinstance(found, Mapping) or not set(found) & set(_KEYS):
        return Card()
    for key in found:
        checks.nearest(key, f"{path}: the word", _KEYS)
    try:
        return _card(found, path.parent)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _card(found: Mapping[str, Any], folder: Path) -> Card:
    labels = found.get("labels")
    if isinstance(labels, str):
        labels = read_labels(folder / Path(labels).expanduser())
    elif labels is not None:
        labels = _names(labels)
    size = found.get("size")
    if isinstance(size, int):
        size = [size, size]
    if size is not None:
        size = tuple(checks.whole_number(each, "size", minimum=1) for each in _list(size, "size"))
        if len(size) != 2:
            raise ValueError(f"size should be one number or (height, width), got {list(size)}")
    resize, interpolation = found.get("resize"), found.get("interpolation")
    if resize is not None:
        checks.whole_number(resize, "resize", minimum=1)
    if interpolation is not None:
        checks.one_of(interpolation, "interpolation", ("bilinear", "bicubic"))
    mean, std = (_numbers(found.get(key), key) for key in ("mean", "std"))
    return Card(mean, std, size, resize, interpolation, labels)


def _list(value: object, argument: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{argument} should be a list, got {value!r}")
    return list(value)


def _numbers(value: object, argument: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    values = [value] if isinstance(value, (int, float)) else _list(value, argument)
    if not values:
        raise ValueError(f"{argument} should have one number per channel, got none")
    return tuple(checks.number(each, argument) for each in values)


def read_labels(path: Path) -> tuple[str, ...]:
    """The names of classes in a file: a line each, or JSON: a list, or index → name (or → list that ends in it).

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    if path.suffix.lower() == ".json":
        return _names(_table(path))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"labels {str(path)!r} cannot be read: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return _names([line.strip() for line in lines])


def _names(found: object) -> tuple[str, ...]:
    if isinstance(found, Mapping):
        indices = sorted(int(key) for key in found if str(key).isdecimal())
        if not found or indices != list(range(len(found))):
            raise ValueError(f"labels should have the indices 0 to {len(found) - 1}, got {', '.join(map(str, found))}")
        found = [found[str(index)] for index in indices]
    names = [each[-1] if isinstance(each, list) and each else each for each in _list(found, "labels")]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"labels should have a name for each class, got {names[:8]}")
    return tuple(names)


def _table(path: Path) -> Any:
    """What is in a file of TOML or JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return json.loads(text)
        return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
