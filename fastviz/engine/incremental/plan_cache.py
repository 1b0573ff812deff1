"""The plans of the last sweeps of a network: sweeps over one data set have the same windows again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fastviz.engine.incremental.network import Network
from fastviz.engine.incremental.plan import Group, group_windows
from fastviz.engine.incremental.regions import Band
from fastviz.engine.incremental.steps import Step

__all__ = ["kept_groups"]

Value = TypeVar("Value")

_KEPT = 4
"""How many plans of a network are kept."""

_MOST_WINDOWS = 1 << 16
"""The number of windows from which a plan is not kept; the time of such a sweep hides that of its plan."""


@dataclass(frozen=True, eq=False)
class _Plan:
    boxes: Tensor
    steps: list[Step]
    groups: list[Group]


def kept_groups(made: Network, boxes: Tensor, value_bytes: int, cap: float | None, device: str) -> list[Group]:
    """What :func:`fastviz.engine.incremental.plan.group_windows` gives, from an earlier call with equal ``boxes``.

    Networks that are reduced to other entries of the output, but to as many, share their plans.

    Args:
        made: the network.
        boxes: int64 [P, 2 · axes], on the CPU.
        value_bytes, cap, device: as in :func:`fastviz.engine.incremental.plan.group_windows`.
    """
    count = None if made.outputs is None else len(made.outputs)
    key = (count, len(made.steps), value_bytes, cap, device, tuple(boxes.shape))
    found: _Plan | None = made.plans.get(key)
    if found is not None and torch.equal(found.boxes, boxes):
        new = {old: step for old, step in zip(found.steps, made.steps, strict=True) if old is not step}
        return [_for_steps(group, new) for group in found.groups] if new else found.groups
    groups = group_windows(made.steps, boxes, value_bytes, cap=cap, device=device)
    if len(boxes) <= _MOST_WINDOWS:
        made.plans[key] = _Plan(boxes, made.steps, groups)
        for oldest in list(made.plans)[:-_KEPT]:
            made.plans.pop(oldest, None)
    return groups


def _for_steps(group: Group, new: Mapping[Step, Step]) -> Group:
    """The ``group`` with some steps replaced by ``new`` ones that do the same work."""
    schedule = group.schedule
    bands = tuple(Band(band.members, _renamed(band.extent, new), _renamed(band.start, new)) for band in schedule.bands)
    return replace(
        group,
        schedule=replace(
            schedule,
            bands=bands,
            size=_renamed(schedule.size, new),
            window_inputs=_renamed(schedule.window_inputs, new),
            cost=_renamed(schedule.cost, new),
        ),
    )


def _renamed(values: Mapping[Step, Value], new: Mapping[Step, Step]) -> dict[Step, Value]:
    return {new.get(step, step): value for step, value in values.items()}
