"""What the words for methods and targets mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastviz._util import checks
from fastviz.methods.registry import EXPLAINERS, Method

__all__ = ["choose_methods", "target_index"]


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
