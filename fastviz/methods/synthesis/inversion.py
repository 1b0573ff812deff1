"""Inversion: images with given features, which show what a layer preserves of a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize import FeatureNetwork, ImageObjective, Optimization, Optimized, optimize, with_defaults
from fastviz.engine.optimize.canvas import frame_of, start_parameters
from fastviz.engine.optimize.priors import Prior, natural_image
from fastviz.execution import forward
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import layer_module
from fastviz.execution.inputs import input_batch, output_of
from fastviz.execution.precision import Precision, as_map
from fastviz.images import notebook, tensors
from fastviz.models.descriptions import model_info

__all__ = ["Inverted", "invert", "invert_all", "invertible_layers"]


@dataclass(frozen=True, eq=False, repr=False)
class Inverted(notebook.NotebookResult):
    """The result of :func:`invert`, one row per image: first those of the first code, one for each start.

    Attributes:
        layer: the layer whose features were inverted.
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        error: [N], ``‖Φ(x) − Φ₀‖² / ‖Φ₀‖²``.
        psnr: [N], in dB, of the pictures compared with the photographs; NaN if features were given.
        steps: int64 [N], the number of steps of each image.
        history: [S, N], the error before each step; NaN after an image has stopped.
        reasons: why each image stopped: see :class:`fastviz.engine.optimize.Optimized`.
        interrupted: whether Ctrl-C ended it early.

    >>> import fastviz as fv
    >>> model, x = fv.load_model("demo"), torch.rand(1, 3, 64, 64)
    >>> invert(model, x, "pool1", steps=1).error.shape
    torch.Size([1])
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

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        each = notebook.captioned(self.pictures, error=self.error, PSNR=self.psnr)
        return [(f"{self.layer}: {caption}", picture) for caption, picture in each]


def invert(
    model: nn.Module,
    x: Tensor | None,
    layer: str,
    *,
    features: Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    starts: int = 1,
    priors: Sequence[Prior] | None = None,
    steps: int = 100,
    goal: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
    optimization: Optimization | None = None,
) -> Inverted:
    """Images with the same features in ``layer`` as ``x``, or with the given ``features``.

    ``argmin_x ‖Φ(x) − Φ₀‖² / ‖Φ₀‖² + λ_α‖x‖_α^α + λ_β TV^β(x)``, α = 6, β = 2, TV^β = Σ ((x_{i,j+1} − x_ij)² +
    (x_{i+1,j} − x_ij)²)^{β/2}: Mahendran, Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them",
    https://arxiv.org/abs/1412.0035. The weights of the two priors, ``range_weight`` = 0.1 and ``variation_weight`` =
    0.01 of :func:`fastviz.engine.optimize.priors.natural_image`, do not depend on the size of the image, and suit all
    layers because the error is relative. Like the paper, we start from noise; but we minimise by L-BFGS on a Fourier
    canvas instead of gradient descent on pixels, which takes a tenth of the steps and avoids fine noise in deep layers.
    ``Optimization(canvas="pixels")`` uses the paper's pixels.

    All images are optimised together, but independently of each other.

    Args:
        model: any module; not changed.
        x: [N, C, H, W], photographs as the model takes them; None if ``features`` are given.
        layer: torch's dotted name; see ``fastviz.layers(model)``. :func:`invert_all` takes several.
        features: [N, ...] as the layer outputs them, instead of ``x``.
        size: height and width of the images in pixels if ``features`` are given; None is the model's own input size.
        starts: images per code, from different noise; their differences are invisible to the layer.
        priors: see :mod:`fastviz.priors`; None is the two above, ``()`` is none.
        steps: the maximum number of steps.
        goal: an image stops once its error is at most this.
        seed: start s of every code has seed ``seed + s``.
        batch_size, precision, progress: as in :func:`fastviz.maximize`.
        optimization: see :class:`fastviz.Optimization`. The defaults are L-BFGS on the Fourier canvas from ``"noise"``.

    Returns:
        An :class:`Inverted` with N · starts images, at least float32, on the device of the model.

    Raises:
        TypeError, ValueError: invalid arguments; an unknown layer; both or neither of ``x`` and ``features``; features
            of another shape than the layer gives, or all zero.
        MemoryError: the images do not fit into memory together; the message says how many would.

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
    options = with_defaults(optimization, optimizer="lbfgs", start="noise")
    network = FeatureNetwork(model, [layer], output=False, precision=precision, argument="size" if x is None else "x")
    if x is not None:
        images = input_batch(model, x, wide=True).detach()
        known = frame_of(model, (images.shape[2], images.shape[3]), images.shape[1])
        codes = _features(network, images)
    else:
        known = frame_of(model, size)
        codes = as_map(checks.tensor(features, "features").detach())
        checks.device(codes.device, "features")
    length = _squared_length(codes, layer, "features" if x is None else "x")
    canvas = options.chosen_canvas()
    seeds = [seed + number for number in range(starts)] * len(codes)
    made = optimize(
        model,
        _distance(network, layer, codes, length, starts),
        start_parameters(model, options.start, canvas, known, seeds),
        canvas=canvas,
        frame=known,
        optimizer=options.chosen_optimizer(),
        steps=steps,
        priors=natural_image(known) if priors is None else priors,
        goal=None if goal is None else -goal,
        seeds=seeds,
        batch_size=batch_size,
        preview=options.preview,
        preview_every=options.preview_every,
        progress=progress,
        checkpoint=options.checkpoint,
        about=f"invert {model_info(model)} {layer} {length.tolist()}",
    )
    photographs = None if x is None else known.picture(images).clamp(0, 1).repeat_interleave(starts, 0)
    return _result(layer, made, known.picture(made.images).clamp(0, 1), photographs)


def _squared_length(codes: Tensor, layer: str, argument: str) -> Tensor:
    """‖Φ₀‖² of each code, [N], the scale of errors."""
    length = codes.flatten(1).square().sum(1)
    if not bool(length.isfinite().all()):
        raise ValueError(f"{argument} should have finite features in layer {layer!r}, got NaN or infinity")
    if not bool((length > 0).all()):
        raise ValueError(f"features should not be zero everywhere, as those of layer {layer!r} are")
    return length


def _result(layer: str, made: Optimized, shown: Tensor, photographs: Tensor | None) -> Inverted:
    """The result with the pictures ``shown``, compared with the ``photographs`` [N, C, H, W]."""
    unknown = torch.full_like(made.values, torch.nan)
    return Inverted(
        layer=layer,
        images=made.images,
        pictures=shown,
        error=-made.values,
        psnr=unknown if photographs is None else tensors.psnr(shown, photographs),
        steps=made.steps,
        history=-made.history,
        reasons=made.reasons,
        interrupted=made.interrupted,
    )


def _distance(network: FeatureNetwork, layer: str, codes: Tensor, length: Tensor, starts: int) -> ImageObjective:
    """The negative relative error: ``−‖Φ(x) − Φ₀‖² / ‖Φ₀‖²``, where image i has code ``i // starts``."""

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        found = network(images)[1][layer]
        wanted = codes[rows // starts]
        if found.shape != wanted.shape:
            raise ValueError(
                f"features should have shape {[len(codes), *found.shape[1:]]}, as layer {layer!r} gives them for "
                f"images of {images.shape[2]}x{images.shape[3]} pixels, got {list(codes.shape)}"
            )
        return -(found - wanted).flatten(1).square().sum(1) / length[rows // starts]

    return objective


def invert_all(
    model: nn.Module, x: Tensor, layers: Sequence[str] | None = None, *, progress: bool = False, **options: Any
) -> dict[str, Inverted]:
    """``x`` inverted from several layers of a network, which shows how detail is lost with depth.

    See :func:`invert` for the method and its source.

    Args:
        model, x: as in :func:`invert`.
        layers: distinct names; None is every layer of :func:`invertible_layers` that the model calls.
        progress: show a progress bar for each layer on a terminal. Ctrl-C returns the layers so far, the last one
            unfinished.
        options: further arguments of :func:`invert`.

    Returns:
        Layer name → :class:`Inverted`, in the order of the ``layers``.

    Raises:
        TypeError, ValueError, MemoryError: as :func:`invert`; an unknown layer is refused before any computation.

    >>> import fastviz as fv
    >>> strip = fv.invert_all(fv.load_model("demo"), torch.rand(1, 3, 64, 64), ["conv1", "fc8"], steps=1)
    >>> list(strip), strip["fc8"].pictures.shape
    (['conv1', 'fc8'], torch.Size([1, 3, 64, 64]))
    """
    names = checks.layer_names(None, layers) or _called(model, x)
    for name in names:  # before minutes of computation
        layer_module(model, name)
    found: dict[str, Inverted] = {}
    for name in names:
        found[name] = invert(model, x, name, progress=progress, **options)
        if found[name].interrupted:
            break
    return found


def invertible_layers(model: nn.Module) -> list[str]:
    """The default layers of :func:`invert_all`: every step of the network that changes the features.

    These are the modules in order, with a block as one step: only containers (``Sequential``, ``ModuleList``, the model
    itself) are expanded. Modules that change nothing in evaluation mode, or only the shape (dropout, identity,
    flattening), are left out.

    Returns:
        Dotted names; some may belong to modules that the model does not call.

    Raises:
        TypeError: ``model`` is not a module.

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
    """The :func:`invertible_layers` that the forward pass calls."""
    names = invertible_layers(model)
    with frozen_model(model), torch.no_grad(), forward.noting(model, lambda output: None, names) as calls:
        output_of(model, input_batch(model, x)[:1].clone())
    seen = {name for name, _ in calls}
    return [name for name in names if name in seen]


def _features(network: FeatureNetwork, images: Tensor) -> Tensor:
    """The features of ``images`` in the layer of ``network``."""
    with frozen_model(network.model), torch.no_grad():
        (found,) = network(images)[1].values()
        return found.detach()
