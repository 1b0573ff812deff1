"""What captum's classes share: inputs and targets in all their forms, and the values that a model gives for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["column", "formatted", "one_mask_each", "run", "select", "target_of", "tensors"]


def tensors(inputs: object) -> tuple[Tensor, ...]:
    """``inputs``, a tensor or a tuple of them, as a tuple.

    Raises:
        AssertionError: something else, as with captum.
    """
    found = inputs if isinstance(inputs, tuple) else (inputs,)
    for each in found:
        if not isinstance(each, Tensor):
            raise AssertionError(f"inputs should be a tensor or a tuple of tensors, got {type(each).__name__}")
    return found


def formatted(inputs: object, results: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """The ``results`` as a tuple if ``inputs`` is one, else the only one."""
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
    """The values of ``target`` in what the function gives for ``inputs`` and the additional arguments ``extra``."""
    if not inspect.signature(forward_func).parameters:
        return select(forward_func(), target)
    more = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
    return select(forward_func(*inputs, *more), target)


def select(output: Any, target: object) -> Any:
    """The entries of ``output`` [N, ...] that ``target`` names, [N] for a model with scores [N, K].

    Args:
        output: what a model gives.
        target: None (all of it), an int or a tensor of one (for all samples), a tuple (one place in an output of more
            than two dimensions), a list of N ints or tuples or a tensor [N] (one a sample).

    Raises:
        AssertionError: a target that does not fit the output, as with captum.
        IndexError, RuntimeError: an entry that does not exist, as torch has it.
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


def _gathered(output: Tensor, target: Tensor) -> Tensor:
    if output.dim() != 2:
        raise AssertionError(f"target should be a tuple, or a list of them, for an output {list(output.shape)}")
    return output.gather(1, target.long()[:, None])[:, 0]


def column(output: Tensor, place: int | tuple[Any, ...]) -> Tensor:
    """``output[:, *place]``; an int is a place of one number.

    Raises:
        AssertionError: more numbers than the output has dimensions behind the first, as with captum.
    """
    index = place if isinstance(place, tuple) else (place,)
    if len(index) > output.dim() - 1:
        raise AssertionError(f"target should have at most {output.dim() - 1} numbers, got {len(index)}")
    return output[(slice(None), *index)]


def target_of(target: object, samples: Tensor) -> object:
    """``target`` for a batch of the ``samples`` with these numbers, int64 [P]."""
    if isinstance(target, list):
        return [target[sample] for sample in samples.tolist()]
    if isinstance(target, Tensor) and target.numel() > 1:
        return target[samples.to(target.device)]
    return target
