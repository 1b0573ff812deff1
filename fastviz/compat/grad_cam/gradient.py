"""pytorch-grad-cam's CAM classes that need one pass: from gradients, principal components or activations alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from fastviz.compat.grad_cam._base import CamBase
from fastviz.compat.grad_cam._tool import base
from fastviz.methods.attribution.cam_formulas import GRADIENT, Formula

__all__ = [
    "FEM",
    "KPCA_CAM",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "RandomCAM",
    "SegEigenCAM",
    "XGradCAM",
]


class GradCAM(CamBase, base("GradCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``GradCAM``: ``ReLU(Σ_k α_k A_k)``, see :func:`fastviz.grad_cam`.

    Args:
        model: any module; it runs in evaluation mode.
        target_layers: modules of the model that give maps [N, K, h, w]. If some are called several times, the first
            calls are used, as many as there are layers, as in pytorch-grad-cam; for a single layer, its first call.
        reshape_transform: converts a layer's output, and its gradient, into such maps.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> import torch
    >>> GradCAM(model, [model[1]])(torch.rand(3, 1, 8, 8)).shape
    (3, 8, 8)
    """

    _name = "GradCAM"
    _formula = GRADIENT["grad_cam"]


class GradCAMPlusPlus(CamBase, base("GradCAMPlusPlus")):  # type: ignore[misc]
    """pytorch-grad-cam's ``GradCAMPlusPlus``, see :func:`fastviz.grad_cam_plus_plus`; arguments of :class:`GradCAM`."""

    _name = "GradCAMPlusPlus"
    _formula = GRADIENT["grad_cam_plus_plus"]


class XGradCAM(CamBase, base("XGradCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``XGradCAM``, see :func:`fastviz.xgrad_cam`; arguments of :class:`GradCAM`."""

    _name = "XGradCAM"
    _formula = GRADIENT["xgrad_cam"]


class LayerCAM(CamBase, base("LayerCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``LayerCAM``, see :func:`fastviz.layer_cam`; arguments of :class:`GradCAM`."""

    _name = "LayerCAM"
    _formula = GRADIENT["layer_cam"]


class HiResCAM(CamBase, base("HiResCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``HiResCAM``, see :func:`fastviz.hires_cam`; arguments of :class:`GradCAM`."""

    _name = "HiResCAM"
    _formula = GRADIENT["hires_cam"]


class GradCAMElementWise(CamBase, base("GradCAMElementWise")):  # type: ignore[misc]
    """pytorch-grad-cam's ``GradCAMElementWise``, :func:`fastviz.element_wise_cam`; arguments of :class:`GradCAM`."""

    _name = "GradCAMElementWise"
    _formula = GRADIENT["element_wise_cam"]


class EigenGradCAM(CamBase, base("EigenGradCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``EigenGradCAM``, with the same sign; arguments of :class:`GradCAM`."""

    _name = "EigenGradCAM"
    _formula = replace(GRADIENT["eigen_grad_cam"], fixes_sign=False)


class SegEigenCAM(CamBase, base("SegEigenCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``SegEigenCAM``; arguments of :class:`GradCAM`."""

    _name = "SegEigenCAM"
    _formula = GRADIENT["seg_eigen_cam"]


class EigenCAM(CamBase, base("EigenCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``EigenCAM``, with the same sign; arguments of :class:`GradCAM`."""

    uses_gradients = False
    _name = "EigenCAM"
    _formula = Formula(lambda maps, _: maps, projected=True, fixes_sign=False)


class RandomCAM(CamBase, base("RandomCAM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``RandomCAM``: its own weights from NumPy's generator, with our forward pass."""

    _name = "RandomCAM"


class FEM(CamBase, base("FEM")):  # type: ignore[misc]
    """pytorch-grad-cam's ``FEM``: its own formula, with our forward pass."""

    uses_gradients = False
    _name = "FEM"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        k: float = 2,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.k = k

    def _options(self) -> dict[str, object]:
        return {"k": self.k}


class KPCA_CAM(CamBase, base("KPCA_CAM")):  # type: ignore[misc]  # noqa: N801
    """pytorch-grad-cam's ``KPCA_CAM``: its own formula, with our forward pass."""

    uses_gradients = False
    _name = "KPCA_CAM"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        kernel: str = "sigmoid",
        gamma: float | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.kernel, self.gamma = kernel, gamma

    def _options(self) -> dict[str, object]:
        return {"kernel": self.kernel, "gamma": self.gamma}
