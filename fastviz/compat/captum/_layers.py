"""Neurons and layers as captum's classes choose them."""

from __future__ import annotations

from torch import Tensor, nn

from fastviz.compat.captum._forward import column

__all__ = ["in_parallel", "neurons"]


def in_parallel(forward_func: object, device_ids: object) -> bool:
    """Whether replicas of the model run on several devices, whose layers only captum puts together."""
    return device_ids is not None or isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def neurons(values: list[Tensor], selector: object) -> Tensor:
    """One number a sample, [N], of what a layer gives: the neuron at a place, the sum over slices, or a function's.

    Raises:
        AssertionError: a place in a layer with several tensors, or one with too many numbers, as with captum.
    """
    if callable(selector):
        chosen: Tensor = selector(tuple(values) if len(values) > 1 else values[0])
        if chosen.numel() > 1 and chosen[0].numel() > 1:
            raise RuntimeError(f"neuron_selector should give one number a sample, got {list(chosen.shape)}")
        return chosen
    if len(values) != 1:
        raise AssertionError(f"neuron_selector should be a function for a layer with {len(values)} tensors")
    if not isinstance(selector, (int, tuple)):
        raise AssertionError(f"neuron_selector should be an int, a tuple or a function, got {type(selector).__name__}")
    taken = column(values[0], selector)
    summed = isinstance(selector, tuple) and any(isinstance(part, slice) for part in selector)
    if summed:
        return taken.reshape(len(taken), -1).sum(1)
    if taken.dim() > 1 and taken[0].numel() > 1:
        raise RuntimeError(f"neuron_selector should choose one number a sample, got {list(taken.shape)}")
    return taken
