"""Records the inputs or outputs of layers that are given as modules, as in other tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastviz.execution.hooks import OwnHook

__all__ = ["first_calls", "recorded"]


@contextmanager
def recorded(layer: nn.Module, *, at_input: bool, leaves: bool) -> Iterator[list[Tensor]]:
    """Record the outputs, or inputs, of ``layer`` in the forward passes that this thread makes inside.

    Yields a list that holds the tensors of the last call. Unlike :func:`fastviz.execution.forward.layer_outputs` this
    takes any module, can record its inputs, and supports layers with several tensors.

    With ``leaves``, to be used under ``torch.no_grad()``, autograd starts at the layer, and the model continues with a
    copy. Otherwise the list holds copies, which later in-place operations do not change.
    """
    found: list[Tensor] = []

    def record(values: Any) -> Any:
        several = isinstance(values, (tuple, list))
        each = tuple(values) if several else (values,)
        if not leaves:
            found[:] = [value.clone() for value in each]
            return None
        torch.set_grad_enabled(True)
        found[:] = [_leaf(value) for value in each]
        copies = [value.clone() for value in found]
        return type(values)(copies) if several else copies[0]

    if at_input:
        handle = layer.register_forward_pre_hook(OwnHook(lambda module, inputs: record(inputs)))
    else:
        handle = layer.register_forward_hook(OwnHook(lambda module, inputs, output: record(output)))
    try:
        yield found
    finally:
        handle.remove()
    if not found:
        raise AssertionError("layer should be called in the forward pass, but was not")


@contextmanager
def first_calls(layers: Sequence[nn.Module]) -> Iterator[list[tuple[int, Tensor]]]:
    """Record the outputs of the first calls of any of ``layers``, as many as there are layers, in the order of calls.

    Yields a list of (index of the layer, output). To be used under ``torch.no_grad()``: autograd starts at the first
    call, and the model continues with copies. If a layer returns several tensors, the first one is recorded.
    """
    found: list[tuple[int, Tensor]] = []
    called: set[int] = set()

    def record(module: nn.Module, inputs: object, output: Any) -> Any:
        called.add(id(module))
        if len(found) == len(layers):
            return None
        torch.set_grad_enabled(True)
        several = isinstance(output, (tuple, list))
        values = [_leaf(value) for value in (output if several else (output,))]
        # A layer may be listed twice.
        found.extend((number, values[0]) for number, layer in enumerate(layers) if layer is module)
        del found[len(layers) :]
        copies = [value.clone() for value in values]
        return type(output)(copies) if several else copies[0]

    handles = [layer.register_forward_hook(OwnHook(record)) for layer in dict.fromkeys(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if any(id(layer) not in called for layer in layers):
        raise AssertionError("layer should be called in the forward pass, but was not")


def _leaf(value: Tensor) -> Tensor:
    if value.requires_grad or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.detach().requires_grad_()
