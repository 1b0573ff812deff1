"""The nodes of a recorded graph: names, arguments and shapes of ATen calls, and where their outputs hold images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["BATCH", "axes", "axis", "call_arguments", "call_name", "image_dims", "is_random", "shape_of", "shapes_of"]

BATCH = 23
"""Images in the batch that models are recorded with."""


def call_name(node: fx.Node) -> str:
    """The name of the operation that ``node`` calls, without its overload: ``"conv2d"``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return getattr(target, "__name__", str(target))


def call_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of the call by name, with the defaults of those that are not given."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(index): value for index, value in enumerate(node.args)}
    bound: dict[str, Any] = {}
    for index, parameter in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            bound[parameter.name] = node.args[index]
        else:
            bound[parameter.name] = node.kwargs.get(parameter.name, parameter.default_value)
    return bound


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of the node's (first) output for a batch of :data:`BATCH` images; () if it is not a tensor."""
    shapes = shapes_of(node)
    return shapes[0] if shapes else ()


def shapes_of(node: fx.Node) -> list[tuple[int, ...]]:
    """The shapes of all outputs that are tensors."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tuple(int(size) for size in item.shape) for item in values if isinstance(item, Tensor)]


def image_dims(node: fx.Node) -> tuple[int, ...]:
    """The dimensions of the node's (first) output that grow with the number of images.

    They are known exactly if the pass was recorded for two numbers of images; else they are those as long as the batch.
    """
    known: tuple[int, ...] | None = node.meta.get("images")
    return known if known is not None else tuple(dim for dim, size in enumerate(shape_of(node)) if size == BATCH)


def is_random(node: fx.Node) -> bool:
    """Whether the call draws random numbers."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    arguments = call_arguments(node)
    return arguments.get("train") is not False and arguments.get("dropout_p") != 0.0 and not _no_dropout(arguments)


def _no_dropout(arguments: dict[str, Any]) -> bool:
    return arguments.get("training") is False or arguments.get("p") == 0.0


def axis(dim: int, ndim: int) -> int:
    """``dim`` counted from the front.

    >>> axis(-1, 4)
    3
    """
    return dim + ndim if dim < 0 else dim


def axes(dims: int | Sequence[int], ndim: int) -> set[int]:
    """One dimension or several, counted from the front."""
    return {axis(dim, ndim) for dim in (dims if isinstance(dims, Sequence) else [dims])}
