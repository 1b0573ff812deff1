"""The model's outputs while images change pixel by pixel: what deletion, insertion and their like are made of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.incremental.job import in_batches
from fastviz.execution.compiled import is_compiled
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import in_fast_order
from fastviz.execution.fast_conv.winograd import Winograd

__all__ = ["AT_ONCE", "Changes", "outputs_of_changes", "outputs_of_images"]

AT_ONCE = {"cpu": 8, "cuda": 128}
"""Images that the network sees at once where nothing else is said; on a CPU as many as its caches hold."""

_SEVERAL = 4

Evaluate = Callable[[Any, Tensor], Tensor]
Advance = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Changes:
    """Q sequences of S changes: each leads an image, a set of pixels at a time, to a substitute or back.

    Attributes:
        step: integers [Q, H, W], the change in which a pixel is replaced, from 1 on; 0 is before the first, and a
            number above ``steps`` is never.
        steps: S.
        substitute: what pixels are replaced by: [N or 1, C, H, W].
        image: int64 [Q], which image each sequence is about; None is one sequence an image.
        reveal: the sequences begin with the substitute, and the image's own pixels come instead.
    """

    step: Tensor
    steps: int
    substitute: Tensor
    image: Tensor | None = None
    reveal: bool = False


def outputs_of_changes(
    model: nn.Module,
    images: Tensor,
    changes: Changes,
    evaluate: Evaluate,
    *,
    batch_size: int | None = None,
    advance: Advance = lambda states: None,
) -> Tensor:
    """What ``evaluate`` makes of the model's output before the first change and after each: [Q, S + 1, ...].

    One forward pass without gradients for ``batch_size`` states of any sequences; the states are made batch by batch,
    so the memory does not grow with their number. A batch for which memory runs out is halved.

    Args:
        model: in evaluation mode by the caller.
        images: [N, C, H, W].
        changes: see :class:`Changes`.
        evaluate: gets the output for a batch and the number of each one's sequence, int64 [B]; gives [B, ...].
        batch_size: states at once; None is 8 on a CPU and 128 on a GPU.
        advance: is called with the number of states that are done.
    """
    sequences, states = len(changes.step), changes.steps + 1
    image = torch.arange(len(images), device=images.device) if changes.image is None else changes.image
    shared = len(changes.substitute) == 1

    def state(number: Tensor) -> Tensor:
        sequence = number // states
        replaced = (changes.step[sequence] <= (number % states)[:, None, None]) != changes.reveal
        at = image[sequence]
        substitute = changes.substitute if shared else changes.substitute[at]
        return torch.where(replaced[:, None], substitute, images[at])

    values = outputs_of_images(
        *(model, state, sequences * states, lambda output, number: evaluate(output, number // states)),
        like=images,
        batch_size=batch_size,
        advance=advance,
    )
    return values.reshape(sequences, states, *values.shape[1:])


def outputs_of_images(
    model: nn.Module,
    make: Callable[[Tensor], Tensor],
    count: int,
    evaluate: Evaluate,
    *,
    like: Tensor,
    batch_size: int | None = None,
    advance: Advance = lambda images: None,
) -> Tensor:
    """What ``evaluate`` makes of the model's output for ``count`` images, [count, ...], without gradients.

    ``make`` gives the images of a batch, [B, C, H, W], from their numbers, int64 [B]; they may be written over.
    ``like`` is an image batch of the same kind, with one image at least unless ``count`` is 0. Further arguments as in
    :func:`outputs_of_changes`.
    """
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    kept: list[Tensor] = []
    stats: dict[str, Any] = {"batch_size": 0, "batches": 0, "retries": 0}
    # what is compiled would be compiled anew
    plain = not any(is_compiled(module) for module in model.modules())

    def compute(batch: Tensor, number: Tensor) -> Tensor:
        # Winograd's weights are transformed in each pass, which a few images do not pay for
        with Winograd(keep=False) if plain and len(batch) >= _SEVERAL else nullcontext():
            # in_fast_order may hand the same memory in again; models may work in place on their input
            return evaluate(model(batch.clone()), number).detach()

    run = in_fast_order(model, "model", compute)

    def part(number: Tensor) -> None:
        kept.append(run(make(number), number))
        advance(len(number))

    with frozen_model(model), torch.no_grad():
        if not count:
            none = torch.arange(0, device=like.device)
            return run(like.new_zeros(1, *like.shape[1:]), none)[:0]
        numbers = torch.arange(count, device=like.device)
        in_batches(numbers, batch_size or AT_ONCE.get(like.device.type, 8), stats, part)
    return torch.cat(kept)
