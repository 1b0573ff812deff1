"""FullGrad: gradient times input and the contributions of all biases, in one map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz import targets
from fastviz.engine.gradients import input_gradients
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import image_gradients, in_fast_order
from fastviz.execution.hooks import floating_output, hookable, hooked
from fastviz.execution.inputs import input_batch, output_of, require_gradients
from fastviz.execution.precision import Precision, as_map, map_dtype, reduced_precision, widened
from fastviz.targets.selection import Target

__all__ = ["bias_of", "full_grad", "full_gradient_maps", "layers_with_bias", "scaled_sum"]

_EPSILON = 1e-7


def full_grad(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """``Σ_c ψ(x_c ∂S/∂x_c) + Σ_l Σ_k ψ(b_lk ∂S/∂A_lk)``: contributions of all layers, without choosing one.

    The score of a network of rectifiers is exactly ``x · ∂S/∂x + Σ b · ∂S/∂b`` over all its biases b. Srinivas, Fleuret
    2019, "Full-Gradient Representation", https://arxiv.org/abs/1905.00780. Here b_l are the biases of the 2-D
    convolutions and batch norms (for a batch norm, weight · mean / deviation is subtracted), A_l their outputs, and ψ
    takes the absolute value, scales each channel to 0 to 1 and resizes it to the image, as pytorch-grad-cam does; the
    authors' code scales all channels of a layer together. Biases of linear layers have no position and are left out.

    Args:
        model, x, batch_size, precision: as in :func:`fastviz.input_gradient`.
        target: as in :func:`fastviz.grad_cam`, but nothing inside the network.

    Returns:
        [N, H, W] ([N, T, H, W] for T targets per sample), 0 or more, not scaled.

    Raises:
        TypeError, ValueError: as :func:`fastviz.input_gradient`; a target inside the network.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    >>> full_grad(model, torch.ones(1, 1, 8, 8), target=4).shape
    torch.Size([1, 8, 8])
    """
    images = input_batch(model, x)
    model = eager(model)
    selection = targets.resolve(target, model)
    input_gradients.check_options(batch_size, precision)
    require_gradients(model)
    if selection.layers:
        raise ValueError(f"target should be about the output for FullGrad, got one about layer {selection.layers[0]!r}")
    if not len(images):
        return selection.no_values(images, images.shape[2:])
    batches = Batches(model)

    def compute(batch: Tensor, part: targets.Selection) -> Tensor:
        def values(output: object) -> Tensor:
            found = part.values(widened(output, {}, batch.dtype, precision)[0], {})
            return found.reshape(len(found), -1)

        with reduced_precision(batch, precision):
            found = full_gradient_maps(
                model, batch, lambda images: batches.watched(lambda x: output_of(model, x), images), values
            )
        return found if part.several else found[:, 0]

    with frozen_model(model):
        run = in_fast_order(model, precision, compute)
        return torch.cat(input_gradients.passes(batches, images, selection, batch_size, run))


def full_gradient_maps(
    model: nn.Module, images: Tensor, run: Callable[[Tensor], object], values: Callable[[object], Tensor]
) -> Tensor:
    """FullGrad [N, T, H, W] of the ``images`` from one pass; the model is in evaluation mode.

    Args:
        model: any module.
        images: [N, C, H, W].
        run: runs the model.
        values: maps its output to the targets' values [N, T].
    """
    names = layers_with_bias(model)
    biases = {name: bias_of(model.get_submodule(name)) for name in names}
    calls: list[tuple[str, Tensor]] = []

    def record(name: str, module: nn.Module, inputs: object, output: object) -> Tensor:
        calls.append((name, floating_output(name, output)))
        return calls[-1][1].clone()

    leaf = (images.clone() if images.is_inference() else images.detach()).requires_grad_()
    with torch.enable_grad(), image_gradients(model):
        with hooked(model, {name: partial(record, name) for name in names}):
            output = run(leaf.clone())
        columns = values(output).unbind(1)
        return torch.stack([_map(leaf, calls, biases, column) for column in columns], 1)


def layers_with_bias(model: nn.Module) -> list[str]:
    """The 2-D convolutions and batch norms that have a bias."""
    return [
        name
        for name in hookable(model, (nn.Conv2d, nn.BatchNorm2d))
        if getattr(model.get_submodule(name), "bias", None) is not None
    ]


def bias_of(module: nn.Module) -> Tensor:
    """The constant that a layer adds to each channel, [K], with its running statistics."""
    assert isinstance(module.bias, Tensor)
    bias = module.bias.detach()
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or module.running_var is None:
        return bias
    weight = 1 if module.weight is None else module.weight.detach()
    return bias - module.running_mean * weight / torch.sqrt(module.running_var + module.eps)


def scaled_sum(maps: Tensor, size: Sequence[int]) -> Tensor:
    """``Σ_k ψ(A_k)`` of maps [N, K, h, w], float32 or wider: [N, H, W]; summed before the (linear) resizing."""
    values = as_map(maps).abs()
    values = values - values.amin((2, 3), keepdim=True)
    total = (values / (values.amax((2, 3), keepdim=True) + _EPSILON)).sum(1, keepdim=True)
    if list(total.shape[2:]) == list(size):
        return total[:, 0]
    return F.interpolate(total, tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _map(leaf: Tensor, calls: list[tuple[str, Tensor]], biases: dict[str, Tensor], values: Tensor) -> Tensor:
    """FullGrad [N, H, W] of one target's ``values`` [N], from the input and the outputs of the layers."""
    inputs = {"x": leaf} | {f"call {at} of layer {name!r}": value for at, (name, value) in enumerate(calls)}
    dependent = {key: value for key, value in inputs.items() if key == "x" or value.requires_grad}
    gradients = torch.autograd.grad(values.sum(), list(dependent.values()), retain_graph=True, allow_unused=True)
    if gradients[0] is None:
        targets.gradients(values, {"x": leaf})  # raises an error that says what is wrong
    total = torch.zeros_like(leaf[:, 0], dtype=map_dtype(leaf.dtype))
    with torch.no_grad():
        for key, gradient in zip(dependent, gradients, strict=True):
            if gradient is None:
                continue  # a layer that the target does not depend on
            if key == "x":
                total += scaled_sum(as_map(gradient) * leaf, leaf.shape[2:])
            else:
                name = calls[int(key.split()[1])][0]
                total += scaled_sum(biases[name].to(gradient.dtype)[:, None, None] * as_map(gradient), leaf.shape[2:])
    return total
