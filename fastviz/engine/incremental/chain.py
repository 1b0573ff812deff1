"""A chain: images that change step by step, and the network's output for each state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.incremental import worth
from fastviz.engine.incremental.advance import AdvancingRunner, Changes, States, start
from fastviz.engine.incremental.agreement import StaleError, UnusableError, compare
from fastviz.engine.incremental.execute import clean_bytes, kept_maps, run_whole
from fastviz.engine.incremental.job import in_batches
from fastviz.engine.incremental.limits import free_memory, windows_at_once
from fastviz.engine.incremental.network import Network, kept, network
from fastviz.engine.incremental.passes import AT_ONCE, Advance, Evaluate, outputs_of_images
from fastviz.engine.incremental.plan import CALL_FLOPS, FLOPS_PER_BYTE, Group, dense_cost, group_windows
from fastviz.engine.incremental.tail import Tail
from fastviz.engine.incremental.work import counted, known
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.full_precision import full_float32
from fastviz.execution.inputs import output_of
from fastviz.graph.model_graph import NotTraceable

__all__ = ["Chain", "Changes", "outputs_of_changes"]

Tracing = Literal["auto", "always", "never"]

_STEPS_SAVE = 1.1
"""How much faster steps are than the model on whole images: an estimate for the decision whether to trace."""

_LEAST_GAIN = 1.15
"""Predicted gain below which rectangles are not worth the maps that they need."""

_INTERVALS = 48
"""The maximum number of distinct intervals along a side; with more, boxes are rounded outwards."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The result of :func:`outputs_of_changes`.

    Attributes:
        values: [Q, S + 1, ...], the results of ``evaluate`` before the first change and after each.
        stats: how it was computed: ``path`` (``"chain"``: on rectangles; ``"steps"``: whole images through the traced
            steps; ``"model"``: whole images through the model), ``reason`` (why not a chain; else empty), ``states``
            (evaluated by the network; empty changes are not), ``predicted_gain`` (of work, counted), ``batches``,
            ``batch_size`` (the largest), ``retries`` (batches halved because memory ran out).
    """

    values: Tensor
    stats: dict[str, Any]


def outputs_of_changes(
    model: nn.Module,
    images: Tensor,
    changes: Changes,
    evaluate: Evaluate,
    *,
    batch_size: int | None = None,
    memory: int | None = None,
    trace: Tracing = "auto",
    advance: Advance = lambda states: None,
) -> Chain:
    """The results of ``evaluate`` for the model's output before the first change of each sequence and after each.

    Equal to the model on the changed images up to rounding, however many steps there are. Consecutive states differ in
    one change: its bounding rectangle goes through the traced network like a window of a sweep
    (:func:`fastviz.engine.incremental.sweep`), and each map stores the result for the next change. Sequences run side
    by side, as many as fit into memory; each continues when enough others wait for a change of about the same size.

    If rectangles are too large to save work, as for pixels scattered over the image, whole images go through the
    network, in batches of states of any sequences, whose memory does not grow with their number: through the traced
    steps, which have batch norms folded and activations fused, or through the model itself if tracing is not
    worthwhile. The same holds for models that cannot be traced, and for images or networks with values that are not
    finite.

    Each call compares the steps with the model for one first and one last state. The network is assumed not to mix the
    images of a batch.

    Args:
        model: maps images [B, C, H, W] to outputs with the images in dimension 0; used in evaluation mode.
        images: [N, C, H, W], floating-point.
        changes: see :class:`Changes`.
        evaluate: maps the output for a batch and the sequence of each state, int64 [B], to [B, ...]. Batches come in
            any order.
        batch_size: states in a pass; None is 8 whole images on a CPU and 128 on a GPU, and as many rectangles as fit
            the caches.
        memory: bytes for maps and batches; None is 1 GiB on a CPU and half of the free memory on a GPU.
        trace: ``"auto"``: trace the model if that is worthwhile; ``"always"``; ``"never"``.
        advance: called with the number of finished states.

    Returns:
        A :class:`Chain`.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    >>> changes = Changes(torch.arange(1, 65).reshape(1, 8, 8), 64, torch.zeros(1, 1, 8, 8))
    >>> outputs_of_changes(model, torch.ones(1, 1, 8, 8), changes, lambda output, sequence: output).values.shape
    torch.Size([1, 65, 3])
    """
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    checks.one_of(trace, "trace", ("auto", "always", "never"))
    run = _Run(model, images, changes, evaluate, batch_size, memory or free_memory(images.device), advance)
    with frozen_model(model), torch.no_grad(), full_float32(images.device):
        try:
            if not len(run.moving):
                raise UnusableError("there is nothing to do")
            run.through_steps(trace)
        except (NotTraceable, UnusableError, StaleError) as error:
            run.stats.update(path="model", reason=str(error))
            run.through_model()
            worth.spend(known(model, images), len(run.moving))
    return Chain(run.spread(), run.stats)


class _Run:
    """One call; states have the numbers that :class:`States` gives them."""

    def __init__(
        self, model: nn.Module, images: Tensor, changes: Changes, evaluate: Evaluate, batch_size: int | None,
        memory: int, advance: Advance,
    ) -> None:  # fmt: skip
        self.model, self.images, self.changes, self.evaluate = model, images, changes, evaluate
        self.batch_size, self.memory, self.advance = batch_size, memory, advance
        self.whole = batch_size or AT_ONCE.get(images.device.type, 8)
        """The number of whole images in a pass."""
        self.sequences, self.count = len(changes.step), changes.steps + 1
        self.boxes = changes.boxes()
        moves = torch.ones(self.sequences, self.count, dtype=torch.bool, device=images.device)
        moves[:, 1:] = self.boxes[..., 2] > 0
        self.moves = moves
        self.moving = moves.flatten().nonzero().flatten()
        """The numbers of the states that differ from the previous one."""
        self.values: Tensor | None = None
        self.stats: dict[str, Any] = {
            "path": "chain", "reason": "", "states": len(self.moving), "predicted_gain": 1.0, "batches": 0,
            "batch_size": 0, "retries": 0,
        }  # fmt: skip

    def put(self, output: Any, numbers: Tensor) -> None:
        """Store the results of ``evaluate`` for the states with these numbers."""
        kept = self.evaluate(output, numbers // self.count).detach()
        if self.values is None:
            self.values = kept.new_empty(self.sequences * self.count, *kept.shape[1:])
        self.values[numbers] = kept

    def spread(self) -> Tensor:
        """[Q, S + 1, ...]; a state equal to the previous one has its values."""
        assert self.values is not None
        places = torch.arange(self.sequences * self.count, device=self.images.device).reshape(self.moves.shape)
        latest = torch.where(self.moves, places, 0).cummax(1).values if places.numel() else places
        return self.values[latest]

    def through_model(self) -> None:
        """Whole images through the model itself."""
        states = States(self.images, self.changes)
        values = outputs_of_images(
            *(self.model, lambda at: states.images(self.moving[at]), len(self.moving)),
            lambda output, at: self.evaluate(output, self.moving[at] // self.count),
            like=self.images,
            batch_size=self.batch_size,
            advance=self.advance,
        )
        self.values = values.new_empty(self.sequences * self.count, *values.shape[1:])
        self.values[self.moving] = values

    def through_steps(self, trace: Tracing) -> None:
        """On rectangles if that saves work, else on whole images; compared with the model at both ends.

        Raises:
            NotTraceable, UnusableError: the model itself has to run; the message says why.
        """
        if trace == "never":
            raise NotTraceable("no trace was wanted")
        finite = torch.isfinite(self.images).all() & torch.isfinite(self.changes.substitute).all()
        if not bool(finite):
            raise UnusableError("the images or what replaces their pixels are not finite")
        states = States(self.images, self.changes)
        ends = self.moving[[0, int((self.moving < self.count).sum()) - 1]]
        first = states.images(ends[:1])
        with counted(self.model, first):
            expected = output_of(self.model, first.clone())
        if not isinstance(expected, Tensor):
            raise UnusableError("the model gives something other than one tensor")
        made = self._prepared(trace, first, expected)
        groups = self._groups(made)
        found: dict[int, Tensor] = {}
        probe = int(ends[1])

        def put(output: Tensor, numbers: Tensor) -> None:
            self.put(output, numbers)
            at = (numbers == probe).nonzero().flatten()
            if len(at):
                found[probe] = output[at[:1]]

        tail = Tail(made, put, self.images.dtype)
        if groups:
            _Rectangles(self, made, groups, tail).run()
        else:
            self._whole(states, tail)
        tail.flush()
        last = output_of(self.model, states.images(ends[1:]))
        if bool(torch.isfinite(last).all()):
            compare(made, "last state", found[probe], last, self.images.dtype)

    def _prepared(self, trace: Tracing, first: Tensor, expected: Tensor) -> Network:
        """The steps, checked against the model for the ``first`` state."""
        made = kept(self.model, first)
        if made is None and trace == "auto":
            boxes = self.boxes[self.moves[:, 1:]].cpu()
            reason = worth.refusal(self.model, first, boxes, least=_STEPS_SAVE)
            if reason:
                raise NotTraceable(reason)
        for again in (False, True):
            made = network(self.model, first, rebuild=again)
            output, _ = run_whole(made.steps, {made.steps[0]: first}, clean=True)
            if not bool(torch.isfinite(output).all()):
                break
            try:
                compare(made, "first state", output, expected, self.images.dtype)
            except StaleError:
                continue
            return made
        raise UnusableError("the network's values are not finite")

    def _groups(self, made: Network) -> list[Group]:
        """The changes in groups of similar rectangles; none if whole images are not slower."""
        numbers = self.moving[self.moving % self.count > 0].cpu()
        if not len(numbers):
            return []
        boxes = self.boxes[self.moves[:, 1:]].cpu()
        bytes_each = self.images.element_size()
        # each step of a chain is a separate batch, however few sequences there are
        groups = group_windows(
            *(made.steps, _rounded(boxes, self.images.shape[2:]), bytes_each),
            device=self.images.device.type,
            batches=2.0 * self.changes.steps,
        )
        gain = _gain(made, groups, self.images, self.sequences, self.whole)
        self.stats["predicted_gain"] = gain
        if gain < _LEAST_GAIN:
            self.stats.update(path="steps", predicted_gain=1.0)
            self.stats["reason"] = "changes soon reach whole maps, so that rectangles save nothing"
            return []
        return [Group(each.schedule, numbers[each.windows], each.members) for each in groups]

    def _whole(self, states: States, tail: Tail) -> None:
        """Whole images through the steps, in batches of any states."""

        def run(numbers: Tensor) -> None:
            output, _ = run_whole(tail.head, {tail.head[0]: states.images(numbers)})
            tail.add(output, numbers)
            self.advance(len(numbers))

        in_batches(self.moving, self.whole, self.stats, run)


class _Rectangles:
    """Changes on rectangles: sequences in chunks whose maps fit into memory."""

    def __init__(self, run: _Run, made: Network, groups: list[Group], tail: Tail) -> None:
        self.of, self.made, self.tail = run, made, tail
        self.keep = kept_maps(made.steps, groups)
        device = run.images.device
        self.runners = [AdvancingRunner(tail.head, group.schedule, device) for group in groups]
        self.sizes = [windows_at_once(group.schedule.peak, run.memory, run.batch_size, device) for group in groups]
        total = run.sequences * run.count
        self.group = torch.full((total,), -1)
        self.members = torch.zeros(total, 2, dtype=torch.int64)
        for at, group in enumerate(groups):
            self.group[group.windows] = at
            self.members[group.windows] = group.members
        each = max(1.0, clean_bytes(made.steps, groups, run.images.element_size()))
        chunks = math.ceil(run.sequences / max(1, int(run.memory / each)))
        self.chunk = math.ceil(run.sequences / chunks)

    def run(self) -> None:
        """All sequences."""
        for first in range(0, self.of.sequences, self.chunk):
            self._chunk(first, min(first + self.chunk, self.of.sequences))

    def _chunk(self, first: int, last: int) -> None:
        run, device = self.of, self.of.images.device
        states = States(run.images, run.changes, first)
        begins = torch.arange(first, last, device=device) * run.count
        clean = start(self.made.steps, states, begins, self.keep, AT_ONCE.get(device.type, 8))
        if not clean.is_finite:
            raise UnusableError("the network's values are not finite")
        self.tail.put(self.tail.all_entries(clean.output.to(run.images.dtype)), begins)
        run.advance(len(begins))
        # by group, the next change of each unfinished sequence
        waiting: dict[int, list[int]] = {}
        left = [iter(each) for each in self._moves(first, last)]

        def queue(numbers: list[int]) -> None:
            for number in numbers:
                following = next(left[number // run.count - first], None)
                if following is not None:
                    waiting.setdefault(int(self.group[following]), []).append(following)

        queue(begins.tolist())
        while waiting:
            at = max(waiting, key=lambda group: len(waiting[group]))
            numbers, rest = waiting[at][: self.sizes[at]], waiting[at][self.sizes[at] :]
            waiting[at] = rest
            if not rest:
                del waiting[at]
            in_batches(torch.tensor(numbers), len(numbers), run.stats, partial(self._step, states, clean, at))
            queue(numbers)

    def _moves(self, first: int, last: int) -> list[list[int]]:
        """For each sequence the numbers of its changes, in order."""
        moves = self.group[first * self.of.count : last * self.of.count].reshape(last - first, -1) >= 0
        begin = first * self.of.count
        return [
            (row.nonzero().flatten() + begin + at * self.of.count).tolist() for at, row in enumerate(moves)
        ]  # fmt: skip

    def _step(self, states: States, clean: Any, at: int, numbers: Tensor) -> None:
        """One change of each of some sequences; after memory ran out it can be repeated, with the same result."""
        device = self.of.images.device
        moved, members = numbers.to(device), self.members[numbers].to(device)
        self.tail.add(self.runners[at].run(clean, states, moved, members), moved)
        self.of.advance(len(numbers))


def _gain(made: Network, groups: list[Group], images: Tensor, sequences: int, whole: int) -> float:
    """The gain of rectangles over whole images in work, including the writing of maps and the calls.

    Args:
        made: the network.
        groups: of the changes.
        images: for their shape and device.
        sequences: how many run side by side.
        whole: whole images in a pass, otherwise.
    """
    bytes_each = images.element_size()
    calls = CALL_FLOPS[images.device.type] * len(made.steps)
    dense = sum(dense_cost(step, bytes_each).total for step in made.steps) + calls / whole
    keep = kept_maps(made.steps, groups)
    work, changes = 0.0, 0
    for group in groups:
        size = group.schedule.size
        written = sum(math.prod(size.get(step, step.size)) * step.channels * bytes_each for step in keep)
        work += len(group.windows) * sum(each.total for each in group.schedule.cost.values())
        work += len(group.windows) * (2.0 * FLOPS_PER_BYTE * written + calls * math.sqrt(len(groups)) / sequences)
        changes += len(group.windows)
    return dense * changes / work


def _rounded(boxes: Tensor, size: torch.Size) -> Tensor:
    """``boxes`` [P, 4] enlarged until few distinct intervals are left along each side of the image."""
    rounded = boxes.clone()
    for axis in range(2):
        grain = 1
        while len(torch.unique(rounded[:, [axis, axis + 2]], dim=0)) > _INTERVALS:
            grain *= 2
            rounded[:, axis] = boxes[:, axis] // grain * grain
            rounded[:, axis + 2] = (-(-boxes[:, axis + 2] // grain) * grain).clamp(max=size[axis])
    return rounded
