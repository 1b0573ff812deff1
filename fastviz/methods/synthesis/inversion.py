"""Images with given features: what a layer keeps of a photograph, and what it has lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize import Network, Optimizer, by_name, optimize
from fastviz.engine.optimize.canvas import Canvas, Frame, frame_of
from fastviz.engine.optimize.loop import Preview
from fastviz.engine.optimize.priors import LP, Prior, TotalVariation
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import layer_module
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.images import tensors
from fastviz.methods.synthesis.activation_maximization import canvas_by_name, start_parameters
from fastviz.models.loading import model_info

__all__ = ["Inverted", "inversion_priors", "invert", "invert_all", "invertible_layers"]

ALPHA = 6.0
BETA = 2.0
_RANGE = 2.0
"""B of the paper: the size of a pixel near black or white, in standard deviations."""
_STEP = 0.3
"""V of the paper, B / 6.5: the difference of neighbouring pixels in a photograph."""


@dataclass(frozen=True, eq=False)
class Inverted:
    """What :func:`invert` made, a row an image: the first code's first, as many as there are starts.

    Attributes:
        layer: whose features were inverted.
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        error: [N], ``‖Φ(x) − Φ₀‖² / ‖Φ₀‖²``.
        psnr: [N], in dB, of the pictures against the photographs; NaN where features were given.
        steps: int64 [N], steps that each image took.
        history: [S, N], the error before each step; NaN after an image has stopped.
        reasons: why each image stopped: see :class:`fastviz.engine.optimize.Optimized`.
        interrupted: whether Ctrl-C ended it early.
    """

    layer: str
    images: Tensor
    pictures: Tensor
    error: Tensor
    psnr: Tensor
    steps: Tensor
    history: Tensor
    reasons: tuple[str, ...]
    interrupted: bool


def invert(
    model: nn.Module,
    x: Tensor | None,
    layer: str,
    *,
    features: Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    start: str | Tensor = "noise",
    starts: int = 1,
    canvas: str | Canvas = "fourier",
    range_weight: float = 0.1,
    variation_weight: float = 0.01,
    priors: Sequence[Prior] | None = None,
    optimizer: str | Optimizer = "lbfgs",
    learning_rate: float | None = None,
    steps: int = 100,
    goal: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    preview: Preview | None = None,
    preview_every: int = 10,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Inverted:
    """Images with the features that ``layer`` has of ``x``, or with the ``features`` given.

    ``argmin_x ‖Φ(x) − Φ₀‖² / ‖Φ₀‖² + λ_α‖x‖_α^α + λ_β TV^β(x)``, α = 6, β = 2, TV^β = Σ ((x_{i,j+1} − x_ij)² +
    (x_{i+1,j} − x_ij)²)^{β/2}: Mahendran, Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them",
    https://arxiv.org/abs/1412.0035. As in their later work (2016, https://arxiv.org/abs/1512.02017) the weights do not
    depend on the size of the image: λ_α = ``range_weight`` / (CHW · B^α), λ_β = ``variation_weight`` / (HWC · V^β),
    with B = 2 standard deviations and V = 0.3, so that a picture at the border of the range, or as busy as a
    photograph, costs about its weight; because the error is relative, one weight serves all layers. They start from
    noise as here; we minimise by L-BFGS over a Fourier canvas instead of gradient descent over pixels, which takes a
    tenth of the steps and keeps fine noise out of deep layers. ``canvas="pixels"`` is theirs.

    All images are made at once, each as if it were alone.

    Args:
        model: any module; not changed.
        x: [N, C, H, W], photographs as the model takes them; None where ``features`` are given.
        layer: torch's dotted name; see ``fastviz.layers(model)``.
        features: [N, ...] as the layer gives them, instead of ``x``.
        size: height and width of the images in pixels where ``features`` are given; None is the model's usual one.
        start: ``"noise"``, ``"zeros"``, ``"grey"`` or images: as in :func:`fastviz.maximize`.
        starts: images of each code, with noise of their own: what differs between them the layer does not see.
        canvas: ``"fourier"``, ``"pixels"``, or a :class:`fastviz.engine.optimize.canvas.Canvas`.
        range_weight, variation_weight: of the two priors; 0 leaves one out.
        priors: other priors instead of these two: see :mod:`fastviz.engine.optimize.priors`.
        optimizer: ``"lbfgs"``, ``"adam"``, ``"ascent"``, or a :class:`fastviz.engine.optimize.Optimizer`.
        learning_rate: None is the optimiser's own.
        steps: most steps.
        goal: an image is finished when its error is at most this.
        seed: start number s of every code has seed ``seed + s``.
        batch_size, precision, preview, preview_every, progress, checkpoint: as in :func:`fastviz.maximize`.

    Raises:
        TypeError, ValueError: arguments that do not fit; an unknown layer; both or neither of ``x`` and ``features``;
            features of another shape than the layer gives, or all zero.
        MemoryError: the images do not fit into memory at once; says how many would.

    >>> import fastviz as fv
    >>> model = fv.load_model("demo")
    >>> made = fv.invert(model, torch.rand(2, 3, 64, 64), "conv2_1", steps=2)
    >>> made.pictures.shape, made.error.shape
    (torch.Size([2, 3, 64, 64]), torch.Size([2]))
    """
    checks.whole_number(starts, "starts", minimum=1)
    checks.whole_number(seed, "seed", minimum=0)
    if goal is not None:
        checks.number(goal, "goal")
    if (x is None) == (features is None):
        raise ValueError("either x or features should be given")
    network = Network(model, [layer], output=False, precision=precision, argument="size" if x is None else "x")
    if x is not None:
        images = input_batch(model, x, narrows=True).detach()
        known = frame_of(model, (images.shape[2], images.shape[3]), images.shape[1])
        codes = _features(network, images)
    else:
        known = frame_of(model, size)
        codes = checks.tensor(features, "features").detach()
        checks.device(codes.device, "features")
    length = codes.flatten(1).square().sum(1)
    if not bool(length.isfinite().all()):
        given = "features" if x is None else "x"
        raise ValueError(f"{given} should have finite features in layer {layer!r}, got NaN or infinity")
    if not bool((length > 0).all()):
        raise ValueError(f"features should not be zero everywhere, as those of layer {layer!r} are")

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        found = network(images)[1][layer]
        wanted = codes[rows // starts]
        if found.shape != wanted.shape:
            raise ValueError(
                f"features should have shape {[len(codes), *found.shape[1:]]}, as layer {layer!r} gives them for "
                f"images of {images.shape[2]}x{images.shape[3]} pixels, got {list(codes.shape)}"
            )
        return -(found - wanted).flatten(1).square().sum(1) / length[rows // starts]

    surface = canvas_by_name(canvas)
    seeds = [seed + number for number in range(starts)] * len(codes)
    if priors is None:
        priors = inversion_priors(known, range_weight, variation_weight)
    made = optimize(
        model,
        objective,
        start_parameters(model, start, surface, known, seeds),
        canvas=surface,
        frame=known,
        optimizer=by_name(optimizer, learning_rate),
        steps=steps,
        priors=priors,
        goal=None if goal is None else -goal,
        seeds=seeds,
        batch_size=batch_size,
        preview=preview,
        preview_every=preview_every,
        progress=progress,
        checkpoint=checkpoint,
        about=f"invert {model_info(model)} {layer} {length.tolist()}",
    )
    shown = known.picture(made.images).clamp(0, 1)
    if x is None:
        psnr = torch.full_like(made.values, torch.nan)
    else:
        psnr = tensors.psnr(shown, known.picture(images).clamp(0, 1).repeat_interleave(starts, 0))
    return Inverted(
        layer=layer,
        images=made.images,
        pictures=shown,
        error=-made.values,
        psnr=psnr,
        steps=made.steps,
        history=-made.history,
        reasons=made.reasons,
        interrupted=made.interrupted,
    )


def invert_all(
    model: nn.Module, x: Tensor, layers: Sequence[str] | None = None, *, progress: bool = False, **options: object
) -> list[Inverted]:
    """``x`` inverted from every layer of a network, the first layer first: detail is lost with depth.

    Args:
        model, x: as in :func:`invert`.
        layers: names; None is :func:`invertible_layers`.
        progress: show a bar a layer, on a terminal. Ctrl-C returns the layers so far, the last one as far as it came.
        options: as in :func:`invert`.

    >>> import fastviz as fv
    >>> strip = fv.invert_all(fv.load_model("demo"), torch.rand(1, 3, 64, 64), ["conv1", "fc8"], steps=1)
    >>> [made.layer for made in strip]
    ['conv1', 'fc8']
    """
    names = _called(model, x) if layers is None else checks.names(layers, "layers")
    for name in names:  # an unknown layer is told before minutes of work
        layer_module(model, name)
    found = []
    for name in names:
        found.append(invert(model, x, name, progress=progress, **options))  # type: ignore[arg-type]
        if found[-1].interrupted:
            break
    return found


def invertible_layers(model: nn.Module) -> list[str]:
    """The layers of a strip: every step of the network that changes what is kept, blocks as one step.

    Modules in order, going into containers (``Sequential``, the model itself) only; without those that change nothing
    in evaluation mode or only the shape (dropout, identity, flattening).

    >>> invertible_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))))
    ['0', '2.0', '2.1']
    """
    skipped = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity, nn.Flatten)
    names: list[str] = []

    def collect(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            if isinstance(child, (nn.Sequential, nn.ModuleList)):
                collect(child, f"{prefix}{name}.")
            elif not isinstance(child, skipped):
                names.append(f"{prefix}{name}")

    collect(checks.module(model), "")
    return names


def _called(model: nn.Module, x: Tensor) -> list[str]:
    """The layers of a strip that the forward pass calls."""
    network = Network(model, invertible_layers(model), output=True, argument="x")
    with frozen_model(model), torch.no_grad():
        _, activations = network(input_batch(model, x, narrows=True)[:1])
        return [name for name in network.layers if name in activations]


def inversion_priors(frame: Frame, range_weight: float, variation_weight: float) -> tuple[Prior, ...]:
    """The priors of :func:`invert` for images of this ``frame``."""
    values = len(frame.mean) * frame.size[0] * frame.size[1]
    found: list[Prior] = []
    if range_weight:
        found.append(LP(ALPHA, checks.positive(range_weight, "range_weight") / (values * _RANGE**ALPHA)))
    if variation_weight:
        weight = checks.positive(variation_weight, "variation_weight")
        found.append(TotalVariation(BETA, weight / (values * _STEP**BETA)))
    return tuple(found)


def _features(network: Network, images: Tensor) -> Tensor:
    """The features of ``images`` that ``network`` records."""
    with frozen_model(network.model), torch.no_grad():
        (found,) = network(images)[1].values()
        return found.detach()
