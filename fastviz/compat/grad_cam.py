"""Drop-in for pytorch-grad-cam's ``GradCAM`` and ``GuidedBackpropReLUModel``: the same NumPy arrays.

No gradient of a parameter is computed. The model keeps its mode, its parameters their ``grad``, its layers have no hook
between calls, and exceptions are passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fastviz.compat._layers import first_calls
from fastviz.compat._order import in_fast_order
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.methods.attribution.gradients import guided_backprop

__all__ = ["GradCAM", "GuidedBackpropReLUModel"]

Array = NDArray[np.float32]

_Cam: Any = object
_Guided: Any = object
_Hooks: Any = None
try:
    from pytorch_grad_cam import ActivationsAndGradients as _Hooks  # type: ignore[no-redef]
    from pytorch_grad_cam import GradCAM as _Cam  # type: ignore[no-redef]
    from pytorch_grad_cam import GuidedBackpropReLUModel as _Guided  # type: ignore[no-redef]
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "pytorch_grad_cam":
        raise

_EPSILON = 1e-7
"""What pytorch-grad-cam adds to the largest value before it divides by it."""


class GradCAM(_Cam):
    """pytorch-grad-cam's ``GradCAM``: which places of layers speak for a target, as a map of the size of the image.

    ``ReLU(Σ_k α_k A_k)`` of each layer is scaled to 0 to 1 in each image, resized (bilinear) and averaged over the
    layers; the mean is scaled again. Only the part behind the first layer gets a graph, and no parameter a gradient.

    Args:
        model: any module; evaluation mode holds while it runs.
        target_layers: modules of it with maps [N, K, h, w]. Where some are called several times, the first calls of
            all of them count, as many as there are layers, as in pytorch-grad-cam: of one layer its first call.
        reshape_transform: makes such maps of what a layer gives, and of its gradient.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> GradCAM(model, [model[1]])(torch.rand(3, 1, 8, 8)).shape
    (3, 8, 8)
    """

    uses_gradients = True
    compute_input_gradient = False
    detach = True

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.target_layers = target_layers
        self.reshape_transform = reshape_transform
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._hooks: Any = None

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Array:
        """The maps, float32 [N, H, W], 0 to 1.

        Args:
            input_tensor: [N, C, H, W]; volumes [N, C, D, H, W] are left to pytorch-grad-cam.
            targets: one an image, a function of its output; None is the class with the highest score of each.
            aug_smooth, eigen_smooth: left to pytorch-grad-cam.

        Raises:
            ValueError: another number of targets than of images; a layer that the target does not depend on.
            AssertionError: a layer that is not called.
            ImportError: what is left to pytorch-grad-cam, where it is not installed.
        """
        if aug_smooth:
            return self._left(input_tensor, targets, True, eigen_smooth)
        return self.forward(input_tensor, targets, eigen_smooth)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None = None,
        eigen_smooth: bool = False,
    ) -> Array:
        """The same without augmentation."""
        if eigen_smooth or input_tensor.dim() != 4:
            return self._left(input_tensor, targets, False, eigen_smooth)
        size = (input_tensor.shape[2], input_tensor.shape[3])
        maps = [_scaled(each, size) for each in self._maps(input_tensor.to(self.device), targets)]
        found: Array = _scaled(torch.stack(maps).mean(0)).float().cpu().numpy()
        return found

    def _maps(self, images: Tensor, targets: Sequence[Callable[[Tensor], Tensor]] | None) -> list[Tensor]:
        """``ReLU(Σ_k α_k A_k)`` of each layer, [N, h, w]."""

        def differentiated(images: Tensor) -> tuple[Any, list[tuple[int, Tensor]], tuple[Tensor | None, ...]]:
            with first_calls(self.target_layers) as calls:
                outputs = self.model(images.clone())
            chosen = targets
            if chosen is None:
                chosen = [_ClassScore(int(category)) for category in outputs.detach().argmax(-1)]
            if len(chosen) != len(outputs):
                raise ValueError(f"targets should have one entry for each of {len(outputs)} images, got {len(chosen)}")
            values = [value for _, value in calls]
            loss: Any = sum(target(output) for target, output in zip(chosen, outputs, strict=True))
            return outputs, calls, torch.autograd.grad(loss, values, allow_unused=True)

        with frozen_model(self.model), torch.no_grad():
            outputs, calls, gradients = in_fast_order(self.model, (images,), differentiated)(images)
        self.outputs = outputs.detach() if isinstance(outputs, Tensor) else outputs
        found = []
        for (number, value), gradient in zip(calls, gradients, strict=True):
            if gradient is None:
                raise ValueError(f"targets should depend on each layer, but do not on target_layers[{number}]")
            maps, gradient = self._reshaped(value.detach()), self._reshaped(gradient)
            if maps.dim() != 4:
                raise ValueError(
                    f"target_layers[{number}] should give maps [N, K, h, w], got {list(maps.shape)}; "
                    "reshape_transform can make them"
                )
            found.append((gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu())
        return found

    def _reshaped(self, value: Tensor) -> Tensor:
        return value if self.reshape_transform is None else self.reshape_transform(value)

    def _left(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None,
        aug_smooth: bool,
        eigen_smooth: bool,
    ) -> Array:
        """pytorch-grad-cam's own computation; the model's mode and its parameters' ``grad`` are put back."""
        if _Hooks is None:
            raise ImportError("this call needs pytorch-grad-cam itself: pip install 'fastviz[grad-cam]'")
        held = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        with frozen_model(self.model):
            theirs = _Cam(self.model, self.target_layers, self.reshape_transform)
            try:
                found: Array = theirs(input_tensor, targets, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
            finally:
                theirs.activations_and_grads.release()
                for parameter, grad in held:
                    parameter.grad = grad
        return found

    @property
    def activations_and_grads(self) -> Any:
        """pytorch-grad-cam's recorder with its hooks, for methods of that library that ask for it; made then."""
        if self._hooks is None:
            self._hooks = _Hooks(self.model, self.target_layers, self.reshape_transform, self.detach)
        return self._hooks

    def __enter__(self) -> GradCAM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.__del__()

    def __del__(self) -> None:
        if getattr(self, "_hooks", None) is not None:
            self._hooks.release()


class _ClassScore:
    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, output: Tensor) -> Tensor:
        return output[self.category]


def _scaled(maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Each of ``maps`` [N, h, w] scaled to 0 to 1, as float32 and at another size if one is given."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    maps = (maps / (maps.amax((1, 2), keepdim=True) + _EPSILON)).float()
    if size is None:
        return maps
    return functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


class GuidedBackpropReLUModel(_Guided):
    """pytorch-grad-cam's ``GuidedBackpropReLUModel``: the gradient that rectifiers let by where both are positive.

    Args:
        model: any module; evaluation mode holds while it runs. Every rectifier follows the rule, also functions.
        device: moves the model there; None leaves it where it is.

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
            target_category: a class for all images, one for each, or None for the one with the highest score of each.
        """
        target = target_category
        if target is not None and not isinstance(target, (int, np.integer, Tensor)):
            target = torch.as_tensor(np.asarray(target), device=self.device)
        gradient = guided_backprop(self.model, input_img.detach().to(self.device), target)
        found: Array = gradient.float().cpu().permute(0, 2, 3, 1).numpy()
        return found[0] if len(found) == 1 else found
