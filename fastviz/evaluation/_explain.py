"""Calls methods for measures: functions of a model, images and a target that return maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.engine.gradients.input_gradients import predicted
from fastviz.targets.objectives import Objective
from fastviz.targets.selection import Selection, Target

__all__ = ["AT_ONCE", "Explain", "explained", "explained_in_batches", "single_objective", "single_selection"]

Explain = Callable[[nn.Module, Tensor, Any], Any]
"""A method: takes a model, images [N, C, H, W] and a target; returns maps [N, h, w] or [N, C, h, w], or an object with
such an ``attribution``."""

AT_ONCE = 8
"""The default number of images in a call of a method."""


def explained(explain: Explain, model: nn.Module, images: Tensor, target: Target) -> Tensor:
    """The maps that a method returns.

    Raises:
        TypeError: the result is not a tensor.
        ValueError: a wrong number of maps or of dimensions.
    """
    found = explain(model, images, target)
    found = found if isinstance(found, Tensor) else getattr(found, "attribution", found)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise TypeError(f"explain should return a floating-point tensor, got {type(found).__name__}")
    if found.dim() not in (3, 4) or len(found) != len(images):
        raise ValueError(
            f"explain should return [N, h, w] or [N, C, h, w] for {len(images)} images, got {list(found.shape)}"
        )
    return found.detach()


def explained_in_batches(
    explain: Explain, model: nn.Module, images: Tensor, objective: Objective, batch_size: int
) -> Tensor:
    """:func:`explained` for all ``images``, ``batch_size`` at a time; ``objective`` has one target for each of them."""
    numbers = torch.arange(len(images), device=images.device)
    return torch.cat(
        [
            explained(explain, model, images[part], objective.for_samples(part, len(images)))
            for part in numbers.split(batch_size)
        ]
    )


def single_selection(model: nn.Module, target: Target) -> Selection:
    """``target`` of a measure, which must be one per sample.

    Raises:
        TypeError, ValueError: as :func:`fastviz.saliency`; several targets per sample.
    """
    selection = targets.resolve(target, model)
    if selection.several:
        raise ValueError(f"target should be one per sample for a measure, got {selection.columns}")
    return selection


def single_objective(model: nn.Module, images: Tensor, target: Target, batch_size: int | None) -> Objective:
    """``target`` as one objective, with the predicted classes of the ``images`` filled in.

    Raises:
        TypeError, ValueError: as :func:`single_selection`.
    """
    selection = single_selection(model, target)
    if selection.predicts:
        classes = predicted(model, images, batch_size) if len(images) else torch.zeros(0, dtype=torch.int64)
        selection = selection.with_predicted(classes)
    return selection.objectives[0]
