"""Path methods: integrated gradients from a baseline to the image, and their expectation over baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.gradients import input_gradients
from fastviz.engine.gradients import noise as noisy
from fastviz.engine.gradients.path_gradients import AT_ONCE, line_gradients
from fastviz.engine.gradients.quadrature import Quadrature, quadrature
from fastviz.engine.incremental.window_grid import Fill, filled_images, grid
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.inputs import input_batch
from fastviz.images import notebook
from fastviz.targets.selection import Selection, Target

__all__ = ["PathAttribution", "gradient_shap", "integrated_gradients", "score_differences"]


@dataclass(frozen=True, eq=False, repr=False)
class PathAttribution(notebook.NotebookResult):
    """The result of :func:`integrated_gradients` and :func:`gradient_shap`.

    Attributes:
        attribution: [N, C, H, W], the contribution of each input value to the target.
        delta: [N], the sum of the contributions minus the difference of the target between image and baseline; 0 for an
            exact integral (captum's convergence delta).

    With T targets per sample, both have a dimension T after N.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> found = integrated_gradients(model, torch.ones(1, 1, 2, 2), target=1, steps=3)
    >>> found.attribution.shape, found.delta.abs().item() < 1e-5
    (torch.Size([1, 1, 2, 2]), True)
    """

    attribution: Tensor
    delta: Tensor

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        return notebook.signed_maps(self.attribution.sum(-3), "delta", self.delta)


def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    baseline: Fill = 0.0,
    steps: int = 50,
    method: Quadrature = "gausslegendre",
    batch_size: int | None = None,
    progress: bool = False,
) -> PathAttribution:
    """The contribution of each input value: the mean gradient on the line from a baseline, times the difference.

    ``(x − x') · Σ_k w_k ∂S/∂x (x' + a_k (x − x'))``, with points a_k and weights w_k of a quadrature rule on [0, 1].
    Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365; the five
    rules are captum's. The outputs of the first convolution along a line lie on a line, so if nothing else reads the
    image it is computed only at the two ends; results are equal up to rounding.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        target: what to explain; None is the predicted class of each image. See :data:`fastviz.Target`.
        baseline: where the lines start: a number, a value for each channel [C], an image [C, H, W], one per image [N,
            C, H, W], ``"mean"`` or ``"blur"``, as the fill of :func:`fastviz.occlusion`.
        steps: points on each line, at least 2 (1 for Gauss–Legendre).
        method: ``"gausslegendre"``, ``"riemann_left"``, ``"riemann_right"``, ``"riemann_middle"``,
            ``"riemann_trapezoid"`` (with captum's weights, which sum to (steps − 1) / steps).
        batch_size: images in a pass, which bounds the memory; None is 16 on a CPU and 64 on a GPU.
        progress: show a progress bar on a terminal.

    Returns:
        The contributions, and the error of their sum.

    Raises:
        TypeError: ``model``, ``x``, ``target`` or another argument is of the wrong type.
        ValueError: as :func:`fastviz.input_gradient`; a baseline of another shape; too few steps; an unknown method.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> found = integrated_gradients(model, torch.ones(1, 1, 2, 2), target=1, steps=5)
    >>> torch.allclose(found.attribution.flatten(), model[1].weight[1])
    True
    """
    images = input_batch(model, x)
    selection = targets.resolve(target, model)
    input_gradients.check_options(batch_size, "model")
    places, weights = quadrature(method, steps)
    begin = _baseline(baseline, images, "baseline")
    selection = input_gradients.with_predicted(model, selection, images, batch_size)
    with bar(progress, len(images) * steps, text="integrated gradients") as advance:
        gradient = line_gradients(
            model, begin, images, selection, places, weights, batch_size=batch_size, advance=advance
        )
    return _with_delta(model, images, begin, gradient, selection, batch_size)


def gradient_shap(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    baselines: Fill = 0.0,
    samples: int = 25,
    noise: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> PathAttribution:
    """The expected contribution of each input value over random baselines and points on the lines from them.

    The mean over samples of ``(z − x') · ∂S/∂x (x' + u (z − x'))``: x' drawn from the ``baselines``, z = x + noise, u
    uniform in [0, 1]. Lundberg, Lee 2017, "A Unified Approach to Interpreting Model Predictions",
    https://arxiv.org/abs/1705.07874, as in GradientExplainer of their package shap and captum's ``GradientShap``.
    Memory does not grow with the samples. Arguments and errors as in :func:`integrated_gradients`, and:

    Args:
        model, x, target, batch_size, progress: as there.
        baselines: the images to draw from, [B, C, H, W], for all of ``x``; or one: a number, [C], [C, H, W].
        samples: draws per image, at least 1.
        noise: standard deviation of the Gaussian noise, as a fraction of max(x) − min(x) of each image; 0 or more.
        seed: for the random draws; torch's global generator is not used.

    Returns:
        The contributions; ``delta`` compares their sum with the mean over the drawn baselines.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> found = gradient_shap(model, torch.ones(1, 1, 2, 2), target=1, samples=3)
    >>> torch.allclose(found.attribution.flatten(), model[1].weight[1])
    True
    """
    images = input_batch(model, x)
    selection = targets.resolve(target, model)
    input_gradients.check_options(batch_size, "model")
    checks.whole_number(samples, "samples", minimum=1)
    random, deviation = noisy.generator(seed), noisy.deviations(images, noise)
    pool, N = _pool(baselines, images), len(images)
    # drawn before the noise, so that they do not depend on the batch size
    chosen = torch.randint(len(pool), (samples, N), generator=random)
    places = torch.rand(samples, N, generator=random, dtype=torch.float64).to(images)
    selection = input_gradients.with_predicted(model, selection, images, batch_size)
    at_once = batch_size or AT_ONCE[images.device.type]
    ends = [_scores(model, pool, selection, at, N, at_once) for at in range(N)] if N else []
    total: Tensor | float = 0.0
    reached: Tensor | float = 0.0
    done = 0
    with torch.inference_mode(False), torch.no_grad(), bar(progress, samples * N, text="gradient shap") as advance:
        for copies in noisy.noisy_copies(images, deviation, samples if N else 0, random, at_once):
            k = len(copies)
            drawn = chosen[done : done + k]
            begin = pool[drawn.to(pool.device)]
            points = begin + places[done : done + k, :, None, None, None] * (copies - begin)
            part = selection.for_samples(torch.arange(N).repeat(k), N)
            gradient = input_gradients.input_gradients(model, points.flatten(0, 1), part, batch_size=at_once)
            shares = _times_difference(gradient, (copies - begin).flatten(0, 1), part).unflatten(0, (k, N))
            for each, baseline in zip(shares, drawn, strict=True):
                total = total + each
                reached = reached + torch.stack([ends[at][number] for at, number in enumerate(baseline.tolist())])
            done += k
            advance(k * N)
    if not N:
        empty = selection.no_values(images, images.shape[1:])
        return PathAttribution(empty, selection.no_values(images))
    assert isinstance(total, Tensor)
    assert isinstance(reached, Tensor)
    mean = total / samples
    own = torch.stack([_scores(model, images[at : at + 1], selection, at, N, at_once)[0] for at in range(N)])
    return PathAttribution(mean, mean.flatten(-3).sum(-1) - (own - reached / samples))


def _baseline(fill: Fill, images: Tensor, argument: str) -> Tensor:
    """One baseline per image, [N, C, H, W]."""
    return filled_images(fill, images, grid((images.shape[2], images.shape[3]), None, None).window, argument)


def _pool(baselines: Fill, images: Tensor) -> Tensor:
    """The baselines to draw from, [B, C, H, W]."""
    if isinstance(baselines, Tensor) and baselines.dim() == 4:
        if not len(baselines) or baselines.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"baselines should have shape [B, {', '.join(map(str, images.shape[1:]))}] with B at least 1 for this "
                f"x, got {list(baselines.shape)}"
            )
        if baselines.device != images.device:
            raise ValueError(f"baselines should be on the device of x, {images.device}, got {baselines.device}")
        return baselines.detach().to(images.dtype)
    if isinstance(baselines, str):
        raise ValueError(f"baselines should be images, or a number, for all of x, got {baselines!r}")
    return _baseline(baselines, images[:1] if len(images) else images.new_zeros(1, *images.shape[1:]), "baselines")


def _times_difference(gradient: Tensor, difference: Tensor, selection: Selection) -> Tensor:
    return gradient * (difference[:, None] if selection.several else difference)


def _scores(model: nn.Module, images: Tensor, selection: Selection, sample: int, of: int, at_once: int) -> Tensor:
    """The target of sample number ``sample`` evaluated on other ``images``, [B], or [B, T]."""
    numbers = torch.full((len(images),), sample)
    return score_differences(model, images, None, selection.for_samples(numbers, of), at_once)


def score_differences(
    model: nn.Module, images: Tensor, others: Tensor | None, selection: Selection, at_once: int
) -> Tensor:
    """The target's values for ``images``, minus those for ``others`` if there are any, [N] or [N, T]."""
    batches = Batches(model)

    def values(part: Tensor, numbers: Tensor) -> Tensor:
        output, recorded = targets.run(model, part.clone(), selection.layers, batches=batches)
        return selection.for_samples(numbers, len(images)).values(output, recorded)

    def of(every: Tensor) -> Tensor:
        parts = torch.arange(len(every)).split(at_once)
        return torch.cat([each for at in parts for each in batches(values, every[at.to(every.device)], at)])

    if not len(images):
        return selection.no_values(images)
    with frozen_model(model), torch.no_grad():
        return of(images) if others is None else of(images) - of(others)


def _with_delta(
    model: nn.Module,
    images: Tensor,
    begin: Tensor,
    gradient: Tensor,
    selection: Selection,
    batch_size: int | None,
) -> PathAttribution:
    shares = _times_difference(gradient, images.detach() - begin, selection)
    reached = score_differences(model, images, begin, selection, batch_size or AT_ONCE[images.device.type])
    return PathAttribution(shares, shares.flatten(-3).sum(-1) - reached)
