"""Model outputs: finding scores in tensors, tuples, lists, dictionaries, dataclasses and other objects."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["join_tensors", "map_tensors", "scores_in", "split_tensors", "tensors_in_output"]

_NAMES = ("logits", "scores", "out", "output", "outputs", "pred", "prediction", "predictions", "preds", "y")
"""Names under which dictionaries and objects may hold scores; the first that does counts."""

_CERTAIN = ("logits", "scores", "out")
"""Names that are clear enough that no warning is needed if something else also has the shape of scores."""

_NEVER = ("boxes", "bboxes", "pred_boxes", "keypoints")
"""Names of two-dimensional tensors that are not scores."""


def scores_in(output: object) -> Tensor | None:
    """The scores [N, K] in a model's output; None if they cannot be identified.

    A tensor itself. In a dictionary, a dataclass or another object: what is called ``logits``, ``scores``, ``out``,
    ``output``, … (the first of these that holds scores), else its only scores. In a tuple or list: the first entry, as
    far as it is or holds scores, else the only one that does. Scores are floating-point tensors of two dimensions.

    Warns:
        UserWarning: something else in the output has the shape of scores, and no name tells them apart.

    >>> import torch
    >>> scores, maps = torch.zeros(1, 5), torch.zeros(1, 3, 2, 2)
    >>> [scores_in(each) is scores for each in (scores, (scores, maps), {"features": maps, "logits": scores}, [maps])]
    [True, True, True, False]
    """
    if isinstance(output, Tensor):
        return output
    values = _inside(output)
    if values is None:
        return None
    ordered = isinstance(output, Sequence) and not _named_tuple(output)
    # A list of dictionaries has one for each image, as from detection networks.
    inside = {key: value for key, value in values.items() if key not in _NEVER and (not ordered or _plain(value))}
    found = {key: scores for key, value in inside.items() if (scores := _as_scores(value)) is not None}
    if len(found) == 1:
        return next(iter(found.values()))
    key = next((each for each in ((0,) if ordered else _NAMES) if each in found), None)
    if key is None:
        return None
    if key not in _CERTAIN:
        warnings.warn(
            f"the model gives several tensors of the shape of scores ({', '.join(map(repr, found))} of its "
            f"{type(output).__name__}); {key!r} is taken for its scores, and a module around it that gives one tensor "
            "takes another",
            stacklevel=2,
        )
    return found[key]


def _as_scores(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.dim() == 2 and value.is_floating_point() else None
    return scores_in(value)


def _plain(value: object) -> bool:
    return isinstance(value, (Tensor, tuple, list))


def _named_tuple(value: object) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _inside(output: object) -> Mapping[Any, object] | None:
    """The parts of an output by name or number; None of what has no parts."""
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple) and _named_tuple(output):
        return dict(zip(output._fields, output, strict=True))  # type: ignore[attr-defined]
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {each.name: getattr(output, each.name, None) for each in dataclasses.fields(output)}
    if isinstance(output, (str, bytes, int, float, type(None), type)) or callable(output):
        return None
    return getattr(output, "__dict__", None)


def map_tensors(function: Callable[[Tensor], Any], output: Any) -> Any:
    """``output`` with ``function`` applied to each tensor in it, inside lists, dictionaries, dataclasses and
    objects."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        values = None if isinstance(value, Mapping) else _inside(value)
        if not values or not any(_holds_tensor(each) for each in values.values()):
            return value
        made = copy.copy(value)
        for key, each in values.items():
            object.__setattr__(made, str(key), map_tensors(function, each))  # a dataclass may be frozen
        return made

    return pytree.tree_map(mapped, output)


def _holds_tensor(value: object) -> bool:
    leaves = pytree.tree_leaves(value)
    return any(isinstance(leaf, Tensor) for leaf in leaves) or (
        any(any(_holds_tensor(each) for each in (_inside(leaf) or {}).values()) for leaf in leaves if leaf is not value)
    )


def tensors_in_output(output: Any) -> list[Tensor]:
    """The tensors in a model's output, always in the same order.

    >>> import torch
    >>> [len(each) for each in tensors_in_output({"out": torch.ones(2, 3), "more": [torch.ones(5)]})]
    [2, 5]
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, output)
    return found


def join_tensors(outputs: Sequence[Any]) -> Any:
    """One output for all images, of ``outputs`` of the same kind for some each; numbers [] are those of the first.

    A list of dictionaries, as detection networks give, has one entry per image and becomes a longer list.
    """
    if all(isinstance(each, (list, tuple)) and all(isinstance(entry, Mapping) for entry in each) for each in outputs):
        return [entry for each in outputs for entry in each]
    columns = zip(*map(tensors_in_output, outputs), strict=True)
    joined = iter([torch.cat(column) if column[0].dim() else column[0] for column in columns])
    return map_tensors(lambda _: next(joined), outputs[0])


def split_tensors(output: Any, sizes: Sequence[int]) -> list[Any]:
    """``output`` for the first images, the next ones, and so on: tensors with a row per image are cut."""
    total, starts = sum(sizes), [sum(sizes[:at]) for at in range(len(sizes))]

    def part(start: int, size: int) -> Any:
        return map_tensors(
            lambda each: each.narrow(0, start, size) if each.dim() and len(each) == total else each, output
        )

    return [part(start, size) for start, size in zip(starts, sizes, strict=True)]
