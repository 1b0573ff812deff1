"""DeepDream: a photograph changed until a network sees more of what it sees already."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz import targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.optimize import Ascent, Network, Toward, optimize, toward
from fastviz.engine.optimize.canvas import Canvas, Fourier, Pixels, frame_of
from fastviz.engine.optimize.transforms import Jitter
from fastviz.execution.differentiation import differentiate
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import Hook, hooked
from fastviz.execution.inputs import input_batch, output_of
from fastviz.execution.precision import Precision
from fastviz.models.loading import preprocessing
from fastviz.targets.objectives import Activations, Objective, Target

__all__ = ["Dream", "deep_dream", "dream_layer", "dream_zoom", "squared"]

_SMALLEST = 32
"""Octaves with a shorter side than this, in pixels, show a network nothing."""
_WHOLE = 1 << 20
"""Images of more pixels are dreamt in tiles unless it is said."""
_TILE = 512
_PRODUCTS = 1 << 24
"""Products of features that a guided dream holds at once."""
_CANVASES: dict[str, tuple[Canvas, float]] = {"fourier": (Fourier(decay=0.5), 0.02), "pixels": (Pixels(), 0.03)}
"""The canvases and the strength of a step on each, chosen by looking."""


@dataclass(frozen=True, eq=False)
class Dream:
    """What :func:`deep_dream` made.

    Attributes:
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        values: [N], the target at these images.
        sizes: height and width of each octave, in pixels, the smallest first.
        interrupted: whether Ctrl-C ended it early; the image is as far as it came then, and ``values`` are those of the
            last octave that was begun.
    """

    images: Tensor
    pictures: Tensor
    values: Tensor
    sizes: tuple[tuple[int, int], ...]
    interrupted: bool


def deep_dream(
    model: nn.Module,
    x: Tensor,
    target: str | Target = None,
    *,
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
    """``x`` with more of what the network sees in it: eyes in clouds, dogs in coffee.

    Mordvintsev, Olah, Tyka 2015, https://research.google/blog/inceptionism-going-deeper-into-neural-networks/: gradient
    ascent from a photograph on ``½‖a‖²`` of a layer, whose gradient is the activation itself. The image is dreamt first
    at the size H / octave_scale^(octaves − 1), then at larger ones; each begins with the photograph at that size plus
    what the dream added so far. Each step sees the image shifted by up to ``jitter`` pixels around the border, and
    divides the gradient by its size.

    We depart from it in one thing: the gradient is taken for the amplitudes of waves, the faster ones damped by
    frequency^½, with the colours of photographs (``canvas="fourier"``). What is added then is as coarse as it is fine,
    which they reached by a pyramid of gradients. ``canvas="pixels"`` is their plain ascent, finer and more colourful.

    Args:
        model: any module; not changed.
        x: [N, C, H, W], photographs as the model takes them, of any size that it can run on, better larger ones:
            ``frame_of(model, (H, W)).image(pictures)`` of :mod:`fastviz.engine.optimize.canvas`. Each is dreamt as if
            alone.
        target: the name of a layer for ``½‖a‖²``; None is :func:`dream_layer`. Or any objective: a class,
            ``fastviz.channel(layer, k)``, ``squared(fastviz.neuron(layer, k, position))`` for ½h² of a unit, sums of
            them. Several are several images, as many as ``x`` has or, of one image, one each.
        guide: [1 or N, C, H', W'], images as the model takes them, whose features are to appear: the target is
            Σ_p max_q ⟨a_p, b_q⟩, where a_p are the features of ``x`` at each position of the layer ``target`` and b_q
            those of the guide. Middle layers bring its textures, late ones parts of what it shows.
        octaves: sizes. Those with a shorter side below 32 pixels, or too small for the network, are left out.
        octave_scale: from one size to the next, above 1.
        steps: steps at each size.
        strength: length of a step, see :class:`fastviz.engine.optimize.Ascent`; None is 0.02 for waves, 0.03 for
            pixels.
        jitter: most pixels of the shift, down or up and left or right; 0 for none.
        canvas: ``"fourier"`` or ``"pixels"``.
        tile: compute gradients in tiles of about this many pixels a side, which bounds the memory; None is whole images
            up to a megapixel and 512 beyond. Tiles begin elsewhere in each step, so that no seam stays. The target is
            then the sum over tiles of that of each.
        seed: of the jitter.
        batch_size: images the network sees at once; None is all, on a CPU as many as its caches hold.
        precision: ``"bfloat16"`` runs the network under autocast: faster where the processor has it, approximate.
        progress: show a bar, on a terminal. Ctrl-C returns the dream so far.

    Raises:
        TypeError: an argument of another type.
        ValueError: a layer, class, channel or position that does not exist; numbers of images that do not fit; an image
            that the network cannot run on; a ``guide`` beside a target that is no layer.
        MemoryError: an image does not fit into memory: a smaller ``tile`` does.

    >>> import fastviz as fv
    >>> made = fv.deep_dream(fv.load_model("demo"), torch.zeros(1, 3, 96, 80), octaves=2, steps=1)
    >>> made.pictures.shape, made.sizes
    (torch.Size([1, 3, 96, 80]), ((69, 57), (96, 80)))
    """
    images = input_batch(model, x, narrows=True).detach()
    for value, name, least in ((octaves, "octaves", 1), (steps, "steps", 0), (jitter, "jitter", 0), (seed, "seed", 0)):
        checks.whole_number(value, name, minimum=least)
    if tile is not None:
        checks.whole_number(tile, "tile", minimum=_SMALLEST)
    if not checks.positive(octave_scale, "octave_scale") > 1:
        raise ValueError(f"octave_scale should be above 1, got {octave_scale}")
    surface, usual = _canvas(canvas)
    if canvas == "fourier" and images.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"x should be float32 or float64 for waves, got {images.dtype}: give canvas='pixels', or a float32 model "
            "and precision='bfloat16'"
        )
    length = usual if strength is None else checks.positive(strength, "strength")
    size = (images.shape[2], images.shape[3])
    chosen, images = _chosen(model, images, target, guide, precision)
    if tile is None and size[0] * size[1] > _WHOLE:
        tile = _TILE
    sizes = _sizes(chosen.network, images, octaves, octave_scale, tile or max(size))
    objective = chosen if tile is None else _Tiles(chosen, tile)
    shift = max(jitter, 0 if tile is None else tile // 2)

    photograph = _photograph(model, images)
    if not len(images):
        return Dream(images, photograph, images.new_zeros(0), tuple(sizes), False)
    added = torch.zeros_like(photograph)
    interrupted = False
    values = images.new_zeros(len(images))
    with bar(progress, len(sizes) * steps, text="dreaming", unit="steps") as advance:
        for number, each in enumerate(sizes):
            frame = frame_of(model, each, images.shape[1])
            base = _resized(photograph, each).clamp(0, 1)
            start = frame.image((base + _resized(added, each)).clamp(0, 1))
            made = optimize(
                model,
                objective,
                surface.parameters(start, frame),
                canvas=surface,
                frame=frame,
                optimizer=Ascent(length),
                steps=steps,
                transforms=[Jitter(shift)] if shift else [],
                seeds=[seed * octaves + number] * len(images),
                batch_size=batch_size,
                preview=(lambda *_: advance(1)) if progress else None,
                preview_every=1,
            )
            added = frame.picture(made.images) - base
            values, interrupted = made.values, made.interrupted
            if interrupted:
                break
    dreamt = (photograph + _resized(added, size)).clamp(0, 1)
    return Dream(frame_of(model, size, images.shape[1]).image(dreamt), dreamt, values, tuple(sizes), interrupted)


def dream_zoom(
    model: nn.Module,
    x: Tensor,
    target: str | Target = None,
    *,
    frames: int = 30,
    zoom: float = 1.05,
    progress: bool = False,
    **options: Any,
) -> Iterator[Tensor]:
    """Pictures [N, C, H, W] in 0 to 1, one after the other: a dream of a dream of a dream, ever nearer.

    Each frame is :func:`deep_dream` of the frame before, enlarged by ``zoom`` around its centre (bicubic) and with the
    colours brought back to the mean and the standard deviation that each had in ``x``, as contrast would grow from
    dream to dream; the first is that of ``x``. The frames are made as they are asked for, so that they can be written
    one by one; :func:`fastviz.images.animation.save_gif` makes them a film.

    Args:
        model, x, target, options: see :func:`deep_dream`. Dreams add up over the frames, so unless ``options`` say
            otherwise each is short: two octaves, four steps, half the strength.
        frames: how many.
        zoom: from one frame to the next, at least 1.
        progress: show a bar over the frames, on a terminal. Ctrl-C ends the frames after the last whole one.

    >>> import fastviz as fv
    >>> zoomed = fv.dream_zoom(fv.load_model("demo"), torch.zeros(1, 3, 64, 64), frames=2, octaves=1, steps=1)
    >>> [frame.shape for frame in zoomed]
    [torch.Size([1, 3, 64, 64]), torch.Size([1, 3, 64, 64])]
    """
    images = input_batch(model, x, narrows=True).detach()
    checks.whole_number(frames, "frames", minimum=1)
    if not checks.positive(zoom, "zoom") >= 1:
        raise ValueError(f"zoom should be at least 1, got {zoom}")
    _, usual = _canvas(options.get("canvas", "fourier"))
    settings = {"octaves": 2, "steps": 4, "strength": usual / 2, **options}
    return _zoomed(model, images, target, frames, zoom, progress, settings)


def _zoomed(
    model: nn.Module,
    images: Tensor,
    target: str | Target,
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
            images = frame.image(_coloured_as(_enlarged(made.pictures, zoom), photograph))


def squared(objective: Objective) -> Objective:
    """Half the square of an objective, ``½h²``, whose gradient is h times that of h.

    Raises:
        TypeError: not an objective, such as ``fastviz.neuron(...)`` or ``fastviz.class_score(...)``.

    >>> import fastviz as fv
    >>> fv.squared(fv.neuron("conv3_1", channel=7)).layers
    ('conv3_1',)
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"objective should be one such as neuron(...), got {type(objective).__name__}")
    return _Squared(objective)


def dream_layer(model: nn.Module) -> str:
    """The layer to dream of where none is named: the last stage of the network before its coarsest maps.

    Deep enough for eyes and faces, fine enough for many of them: ``features.10`` of SqueezeNet 1.0, ``layer3`` of a
    ResNet, the last rectifier of VGG-16. Maps of one pixel do not count; of layers inside each other the outermost is
    taken.

    Raises:
        ValueError: the network has no maps [N, C, H, W] of two sizes, as transformers have not.

    >>> import fastviz as fv
    >>> dream_layer(fv.load_model("demo"))
    'relu5_1'
    """
    seen: list[tuple[int, str]] = []  # pixels of a map and the layer's name, in the order in which layers end

    def noting(name: str) -> Hook:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                seen.append((output.shape[2] * output.shape[3], name))

        return note

    known = preprocessing(model)
    like = next((value for value in model.parameters() if value.is_floating_point()), torch.empty(0))
    images = like.new_zeros(1, len(known.mean), *(known.size or (224, 224)))
    names: list[str] = [name for name, _ in model.named_modules() if name]
    with frozen_model(model), torch.no_grad(), hooked(model, {name: noting(name) for name in names}):
        output_of(model, images, "images")
    sizes = sorted({size for size, _ in seen})
    if len(sizes) < 2:
        raise ValueError("target should name a layer for this model, which has no maps [N, C, H, W] of two sizes")
    names = [name for size, name in seen if size == sizes[1]]
    outermost = min(name.count(".") for name in names)
    return [name for name in names if name.count(".") == outermost][-1]


# ----------------------------------------------------------------------------------------------------- objectives


class _Squared(Objective):
    def __init__(self, inner: Objective) -> None:
        self.inner = inner
        self.layers, self.predicts = inner.layers, inner.predicts

    @property
    def reads_output(self) -> bool:
        return self.inner.reads_output

    @property
    def samples(self) -> int | None:
        return self.inner.samples

    def values(self, output: object, activations: Activations) -> Tensor:
        return self.inner.values(output, activations).square() / 2

    def settled(self, predicted: Tensor) -> Objective:
        return _Squared(self.inner.settled(predicted))

    def taken(self, samples: Tensor, of: int) -> Objective:
        return _Squared(self.inner.taken(samples, of))


class _Guided(Objective):
    """``Σ_p max_q ⟨a_p, b_q⟩`` of a layer, with the features b [1 or N, C, Q] of guides."""

    def __init__(self, layer: str, features: Tensor) -> None:
        self.layers = (layer,)
        self.features = features

    @property
    def reads_output(self) -> bool:
        return False

    @property
    def samples(self) -> int | None:
        return len(self.features) if len(self.features) > 1 else None

    def values(self, output: object, activations: Activations) -> Tensor:
        maps = activations[self.layers[0]].flatten(2)
        # Which is the best match needs no graph, and not all products at once.
        with torch.no_grad():
            rows = max(1, _PRODUCTS // self.features.shape[2])
            best = torch.cat([(part.mT @ self.features).argmax(2) for part in maps.split(rows, 2)], 1)
        matches = self.features.expand(len(maps), -1, -1).gather(2, best[:, None].expand_as(maps))
        return (maps * matches).sum((1, 2))

    def taken(self, samples: Tensor, of: int) -> Objective:
        return self if self.samples is None else _Guided(self.layers[0], self.features[samples])


def _chosen(
    model: nn.Module, images: Tensor, target: str | Target, guide: Tensor | None, precision: Precision
) -> tuple[Toward, Tensor]:
    """The objective of each image, and the ``images``: one for each of several targets."""
    name = dream_layer(model) if target is None else target
    if guide is not None:
        wanted: Target = _guided(model, name, guide, len(images), precision)
    else:
        wanted = targets.layer(name) if isinstance(name, str) else name
    found = toward(model, wanted, precision=precision, argument="x")
    if found.targets == 1:
        return Toward(found.network, found.parts, max(1, len(images))), images
    if len(images) not in (1, found.targets):
        raise ValueError(f"target should be one or {len(images)}, one an image of x, got {found.targets}")
    return found, images.expand(found.targets, -1, -1, -1)


def _guided(model: nn.Module, name: object, guide: Tensor, images: int, precision: Precision) -> Objective:
    if not isinstance(name, str):
        raise ValueError(f"target should be the name of a layer where there is a guide, got {type(name).__name__}")
    shown = input_batch(model, guide, "guide", narrows=True).detach()
    if len(shown) not in (1, images):
        raise ValueError(f"guide should have 1 or {images} images, as x has, got {len(shown)}")
    with frozen_model(model), torch.no_grad():
        features = Network(model, [name], output=False, precision=precision, argument="guide")(shown)[1][name]
    if features.dim() != 4:
        raise ValueError(
            f"target should be a layer with maps [N, C, H, W] where there is a guide, got {name!r} with "
            f"{list(features.shape)}"
        )
    return _Guided(name, features.detach().flatten(2))


class _Tiles:
    """An objective of images [n, C, H, W], added up over tiles of about ``side`` pixels, one in memory at a time.

    The value's gradient is put together from those of the tiles, so that none of their graphs outlives its tile.
    """

    def __init__(self, inner: Toward, side: int) -> None:
        self.inner, self.side = inner, side

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        total, slope = images.new_zeros(len(images)), torch.zeros_like(images)
        for down in _cuts(images.shape[2], self.side):
            for across in _cuts(images.shape[3], self.side):
                tile = images[..., down, across].detach().requires_grad_(images.requires_grad)
                values, _ = self.inner(tile, rows)
                total = total + values.detach()
                if images.requires_grad:
                    (found,) = differentiate(values.sum(), [tile]) if values.requires_grad else (None,)
                    if found is not None:
                        slope[..., down, across] = found
        if not images.requires_grad:
            return total
        linear = (images * slope).flatten(1).sum(1)
        return total + linear - linear.detach()


def _cuts(length: int, side: int) -> list[slice]:
    """A side of an image in equal parts of about ``side`` pixels."""
    count = max(1, round(length / side))
    ends = [length * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]


# ---------------------------------------------------------------------------------------------- sizes and pictures


def _canvas(name: str) -> tuple[Canvas, float]:
    return _CANVASES[checks.one_of(name, "canvas", _CANVASES)]


def _sizes(network: Network, images: Tensor, octaves: int, scale: float, tile: int) -> list[tuple[int, int]]:
    """Height and width of the octaves, the smallest first; but for the last, those on which the network can be run."""
    H, W = images.shape[2:]
    sizes = [(round(H / scale**k), round(W / scale**k)) for k in reversed(range(octaves))]
    probe = copy.copy(network)
    probe.argument = None  # its errors are an answer here, and need no explanation
    usable = [size for size in sizes[:-1] if min(size) >= _SMALLEST]
    with frozen_model(network.model), torch.no_grad():
        while usable:
            seen = (_cuts(side, tile)[0].stop for side in usable[0])
            try:
                probe(images.new_zeros(1, images.shape[1], *seen))
                break
            except (RuntimeError, ValueError, AssertionError, IndexError):  # too small for the network
                del usable[0]
    return [*usable, (H, W)]


def _photograph(model: nn.Module, images: Tensor) -> Tensor:
    """The pictures that ``images`` show."""
    return frame_of(model, (images.shape[2], images.shape[3]), images.shape[1]).picture(images).clamp(0, 1)


def _resized(shown: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures, or what is added to them, at another size: bicubic, antialiased."""
    if tuple(shown.shape[2:]) == size:
        return shown
    exact = shown.float() if shown.dtype in (torch.float16, torch.bfloat16) else shown
    return F.interpolate(exact, size, mode="bicubic", align_corners=False, antialias=True).to(shown.dtype)


def _enlarged(shown: Tensor, zoom: float) -> Tensor:
    """Pictures seen ``zoom`` times nearer, of the same size."""
    matrix = torch.eye(2, 3).div(zoom).expand(len(shown), 2, 3).to(shown)
    grid = F.affine_grid(matrix, list(shown.shape), align_corners=False)
    near = F.grid_sample(shown, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return near.clamp(0, 1)


def _coloured_as(shown: Tensor, like: Tensor) -> Tensor:
    """Pictures whose colours have the mean and the standard deviation that they have in ``like``."""
    (spread, mean), (usual_spread, usual_mean) = (
        torch.std_mean(each, (2, 3), correction=0, keepdim=True) for each in (shown, like)
    )
    factor = usual_spread / spread.clamp(min=1e-3)
    return ((shown - mean) * factor + usual_mean).clamp(0, 1)
