"""Grad-CAM and Guided Grad-CAM, and the pass that other class activation maps share with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload
from warnings import warn

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.gradients import cam_layers, input_gradients
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import in_fast_order
from fastviz.execution.hooks import layer_module
from fastviz.execution.inputs import input_batch, require_gradients
from fastviz.execution.map_axes import Axes
from fastviz.execution.precision import Precision, map_dtype, reduced_precision, widened
from fastviz.images import tensors
from fastviz.methods.attribution import cam_formulas
from fastviz.methods.attribution.cam_formulas import Formula
from fastviz.methods.attribution.map_fusion import map_size
from fastviz.targets.selection import Target

__all__ = ["grad_cam", "guided_grad_cam", "in_batches", "layer_name", "maps_of_layers", "resized", "warn_of_zero"]


@overload
def grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    size: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor: ...
@overload
def grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layers: Sequence[str],
    size: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> dict[str, Tensor]: ...
def grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    layers: Sequence[str] | None = None,
    size: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor | dict[str, Tensor]:
    """Positions of a layer that support the target: ``ReLU(Σ_k α_k A_k)`` with ``α_k = mean_ij(∂S/∂A_kij)``.

    A are the layer's maps [N, K, h, w]. Selvaraju et al. 2017, "Grad-CAM", https://arxiv.org/abs/1610.02391. The
    network runs without a graph up to the layer, so nothing before it is stored for the backward pass.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0. Or signals [N, C, L], or volumes
            [N, C, D, H, W], with maps [N, l] and [N, d, h, w].
        target: what to explain; None is the predicted class of each sample. See :data:`fastviz.Target`.
        layer: dotted name of a layer with output [N, K, h, w], or [N, h, w, K] or tokens [N, L, K] in networks where
            the dimensions can be traced from the image; its last call is used, and class and register tokens are left
            out. None is the last layer, apart from pooling, with maps larger than 1x1, found by running the first image
            once more (the paper's last convolutional layer: ``layer4`` of a ResNet, ``features.29`` of VGG-16); in
            networks that work on tokens the last layer with a gradient, in networks that return maps the last of the
            coarsest maps.
        layers: several such names instead of ``layer``, for one forward pass.
        size: height and width to which the maps are resized (bilinear, ``align_corners=False``); None keeps their own.
            For signals the length, for volumes depth, height and width.
        batch_size, precision: as in :func:`fastviz.input_gradient`.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets per sample), 0 or more, not scaled, of the dtype of ``x`` (float32 for 16
        bits). With ``layers``: layer name → such maps.

    Raises:
        TypeError: ``model``, ``x``, ``target`` or ``layer`` is of the wrong type; the model or layer does not return a
            tensor.
        ValueError: wrong shape or device of ``x``; a class or layer that does not exist; a layer that is not called,
            has no maps, or on which the target does not depend; no layer with maps at all; no ``layer`` for a network
            that continues with tokens that cannot be traced.

    Warns:
        UserWarning: the gradient is zero everywhere at the layer.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> grad_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    images = input_batch(model, x, axes=(1, 2, 3))
    model = eager(model)
    selection = targets.resolve(target, model)
    shape = map_size(size, images.dim() - 2)

    def compute(names: list[str], confirm: bool) -> list[Tensor]:
        return maps_of_layers(model, images, selection, names, batch_size, precision, confirm=confirm)

    names, maps = cam_layers.at_layers(checks.layer_names(layer, layers), model, images, selection, compute)
    if shape is not None:
        maps = [resized(each, shape) for each in maps]
    return maps[0] if layers is None else dict(zip(names, maps, strict=True))


def guided_grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The product of guided backprop and Grad-CAM, the latter resized to the input (bilinear).

    Selvaraju et al. 2017, "Grad-CAM", https://arxiv.org/abs/1610.02391. Arguments as in :func:`grad_cam`; errors and
    warnings as in :func:`grad_cam` and :func:`fastviz.guided_backprop`. For None, both use the same predicted class.

    Returns:
        [N, C, H, W] ([N, T, C, H, W] for T targets per sample), signed.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> guided_grad_cam(model, torch.rand(1, 3, 8, 8), target=4, layer="1").shape
    torch.Size([1, 3, 8, 8])
    """
    images = input_batch(model, x, axes=(1, 2, 3))
    model = eager(model)
    selection = targets.resolve(target, model)

    def compute(names: list[str], confirm: bool) -> list[Tensor]:
        return maps_of_layers(model, images, selection, names, batch_size, precision, confirm=confirm)

    given = None if layer is None else [layer_name(model, images, layer)]
    _, (coarse,) = cam_layers.at_layers(given, model, images, selection, compute)
    guided = input_gradients.input_gradients(
        model, images, selection, rule="guided", batch_size=batch_size, precision=precision, stacklevel=2
    )
    return guided * resized(coarse, tuple(images.shape[2:])).unsqueeze(1 - images.dim())


# ------------------------------------------------------------------------------------------------------- helpers


def layer_name(model: nn.Module, images: Tensor, layer: str | None, selection: targets.Selection | None = None) -> str:
    """``layer``, which must exist, or the default one for None."""
    if layer is None:
        return cam_layers.default_layer(model, images, selection)
    layer_module(model, layer)
    return layer


def maps_of_layers(
    model: nn.Module,
    images: Tensor,
    selection: targets.Selection,
    names: list[str],
    batch_size: int | None,
    precision: Precision,
    *,
    formulas: Sequence[Formula] = (cam_formulas.GRADIENT["grad_cam"],),
    confirm: bool = False,
) -> list[Tensor]:
    """Maps of the layers ``names``, [N, h, w] or [N, T, h, w] for each, from one pass.

    With several ``formulas`` the maps of the first layer by each formula come first. ``confirm`` as in
    :func:`fastviz.engine.gradients.cam_layers.at_layers`.
    """
    require_gradients(model)
    work = _Maps(model, names, selection.layers, precision, formulas, confirm)
    maps = in_batches(work.batches, images, selection, batch_size, precision, work.of_batch)
    if images.dim() == 4:
        return maps
    sizes = [work.sizes[name] for name in names for _ in formulas]
    return [rows.reshape(*rows.shape[:-2], *size) for rows, size in zip(maps, sizes, strict=True)]


class _Maps:
    """Computes maps by some ``formulas`` from passes over batches, as :func:`maps_of_layers` does.

    Attributes:
        sizes: layer → the sizes of its maps, once they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        more: Sequence[str],
        precision: Precision,
        formulas: Sequence[Formula],
        confirm: bool,
    ) -> None:
        self.batches = Batches(model)
        self.sizes: dict[str, torch.Size] = {}
        self._names, self._precision, self._formulas, self._confirm = names, precision, formulas, confirm
        self._needed = tuple(dict.fromkeys((*names, *more)))

    def of_batch(self, batch: Tensor, part: targets.Selection | None) -> list[Tensor]:
        """The maps of a batch for its targets; without them maps [1, h, w] that show the size."""
        axes = Axes()
        with torch.no_grad(), reduced_precision(batch, self._precision), axes:
            output, recorded = self.batches.watched(self._pass(axes), axes.images(batch.clone()))
        if part is not None:
            part.missing(output)  # warns
        layers = {f"layer {name!r}": recorded[name] for name in self._names}
        for name in self._names:
            if recorded[name].dim() == batch.dim() and len(recorded[name]) != len(batch):
                raise ValueError(
                    f"layer {name!r} should have maps of each sample as its output, [{len(batch)}{axes.layout[2:]}, "
                    f"got {list(recorded[name].shape)}"
                )

        def planes(of: Tensor, name: str) -> Tensor:
            laid = cam_layers.planes(of, recorded[name], name, axes)
            self.sizes[name] = laid.shape[2 - axes.dims :]
            # signals and volumes as planes with one row
            return laid if axes.dims == 4 else laid.flatten(2 - axes.dims).unsqueeze(-2)

        if part is None:
            return [planes(recorded[name].detach(), name)[:, 0] for name in self._names for _ in self._formulas]
        values = part.values(*widened(output, recorded, batch.dtype, self._precision))
        found = []
        for name, gradient in zip(self._names, targets.gradients(values, layers), strict=True):
            warn_of_zero(gradient, name)
            slopes = planes(gradient, name).to(map_dtype(batch.dtype))
            layer = planes(recorded[name].detach(), name).to(slopes.dtype)
            layer = layer if slopes.dim() == 4 else layer[:, None]
            found += [formula(layer, slopes).contiguous() for formula in self._formulas]
        return found

    def _pass(self, axes: Axes) -> Callable[[Tensor], tuple[object, targets.Activations]]:
        def run(images: Tensor) -> tuple[object, targets.Activations]:
            return targets.run(self.batches.model, images, self._needed, start_gradients=True)

        return cam_layers.confirming(run, self.batches.model, self._names, axes, self._confirm)


def in_batches(
    batches: Batches,
    images: Tensor,
    selection: targets.Selection,
    batch_size: int | None,
    precision: Precision,
    compute: Callable[[Tensor, targets.Selection | None], list[Tensor]],
) -> list[Tensor]:
    """The results of ``compute`` for batches of the ``images`` and their targets, with the model in evaluation mode.

    Without targets, ``compute`` returns maps [1, h, w] of the right size: for an empty batch their shape comes from
    running a black image.
    """
    input_gradients.check_options(batch_size, precision)
    with frozen_model(batches.model):
        if not len(images):
            black = images.new_zeros((1, *images.shape[1:]))
            return [selection.no_values(maps, maps.shape[1:]) for maps in compute(black, None)]
        run = in_fast_order(batches.model, precision, compute)
        parts = input_gradients.passes(batches, images, selection, batch_size, run)
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def warn_of_zero(gradient: Tensor, name: str) -> None:
    """Warn about samples whose gradient is zero at the whole layer, since their map of zeros has no meaning."""
    zero = int((gradient == 0).flatten(1).all(1).sum())
    if zero:
        warn(
            f"the target has a gradient of zero everywhere at layer {name!r} for {zero} of {len(gradient)} samples: "
            "their maps are zero",
            UserWarning,
            stacklevel=2,
        )


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """``maps`` [..., *places] at another size, linear along each."""
    if len(size) == 2:
        return tensors.resize_maps(maps, *size)
    lead = maps.shape[: maps.dim() - len(size)]
    if not maps.numel():
        return maps.new_zeros(*lead, *size)
    planes = maps.reshape(-1, 1, *maps.shape[len(lead) :])
    larger = functional.interpolate(planes, size, mode="linear" if len(size) == 1 else "trilinear")
    return larger.reshape(*lead, *size)
