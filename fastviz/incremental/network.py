"""A model as steps, made once and kept for as long as the model does not change."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastviz.graph import NotTraceable, trace
from fastviz.incremental.build import build
from fastviz.incremental.fuse import fuse, only_outputs
from fastviz.incremental.steps import Step

__all__ = ["Network", "network"]

_KEPT = 2
"""Networks kept of one model: input sizes or precisions that are used in turn."""


@dataclass
class Network:
    """A model as steps.

    Attributes:
        steps: in an order that they can run in: the images first, the output last.
        tail: how many of the last steps work on vectors alone, and on nothing from before but what the step in front of
            them gives: linear layers, which read all their weights however few windows there are.
        outputs: the entries of the model's output that the last step gives, in this order; None if all.
        shape: shape of the model's output for one image.
        dense_seconds: what the model took for an image when it was compared with the steps; None before that.
    """

    steps: list[Step]
    outputs: tuple[int, ...] | None
    shape: tuple[int, ...]
    tail: int = 0
    dense_seconds: float | None = None


@dataclass(frozen=True)
class _Entry:
    key: tuple[Any, ...]
    state: tuple[Any, ...]
    network: Network | str


_cache: WeakKeyDictionary[nn.Module, list[_Entry]] = WeakKeyDictionary()
_lock = threading.Lock()


def network(
    model: nn.Module, images: Tensor, dtype: torch.dtype | None = None, outputs: Sequence[int] | None = None
) -> Network:
    """The steps of ``model`` for images like ``images`` [N, C, H, W]; from an earlier call if the model is the same.

    Args:
        model: the network; not touched.
        images: only their shape and device count.
        dtype: compute in this type; None is the model's own.
        outputs: the entries of the output that matter; None is all.

    Raises:
        NotTraceable: why there are none.
    """
    _refuse(model)
    key = (tuple(images.shape[1:]), images.device, dtype, None if outputs is None else tuple(outputs))
    state = _state(model)
    with _lock:
        kept = [entry for entry in _cache.get(model, []) if entry.state == state]
        entry = next((entry for entry in kept if entry.key == key), None)
        if entry is None:
            try:
                entry = _Entry(key, state, _made(model, images, dtype, outputs))
            except NotTraceable as error:
                entry = _Entry(key, state, str(error))  # the error itself would keep the model alive
        _cache[model] = [entry, *(other for other in kept if other is not entry)][:_KEPT]
    if isinstance(entry.network, str):
        raise NotTraceable(entry.network)
    return entry.network


def _made(model: nn.Module, images: Tensor, dtype: torch.dtype | None, outputs: Sequence[int] | None) -> Network:
    height, width = images.shape[2:]
    steps = build(trace(model, (height, width), images.shape[1]), dtype)
    shape = steps[-1].shape
    if outputs is not None and (fewer := only_outputs(steps, outputs)) is not None:
        return _with_tail(Network(fuse(fewer), tuple(outputs), shape))
    return _with_tail(Network(fuse(steps), None, shape))


def _with_tail(made: Network) -> Network:
    steps = made.steps
    inside: set[Step] = set()
    for count in range(1, len(steps)):
        step = steps[-count]
        inside.add(step)
        entering = {source for each in inside for source in each.sources} - inside
        if any(math.prod(each.shape) != each.shape[0] or each.layout is not None for each in (step, *entering)):
            break
        if entering == {steps[-count - 1]}:
            made.tail = count
    return made


def _refuse(model: nn.Module) -> None:
    """Raise for what an exported graph would leave out."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotTraceable(f"{name or 'the model'} has forward hooks, which a graph leaves out")


def _state(model: nn.Module) -> tuple[Any, ...]:
    """What must be the same for steps to be used again: the modules as they print themselves, and all values.

    Versions do not count changes through ``.data``, so the bits of the values are summed up, too.
    """
    tensors = [*model.parameters(), *model.buffers()]
    places = tuple((value.data_ptr(), tuple(value.shape), value.dtype, value.device) for value in tensors)
    with torch.no_grad():
        sums = [_bits(value.detach()) for value in tensors]
    by_device: dict[torch.device, list[Tensor]] = {}
    for total in sums:
        by_device.setdefault(total.device, []).append(total)
    totals = tuple(tuple(torch.stack(group).tolist()) for group in by_device.values())
    return repr(model), places, totals


def _bits(value: Tensor) -> Tensor:
    """The sum of the bits of ``value``, eight bytes at a time where that is possible."""
    if value.is_complex():
        value = torch.view_as_real(value)
    flat = value.contiguous().flatten().view(torch.uint8)
    eights = 0 if flat.storage_offset() % 8 else len(flat) // 8 * 8
    return flat[:eights].view(torch.int64).sum() + flat[eights:].sum(dtype=torch.int64)
