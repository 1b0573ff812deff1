"""Noise tunnel: the mean, mean square or variance of any gradient method over noisy copies of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch  # noqa: F401 - the examples use it
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.gradients import input_gradients
from fastviz.engine.gradients import noise as noisy
from fastviz.engine.gradients.path_gradients import AT_ONCE
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.methods.attribution.gradients import input_gradient
from fastviz.targets.selection import Selection, Target

__all__ = ["noise_tunnel", "smooth_grad_squared", "var_grad"]


def noise_tunnel(
    method: Callable[..., Any],
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    kind: Literal["smoothgrad", "smoothgrad_sq", "vargrad"] = "smoothgrad",
    samples: int = 50,
    noise: float = 0.1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """The attributions of a gradient method for noisy copies of the image, averaged in one of three ways.

    With a_i the method's attribution of x + ε_i: SmoothGrad ``1/n Σ a_i`` (Smilkov et al. 2017,
    https://arxiv.org/abs/1706.03825); SmoothGrad² ``1/n Σ a_i²`` (Hooker et al. 2019,
    https://arxiv.org/abs/1806.10758); VarGrad ``1/n Σ a_i² − (1/n Σ a_i)²`` (Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292). Copies are processed batch by batch, so memory does not grow with their number. A
    predicted class is that of the image without noise.

    Args:
        method: a function (model, x, target, **options) that returns a tensor [N, ...], or an object with such an
            ``attribution``: any gradient method of fastviz, or your own.
        model, x, target: the arguments of the method.
        kind: ``"smoothgrad"``, ``"smoothgrad_sq"`` or ``"vargrad"``.
        samples: noisy copies per image, at least 1.
        noise: standard deviation of the Gaussian noise, as a fraction of max(x) − min(x) of each image; 0 or more.
        seed: for the noise; torch's global generator is not used.
        batch_size: images per call of the method; None is 16 on a CPU and 64 on a GPU.
        progress: show a progress bar on a terminal.
        options: further arguments of the method.

    Returns:
        [N, ...], the shape and dtype of the method's result; float32 for 16-bit images.

    Raises:
        TypeError: ``method`` is not a function, or does not return a tensor; errors of the method.
        ValueError: an unknown kind; numbers out of range; errors of the method.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> found = noise_tunnel(input_gradient, model, torch.ones(1, 1, 2, 2), 1, kind="smoothgrad_sq", samples=3)
    >>> torch.allclose(found.flatten(), model[1].weight[1] ** 2)
    True
    """
    if not callable(method):
        raise TypeError(f"method should be a function (model, x, target, **options), got {type(method).__name__}")
    checks.one_of(kind, "kind", ("smoothgrad", "smoothgrad_sq", "vargrad"))
    checks.whole_number(samples, "samples", minimum=1)
    input_gradients.check_options(batch_size, "model")
    images = input_batch(model, x)
    random, deviation = noisy.generator(seed), noisy.deviations(images, noise)
    if not len(images):
        return _maps(method(model, images, target, **options))
    selection = input_gradients.with_predicted(model, targets.resolve(target, model), images, batch_size)

    def explain(copies: Tensor, numbers: Tensor) -> Tensor:
        found = _maps(method(model, copies, _target(selection.for_samples(numbers, len(images))), **options))
        if len(found) != len(copies):
            raise ValueError(f"method should give one map per image, {len(copies)}, got {len(found)}")
        return found

    at_once = batch_size or AT_ONCE[images.device.type]
    with bar(progress, samples * len(images), text=kind, unit="images") as advance:
        mean, squares = noisy.moments(explain, images, deviation, samples, random, at_once, advance)
    found = {"smoothgrad": mean, "smoothgrad_sq": squares}.get(kind)
    # Rounding can make a variance of zero negative.
    return (squares - mean * mean).clamp(min=0) if found is None else found


def smooth_grad_squared(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    samples: int = 50,
    noise: float = 0.1,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> Tensor:
    """The mean square of the gradient over noisy copies of the image, averaged over the channels of each pixel.

    Hooker et al. 2019, "A Benchmark for Interpretability Methods", https://arxiv.org/abs/1806.10758.
    :func:`noise_tunnel` of :func:`fastviz.input_gradient` with ``kind="smoothgrad_sq"``. Arguments and errors as in
    :func:`noise_tunnel`, ``precision`` as in :func:`fastviz.input_gradient`.

    Returns:
        [N, H, W] ([N, T, H, W] for T targets per sample), 0 or more.

    >>> smooth_grad_squared(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.ones(1, 3, 2, 2), 1).shape
    torch.Size([1, 2, 2])
    """
    options = {"samples": samples, "noise": noise, "seed": seed, "batch_size": batch_size, "precision": precision}
    found = noise_tunnel(input_gradient, model, x, target, kind="smoothgrad_sq", progress=progress, **options)  # type: ignore[arg-type]
    return found.mean(-3)


def var_grad(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    samples: int = 50,
    noise: float = 0.1,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> Tensor:
    """The variance of the gradient over noisy copies of the image, averaged over the channels of each pixel.

    Adebayo et al. 2018, "Local Explanation Methods for Deep Neural Networks", https://arxiv.org/abs/1810.03292.
    :func:`noise_tunnel` of :func:`fastviz.input_gradient` with ``kind="vargrad"``. Arguments and errors as in
    :func:`noise_tunnel`, ``precision`` as in :func:`fastviz.input_gradient`.

    Returns:
        [N, H, W] ([N, T, H, W] for T targets per sample), 0 or more.

    >>> var_grad(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.ones(1, 3, 2, 2), 1).amax().item() < 1e-6
    True
    """
    options = {"samples": samples, "noise": noise, "seed": seed, "batch_size": batch_size, "precision": precision}
    found = noise_tunnel(input_gradient, model, x, target, kind="vargrad", progress=progress, **options)  # type: ignore[arg-type]
    return found.mean(-3)


def _maps(found: Any) -> Tensor:
    found = found if isinstance(found, Tensor) else getattr(found, "attribution", found)
    if not isinstance(found, Tensor):
        raise TypeError(f"method should give a tensor, or an object with an attribution, got {type(found).__name__}")
    return found.detach()


def _target(selection: Selection) -> Target:
    """``selection`` as a target argument."""
    if not selection.several:
        return selection.objectives[0]
    split = [objective for each in selection.split_targets() for objective in each.objectives]
    return list(split)
