"""DeepDream: photographs changed to amplify what a network already sees in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz import targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.optimize import Ascent, FeatureNetwork, ImageObjective, TargetObjective, optimize, target_objective
from fastviz.engine.optimize.canvas import Canvas, Fourier, Pixels, frame_of
from fastviz.engine.optimize.default_layers import dream_layer
from fastviz.engine.optimize.transforms import Jitter
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.images import notebook, tensors
from fastviz.methods.synthesis.dream_objectives import GuidedObjective, TiledObjective, cuts
from fastviz.targets.objectives import Objective
from fastviz.targets.selection import Target

__all__ = ["Dream", "deep_dream", "dream_zoom"]

_MIN_SIDE = 32
"""Octaves whose shorter side is below this, in pixels, are left out: they are too small for networks."""
_MAX_UNTILED = 1 << 20
"""Images with more pixels are processed in tiles by default."""
_TILE = 512
"""Side of those tiles, in pixels."""
_CANVASES: dict[str, tuple[Canvas, float]] = {"fourier": (Fourier(decay=0.5), 0.02), "pixels": (Pixels(), 0.03)}
"""The canvases and the step length for each, chosen by eye."""


@dataclass(frozen=True, eq=False, repr=False)
class Dream(notebook.NotebookResult):
    """The result of :func:`deep_dream`.

    Attributes:
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        values: [N], the target at these images.
        sizes: height and width of each octave, in pixels, the smallest first.
        interrupted: whether Ctrl-C ended it early; the images are then unfinished, and ``values`` are those of the
            octave in progress.

    >>> import fastviz as fv
    >>> model, x = fv.load_model("demo"), torch.rand(1, 3, 64, 64)
    >>> fv.deep_dream(model, x, octaves=1, steps=1).pictures.shape
    torch.Size([1, 3, 64, 64])
    """

    images: Tensor
    pictures: Tensor
    values: Tensor
    sizes: tuple[tuple[int, int], ...]
    interrupted: bool


def deep_dream(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    guide: Tensor | None = None,
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    strength: float | None = None,
    jitter: int = 32,
    canvas: str = "fourier",
    tile: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> Dream:
    """``x`` with what the network sees in it amplified: eyes in clouds, dogs in coffee.

    Mordvintsev, Olah, Tyka 2015, https://research.google/blog/inceptionism-going-deeper-into-neural-networks/: gradient
    ascent from a photograph on ``½‖a‖²`` of a layer, whose gradient for the activation is the activation itself. The
    image is optimised first at the size H / octave_scale^(octaves − 1), then at larger ones; each starts with the
    photograph at that size plus the changes so far. Each step shifts the image cyclically by up to ``jitter`` pixels,
    and normalises the gradient.

    We depart from it in one thing: the gradient is taken for Fourier coefficients, with high frequencies damped by
    frequency^½, and with the colours of photographs (``canvas="fourier"``). The changes then have all scales; they
    achieved that by a pyramid of gradients. ``canvas="pixels"`` is their plain ascent, finer and more colourful.

    Args:
        model: any module; not changed.
        x: [N, C, H, W], photographs as the model takes them, of any size that it accepts, preferably large:
            ``frame_of(model, (H, W)).image(pictures)`` of :mod:`fastviz.canvas`. Images do not affect each other.
        target: what to increase instead of ``½‖a‖²`` of a layer: a class, ``fastviz.channel(layer, k)``,
            ``squared(fastviz.neuron(layer, k, position))`` for ½h² of a unit, or sums of them. Several targets need as
            many images in ``x``, or one image, which is then used for each. None uses ``layer``, not the predicted
            class.
        layer: the layer to amplify; None is :func:`fastviz.engine.optimize.default_layers.dream_layer`. Only without a
            ``target``.
        guide: [1 or N, C, H', W'], images as the model takes them, whose features should appear: the objective is Σ_p
            max_q ⟨a_p, b_q⟩, where a_p are the features of ``x`` at each position of ``layer`` and b_q those of the
            guide. Middle layers transfer its textures, late layers parts of its objects. Only without a ``target``.
        octaves: number of sizes. Those with a shorter side below 32 pixels, or too small for the network, are left out.
        octave_scale: factor from one size to the next, above 1.
        steps: steps at each size.
        strength: step length, see :class:`fastviz.engine.optimize.Ascent`; None is 0.02 for the Fourier canvas and 0.03
            for pixels.
        jitter: the maximum shift in pixels, vertically and horizontally; 0 for none.
        canvas: ``"fourier"`` or ``"pixels"``.
        tile: compute gradients in tiles of about this many pixels per side, which bounds the memory; None is whole
            images up to a megapixel and 512 beyond. Tiles start at another position in each step, to avoid seams. The
            objective is then summed over the tiles.
        seed: for the jitter.
        batch_size: images in a pass; None is all on a GPU, and on a CPU as many as fit its caches.
        precision: ``"bfloat16"`` runs the network under autocast: approximate, and faster where the processor supports
            it.
        progress: show a progress bar on a terminal. Ctrl-C returns the images so far.

    Returns:
        A :class:`Dream` with images of the size of ``x``, at least float32, on its device.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a layer, class, channel or position that does not exist; numbers of images that do not match; an
            image that the network cannot run on; a ``layer`` or a ``guide`` together with a ``target``.
        MemoryError: an image does not fit into memory; use a smaller ``tile``.

    >>> import fastviz as fv
    >>> made = fv.deep_dream(fv.load_model("demo"), torch.zeros(1, 3, 96, 80), octaves=2, steps=1)
    >>> made.pictures.shape, made.sizes
    (torch.Size([1, 3, 96, 80]), ((69, 57), (96, 80)))
    """
    images = input_batch(model, x, wide=True).detach()
    for value, name, least in ((octaves, "octaves", 1), (steps, "steps", 0), (jitter, "jitter", 0), (seed, "seed", 0)):
        checks.whole_number(value, name, minimum=least)
    if tile is not None:
        checks.whole_number(tile, "tile", minimum=_MIN_SIDE)
    if not checks.positive(octave_scale, "octave_scale") > 1:
        raise ValueError(f"octave_scale should be above 1, got {octave_scale}")
    surface, default_strength = _canvas(canvas)
    length = default_strength if strength is None else checks.positive(strength, "strength")
    size = (images.shape[2], images.shape[3])
    chosen, images = _chosen(model, images, target, layer, guide, precision)
    if tile is None and size[0] * size[1] > _MAX_UNTILED:
        tile = _TILE
    sizes = _sizes(chosen.network, images, octaves, octave_scale, tile or max(size))
    plan = _Plan(
        objective=chosen if tile is None else TiledObjective(chosen, tile),
        canvas=surface,
        ascent=Ascent(length),
        steps=steps,
        shift=max(jitter, 0 if tile is None else tile // 2),
        seed=seed * octaves,
        batch_size=batch_size,
        progress=progress,
    )
    return _dream(model, images, sizes, plan)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The settings for every size; ``shift`` is the maximum jitter in pixels, ``seed`` the seed of the first size."""

    objective: ImageObjective
    canvas: Canvas
    ascent: Ascent
    steps: int
    shift: int
    seed: int
    batch_size: int | None
    progress: bool


def _dream(model: nn.Module, images: Tensor, sizes: list[tuple[int, int]], plan: _Plan) -> Dream:
    """The dream of ``images``, from the smallest size to the largest."""
    photograph = _photograph(model, images)
    if not len(images):
        return Dream(images, photograph, images.new_zeros(0), tuple(sizes), False)
    added = torch.zeros_like(photograph)
    interrupted = False
    values = images.new_zeros(len(images))
    with bar(plan.progress, len(sizes) * plan.steps, text="dreaming", unit="steps") as advance:
        for number, each in enumerate(sizes):
            frame = frame_of(model, each, images.shape[1])
            base = _resized(photograph, each).clamp(0, 1)
            start = frame.image((base + _resized(added, each)).clamp(0, 1))
            made = optimize(
                model,
                plan.objective,
                plan.canvas.parameters(start, frame),
                canvas=plan.canvas,
                frame=frame,
                optimizer=plan.ascent,
                steps=plan.steps,
                transforms=[Jitter(plan.shift)] if plan.shift else [],
                seeds=[plan.seed + number] * len(images),
                batch_size=plan.batch_size,
                preview=(lambda *_: advance(1)) if plan.progress else None,
                preview_every=1,
            )
            added = frame.picture(made.images) - base
            values, interrupted = made.values, made.interrupted
            if interrupted:
                break
    size = (images.shape[2], images.shape[3])
    dreamt = (photograph + _resized(added, size)).clamp(0, 1)
    return Dream(frame_of(model, size, images.shape[1]).image(dreamt), dreamt, values, tuple(sizes), interrupted)


def dream_zoom(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    frames: int = 30,
    zoom: float = 1.05,
    progress: bool = False,
    **options: Any,
) -> Iterator[Tensor]:
    """Frames of a zoom into a dream: each is the dream of an enlarged part of the previous frame.

    Mordvintsev, Olah, Tyka 2015, https://research.google/blog/inceptionism-going-deeper-into-neural-networks/. The
    first frame is :func:`deep_dream` of ``x``. Each later one is the dream of the previous frame, enlarged by ``zoom``
    around its centre (bicubic), with the mean and standard deviation of each colour reset to those of ``x``, because
    contrast would otherwise grow. :func:`fastviz.animation.save_gif` makes an animation of them.

    Args:
        model, x, target: see :func:`deep_dream`.
        frames: the number of frames.
        zoom: factor from one frame to the next, at least 1.
        progress: show a bar over the frames, on a terminal. Ctrl-C ends after the last complete frame.
        options: further arguments of :func:`deep_dream`. Changes accumulate over the frames, so each is short by
            default: two octaves, four steps, half the strength.

    Returns:
        An iterator over pictures [N, C, H, W] in 0 to 1, at least float32, on the device of ``x``. Each frame is
        computed when requested, so that it can be written before the next one.

    Raises:
        TypeError, ValueError, MemoryError: as :func:`deep_dream`; ``frames`` or ``zoom`` out of range.

    >>> import fastviz as fv
    >>> zoomed = fv.dream_zoom(fv.load_model("demo"), torch.zeros(1, 3, 64, 64), frames=2, octaves=1, steps=1)
    >>> [frame.shape for frame in zoomed]
    [torch.Size([1, 3, 64, 64]), torch.Size([1, 3, 64, 64])]
    """
    images = input_batch(model, x, wide=True).detach()
    checks.whole_number(frames, "frames", minimum=1)
    if not checks.positive(zoom, "zoom") >= 1:
        raise ValueError(f"zoom should be at least 1, got {zoom}")
    _, default_strength = _canvas(options.get("canvas", "fourier"))
    settings = {"octaves": 2, "steps": 4, "strength": default_strength / 2, **options}
    return _zoomed(model, images, target, frames, zoom, progress, settings)


def _zoomed(
    model: nn.Module,
    images: Tensor,
    target: Target,
    frames: int,
    zoom: float,
    progress: bool,
    settings: dict[str, Any],
) -> Iterator[Tensor]:
    frame, photograph = frame_of(model, (images.shape[2], images.shape[3]), images.shape[1]), _photograph(model, images)
    with bar(progress, frames, text="dreaming", unit="frames") as advance:
        for _ in range(frames):
            made = deep_dream(model, images, target, **settings)
            if made.interrupted:
                return
            yield made.pictures
            advance(1)
            images = frame.image(_match_colours(_enlarged(made.pictures, zoom), photograph))


def _chosen(
    model: nn.Module, images: Tensor, target: Target, layer: str | None, guide: Tensor | None, precision: Precision
) -> tuple[TargetObjective, Tensor]:
    """The objective of each image, and the ``images``: one for each of several targets."""
    if target is not None and (layer is not None or guide is not None):
        given = "layer" if layer is not None else "guide"
        raise ValueError(f"{given} should be None with a target, which says itself what to amplify")
    wanted = target
    if target is None:
        name = dream_layer(model) if layer is None else layer
        wanted = (
            targets.layer(name) if guide is None else _guided(model, name, guide, len(images), precision)
        )  # fmt: skip
    found = target_objective(model, wanted, precision=precision, argument="x")
    if found.targets == 1:
        return TargetObjective(found.network, found.parts, max(1, len(images))), images
    if len(images) not in (1, found.targets):
        raise ValueError(f"target should be one or {len(images)}, one per image of x, got {found.targets}")
    return found, images.expand(found.targets, -1, -1, -1)


def _guided(model: nn.Module, name: str, guide: Tensor, images: int, precision: Precision) -> Objective:
    shown = input_batch(model, guide, "guide", wide=True).detach()
    if len(shown) not in (1, images):
        raise ValueError(f"guide should have 1 or {images} images, as x has, got {len(shown)}")
    with frozen_model(model), torch.no_grad():
        features = FeatureNetwork(model, [name], output=False, precision=precision, argument="guide")(shown)[1][name]
    if features.dim() != 4:
        raise ValueError(f"layer should have maps [N, C, H, W] for a guide, got {name!r} with {list(features.shape)}")
    return GuidedObjective(name, features.detach().flatten(2))


# ---------------------------------------------------------------------------------------------- sizes and pictures


def _canvas(name: str) -> tuple[Canvas, float]:
    return _CANVASES[checks.one_of(name, "canvas", _CANVASES)]


def _sizes(network: FeatureNetwork, images: Tensor, octaves: int, scale: float, tile: int) -> list[tuple[int, int]]:
    """Height and width of the octaves, the smallest first; except for the last, only those that the network accepts."""
    H, W = images.shape[2:]
    sizes = [(round(H / scale**k), round(W / scale**k)) for k in reversed(range(octaves))]
    probe = copy.copy(network)
    probe.argument = None  # here errors are only caught, so they need no explanation
    usable = [size for size in sizes[:-1] if min(size) >= _MIN_SIDE]
    with frozen_model(network.model), torch.no_grad():
        while usable:
            seen = (cuts(side, tile)[0].stop for side in usable[0])
            try:
                probe(images.new_zeros(1, images.shape[1], *seen))
                break
            except (RuntimeError, ValueError, AssertionError, IndexError):  # too small for the network
                del usable[0]
    return [*usable, (H, W)]


def _photograph(model: nn.Module, images: Tensor) -> Tensor:
    """The pictures of ``images``, 0 to 1."""
    return frame_of(model, (images.shape[2], images.shape[3]), images.shape[1]).picture(images).clamp(0, 1)


def _resized(shown: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures, or changes of pictures, at another size."""
    return tensors.resize(shown, *size, "bicubic", clip=False)


def _enlarged(shown: Tensor, zoom: float) -> Tensor:
    """Pictures enlarged ``zoom`` times around the centre, at the same size."""
    matrix = torch.eye(2, 3).div(zoom).expand(len(shown), 2, 3).to(shown)
    grid = F.affine_grid(matrix, list(shown.shape), align_corners=False)
    near = F.grid_sample(shown, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return near.clamp(0, 1)


def _match_colours(shown: Tensor, like: Tensor) -> Tensor:
    """Pictures with the mean and standard deviation of each colour matched to ``like``."""
    (spread, mean), (target_spread, target_mean) = (
        torch.std_mean(each, (2, 3), correction=0, keepdim=True) for each in (shown, like)
    )
    factor = target_spread / spread.clamp(min=1e-3)
    return ((shown - mean) * factor + target_mean).clamp(0, 1)
