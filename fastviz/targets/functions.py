"""Targets that a user's own function computes from the model's output."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from fastviz.targets.indices import Activations
from fastviz.targets.objectives import Objective

__all__ = ["output"]


class _Output(Objective):
    holds_function = True

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function

    def values(self, output: object, activations: Activations) -> Tensor:
        found = self.function(output)
        if not isinstance(found, Tensor):
            raise TypeError(f"function should return a tensor [N], one number per sample, got {type(found).__name__}")
        if not found.is_floating_point():
            raise TypeError(f"function should return a floating-point tensor [N], got {found.dtype}")
        count = len(output) if isinstance(output, Tensor) and output.dim() else None
        if found.dim() != 1 or (count is not None and len(found) != count):
            raise ValueError(
                f"function should return one number per sample, [{'N' if count is None else count}], got "
                f"{list(found.shape)}"
            )
        return found

    @property
    def parts(self) -> Mapping[Hashable, Objective] | None:
        return {id(self): self}

    def part(self, output: object) -> Tensor:
        return self.values(output, {})

    def of_parts(self, parts: Mapping[Hashable, Tensor]) -> Tensor:
        return parts[id(self)]


def output(function: Callable[[Any], Tensor]) -> Objective:
    """The value that ``function`` computes from the model's output, for heads of any kind.

    Args:
        function: gets what the model returned for a batch (a tensor, a dictionary, a tuple, …) and returns a
            floating-point tensor [N], one number per sample, which depends on nothing but that sample's part of the
            output. It is called with batches of any size: samples are explained together, or one by one, and an image
            under many windows is a batch. If it is written with torch's functions, gradients and traces go through it.

    Returns:
        An objective with one value per sample, [N].

    Raises:
        TypeError: ``function`` cannot be called; or, when it is used, returns no floating-point tensor.
        ValueError: when it is used, it returns another shape than [N].

    >>> import torch
    >>> margin = output(lambda scores: scores[:, 2] - scores[:, 0])
    >>> margin.values(torch.tensor([[1.0, 3.0, 2.5]]), {})
    tensor([1.5000])
    """
    if not callable(function):
        raise TypeError(f"function should be a function of the model's output, got {type(function).__name__}")
    return _Output(function)
