"""Infidelity (do maps predict the effect of perturbations?) and max-sensitivity (do maps change under small noise?)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz import ops
from fastviz._util import checks
from fastviz._util.batch_size import images_at_once
from fastviz._util.progress import bar
from fastviz.engine.incremental.passes import outputs_of_images
from fastviz.evaluation._explain import AT_ONCE, Explain, explained, explained_in_batches, single_objective
from fastviz.evaluation._maps import resized
from fastviz.evaluation._seeds import Seed, generator, seeds_of
from fastviz.evaluation._values import Value, reading
from fastviz.execution.inputs import input_batch
from fastviz.targets.selection import Target

__all__ = ["Perturb", "infidelity", "max_sensitivity"]

Perturb = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps images [B, C, H, W] to the perturbations I and the perturbed images, like captum's ``perturb_func``."""


def infidelity(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    perturbation: Literal["square", "noise"] | Perturb = "square",
    samples: int = 10,
    window: int | None = None,
    noise: float = 0.2,
    indicator: bool = False,
    scaled: bool = False,
    value: Value = "target",
    seed: Seed = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """How well a map predicts the effect of perturbations: mean of ``(Iᵀ Φ − (f(x) − f(x − I)))²``, lower is better.

    Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", https://arxiv.org/abs/1901.09392,
    equation 1.

    Numbers of other tools: captum's ``infidelity`` with the same function as ``perturbation``, and ``scaled`` for its
    ``normalize``; if the function draws random numbers, make ``batch_size`` a multiple of ``samples``, since it is
    called once per batch, with each image ``samples`` times in a row. The authors' code is ``scaled=True``.

    Args:
        model, x, target: as in :func:`fastviz.evaluation.deletion`.
        maps: Φ, [N, C, h, w], or [N, h, w] with one number for all channels of a pixel; resized (bilinear).
        perturbation: ``"square"``: a random window is set to 0, and I holds the values that were there; ``"noise"``: I
            is normal noise; or a function, see :data:`fastviz.evaluation.Perturb`.
        samples: perturbations per image.
        window: side of the squares, in pixels; None is a seventh of the image's shorter side, at least 1.
        noise: standard deviation of the noise, in units of ``x``.
        indicator: let I be 1 inside the square instead of the values that were there, counted once per pixel for maps
            [N, h, w]. For maps that already hold the contribution of each pixel, such as those of occlusion, Grad-CAM
            and gradient times input (captum's ``multiply_by_inputs``).
        scaled: scale each map by the best-fitting factor, ``β = Σ (IᵀΦ) Δf / Σ (IᵀΦ)²``: the scale-free form.
        value: see :data:`fastviz.evaluation.Value`.
        seed: for squares and noise, see :data:`fastviz.evaluation.Seed`.
        batch_size: perturbed images in a pass; None is 8 on a CPU and 128 on a GPU.
        progress: show a progress bar on a terminal.

    Returns:
        [N], 0 or more.

    Raises:
        TypeError, ValueError: as :func:`fastviz.evaluation.deletion`; ``indicator`` without squares.

    >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(1, 1, 4, 4)
    >>> gradient = model[1].weight[1].detach().view(1, 1, 4, 4)
    >>> infidelity(model, x, gradient, target=1).round(decimals=4).abs()
    tensor([0.])
    """
    checks.whole_number(samples, "samples", minimum=1)
    _check_perturbation(perturbation, indicator)
    checks.positive(noise, "noise")
    read = reading(model, x, target, value, batch_size)
    images = read.images
    weights = _weights(maps, images)
    N = len(images)
    seeds = seeds_of(seed, N)
    boxes = _squares(images, samples, window, seeds) if perturbation == "square" else None
    products = torch.zeros(N * samples, dtype=torch.float64, device=images.device)

    def perturbed(number: Tensor) -> Tensor:
        image = number // samples
        if boxes is not None:
            changed = ops.occlude(images, boxes[number], image, 0.0)
            # outside its square an image is unchanged
            difference = _inside(boxes[number], images) if indicator else images[image] - changed
        elif callable(perturbation):
            difference, changed = _called(perturbation, images[image])
        else:
            difference = noise * _noise(images, number, samples, seeds)
            changed = images[image] - difference
        factor = difference.sum(1, keepdim=True) if weights.shape[1] == 1 else difference
        products[number] = (weights[image].double() * factor.double()).flatten(1).sum(1)
        return changed

    with bar(progress, N * samples, text="infidelity", unit="images") as advance:
        after = outputs_of_images(
            *(model, perturbed, N * samples, lambda output, number: read.of(output, number // samples)),
            like=images,
            batch_size=batch_size,
            advance=advance,
        )
    found = products.reshape(N, samples)
    falls = read.clean.double()[:, None] - after.double().reshape(N, samples)
    if scaled:
        found = _best_scaled(found, falls)
    return (found - falls).square().mean(1).to(read.clean.dtype)


def _check_perturbation(perturbation: object, indicator: bool) -> None:
    if isinstance(perturbation, str):
        checks.one_of(perturbation, "perturbation", ("square", "noise"))
    elif not callable(perturbation):
        raise TypeError(f"perturbation should be a word or a function, got {type(perturbation).__name__}")
    if indicator and perturbation != "square":
        raise ValueError('indicator needs perturbation="square"')


def _best_scaled(found: Tensor, falls: Tensor) -> Tensor:
    """``found`` [N, samples], each row scaled by the factor that brings it closest to ``falls``."""
    squares = found.square().sum(1, keepdim=True)
    return found * (found * falls).sum(1, keepdim=True) / torch.where(squares > 0, squares, 1)


def _noise(images: Tensor, number: Tensor, samples: int, seeds: Sequence[int]) -> Tensor:
    """Normal noise for the perturbed images with these indices, ``samples`` per image, each from its own seed."""
    drawn = [
        torch.randn(images.shape[1:], generator=generator(seeds[at // samples], at % samples)) for at in number.tolist()
    ]
    return torch.stack(drawn).to(images)


def max_sensitivity(
    model: nn.Module,
    x: Tensor,
    explain: Explain,
    target: Target = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    relative: bool = True,
    seed: Seed = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The largest relative change of a map under small noise: max ``‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖``, lower is better.

    Yeh et al. 2019, https://arxiv.org/abs/1901.09392, definition 3: δ is drawn uniformly from −radius to radius for
    every value, ``samples`` times, and the largest change is returned; norms are Frobenius norms. A predicted target is
    that of the unchanged image. captum's ``sensitivity_max`` is the same, and gives the same number for one image after
    ``torch.manual_seed(seed)``. Quantus' ``MaxSensitivity`` uses the same noise, with 200 samples and a radius of 0.2.

    Args:
        model: maps ``x`` to scores [N, K], or to anything, for targets inside the network.
        x: [N, C, H, W], as the model takes it.
        explain: a method such as :func:`fastviz.saliency`, or any function of a model, images and a target.
        target: one per sample; see :data:`fastviz.Target`.
        radius: in units of ``x``.
        samples: perturbed copies of each image.
        relative: divide by the norm of the map, as captum and the authors' code do (by 1 for a map of zeros).
        seed: see :data:`fastviz.evaluation.Seed`.
        batch_size: images in a call of the method; None is 8.
        progress: show a progress bar on a terminal.

    Returns:
        [N], 0 or more.

    Raises:
        TypeError, ValueError: as :func:`fastviz.saliency`; ``explain`` does not return maps.

    >>> from fastviz.methods.attribution.gradients import saliency
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> max_sensitivity(model, torch.rand(1, 1, 2, 2), saliency, target=1, samples=2)  # 0 for a linear model
    tensor([0.])
    """
    images = input_batch(model, x).detach()
    checks.positive(radius, "radius")
    checks.whole_number(samples, "samples", minimum=1)
    at_once = images_at_once(batch_size, AT_ONCE)
    N = len(images)
    objective = single_objective(model, images, target, at_once)
    if not N:
        return images.new_zeros(0)
    drawn = [generator(each) for each in seeds_of(seed, N)]
    clean = explained_in_batches(explain, model, images, objective, at_once).double().flatten(1)
    largest = torch.zeros(N, dtype=torch.float64, device=images.device)
    with bar(progress, N * samples, text="max-sensitivity", unit="images") as advance:
        for part in torch.arange(N * samples, device=images.device).split(at_once):
            image = part // samples
            shape = images.shape[1:]
            noises = [torch.empty(shape).uniform_(-radius, radius, generator=drawn[at]) for at in image.tolist()]
            found = explained(
                explain, model, images[image] + torch.stack(noises).to(images), objective.for_samples(image, N)
            )
            change = (found.double().flatten(1) - clean[image]).norm(dim=1)
            largest.scatter_reduce_(0, image, change, "amax")
            advance(len(part))
    if relative:
        norms = clean.norm(dim=1)
        largest = largest / torch.where(norms > 0, norms, 1)
    return largest.to(torch.promote_types(images.dtype, torch.float32))


def _weights(maps: object, images: Tensor) -> Tensor:
    """Φ, [N, 1 or C, H, W]."""
    found = checks.tensor(maps, "maps", dims=(3, 4), layout="[N, h, w] or [N, C, h, w]").detach().to(images.device)
    if len(found) != len(images) or (found.dim() == 4 and found.shape[1] != images.shape[1]):
        N, C = images.shape[:2]
        raise ValueError(f"maps should have shape [{N}, h, w] or [{N}, {C}, h, w], got {list(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError("maps should be finite, got NaN or infinity")
    planes = (found[:, None] if found.dim() == 3 else found).to(torch.promote_types(found.dtype, torch.float32))
    if not len(images):
        return planes.new_zeros(0, planes.shape[1], *images.shape[2:])
    flat = resized(planes.flatten(0, 1), images)
    return flat.reshape(len(images), -1, *images.shape[2:])


def _squares(images: Tensor, samples: int, window: int | None, seeds: list[int]) -> Tensor:
    """Boxes of the squares, int64 [N · samples, 4], at random positions inside the image."""
    H, W = images.shape[2:]
    side = max(1, min(H, W) // 7) if window is None else checks.whole_number(window, "window", minimum=1)
    if side > min(H, W):
        raise ValueError(f"window should be at most the image, {min(H, W)} pixels, got {side}")
    corners = []
    for seed in seeds:
        own = generator(seed)
        places = [torch.randint(0, size - side + 1, (samples,), generator=own) for size in (H, W)]
        corners.append(torch.stack(places, 1))
    first = torch.cat(corners) if corners else torch.zeros(0, 2, dtype=torch.int64)
    return torch.cat([first, first + side], 1).to(images.device)


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """[B, 1, H, W], 1 inside each box."""
    blank = images.new_ones(1, 1, *images.shape[2:])
    return 1 - ops.occlude(blank, boxes, torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device), 0.0)


def _called(perturb: Perturb, images: Tensor) -> tuple[Tensor, Tensor]:
    found: Any = perturb(images)
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"perturbation should return I and the perturbed images, got {type(found).__name__}")
    for each in found:
        if not isinstance(each, Tensor) or each.shape != images.shape:
            raise ValueError(f"perturbation should return two tensors of shape {list(images.shape)}")
    return found[0].detach(), found[1].detach()
