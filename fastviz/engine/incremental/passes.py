"""A model's outputs for many images that are made batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.modules import every_module
from fastviz.engine.incremental.job import in_batches
from fastviz.execution.compiled import is_compiled
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import in_fast_order
from fastviz.execution.fast_conv.winograd import Winograd

__all__ = ["AT_ONCE", "outputs_of_images"]

AT_ONCE = {"cpu": 8, "cuda": 128}
"""The default number of images in a pass; on a CPU as many as fit its caches."""

_SEVERAL = 4

Evaluate = Callable[[Any, Tensor], Tensor]
Advance = Callable[[int], object]


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
    """The values that ``evaluate`` computes from the model's output for ``count`` images, [count, ...].

    The images are made batch by batch, so the memory does not grow with their number. A batch for which memory runs out
    is halved.

    Args:
        model: the network; not touched.
        make: returns the images of a batch, [B, C, H, W], from their indices, int64 [B]; they may be overwritten.
        count: how many there are.
        evaluate: maps the output for a batch and its indices, int64 [B], to the values to keep, [B, ...].
        like: an image batch of the same kind, with at least one image unless ``count`` is 0.
        batch_size: images in a pass; None is 8 on a CPU and 128 on a GPU.
        advance: called with the number of finished images.
    """
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    kept: list[Tensor] = []
    stats: dict[str, Any] = {"batch_size": 0, "batches": 0, "retries": 0}
    # compiled parts would be compiled again
    plain = not any(is_compiled(module) for module in every_module(model))

    def compute(batch: Tensor, number: Tensor) -> Tensor:
        # Winograd's weights are transformed in each pass, which is not worthwhile for a few images
        with Winograd(keep=False) if plain and len(batch) >= _SEVERAL else nullcontext():
            # in_fast_order may pass the same memory again; models may modify their input in place
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
