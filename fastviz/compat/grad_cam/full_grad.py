"""pytorch-grad-cam's ``FullGrad``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastviz.compat._order import in_fast_order
from fastviz.compat.grad_cam._base import Array, CamBase, Targets, one_target_each, scaled
from fastviz.compat.grad_cam._tool import base
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.methods.attribution.full_grad import bias_of, full_gradient_maps, layers_with_bias

__all__ = ["FullGrad"]


class FullGrad(CamBase, base("FullGrad")):  # type: ignore[misc]
    """pytorch-grad-cam's ``FullGrad``, see :func:`fastviz.full_grad`; arguments of :class:`GradCAM`.

    It uses all convolutions and batch norms with a bias and ignores ``target_layers``; ``eigen_smooth`` is delegated to
    pytorch-grad-cam.
    """

    compute_input_gradient = True
    _name = "FullGrad"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(target_layers) > 0:
            print("Warning: target_layers is ignored in FullGrad. All bias layers will be used instead")
        layers = [model.get_submodule(name) for name in layers_with_bias(model)]
        super().__init__(model, layers, reshape_transform)
        self.bias_data = [bias_of(layer).cpu().numpy() for layer in layers]

    def forward(self, input_tensor: Tensor, targets: Targets | None = None, eigen_smooth: bool = False) -> Array:
        """The map without augmentation."""
        if input_tensor.dim() != 4 or eigen_smooth or self.reshape_transform is not None:
            self.target_layers, kept = [], self.target_layers  # pytorch-grad-cam finds the layers itself
            try:
                return self._delegate(input_tensor, targets, eigen_smooth)
            finally:
                self.target_layers = kept

        def values(outputs: Any) -> Tensor:
            self.outputs = outputs.detach()
            chosen = one_target_each(targets, outputs)
            return torch.stack([target(one).reshape(1) for target, one in zip(chosen, outputs, strict=True)])

        def compute(images: Tensor) -> Tensor:
            return full_gradient_maps(self.model, images, self.model, values)[:, 0]

        images = input_tensor.detach().to(self.device)
        with frozen_model(self.model):
            maps = in_fast_order(self.model, (images,), compute)(images)
        found: Array = scaled(maps).float().cpu().numpy()
        return found

    def _layer_map(self, *arguments: Any) -> Tensor:
        raise NotImplementedError  # FullGrad has no map of a single layer
