"""What the arguments of a job mean: its device, methods, target, options and photographs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastviz import images
from fastviz._util import checks
from fastviz.jobs.results import PARTS, Photo, Settings
from fastviz.methods.registry import EXPLAINERS, Method

__all__ = ["choose_methods", "find_photos", "method_options", "target_index"]


def choose_methods(names: Iterable[str]) -> list[Method]:
    """The methods of the registry called ``names``, each once, in that order.

    Args:
        names: of methods that explain a target, see ``fastviz.METHODS``.

    Returns:
        One entry of the registry a name.

    Raises:
        ValueError: an unknown name (the nearest are listed), or none at all.

    >>> [method.name for method in choose_methods(["grad_cam", "saliency", "grad_cam"])]
    ['grad_cam', 'saliency']
    """
    chosen = list(dict.fromkeys(checks.nearest(name, "method", EXPLAINERS) for name in names))
    if not chosen:
        raise ValueError(f"methods should be one or more of {', '.join(EXPLAINERS)}, got none")
    return [EXPLAINERS[name] for name in chosen]


def target_index(target: str, names: Sequence[str]) -> int | None:
    """Index of the class that ``target`` means, where class i is called ``names[i]``; None for ``"predicted"``.

    A target of digits is an index, anything else a class name, in upper or lower case. Some names of ImageNet stand for
    two classes: those must be given by index.

    Args:
        target: words, as on the command line.
        names: one a class.

    Returns:
        The index, or None.

    >>> target_index("Tabby Cat", ["espresso", "tabby cat"])
    1

    Raises:
        ValueError: an index out of range, an unknown name (the nearest are listed) or a name of several classes.
    """
    if target == "predicted":
        return None
    if target.removeprefix("-").isdigit():
        if not 0 <= int(target) < len(names):
            raise ValueError(f"target should be a class from 0 to {len(names) - 1} for this model, got {target}")
        return int(target)
    wanted = target.strip().casefold()
    found = [index for index, name in enumerate(names) if name.casefold() == wanted]
    if not found:
        checks.nearest(wanted, "target", ["predicted", *(name.casefold() for name in names)])
    if len(found) > 1:
        indices = " or ".join(map(str, found))
        raise ValueError(f"target {target!r} is the name of {len(found)} classes, give its index: {indices}")
    return found[0]


def method_options(methods: Sequence[Method], settings: Settings, batch_size: int | None) -> dict[str, dict[str, Any]]:
    """Keyword arguments of each method: its defaults, and what ``settings`` say of the arguments it takes."""
    takes = {name: inspect.signature(method.function).parameters for name, method in EXPLAINERS.items()}
    offered: dict[str, Any] = {"layer": settings.layer, "window": settings.window, "stride": settings.stride}
    offered = {key: value for key, value in offered.items() if value is not None}
    for key in offered:
        if not any(key in takes[method.name] for method in methods):
            takers = ", ".join(name for name, parameters in takes.items() if key in parameters)
            raise ValueError(f"{key} is not an argument of the chosen methods; it is one of {takers}")
    for key in offered.keys() & {"window", "stride"}:
        checks.whole_number(offered[key], key, minimum=1)
    if batch_size is not None:
        offered["batch_size"] = batch_size
    return {
        method.name: dict(method.defaults) | {key: value for key, value in offered.items() if key in takes[method.name]}
        for method in methods
    }


def find_photos(photos: Sequence[str | os.PathLike[str]], out: Path) -> list[Photo]:
    """The photographs that ``photos`` name, each once, without the pictures that an earlier run wrote into ``out``."""
    home = os.path.abspath(out)
    written = (*(os.path.join(home, part) + os.sep for part in PARTS), os.path.join(home, "contact_sheet"))
    found: dict[str, Photo] = {}
    for given in photos:
        place = Path(given).expanduser()
        folder = place if place.is_dir() else None
        for path in images.find_images([given]):
            source = os.path.abspath(path)
            if source.startswith(written):
                continue
            name = path.relative_to(folder).as_posix() if folder else path.name
            found.setdefault(source, Photo(path, name, source))
    if not found:
        raise ValueError(f"photos should name at least one photograph, got only pictures that fastviz wrote into {out}")
    return list(found.values())
