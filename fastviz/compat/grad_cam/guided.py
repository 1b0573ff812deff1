"""pytorch-grad-cam's ``GuidedBackpropReLUModel``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastviz.compat.grad_cam._base import Array
from fastviz.compat.grad_cam._tool import base
from fastviz.methods.attribution.gradients import guided_backprop

__all__ = ["GuidedBackpropReLUModel"]


class GuidedBackpropReLUModel(base("GuidedBackpropReLUModel")):  # type: ignore[misc]
    """pytorch-grad-cam's ``GuidedBackpropReLUModel``: rectifiers pass gradients where input and gradient are positive.

    Args:
        model: any module; it runs in evaluation mode. Every rectifier follows the rule, including functions.
        device: the device to move the model to; None leaves it where it is.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> GuidedBackpropReLUModel(model)(torch.rand(1, 3, 8, 8), target_category=4).shape
    (8, 8, 3)
    """

    def __init__(self, model: nn.Module, device: Any = None) -> None:
        self.model = model
        if device is None:
            self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        else:
            self.device = torch.device(device)
            self.model = model.to(self.device)

    def __call__(self, input_img: Tensor, target_category: int | Sequence[int] | Tensor | None = None) -> Array:
        """The gradient of a class, float32 [H, W, C] for one image, [N, H, W, C] for several.

        Args:
            input_img: [N, C, H, W]; its own ``grad`` is not touched.
            target_category: a class for all images, one for each, or None for the class with the highest score.
        """
        target = target_category
        if target is not None and not isinstance(target, (int, np.integer, Tensor)):
            target = torch.as_tensor(np.asarray(target), device=self.device)
        gradient = guided_backprop(self.model, input_img.detach().to(self.device), target)
        found: Array = gradient.float().cpu().permute(0, 2, 3, 1).numpy()
        return found[0] if len(found) == 1 else found
