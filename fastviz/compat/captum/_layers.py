"""Values, gradients and neurons of layers, selected as in captum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastviz.compat._layers import recorded
from fastviz.compat._order import in_fast_order
from fastviz.compat.captum._forward import column, one_value, run, tensors

__all__ = ["in_parallel", "layer_gradients", "neurons"]


def in_parallel(forward_func: object, device_ids: object) -> bool:
    """Whether replicas of the model run on several devices; only captum combines their layers."""
    return device_ids is not None or isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def layer_gradients(
    attribution: Any, inputs: object, target: object, extra: object, *, at_input: bool, options: dict[str, Any] | None
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The values of ``attribution.layer``, and the gradients of the target for them; the graph begins at the layer.

    Args:
        attribution: a layer attribution with ``forward_func`` and ``layer``.
        inputs, target, extra: captum's arguments.
        at_input: take the layer's inputs instead of its outputs.
        options: further arguments of ``torch.autograd.grad``.

    Raises:
        AssertionError: the target is not one value per sample, or the layer is not called, as with captum.
    """

    def compute(*images: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        with recorded(attribution.layer, at_input=at_input, leaves=True) as values:
            copies = tuple(x.clone() for x in images)
            output = one_value(run(attribution.forward_func, copies, target, extra))
        return values, torch.autograd.grad(output.unbind(), values, **(options or {}))

    each = tensors(inputs)
    with torch.inference_mode(False), torch.no_grad():
        found = in_fast_order(attribution.forward_func, each, compute)(*each)
    return found


def neurons(values: list[Tensor], selector: object) -> Tensor:
    """One value per sample, [N], from a layer's values: a neuron, the sum over slices, or the result of a function.

    Raises:
        AssertionError: an index is given for a layer with several tensors, or has too many numbers, as with captum.
    """
    if callable(selector):
        chosen: Tensor = selector(tuple(values) if len(values) > 1 else values[0])
        if chosen.numel() > 1 and chosen[0].numel() > 1:
            raise RuntimeError(f"neuron_selector should give one number per sample, got {list(chosen.shape)}")
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
        raise RuntimeError(f"neuron_selector should choose one number per sample, got {list(taken.shape)}")
    return taken
