"""Gradient-based CAMs: Grad-CAM++, XGrad-CAM, LayerCAM, HiResCAM, element-wise, Eigen-CAM, Eigen-Grad-CAM.

All weight the maps A of a layer by the target's gradient G for them; one recorded pass serves any number of methods and
layers, see :func:`cams`. Results equal those of pytorch-grad-cam before its scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.gradients import cam_layers
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager
from fastviz.execution.forward import layer_outputs
from fastviz.execution.inputs import input_batch, output_of
from fastviz.execution.map_axes import Axes
from fastviz.execution.precision import Precision, map_dtype, reduced_precision
from fastviz.images import tensors
from fastviz.methods.attribution import grad_cam
from fastviz.methods.attribution.cam_formulas import GRADIENT, Formula
from fastviz.methods.attribution.map_fusion import map_size
from fastviz.targets.selection import Target

__all__ = [
    "cams",
    "eigen_cam",
    "eigen_grad_cam",
    "element_wise_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "layer_cam",
    "xgrad_cam",
]

_EIGEN = "eigen_cam"
_NAMES = (*GRADIENT, _EIGEN)


def cams(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    methods: Sequence[str],
    layers: Sequence[str] | None = None,
    eigen_smooth: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> dict[str, dict[str, Tensor]]:
    """Maps of several methods of the CAM family at several layers, from one forward and one backward pass.

    Args:
        model, x, target, size, batch_size, precision: as in :func:`fastviz.grad_cam`.
        methods: of ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"layer_cam"``, ``"hires_cam"``,
            ``"element_wise_cam"``, ``"eigen_grad_cam"``, ``"seg_eigen_cam"``, ``"eigen_cam"``: see the functions with
            these names; ``"seg_eigen_cam"`` is the first principal component of ``abs(G) A``.
        layers: dotted names; None is the last one with maps, as in :func:`fastviz.grad_cam`.
        eigen_smooth: project the weighted maps onto their first principal component instead of summing them.

    Returns:
        Method → layer → maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled. To fuse the maps
        of several layers, see :func:`fastviz.fuse_maps`.

    Raises:
        TypeError, ValueError: as :func:`fastviz.grad_cam`; a method that is not one of these.

    Warns:
        UserWarning: as :func:`fastviz.grad_cam`.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> found = cams(model, torch.ones(1, 1, 8, 8), 4, methods=["grad_cam", "layer_cam"], layers=["0", "1"])
    >>> found["layer_cam"]["1"].shape
    torch.Size([1, 6, 6])
    """
    images = input_batch(model, x)
    model = eager(model)
    selection = targets.resolve(target, model)
    chosen = list(dict.fromkeys(checks.nearest(name, "methods", _NAMES) for name in checks.names(methods, "methods")))
    if not chosen:
        raise ValueError(f"methods should be one or more of {', '.join(_NAMES)}, got none")
    given = None if layers is None else list(dict.fromkeys(checks.names(layers, "layers")))
    if given == []:
        raise ValueError("layers should be a list of names, or None for the last one with maps, got an empty list")
    shape = map_size(size)
    formulas = {method: GRADIENT[method] for method in chosen if method != _EIGEN}
    if eigen_smooth:
        formulas = {method: formula.smooth() for method, formula in formulas.items()}

    def compute(names: list[str], confirm: bool) -> dict[str, dict[str, Tensor]]:
        found: dict[str, dict[str, Tensor]] = {method: {} for method in chosen}
        if formulas:
            maps = grad_cam.maps_of_layers(
                *(model, images, selection, names, batch_size, precision),
                formulas=list(formulas.values()),
                confirm=confirm,
            )
            for (name, method), each in zip(product(names, formulas), maps, strict=True):
                found[method][name] = each
        if _EIGEN in chosen:
            maps = _eigen(model, images, selection, names, batch_size, precision, confirm)
            found[_EIGEN] = dict(zip(names, maps, strict=True))
        return found

    _, found = cam_layers.at_layers(given, model, images, None, compute)
    if shape is not None:
        found = {
            method: {name: tensors.resize_maps(each, *shape) for name, each in maps_of.items()}
            for method, maps_of in found.items()
        }
    return found


def grad_cam_plus_plus(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """Grad-CAM with weights from the positions with positive gradients: ``ReLU(Σ_k w_k A_k)``.

    ``w_k = Σ_ij α_kij ReLU(G_kij)`` with ``α = G² / (2 G² + G³ Σ_ij A_kij + 1e-6)``, 0 where G is 0. Chattopadhay et
    al. 2018, "Grad-CAM++", https://arxiv.org/abs/1710.11063, from derivatives of the exponential of the score.

    Args:
        model, x, target, layer, size, batch_size, precision: as in :func:`fastviz.grad_cam`.
        eigen_smooth: project the weighted maps onto their first principal component instead of summing them.

    Result, errors and warnings as in :func:`fastviz.grad_cam` with one layer.

    Returns:
        Maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> grad_cam_plus_plus(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    return _one("grad_cam_plus_plus", model, x, target, layer, eigen_smooth, size, batch_size, precision)


def xgrad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """Grad-CAM with weights averaged over each map's active positions: ``ReLU(Σ_k w_k A_k)``.

    ``w_k = Σ_ij G_kij A_kij / (Σ_ij A_kij + 1e-7)``. Fu et al. 2020, "Axiom-based Grad-CAM",
    https://arxiv.org/abs/2008.02312. Arguments, result and errors as in :func:`grad_cam_plus_plus`.

    Returns:
        Maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> xgrad_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    return _one("xgrad_cam", model, x, target, layer, eigen_smooth, size, batch_size, precision)


def layer_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """Maps weighted at each position by the positive gradient, ``ReLU(Σ_k ReLU(G_k) A_k)``: useful in early layers too.

    Jiang et al. 2021, "LayerCAM", https://doi.org/10.1109/TIP.2021.3089943. Arguments, result and errors as in
    :func:`grad_cam_plus_plus`.

    Returns:
        Maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> layer_cam(model, torch.ones(1, 1, 8, 8), target=4, size=(8, 8)).shape
    torch.Size([1, 8, 8])
    """
    return _one("layer_cam", model, x, target, layer, eigen_smooth, size, batch_size, precision)


def hires_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """Gradient times map, ``ReLU(Σ_k G_k A_k)``: each position's contribution to the score if the rest is linear.

    Draelos, Carin 2020, "Use HiResCAM instead of Grad-CAM", https://arxiv.org/abs/2011.08891. Arguments, result and
    errors as in :func:`grad_cam_plus_plus`; with ``eigen_smooth`` the paper's guarantee does not hold.

    Returns:
        Maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> hires_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    return _one("hires_cam", model, x, target, layer, eigen_smooth, size, batch_size, precision)


def element_wise_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    eigen_smooth: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The positive part of gradient times map, ``Σ_k ReLU(G_k A_k)``, without contributions against the target.

    "GradCAMElementWise" of pytorch-grad-cam, https://github.com/jacobgil/pytorch-grad-cam. Arguments, result and errors
    as in :func:`grad_cam_plus_plus`.

    Returns:
        Maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> element_wise_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    return _one("element_wise_cam", model, x, target, layer, eigen_smooth, size, batch_size, precision)


def eigen_grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The positive part of the first principal component of gradient times map: Eigen-CAM for a target.

    Muhammad, Yeasin 2020, "Eigen-CAM", https://arxiv.org/abs/2008.00299, with ``G A`` instead of A, as in
    pytorch-grad-cam. Arguments, result and errors as in :func:`grad_cam_plus_plus`; the sign is chosen as in
    :func:`eigen_cam`.

    Returns:
        Maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> eigen_grad_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    return _one("eigen_grad_cam", model, x, target, layer, False, size, batch_size, precision)


def eigen_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The positive part of the first principal component of a layer's maps, independent of the target.

    The positions are points with one coordinate per channel; their mean is subtracted and they are projected onto the
    first singular vector. Muhammad, Yeasin 2020, "Eigen-CAM", https://arxiv.org/abs/2008.00299. The sign of a principal
    component is arbitrary; here it makes the largest absolute value positive. If an object fills most of the image,
    that may be the background, which differs most from the mean then. pytorch-grad-cam does not choose a sign.

    Args:
        model, x, layer, size, batch_size, precision: as in :func:`fastviz.grad_cam`.
        target: only affects the shape: T targets per sample give the same map T times.

    Result and errors as in :func:`fastviz.grad_cam` with one layer; there is no warning about gradients of zero.

    Returns:
        Maps [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> eigen_cam(model, torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 6, 6])
    """
    return _one(_EIGEN, model, x, target, layer, False, size, batch_size, precision)


# ------------------------------------------------------------------------------------------------------- helpers


def _one(
    method: str,
    model: nn.Module,
    x: Tensor,
    target: Target,
    layer: str | None,
    eigen_smooth: bool,
    size: tuple[int, int] | None,
    batch_size: int | None,
    precision: Precision,
) -> Tensor:
    """The maps of one method at one layer."""
    if layer is not None and not isinstance(layer, str):
        raise TypeError(f"layer should be a dotted module name, got {type(layer).__name__}; cams takes several")
    found = cams(
        model,
        x,
        target,
        methods=[method],
        layers=None if layer is None else [layer],
        eigen_smooth=eigen_smooth,
        size=size,
        batch_size=batch_size,
        precision=precision,
    )
    (maps,) = found[method].values()
    return maps


def _eigen(
    model: nn.Module,
    images: Tensor,
    selection: targets.Selection,
    names: list[str],
    batch_size: int | None,
    precision: Precision,
    confirm: bool,
) -> list[Tensor]:
    """Eigen-CAM of each layer, from a forward pass only; ``confirm`` as in ``cam_layers.at_layers``."""
    if len(images):
        selection.for_samples(torch.arange(len(images)), len(images))  # refuses classes for another number of images
    batches = Batches(model)
    formula = Formula(lambda maps, _: maps, projected=True)

    def compute(batch: Tensor, part: targets.Selection | None) -> list[Tensor]:
        axes = Axes()
        run = cam_layers.confirming(lambda x: (output_of(model, x),), model, names, axes, confirm)
        with torch.no_grad(), layer_outputs(model, names) as recorded, reduced_precision(batch, precision), axes:
            batches.watched(run, axes.images(batch.clone()))
        found = []
        for name in names:
            maps = cam_layers.planes(recorded[name].detach(), recorded[name], name, axes).to(map_dtype(batch.dtype))
            once = formula(maps, maps)
            columns = None if part is None else part.columns
            found.append(once if columns is None else once[:, None].expand(-1, columns, -1, -1).contiguous())
        return found

    return grad_cam.in_batches(batches, images, selection, batch_size, precision, compute)
