"""The target's value for images multiplied by their maps: average drop, increase in confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.incremental.passes import outputs_of_images
from fastviz.evaluation._maps import Channels, own_maps, resized, scaled
from fastviz.evaluation._values import Value, reading
from fastviz.images.notebook import NotebookResult
from fastviz.targets.selection import Target

__all__ = ["ConfidenceChange", "confidence_change"]


@dataclass(frozen=True, eq=False, repr=False)
class ConfidenceChange(NotebookResult):
    """The result of :func:`confidence_change`.

    Attributes:
        before: [N], the value for each image.
        after: [N], the value for the image times its map.

    >>> found = ConfidenceChange(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
    >>> found.increase
    0.5
    """

    before: Tensor
    after: Tensor

    @property
    def drop(self) -> Tensor:
        """[N], ``max(0, before − after) / before``; 0 where ``before`` is 0."""
        lost = (self.before - self.after).clamp(min=0)
        return torch.where(self.before == 0, 0.0, lost / torch.where(self.before == 0, 1, self.before))

    @property
    def increased(self) -> Tensor:
        """Bool [N], whether ``after`` is above ``before``."""
        return self.after > self.before

    @property
    def average_drop(self) -> float:
        """Mean of ``drop``, 0 to 1 for probabilities: lower is better."""
        return float(self.drop.double().mean())

    @property
    def increase(self) -> float:
        """Fraction of images whose value rises: higher is better."""
        return float(self.increased.double().mean())


def confidence_change(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    scale: Literal["map", "image", "none"] = "map",
    value: Value = "probability",
    channels: Channels = "max_abs",
    batch_size: int | None = None,
) -> ConfidenceChange:
    """The target's value for each image, and for the image times its map: "average drop" and "increase in confidence".

    Chattopadhay et al. 2018, "Grad-CAM++", https://arxiv.org/abs/1710.11063, section 4.1. The map is scaled from 0, its
    smallest value, to 1, its largest, and multiplied by ``x``; where it is 0, the image has the colour that
    preprocessing maps to 0.

    Numbers of other tools: torch-cam 0.5's ``ClassificationMetric`` with a softmax is ``average_drop`` and ``increase``
    (its drop divides by ``before + 1e-7``). pytorch-grad-cam's ``CamMultImageConfidenceChange`` is ``after − before``
    with ``scale="none"`` for its own cams; its ``DropInConfidence`` is that with the opposite sign, not divided by
    ``before``.

    Args:
        model, x, maps, target, channels, batch_size: as in :func:`fastviz.evaluation.deletion`.
        scale: ``"map"``: before the map is resized; ``"image"``: after; ``"none"``: the map is used unchanged.
        value: see :data:`fastviz.evaluation.Value`.

    Returns:
        A :class:`ConfidenceChange` with [N] values and their ``average_drop`` and ``increase``.

    Raises:
        TypeError, ValueError: as :func:`fastviz.evaluation.deletion`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> confidence_change(model, torch.rand(3, 1, 2, 2), torch.rand(3, 2, 2), target=1).after.shape
    torch.Size([3])
    """
    checks.one_of(scale, "scale", ("map", "image", "none"))
    read = reading(model, x, target, value, batch_size)
    heat = own_maps(maps, len(read.images), channels).to(read.images.device)
    heat = resized(scaled(heat) if scale == "map" else heat, read.images)
    heat = (scaled(heat) if scale == "image" else heat).to(read.images.dtype)

    def kept(number: Tensor) -> Tensor:
        return read.images[number] * heat[number][:, None]

    def value_of(output: Any, number: Tensor) -> Tensor:
        return read.of(output, number)

    after = outputs_of_images(model, kept, len(heat), value_of, like=read.images, batch_size=batch_size)
    return ConfidenceChange(read.clean, after)
