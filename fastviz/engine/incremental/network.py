"""A model as steps, built once and kept until the model changes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util.modules import every_module
from fastviz.engine.incremental.build import build
from fastviz.engine.incremental.fuse import fuse, only_outputs
from fastviz.engine.incremental.steps import Step
from fastviz.graph.fingerprint import StructureCache, structure
from fastviz.graph.model_graph import NotTraceable, trace
from fastviz.graph.tracing import foreign_hooks

__all__ = ["Network", "is_there", "kept", "network"]


@dataclass(frozen=True)
class Network:
    """A model as steps.

    Attributes:
        steps: in execution order: the images first, the output last.
        shape: shape of the model's output for one image.
        outputs: the entries of the output that the last step gives, in this order; None for all.
        facts: findings of sweeps: ``"dense_seconds"``: the model's fastest time for an image; ``"clean"`` and
            ``"covered"``: the difference of the steps from the model when they were new, as a fraction of its largest
            output, for unchanged images and for covered ones.
        plans: of earlier sweeps, see :mod:`fastviz.engine.incremental.plan_cache`.
    """

    steps: list[Step]
    shape: tuple[int, ...]
    outputs: tuple[int, ...] | None = None
    facts: dict[str, float] = field(default_factory=dict)
    plans: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def tail(self) -> int:
        """How many of the last steps work on vectors, and on nothing from before but what the step before them gives.

        These are mostly linear layers, which read all their weights even for few windows.
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
        """The network for only these entries of the output, or this network if its last layers cannot be reduced.

        Raises:
            ValueError: an entry that does not exist.
        """
        wanted = tuple(dict.fromkeys(outputs))
        if not self.shape or not all(0 <= entry < self.shape[0] for entry in wanted):
            raise ValueError(
                f"outputs should be from 0 to {self.shape[0] - 1 if self.shape else 0}, got {list(wanted)}"
            )
        steps = only_outputs(self.steps, wanted) if wanted else None
        return self if steps is None else Network(steps, self.shape, wanted, self.facts, self.plans)


def _is_vector(step: Step) -> bool:
    return step.images_first and step.layout is None and (not step.shape or math.prod(step.shape) == step.shape[0])


_SAMPLED = 128
"""How many groups of eight bytes of a large tensor are sampled; each read is a cache miss."""

# Two per model, with their packed weights, for alternating input sizes or precisions.
_networks: StructureCache[Network | str] = StructureCache(2)


def network(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None, *, rebuild: bool = False) -> Network:
    """The steps of ``model`` for images like ``images`` [N, C, H, W]; from an earlier call if the model is the same.

    Args:
        model: the network; not touched.
        images: only their shape and device are used.
        dtype: compute in this type; None is the model's own.
        rebuild: build them again, because the model changed in a way that cannot be detected.

    Raises:
        NotTraceable: there are none; the message says why.
    """
    _refuse(model)
    key = _key(images, dtype)
    if rebuild:
        _networks.drop(model, key)
    found = _networks.get(model, key, _state(model), lambda: _made(model, images, dtype))
    if isinstance(found, str):
        raise NotTraceable(found)
    return found


def kept(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Network | None:
    """The steps of an earlier call of :func:`network`, if there are any.

    Raises:
        NotTraceable: an earlier call found that there are no steps.
    """
    _refuse(model)
    key = _key(images, dtype)
    if not _networks.has(model, key):
        return None
    found = _networks.find(model, key, _state(model))
    if isinstance(found, str):
        raise NotTraceable(found)
    return found


def is_there(model: nn.Module, images: Tensor) -> bool:
    """Whether there are steps from an earlier call, possibly of an older state of the model."""
    return isinstance(_networks.peek(model, _key(images, None)), Network)


def _key(images: Tensor, dtype: torch.dtype | None) -> Hashable:
    return tuple(images.shape[1:]), images.device, dtype


def _made(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> Network | str:
    """The steps, or the reason why there are none; keeping the error itself would keep the model alive."""
    try:
        steps = fuse(build(trace(model, tuple(images.shape[2:]), images.shape[1]), dtype))
    except NotTraceable as error:
        return str(error)
    return Network(steps, steps[-1].shape)


def _refuse(model: nn.Module) -> None:
    """Raise an error for features of a model that a graph would miss."""
    for name, module in model.named_modules():
        if foreign_hooks(module):
            raise NotTraceable(f"{name or 'the model'} has forward hooks, which a graph leaves out")


def _state(model: nn.Module) -> tuple[Any, ...]:
    """The key for reusing steps: the structure of the model, and the values of its tensors.

    Values are identified by their memory address and torch's version counter, which optimisers and ``load_state_dict``
    increase. Changes through ``.data``, or by other code that writes to the memory, do not increase it; for these a
    sample of the bits is summed: all of a small tensor and :data:`_SAMPLED` entries of a large one. Such a change of
    single values of a large tensor can miss the sample, but each sweep also compares the steps with the model, which
    detects it if it changes the outputs by more than rounding.
    """
    plain = [value for module in every_module(model) for value in vars(module).values() if isinstance(value, Tensor)]
    tensors = [*model.parameters(), *model.buffers(), *plain]
    places = tuple((value.data_ptr(), tuple(value.shape), value.dtype, value.device) for value in tensors)
    versions = tuple(None if value.is_inference() else value._version for value in tensors)
    with torch.no_grad():
        sums = [_bits(value.detach()) for value in tensors]
    by_device: dict[torch.device, list[Tensor]] = {}
    for total in sums:
        by_device.setdefault(total.device, []).append(total)
    totals = tuple(tuple(torch.stack(group).tolist()) for group in by_device.values())
    return structure(model), places, versions, totals


def _bits(value: Tensor) -> Tensor:
    """The sum of the bits of ``value``, of all or of a sample, eight bytes at a time if possible."""
    if value.is_complex():
        value = torch.view_as_real(value)
    flat = value.contiguous().flatten().view(torch.uint8)
    eights = 0 if flat.storage_offset() % 8 else len(flat) // 8 * 8
    words = flat[:eights].view(torch.int64)
    # an odd distance, so that the sample does not stay in one column of a matrix
    distance = 1 if value.is_inference() else len(words) // _SAMPLED | 1
    return words[::distance].sum() + flat[eights:].sum(dtype=torch.int64)
