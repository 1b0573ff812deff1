"""Where in the last maps of a network the evidence for a target lies: CAM, Grad-CAM, Guided Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import overload
from warnings import warn

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.gradients import input_gradients
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.exported import is_exported
from fastviz.execution.fast_conv.memory_format import in_fast_order
from fastviz.execution.forward import layer_outputs
from fastviz.execution.hooks import hookable, hooked, layer_module
from fastviz.execution.inputs import input_batch, output_of, require_gradients
from fastviz.execution.map_axes import Axes
from fastviz.execution.precision import Precision, reduced_precision, widened
from fastviz.images import tensors
from fastviz.targets.selection import Target

__all__ = ["cam", "grad_cam", "guided_grad_cam"]

_POOLING = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.FractionalMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)


@overload
def grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    size: tuple[int, int] | None = None,
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
    size: tuple[int, int] | None = None,
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
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor | dict[str, Tensor]:
    """Which places of a layer speak for the target: ``ReLU(Σ_k α_k A_k)`` with ``α_k = mean_ij(∂S/∂A_kij)``.

    A are the layer's maps [N, K, h, w]. Selvaraju et al. 2017, "Grad-CAM", https://arxiv.org/abs/1610.02391. The
    network runs without a graph up to the layer, so nothing in front of it is kept for a backward pass.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        target: what to explain; None is the class with the highest score of each sample. See :data:`fastviz.Target`.
        layer: dotted name of a layer with output [N, K, h, w], or [N, h, w, K] in networks where the dimensions can be
            followed from the image on, at its last call. None is the last one, pooling apart, with maps larger than
            1x1, found by running the first image once more (the paper's last convolutional layer: ``layer4`` of a
            ResNet, ``features.29`` of VGG-16).
        layers: several such names, in place of ``layer``, for one forward pass.
        size: height and width to which the maps are resized (bilinear, ``align_corners=False``); None leaves them.
        batch_size, precision: as in :func:`fastviz.input_gradient`.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets a sample), 0 or more, of the dtype of ``x``, not scaled. With ``layers``:
        layer name → such maps.

    Raises:
        TypeError: ``model``, ``x``, ``target`` or ``layer`` is of the wrong type; the model or layer returns no tensor.
        ValueError: wrong shape or device of ``x``; a class or layer that does not exist; a layer that is not called,
            has no maps, or on which the target does not depend; no layer with maps at all; no ``layer`` for a network
            that goes on with tokens behind its maps.

    Warns:
        UserWarning: the gradient is zero everywhere at the layer.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> grad_cam(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 6, 6])
    """
    images = input_batch(model, x)
    model = eager(model)
    selection = targets.resolve(target, model)
    shape = None if size is None else _size(size)
    given = checks.layer_names(layer, layers)
    names = [_last_maps(model, images)] if given is None else given
    maps = _grad_cam(model, images, selection, names, batch_size, precision, named=given is not None)
    if shape is not None:
        maps = [tensors.resize_maps(each, *shape) for each in maps]
    return maps[0] if layers is None else dict(zip(names, maps, strict=True))


def cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """Which places of the last maps speak for and against a class: ``Σ_k w_k A_k``, w the class's weights.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", https://arxiv.org/abs/1512.04150. Only
    for networks that end in a global average of the maps A (or of their positive part, as DenseNet does) and one linear
    layer: ResNet, GoogLeNet, DenseNet, Inception, MobileNet v2, … Whether a network does is tested by computing its
    scores that way. The mean of a map is the score, less the bias.

    Args:
        model, x, size, batch_size, precision: as in :func:`grad_cam`.
        target: as in :func:`grad_cam`, but nothing inside the network. If it is no class score but a function of scores
            (a probability, a sum), each class counts by the gradient of the target for its score.

    Returns:
        [N, h, w] ([N, T, h, w] for T targets a sample), signed, not scaled.

    Raises:
        TypeError, ValueError: as :func:`grad_cam`; also a network that ends otherwise, with the names of its layers.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5, bias=False))
    >>> x = torch.ones(1, 1, 8, 8)
    >>> torch.allclose(cam(model, x, target=4).mean(), model(x)[0, 4])
    True
    """
    images = input_batch(model, x)
    model = eager(model)
    selection = targets.resolve(target, model)
    shape = None if size is None else _size(size)
    if selection.layers:
        raise ValueError(f"target should be about classes for CAM, got one about layer {selection.layers[0]!r}")
    name = _last_maps(model, images)
    batches = Batches(model)

    def compute(batch: Tensor, part: targets.Selection | None) -> Tensor:
        axes = Axes()
        with torch.no_grad(), layer_outputs(model, [name]) as recorded:
            with reduced_precision(batch, precision), axes:
                output = batches.run_model(axes.images(batch.clone()))
            maps, weight = _head(model, name, _planes(recorded[name], recorded[name], name, axes), output)
        assert isinstance(output, Tensor)
        if part is None:
            return maps[:, 0]
        scores = output.detach().to(weight.dtype).requires_grad_()
        share = targets.gradients(part.values(scores, {}), {"the scores": scores})[0]
        with torch.no_grad():
            return torch.einsum("n...k,nkhw->n...hw", share @ weight, maps).contiguous()

    (found,) = _in_batches(batches, images, selection, batch_size, precision, lambda *part: [compute(*part)])
    return found if shape is None else tensors.resize_maps(found, *shape)


def guided_grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """Guided backprop where Grad-CAM finds the target: their product, Grad-CAM resized to the input (bilinear).

    Selvaraju et al. 2017, "Grad-CAM", https://arxiv.org/abs/1610.02391. Arguments as in :func:`grad_cam`; errors and
    warnings as in :func:`grad_cam` and :func:`fastviz.guided_backprop`. With None, the predicted class, both are about
    the same class.

    Returns:
        [N, C, H, W] ([N, T, C, H, W] for T targets a sample), signed.

    >>> model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> guided_grad_cam(model, torch.rand(1, 3, 8, 8), target=4, layer="1").shape
    torch.Size([1, 3, 8, 8])
    """
    images = input_batch(model, x)
    model = eager(model)
    selection = targets.resolve(target, model)
    if layer is not None:
        layer_module(model, layer)
    name = _last_maps(model, images) if layer is None else layer
    (coarse,) = _grad_cam(model, images, selection, [name], batch_size, precision, named=layer is not None)
    guided = input_gradients.input_gradients(
        model, images, selection, rule="guided", batch_size=batch_size, precision=precision, stacklevel=2
    )
    return guided * tensors.resize_maps(coarse, images.shape[2], images.shape[3]).unsqueeze(-3)


# ------------------------------------------------------------------------------------------------------- helpers


def _grad_cam(
    model: nn.Module,
    images: Tensor,
    selection: targets.Selection,
    names: list[str],
    batch_size: int | None,
    precision: Precision,
    *,
    named: bool,
) -> list[Tensor]:
    """Grad-CAM at the layers with these names, ``named`` by the caller or not: [N, h, w] or [N, T, h, w] for each."""
    require_gradients(model)
    batches = Batches(model)
    needed = tuple(dict.fromkeys((*names, *selection.layers)))

    def compute(batch: Tensor, part: targets.Selection | None) -> list[Tensor]:
        axes = Axes()
        with torch.no_grad(), reduced_precision(batch, precision), axes:
            output, recorded = targets.run(
                model, axes.images(batch.clone()), needed, start_gradients=True, batches=batches
            )
        layers = {f"layer {name!r}": recorded[name] for name in names}
        for name in names:
            if recorded[name].dim() == 4 and len(recorded[name]) != len(batch):
                raise ValueError(
                    f"layer {name!r} should have maps of each sample as its output, [{len(batch)}, K, h, w], "
                    f"got {list(recorded[name].shape)}"
                )
        if not named and axes.tokens_after(recorded[names[0]]):
            raise ValueError(
                f"layer should be named for this network: behind its last maps, those of {names[0]!r}, it goes on with "
                "tokens, which are no maps"
            )

        def planes(of: Tensor, name: str) -> Tensor:
            return _planes(of, recorded[name], name, axes)

        if part is None:
            return [planes(recorded[name].detach(), name)[:, 0] for name in names]
        values = part.values(*widened(output, recorded, batch.dtype, precision))
        found = []
        for name, gradient in zip(names, targets.gradients(values, layers), strict=True):
            _say_zero(gradient, name)
            alpha = planes(gradient, name).to(batch.dtype).mean((-2, -1), keepdim=True)
            layer = planes(recorded[name].detach(), name).to(batch.dtype)
            found.append((alpha * (layer if alpha.dim() == 4 else layer[:, None])).sum(-3).relu().contiguous())
        return found

    return _in_batches(batches, images, selection, batch_size, precision, compute)


def _in_batches(
    batches: Batches,
    images: Tensor,
    selection: targets.Selection,
    batch_size: int | None,
    precision: Precision,
    compute: Callable[[Tensor, targets.Selection | None], list[Tensor]],
) -> list[Tensor]:
    """What ``compute`` makes of a batch and its targets, for all the ``images``, with the model in evaluation mode.

    Without targets it makes maps [1, h, w] of the right size: of no images there is nothing but a shape, and that comes
    from running a black one.
    """
    input_gradients.check_options(batch_size, precision)
    with frozen_model(batches.model):
        if not len(images):
            black = images.new_zeros((1, *images.shape[1:]))
            return [selection.no_values(maps, maps.shape[1:]) for maps in compute(black, None)]
        run = in_fast_order(batches.model, precision, compute)
        parts = input_gradients.passes(batches, images, selection, batch_size, run)
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def _planes(values: Tensor, layer: Tensor, name: str, axes: Axes) -> Tensor:
    """``values`` [N, ...] or [N, T, ...], of the shape of ``layer`` but for T, as [N, K, h, w] or [N, T, K, h, w]."""
    order = axes.order(layer)
    if layer.dim() != 4:
        raise ValueError(f"layer {name!r} should have maps [N, K, h, w] as its output, got {list(layer.shape)}")
    if order is None and axes.on_tokens:
        raise ValueError(
            f"layer {name!r} should have maps [N, K, h, w] or [N, h, w, K] as its output; which dimensions of its "
            f"{list(layer.shape)} are rows and columns of the image cannot be told in this network, name another layer"
        )
    if order is None or order == (0, 1, 2, 3):
        return values
    more = values.dim() - 4
    return values.permute(*range(more + 1), *(each + more for each in order[1:]))


def _say_zero(gradient: Tensor, name: str) -> None:
    """Warn of samples with a gradient of zero at a whole layer: their map of zeros says nothing."""
    zero = int((gradient == 0).flatten(1).all(1).sum())
    if zero:
        warn(
            f"the target has a gradient of zero everywhere at layer {name!r} for {zero} of {len(gradient)} samples: "
            "their maps are zero",
            UserWarning,
            stacklevel=2,
        )


def _last_maps(model: nn.Module, images: Tensor) -> str:
    """Name of the last module, pooling apart, whose output for the first image has maps with h and w above 1."""
    last = ""
    pooled: object = None
    axes = Axes()

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        nonlocal last, pooled
        if not isinstance(output, Tensor) or output.dim() != 4 or len(output) != 1:
            return
        if isinstance(module, _POOLING):
            pooled = output
            return
        order = axes.order(output)
        size = [output.shape[each] for each in order[2:]] if order else output.shape[2:]
        # What only hands a pooled map on (the container it ends, a dropout) does not count either.
        if output is pooled or min(size) <= 1:
            return
        if order is not None or not axes.on_tokens:
            last = name

    if is_exported(model):
        raise ValueError("model should not be exported, whose layers cannot be seen: give the module it was made from")
    hooks = {name: partial(note, name) for name in hookable(model) if name}
    with hooked(model, hooks), frozen_model(model), torch.no_grad(), axes:
        output_of(model, axes.images(_batch(images[:1])))
    if not last:
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
        raise ValueError(
            "model should have a layer with maps [N, K, h, w] larger than 1x1, and has none"
            + (" (those inside scripted modules are not seen)" if scripted else "")
            + ("; it works on tokens" if axes.on_tokens else "")
        )
    return last


def _head(model: nn.Module, name: str, maps: Tensor, scores: object) -> tuple[Tensor, Tensor]:
    """The maps [N, K, h, w] and weights [classes, K] with ``scores = weights · mean(maps) + bias``."""
    if isinstance(scores, Tensor) and not torch.isfinite(scores).all():
        raise ValueError(
            "model should give finite scores for CAM, which are compared with its maps; got NaN or infinity"
        )
    linears = {each: module for each, module in model.named_modules() if isinstance(module, nn.Linear)}
    if isinstance(scores, Tensor) and scores.is_floating_point():
        for linear in reversed(linears.values()):
            if linear.in_features != maps.shape[1] or scores.shape[1:] != (linear.out_features,):
                continue
            if not linear.weight.any():  # weights of zero give the scores of any maps
                continue
            for each in (maps, maps.relu()):
                mean = each.mean((2, 3)).to(linear.weight.dtype)
                rebuilt = functional.linear(mean, linear.weight, linear.bias).detach()
                # Rounding differs with the order of the sum; another architecture differs in the first digit.
                near = torch.finfo(scores.dtype).eps ** 0.5 * float(scores.abs().max())
                if torch.allclose(rebuilt, scores.to(rebuilt.dtype), rtol=0, atol=near):
                    return each.detach().to(rebuilt.dtype), linear.weight.detach()
    last = f"linear layer {list(linears)[-1]!r}" if linears else "no linear layer"
    raise ValueError(
        "model should end in a global average of its last maps and one linear layer for CAM; the mean of "
        f"{name!r} {list(maps.shape)}, and {last}, do not give its scores; use grad_cam"
    )


def _batch(images: Tensor) -> Tensor:
    """A copy of the ``images`` for the model; a black one if there is none, because shapes come from the network."""
    return images.clone() if len(images) else images.new_zeros((1, *images.shape[1:]))


def _size(size: object) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise TypeError(f"size should be (height, width) in pixels, got {size!r}")
    height, width = (checks.whole_number(value, "size", minimum=1) for value in size)
    return height, width
