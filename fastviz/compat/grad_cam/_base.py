"""Shared by all CAM classes: one pass for all images and layers, a formula for each layer, scaled and averaged maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fastviz.compat._layers import first_calls
from fastviz.compat._order import in_fast_order
from fastviz.compat.grad_cam._tool import MISSING, base, tool
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.methods.attribution.cam_formulas import Formula, with_positive_peak

__all__ = ["Array", "CamBase", "ClassScore", "Targets", "one_target_each", "projected", "scaled"]

Array = NDArray[np.float32]
Targets = Sequence[Callable[[Any], Tensor]]

_EPSILON = 1e-7
"""Added to the largest value before dividing by it, as in pytorch-grad-cam."""

_FORMULAS = ("get_cam_weights", "get_cam_image")
_STEPS = ("compute_cam_per_layer", "aggregate_multi_layers", "forward")


class CamBase(base("BaseCAM")):  # type: ignore[misc]
    """A class of pytorch-grad-cam: a class activation map of the size of the image, from one or several layers.

    The map of each layer is scaled to 0 to 1 in each image, resized (bilinear) and averaged over the layers; the mean
    is scaled again. Only the part of the model after the first layer gets an autograd graph, and no parameter gets a
    gradient. Subclasses may define their own formulas (``get_cam_weights``, ``get_cam_image``), as in pytorch-grad-cam.
    """

    uses_gradients = True
    compute_input_gradient = False
    detach = True
    _name: ClassVar[str] = "BaseCAM"
    _formula: ClassVar[Formula | None] = None

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if self._formula is None and tool is None and type(self)._layer_map is CamBase._layer_map:
            raise ImportError(MISSING)
        self.model = model
        self.target_layers = target_layers
        self.reshape_transform = reshape_transform
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._hooks: Any = None

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Targets | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Array:
        """The maps, float32 [N, H, W], 0 to 1.

        Args:
            input_tensor: [N, C, H, W]; volumes [N, C, D, H, W] are delegated to pytorch-grad-cam.
            targets: one function per image, of the image's output; None is the class with the highest score.
            aug_smooth: average over the image and its mirror image, each also darker and brighter.
            eigen_smooth: project the weighted maps onto their first principal component instead of adding them up.

        Raises:
            ValueError: the numbers of targets and images differ, or the targets do not depend on a layer.
            AssertionError: a layer is not called.
            ImportError: the call needs pytorch-grad-cam, which is not installed.
        """
        if not aug_smooth:
            return self.forward(input_tensor, targets, eigen_smooth)
        if "tta_transforms" in vars(self):  # the user has set other augmentations
            other: Array = self.forward_augmentation_smoothing(input_tensor, targets, eigen_smooth)
            return other
        if input_tensor.dim() != 4:
            return self._delegate(input_tensor, targets, eigen_smooth, aug_smooth=True)
        found = []
        for mirrored in (False, True):
            for factor in (0.9, 1, 1.1):
                copy = (input_tensor.flip(3) if mirrored else input_tensor) * factor
                maps = self.forward(copy, targets, eigen_smooth)
                found.append(maps[..., ::-1] if mirrored else maps)
        mean: Array = np.asarray(found, np.float32).mean(axis=0)
        return mean

    def forward(self, input_tensor: Tensor, targets: Targets | None = None, eigen_smooth: bool = False) -> Array:
        """The same without augmentation."""
        if self._delegates(input_tensor, eigen_smooth) or self._overrides(_STEPS):
            return self._delegate(input_tensor, targets, eigen_smooth)
        size = (input_tensor.shape[2], input_tensor.shape[3])
        images = input_tensor.to(self.device)
        with frozen_model(self.model):
            with torch.no_grad():
                chosen, calls, gradients = self._recorded(images, targets)
            with torch.no_grad():  # again, because recording a layer enables gradients
                maps = [
                    scaled(self._map(images, number, value, gradient, chosen, eigen_smooth).relu(), size)
                    for (number, value), gradient in zip(calls, gradients, strict=True)
                ]
        found: Array = scaled(torch.stack(maps).mean(0)).float().cpu().numpy()
        return found

    def _map(
        self, images: Tensor, number: int, value: Tensor, gradient: Tensor | None, targets: Targets, eigen_smooth: bool
    ) -> Tensor:
        """The map of one layer [N, h, w], from its output and the gradient for it."""
        A, G = self._reshaped(value.detach()), None if gradient is None else self._reshaped(gradient)
        if A.dim() != 4:
            raise ValueError(
                f"target_layers[{number}] should give maps [N, K, h, w], got {list(A.shape)}; "
                "reshape_transform can make them"
            )
        if self._formula is not None and not self._overrides(_FORMULAS):
            return self._formula_map(A, G, eigen_smooth)
        return self._layer_map(images, number, targets, A, G, eigen_smooth)

    def _recorded(
        self, images: Tensor, targets: Targets | None
    ) -> tuple[Targets, list[tuple[int, Tensor]], tuple[Tensor | None, ...]]:
        """The targets, the layers' outputs with the layers' indices, and the gradients for them (None if unused)."""

        def differentiated(images: Tensor) -> Any:
            with first_calls(self.target_layers) as calls:
                outputs = self.model(images.clone())
            if not self.uses_gradients:
                chosen = predicted_classes(outputs) if targets is None else targets
                return outputs, chosen, calls, (None,) * len(calls)
            chosen = one_target_each(targets, outputs)
            values = [value for _, value in calls]
            loss: Any = sum(target(output) for target, output in zip(chosen, outputs, strict=True))
            return outputs, chosen, calls, torch.autograd.grad(loss, values, allow_unused=True)

        outputs, chosen, calls, gradients = in_fast_order(self.model, (images,), differentiated)(images)
        self.outputs = outputs.detach() if isinstance(outputs, Tensor) else outputs
        for (number, _), gradient in zip(calls, gradients, strict=True):
            if gradient is None and self.uses_gradients:
                raise ValueError(f"targets should depend on each layer, but do not on target_layers[{number}]")
        return chosen, calls, gradients

    def _formula_map(self, A: Tensor, G: Tensor | None, eigen_smooth: bool) -> Tensor:
        """The map of a layer [N, h, w] with the formula of the class."""
        formula = self._formula
        assert formula is not None
        if not (eigen_smooth or formula.projected):
            return formula.weighted(A, A if G is None else G).sum(1)
        weighted = self._to_project(A, G)
        found = projected(weighted)
        return with_positive_peak(found) if formula.projected and formula.fixes_sign else found

    def _to_project(self, A: Tensor, G: Tensor | None) -> Tensor:
        """The weighted maps, computed with NumPy if possible, because the sign of a projection may depend on the last
        bit."""
        if tool is not None and G is not None and "get_cam_weights" in vars(base(self._name)):
            arrays = [each.float() if each.dtype in (torch.float16, torch.bfloat16) else each for each in (A, G)]
            weights = self.get_cam_weights(None, None, None, *(each.cpu().numpy() for each in arrays))
            return torch.as_tensor(weights, device=A.device)[:, :, None, None] * arrays[0]
        assert self._formula is not None
        return self._formula.weighted(A, A if G is None else G)

    def _layer_map(
        self, images: Tensor, number: int, targets: Targets, A: Tensor, G: Tensor | None, eigen_smooth: bool
    ) -> Tensor:
        """The same with a NumPy formula from a subclass or from pytorch-grad-cam."""
        arrays = [None if each is None else each.float().cpu().numpy() for each in (A, G)]
        found = self.get_cam_image(images, self.target_layers[number], targets, *arrays, eigen_smooth)
        return torch.as_tensor(np.asarray(found), device=A.device)

    def _reshaped(self, value: Tensor) -> Tensor:
        return value if self.reshape_transform is None else self.reshape_transform(value)

    def _overrides(self, names: Sequence[str]) -> bool:
        """Whether a user's subclass overrides any of these methods."""
        for name in names:
            owner = next((kind for kind in type(self).__mro__ if name in vars(kind)), None)
            if owner is not None and owner.__module__.partition(".")[0] not in ("fastviz", "pytorch_grad_cam"):
                return True
        return False

    def _delegates(self, input_tensor: Tensor, eigen_smooth: bool) -> bool:
        """Whether a call is delegated to pytorch-grad-cam."""
        return input_tensor.dim() != 4

    def _options(self) -> dict[str, Any]:
        """Further arguments of the constructor."""
        return {}

    def _delegate(
        self, input_tensor: Tensor, targets: Targets | None, eigen_smooth: bool, *, aug_smooth: bool = False
    ) -> Array:
        """pytorch-grad-cam's own computation; the model's mode and its parameters' ``grad`` are restored."""
        if tool is None:
            raise ImportError(MISSING)
        with self._unchanged_model():
            if self._overrides(_STEPS):
                try:
                    own: Array = base("BaseCAM").forward(self, input_tensor, targets, eigen_smooth)
                    return own
                finally:
                    self.__del__()
            theirs = base(self._name)(self.model, self.target_layers, self.reshape_transform, **self._options())
            if hasattr(self, "batch_size"):
                theirs.batch_size = self.batch_size
            try:
                left: Array = theirs(input_tensor, targets, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
                return left
            finally:
                theirs.activations_and_grads.release()

    @contextmanager
    def _unchanged_model(self) -> Iterator[None]:
        held = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        with frozen_model(self.model):
            try:
                yield
            finally:
                for parameter, grad in held:
                    parameter.grad = grad

    @property
    def activations_and_grads(self) -> Any:
        """pytorch-grad-cam's recorder with its hooks, created on demand for methods of that library."""
        if self._hooks is None:
            self._hooks = tool.ActivationsAndGradients(
                self.model, self.target_layers, self.reshape_transform, self.detach
            )
        return self._hooks

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.__del__()

    def __del__(self) -> None:
        if getattr(self, "_hooks", None) is not None:
            self._hooks.release()
            self._hooks = None


class ClassScore:
    """The score of a class."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, output: Tensor) -> Tensor:
        """The score in one output [K]."""
        return output[self.category]


def predicted_classes(outputs: Tensor) -> Targets:
    """The class with the highest score of each of the ``outputs`` [N, K], as targets."""
    return [ClassScore(int(category)) for category in outputs.detach().argmax(-1)]


def one_target_each(targets: Targets | None, outputs: Tensor) -> Targets:
    """The ``targets``, one for each of the ``outputs``; None is the predicted classes.

    Raises:
        ValueError: there are more or fewer targets than outputs.
    """
    chosen = predicted_classes(outputs) if targets is None else targets
    if len(chosen) != len(outputs):
        raise ValueError(f"targets should have one entry for each of {len(outputs)} images, got {len(chosen)}")
    return chosen


def scaled(maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Each of ``maps`` [N, h, w] scaled to 0 to 1, as float32, and resized to ``size`` if given."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    maps = (maps / (maps.amax((1, 2), keepdim=True) + _EPSILON)).float()
    if size is None:
        return maps
    return functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def projected(maps: Tensor) -> Tensor:
    """Maps [N, K, h, w] projected onto their first principal component [N, h, w], float32, with NumPy's sign.

    In pytorch-grad-cam the sign comes from NumPy's full decomposition. The thin one has the same sign and is faster.
    """
    found = []
    for one in torch.where(maps.isnan(), 0, maps).cpu():
        points = (one if one.dtype == torch.float64 else one.float()).flatten(1).numpy().T
        points = points - points.mean(axis=0)
        axis = np.linalg.svd(points, full_matrices=False)[2][0]
        found.append(torch.from_numpy(np.float32(points @ axis)).reshape(one.shape[1:]))
    return torch.stack(found).to(maps.device)
