"""Shared by captum's classes: all forms of inputs and targets, and a model's values for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["column", "formatted", "one_mask_each", "one_value", "run", "select", "target_of", "tensors"]


def tensors(inputs: object) -> tuple[Tensor, ...]:
    """``inputs``, a tensor or a tuple of them, as a tuple.

    Raises:
        AssertionError: it is something else, as with captum.
    """
    found = inputs if isinstance(inputs, tuple) else (inputs,)
    for each in found:
        if not isinstance(each, Tensor):
            raise AssertionError(f"inputs should be a tensor or a tuple of tensors, got {type(each).__name__}")
    return found


def formatted(inputs: object, results: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """The ``results`` as a tuple if ``inputs`` is a tuple, else the single result."""
    return results if isinstance(inputs, tuple) else results[0]


def one_mask_each(inputs: object, feature_mask: object) -> None:
    """Refuse a ``feature_mask`` of another number of tensors than the inputs.

    captum itself gives zeros for the inputs that have none.

    Raises:
        AssertionError: there are more masks than inputs, or fewer.
    """
    if feature_mask is None:
        return
    given, needed = (len(each) if isinstance(each, tuple) else 1 for each in (feature_mask, inputs))
    if given != needed:
        raise AssertionError(f"feature_mask should have one tensor for each of {needed} inputs, got {given}")


def run(forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], target: object, extra: object) -> Any:
    """The values of ``target`` in the function's output for ``inputs`` and the additional arguments ``extra``."""
    if not inspect.signature(forward_func).parameters:
        return select(forward_func(), target)
    more = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
    return select(forward_func(*inputs, *more), target)


def select(output: Any, target: object) -> Any:
    """The entries of ``output`` [N, ...] that ``target`` selects, [N] for a model with scores [N, K].

    Args:
        output: the model's output.
        target: None (the whole output), an int or a tensor with one element (for all samples), a tuple (an index into
            an output with more than two dimensions), a list of N ints or tuples, or a tensor [N] (one per sample).

    Raises:
        AssertionError: the target does not fit the output, as with captum.
        IndexError, RuntimeError: an entry does not exist, as torch raises it.
    """
    if target is None:
        return output
    if isinstance(target, Tensor) and target.numel() == 1 and not target.is_floating_point():
        target = int(target)
    if isinstance(target, (int, tuple)):
        return column(output, target)
    samples = output.shape[0]
    if isinstance(target, Tensor):
        if target.shape != (samples,):
            raise AssertionError(
                f"target should be one number or have shape [{samples}] for an output {list(output.shape)}, "
                f"got {list(target.shape)}"
            )
        return _gathered(output, target.to(output.device))
    if not isinstance(target, list):
        raise AssertionError(f"target should be an int, a tuple, a list or a tensor, got {type(target).__name__}")
    if len(target) != samples:
        raise AssertionError(f"target should have one entry for each of {samples} samples, got {len(target)}")
    if isinstance(target[0], int):
        return _gathered(output, torch.tensor(target, device=output.device))
    if isinstance(target[0], tuple):
        return torch.stack([output[(sample, *place)] for sample, place in enumerate(target)])
    raise AssertionError(f"target should be a list of ints or tuples, got one of {type(target[0]).__name__}")


def one_value(output: Tensor) -> Tensor:
    """``output``, which must have one value per sample.

    Raises:
        AssertionError: it has more, as with captum.
    """
    if output[0].numel() != 1:
        raise AssertionError(f"target should choose one value of the output per sample, got {list(output[0].shape)}")
    return output


def _gathered(output: Tensor, target: Tensor) -> Tensor:
    if output.dim() != 2:
        raise AssertionError(f"target should be a tuple, or a list of them, for an output {list(output.shape)}")
    return output.gather(1, target.long()[:, None])[:, 0]


def column(output: Tensor, place: int | tuple[Any, ...]) -> Tensor:
    """``output[:, *place]``; an int is an index with one number.

    Raises:
        AssertionError: the index has more numbers than the output has dimensions after the first, as with captum.
    """
    index = place if isinstance(place, tuple) else (place,)
    if len(index) > output.dim() - 1:
        raise AssertionError(f"target should have at most {output.dim() - 1} numbers, got {len(index)}")
    return output[(slice(None), *index)]


def target_of(target: object, samples: Tensor) -> object:
    """``target`` for a batch of the samples with the indices ``samples``, int64 [P]."""
    if isinstance(target, list):
        return [target[sample] for sample in samples.tolist()]
    if isinstance(target, Tensor) and target.numel() > 1:
        return target[samples.to(target.device)]
    return target
