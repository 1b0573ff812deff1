"""Names of methods and targets, looked up."""

from __future__ import annotations

from collections.abc import Iterable

from fastviz._util import checks
from fastviz.methods.registry import EXPLAINERS, Method
from fastviz.targets.parsing import target_index

__all__ = ["choose_methods", "target_index"]


def choose_methods(names: Iterable[str]) -> list[Method]:
    """The registry's entries for these method ``names``, each once, in the given order.

    Args:
        names: names of methods that explain a target, see ``fastviz.METHODS``.

    Returns:
        One registry entry for each name.

    Raises:
        ValueError: a name is unknown (the nearest are listed), or there are no names.

    >>> [method.name for method in choose_methods(["grad_cam", "saliency", "grad_cam"])]
    ['grad_cam', 'saliency']
    """
    chosen = list(dict.fromkeys(checks.nearest(name, "method", EXPLAINERS) for name in names))
    if not chosen:
        raise ValueError(f"methods should be one or more of {', '.join(EXPLAINERS)}, got none")
    return [EXPLAINERS[name] for name in chosen]
