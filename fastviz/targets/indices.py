"""Indices that targets are made of: one number, or one per sample; checked against the model's output."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.execution.model_outputs import scores_in
from fastviz.targets.outputs import output_kind

__all__ = [
    "Activations",
    "Index",
    "checked_index",
    "class_scores",
    "index_for_samples",
    "index_in_range",
    "layer_maps",
    "predicted",
    "required_index",
    "sample_count",
]

Index: TypeAlias = int | Tensor

Activations: TypeAlias = Mapping[str, Tensor]


def checked_index(value: object, argument: str) -> Index | None:
    """An int, or a tensor of ints with one per sample, from 0 on; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor) and value.dim() > 0:
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{argument} should be a tensor of whole numbers, got {value.dtype}")
        if value.dim() != 1:
            raise ValueError(f"{argument} should have shape [N], one number per sample, got {list(value.shape)}")
        return value.detach().long().cpu()  # on the CPU, values are read without waiting for a device
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    return checks.whole_number(value, argument, minimum=0)


def required_index(value: object, argument: str) -> Index:
    """As :func:`checked_index`, where None is not allowed."""
    checked = checked_index(value, argument)
    if checked is None:
        raise TypeError(f"{argument} should be a whole number or a tensor of them, got None")
    return checked


def _one_each(index: Tensor, argument: str, samples: int, what: str) -> None:
    if len(index) != samples:
        raise ValueError(f"{argument} should have one {what} per sample, {samples}, got {len(index)}")


def sample_count(*indices: Index | None) -> int | None:
    """For how many samples the first tensor among ``indices`` is; None if there is no tensor."""
    return next((len(index) for index in indices if isinstance(index, Tensor)), None)


def index_for_samples(index: Index, argument: str, samples: Tensor, of: int, what: str) -> Index:
    """The entries of ``index``, which has one for each of ``of`` samples, for the ``samples`` with these numbers."""
    if isinstance(index, int):
        return index
    _one_each(index, argument, of, what)
    return index[samples.to(index.device)]


def index_in_range(index: Index, argument: str, samples: int, size: int, what: str) -> Index:
    """``index``, if it is one number or one for each of the ``samples``, all below ``size``."""
    if isinstance(index, int):
        worst = index
    else:
        _one_each(index, argument, samples, what)
        if not index.numel():
            return index
        low, high = (int(value) for value in index.aminmax())
        worst = low if low < 0 else high
    if not 0 <= worst < size:
        raise ValueError(f"{argument} should be a {what} from 0 to {size - 1}, got {worst}")
    return index


def class_scores(output: object) -> Tensor:
    """The scores [N, K] in a model's output, see :func:`fastviz.execution.model_outputs.scores_in`."""
    scores = scores_in(output)
    if scores is None:
        raise TypeError(
            f"model should return scores [N, K] for a class target, got {output_kind(output)}, in which they cannot be "
            "told: wrap it in a module that returns them, or give a target that can be, such as "
            "fastviz.output(function) or fastviz.channel(layer, k)"
        )
    if scores.dim() != 2 or not scores.shape[1] or not scores.is_floating_point():
        raise ValueError(
            f"model should return floating-point scores [N, K] for a class target, got {scores.dtype} of shape "
            f"{list(scores.shape)}; give another target, such as fastviz.region_score(k, mask), fastviz.pixel(k, row, "
            "column) or fastviz.channel(layer, k), or wrap it"
        )
    return scores


def layer_maps(activations: Activations, name: str) -> Tensor:
    """The output [N, C, ...] of layer ``name``, if it has channels."""
    maps = activations[name]
    if maps.dim() < 2:
        raise ValueError(f"layer {name!r} should have output [N, C, ...] to have channels, got {list(maps.shape)}")
    return maps


def predicted(output: object) -> Tensor:
    """The class with the highest score of each sample, the first of equal ones.

    Args:
        output: what a model returned: floating-point scores [N, K].

    Returns:
        int64 [N], without a graph.

    Raises:
        TypeError, ValueError: the output is not scores [N, K].

    >>> predicted(torch.tensor([[1.0, 3.0, 3.0]]))
    tensor([1])
    """
    return class_scores(output).detach().argmax(1)
