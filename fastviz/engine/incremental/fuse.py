"""Fusion: batch norms into convolutions, sums and activations into the preceding step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch

from fastviz.engine.incremental.build import StandaloneActivation, reachable
from fastviz.engine.incremental.convolution import Conv
from fastviz.engine.incremental.steps import Call, Mean, Norm, Pool, Step
from fastviz.graph.sliding_window import Field

__all__ = ["fuse", "only_outputs"]

_VIEWS = {"view", "reshape", "flatten", "squeeze", "_unsafe_view"}


def fuse(steps: Sequence[Step]) -> list[Step]:
    """The same computation in fewer steps, with the weights of convolutions fixed. Modifies the given steps."""
    result = _activations(_sums(_pools_first(_norms(list(steps)))))
    for step in result:
        if isinstance(step, Conv):
            step.settle()
    return result


def _norms(steps: list[Step]) -> list[Step]:
    """Batch norms folded into the convolutions that only they read."""
    users = _users(steps)
    for step in list(steps):
        if isinstance(step, Norm) and isinstance(conv := step.sources[0], Conv) and users[conv] == [step]:
            conv.fold(step.scale, step.shift)
            steps = _replace(steps, step, conv)
    return steps


def _pools_first(steps: list[Step]) -> list[Step]:
    """Move a mean over windows before the 1x1 convolution that it follows: both are linear, and it reduces the work.

    As in DenseNet's transitions; only where every window has the same divisor and none of them reads padding.
    """
    users = _users(steps)
    for step in list(steps):
        if not isinstance(step, Pool) or step.maximum or step.slides is None or len(step.sources) != 1:
            continue
        conv, window = step.sources[0], step.slides[0]
        inside = all(slide.before == slide.after == 0 and not slide.ceil for slide in window)
        if not isinstance(conv, Conv) or users[conv] != [step] or not all(slide.is_pointwise for slide in conv.window):
            continue
        if inside and step.divisor == math.prod(slide.kernel for slide in window):
            step.sources, conv.sources = conv.sources, [step]
            step.flops *= step.sources[0].channels / step.channels
            step.shape, conv.shape = (step.sources[0].shape[0], *step.shape[1:]), (conv.shape[0], *step.shape[1:])
            at = steps.index(conv)
            steps.remove(step)
            steps.insert(at, step)
            steps = _replace(steps, step, conv)
            users = _users(steps)
    return steps


def _sums(steps: list[Step]) -> list[Step]:
    """Sums of two maps done by the convolution that gives one of them, if nothing else reads that.

    Of two convolutions it is the one with the larger field: its rectangle holds that of the other.
    """
    fields = _fields(steps)
    users = _users(steps)
    for step in list(steps):
        if not isinstance(step, Call) or step.operation != "add" or not step.takes_activation or len(step.sources) != 2:
            continue
        able = [
            source
            for source in step.sources
            if isinstance(source, Conv)
            and users[source] == [step]
            and source.activation is None
            and len(source.sources) == 1
        ]
        if not able or step.sources[0].shape != step.sources[1].shape or step.shape != step.sources[0].shape:
            continue
        conv = max(able, key=lambda source: fields[source])
        (other,) = [source for source in step.sources if source is not conv]
        conv.add(other)
        steps.remove(conv)
        steps[steps.index(step)] = conv
        steps = _replace(steps, step, conv)
        users = _users(steps)
    return steps


def _activations(steps: list[Step]) -> list[Step]:
    """Fuses activations into the preceding step, if nothing else reads that."""
    users = _users(steps)
    for step in list(steps):
        if isinstance(step, StandaloneActivation):
            (before,) = step.sources
            if before.takes_activation and before.activation is None and users[before] == [step]:
                before.activation = step.activation
                before.operation += f"+{step.operation}"
                steps = _replace(steps, step, before)
                users = _users(steps)
    return steps


def _users(steps: Iterable[Step]) -> dict[Step, list[Step]]:
    users: dict[Step, list[Step]] = {step: [] for step in steps}
    for step in users:
        for source in step.sources:
            users[source].append(step)
    return users


def _replace(steps: list[Step], old: Step, new: Step) -> list[Step]:
    """Replace ``old`` by ``new`` wherever it is read, except in ``new`` itself."""
    for step in steps:
        step.sources = [new if source is old and step is not new else source for source in step.sources]
    output = new if steps[-1] is old else steps[-1]
    return reachable(steps, output)


def _fields(steps: Iterable[Step]) -> dict[Step, int]:
    """How many rows of the image (or positions of a signal) a row of each step depends on, along the longest path."""
    fields: dict[Step, Field] = {}
    for step in steps:
        if step.slides is None:
            fields[step] = Field(size=1 << 40)
            continue
        windows = zip(step.sources, step.slides, strict=True)
        reached = [fields[source].through(slides[max(0, len(slides) - 2)]) for source, slides in windows]
        fields[step] = max(reached, key=lambda field: field.size, default=Field())
    return {step: field.size for step, field in fields.items()}


def only_outputs(steps: Sequence[Step], outputs: Sequence[int]) -> list[Step] | None:
    """The network with only these entries of its output; None if its last layers cannot leave out the others.

    They can if each entry has its own channel from a last convolution on, followed only by pointwise functions, spatial
    means and views without spatial size. These last steps are new, the others the same.
    """
    users = _users(steps)
    trail = [steps[-1]]
    while not isinstance(conv := trail[-1], Conv):
        if not _keeps_channels(conv) or users[conv.sources[0]] != [conv]:
            return None
        trail.append(conv.sources[0])
    if conv.groups != 1 or len(conv.sources) != 1 or not conv.images_first:
        return None
    new: Step = conv.choose(torch.tensor(outputs, device=conv.weight.device))
    replaced: dict[Step, Step] = {conv: new}
    for step in reversed(trail[:-1]):
        source, new = new, copy.copy(step)
        new.sources = [source]
        new.shape = (len(outputs), *step.shape[1:])
        replaced[step] = new
    return [replaced.get(step, step) for step in steps]


def _keeps_channels(step: Step) -> bool:
    """Whether entry k of the output depends on channel k of the only source alone, and has its place."""
    if isinstance(step, (StandaloneActivation, Mean)):
        return step.shape[0] == step.sources[0].shape[0]
    if not isinstance(step, Call) or len(step.sources) != 1 or step.operation not in _VIEWS:
        return False
    return math.prod(step.shape) == step.shape[0] == step.sources[0].shape[0] == math.prod(step.sources[0].shape)
