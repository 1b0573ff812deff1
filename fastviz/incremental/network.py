"""A model as steps, made once and kept for as long as the model does not change."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Network:
    """A model as steps.

    Attributes:
        steps: in an order that they can run in: the images first, the output last.
        shape: shape of the model's output for one image.
        outputs: the entries of it that the last step gives, in this order; None if all.
        facts: what is found out once: under ``"dense_seconds"`` what the model took for an image when it was compared
            with the steps.
    """

    steps: list[Step]
    shape: tuple[int, ...]
    outputs: tuple[int, ...] | None = None
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def tail(self) -> int:
        """How many of the last steps work on vectors, and on nothing from before but what the step before them gives.

        Linear layers, mostly, which read all their weights however few windows there are.
        """
        count = 0
        inside: set[Step] = set()
        for at in range(len(self.steps) - 1, 0, -1):
            inside.add(self.steps[at])
            entering = {source for step in inside for source in step.sources} - inside
            if not all(_is_vector(step) for step in (self.steps[at], *entering)):
                break
            if entering == {self.steps[at - 1]}:
                count = len(self.steps) - at
        return count

    def only(self, outputs: Sequence[int]) -> Network:
        """The network for these entries of the output alone, or the same one if its last layers give all at once.

        Raises:
            ValueError: an entry that does not exist.
        """
        wanted = tuple(dict.fromkeys(outputs))
        if not self.shape or not all(0 <= entry < self.shape[0] for entry in wanted):
            raise ValueError(
                f"outputs should be from 0 to {self.shape[0] - 1 if self.shape else 0}, got {list(wanted)}"
            )
        steps = only_outputs(self.steps, wanted) if wanted else None
        return self if steps is None else Network(steps, self.shape, wanted, self.facts)


def _is_vector(step: Step) -> bool:
    return step.layout is None and math.prod(step.shape) == step.shape[0]


@dataclass(frozen=True)
class _Entry:
    key: tuple[Any, ...]
    state: tuple[Any, ...]
    network: Network | str


_cache: WeakKeyDictionary[nn.Module, list[_Entry]] = WeakKeyDictionary()
_lock = threading.Lock()


def network(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Network:
    """The steps of ``model`` for images like ``images`` [N, C, H, W]; from an earlier call if the model is the same.

    Args:
        model: the network; not touched.
        images: only their shape and device count.
        dtype: compute in this type; None is the model's own.

    Raises:
        NotTraceable: why there are none.
    """
    _refuse(model)
    key = (tuple(images.shape[1:]), images.device, dtype)
    state = _state(model)
    with _lock:
        kept = [entry for entry in _cache.get(model, []) if entry.state == state]
        entry = next((entry for entry in kept if entry.key == key), None)
        if entry is None:
            try:
                height, width = images.shape[2:]
                steps = fuse(build(trace(model, (height, width), images.shape[1]), dtype))
                entry = _Entry(key, state, Network(steps, steps[-1].shape))
            except NotTraceable as error:
                entry = _Entry(key, state, str(error))  # the error itself would keep the model alive
        _cache[model] = [entry, *(other for other in kept if other is not entry)][:_KEPT]
    if isinstance(entry.network, str):
        raise NotTraceable(entry.network)
    return entry.network


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
