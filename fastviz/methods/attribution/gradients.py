"""Gradients of a score, or of any unit, with respect to the input: plain, and with modified backward rules.

Images are [N, C, H, W]; signals [N, C, L] and volumes [N, C, D, H, W] work the same way, and so do their maps.

All run the model in evaluation mode, leave it unchanged, and compute no gradient of its parameters. Targets are those
of :mod:`fastviz.targets`; T targets per sample take one forward pass and give the result a dimension T after N. For
targets inside the network the pass ends at their layers, and single units are computed only on their receptive field:
the results equal those on the whole image, see :mod:`fastviz.engine.gradients.input_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch  # noqa: F401 - the examples use it
from torch import Tensor, nn

from fastviz import ops, targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.gradients import input_gradients
from fastviz.engine.gradients import noise as noisy
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.targets.selection import Target

__all__ = [
    "OF_GRADIENT",
    "deconvnet",
    "gradient_times_input",
    "guided_backprop",
    "input_gradient",
    "saliency",
    "smooth_grad",
]


def input_gradient(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The gradient of the target with respect to every input value, ``∂S/∂x``.

    Simonyan, Vedaldi, Zisserman 2014, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034, without
    their absolute value.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0. Or signals [N, C, L], or volumes [N, C, D,
            H, W], whose results have the same dimensions.
        target: what to explain; None is the predicted class of each sample. See :data:`fastviz.Target`.
        batch_size: images in a pass, which bounds the memory; None is 32.
        precision: ``"model"`` computes in the dtype of the model; ``"bfloat16"`` runs under autocast: approximate, and
            faster where the processor supports it. For the ImageNet SqueezeNet and 63 photographs the correlation with
            the exact gradient was 0.95 (at worst 0.89), for guided backprop 0.996 and for Grad-CAM 0.9999; one
            predicted class changed.

    Returns:
        [N, C, H, W] ([N, T, C, H, W] for T targets per sample), signed, on the device of ``x`` and in its dtype, but
        float32 for 16-bit images.

    Raises:
        TypeError: ``model``, ``x`` or ``target`` is of the wrong type; the model does not return a tensor.
        ValueError: wrong shape or device of ``x``; a class, layer, channel or position that does not exist; a layer
            that is not called; a model that stops the gradient.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> gradient = input_gradient(model, torch.ones(1, 1, 2, 2), target=1)
    >>> torch.equal(gradient.flatten(), model[1].weight[1])
    True
    """
    return _gradient(model, x, target, None, batch_size, precision)


def saliency(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """How strongly the target depends on each pixel: ``max_c |∂S/∂x_c|``, the maximum over the channels.

    Simonyan, Vedaldi, Zisserman 2014, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034. S is the
    score before softmax unless the target says otherwise. Arguments and errors as in :func:`input_gradient`.

    Returns:
        [N, H, W] ([N, T, H, W] for T targets per sample), 0 or more.

    >>> saliency(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.ones(1, 3, 2, 2), target=1).shape
    torch.Size([1, 2, 2])
    """
    return _largest(_gradient(model, x, target, None, batch_size, precision), x)


def gradient_times_input(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The gradient of the target times the input, ``x · ∂S/∂x``: exact contributions for a target linear in ``x``.

    Shrikumar et al. 2016, "Not Just a Black Box", https://arxiv.org/abs/1605.01713. Arguments and errors as in
    :func:`input_gradient`.

    Returns:
        [N, C, H, W] ([N, T, C, H, W] for T targets per sample), signed.

    >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)), torch.rand(1, 1, 2, 2)
    >>> shares = gradient_times_input(model, x, target=1)
    >>> torch.allclose(shares.sum(), model(x)[0, 1])
    True
    """
    return _times_input(_gradient(model, x, target, None, batch_size, precision), x)


def smooth_grad(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> Tensor:
    """The mean gradient of the target over noisy copies of the input: ``1/n Σ_i ∂S/∂x (x + ε_i)``.

    Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", https://arxiv.org/abs/1706.03825. Only one copy
    of the batch is in memory at a time. A predicted class is that of the input without noise. Further arguments and
    errors as in :func:`input_gradient`.

    Args:
        samples: the number n of noisy copies.
        noise: standard deviation of the Gaussian noise ε, as a fraction of max(x) − min(x) of each image; 0 or more.
        seed: for the noise; torch's global generator is not used. The noise of an image depends on its place in the
            batch.
        progress: show a progress bar on a terminal.

    Returns:
        [N, C, H, W] ([N, T, C, H, W] for T targets per sample), signed. The paper draws its absolute values.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> smooth_grad(model, torch.rand(1, 1, 2, 2), target=1, samples=5).shape
    torch.Size([1, 1, 2, 2])
    """
    checks.whole_number(samples, "samples", minimum=1)
    images = input_batch(model, x, axes=(1, 2, 3))
    selection = targets.resolve(target, model)
    random, deviation = noisy.generator(seed), noisy.deviations(images, noise)
    if not len(images):
        return selection.no_values(images, images.shape[1:])
    selection = input_gradients.with_predicted(model, selection, images, batch_size, precision)

    def explain(copies: Tensor, numbers: Tensor) -> Tensor:
        return input_gradients.input_gradients(
            model, copies, selection.for_samples(numbers, len(images)), batch_size=batch_size, precision=precision
        )

    with bar(progress, samples * len(images), text="smooth grad", unit="images") as advance:
        mean, _ = noisy.moments(explain, images, deviation, samples, random, len(images), advance)
    return mean


def guided_backprop(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The gradient of the target, where every rectifier only passes on positive gradients of active units.

    Backward rule of each rectifier ``f⁺``: ``R · (R > 0) · (f > 0)``, strict at zero. Springenberg et al. 2015,
    "Striving for Simplicity", https://arxiv.org/abs/1412.6806. What counts as a rectifier:
    :func:`fastviz.execution.rectifiers.rectifier_rule`. Arguments and errors as in :func:`input_gradient`.

    Returns:
        [N, C, H, W] ([N, T, C, H, W] for T targets per sample), signed.

    Warns:
        RectifierWarning: the model has other activations (GELU, SiLU, …), opaque parts (scripted code, its own autograd
            functions), or no rectifier. The warning names them and their place in the source code.

    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False))
    >>> _ = nn.init.constant_(model[2].weight, 2.0)
    >>> guided_backprop(model, torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3), target=0).flatten()
    tensor([0., 0., 2.])
    """
    return _gradient(model, x, target, "guided", batch_size, precision)


def deconvnet(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Tensor:
    """The target projected back to the input by a deconvnet: rectifiers pass on positive gradients, active or not.

    Backward rule of each rectifier: ``R · (R > 0)``. Zeiler, Fergus 2014, "Visualizing and Understanding Convolutional
    Networks", https://arxiv.org/abs/1311.2901. Their max pooling "switches" equal its ordinary gradient, which goes to
    the position of the maximum. Arguments, warnings and errors as in :func:`guided_backprop`.

    Returns:
        [N, C, H, W] ([N, T, C, H, W] for T targets per sample), signed.

    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    >>> deconvnet(model, torch.ones(1, 1, 2, 2), target=1).shape
    torch.Size([1, 1, 2, 2])
    """
    return _gradient(model, x, target, "deconvnet", batch_size, precision)


def _largest(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient.abs().amax(dim=gradient.dim() - x.dim() + 1)


def _times_input(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient * (x.detach() if gradient.dim() == x.dim() else x.detach()[:, None])


OF_GRADIENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "input_gradient": lambda gradient, x: gradient,
    "saliency": _largest,
    "gradient_times_input": _times_input,
}
"""Methods that are a function of the input gradient and the input."""


def _gradient(
    model: nn.Module, x: Tensor, target: Target, rule: ops.Rule | None, batch_size: int | None, precision: Precision
) -> Tensor:
    images = input_batch(model, x, axes=(1, 2, 3))
    selection = targets.resolve(target, model)
    # The warning about rectifiers points at the line that called the public function.
    return input_gradients.input_gradients(
        model, images, selection, rule=rule, batch_size=batch_size, precision=precision, stacklevel=3
    )
