"""Images that a class, a unit, a channel or a layer responds to most."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.gradients import unit_gradients
from fastviz.engine.optimize import Optimized, Optimizer, Toward, by_name, optimize, toward
from fastviz.engine.optimize.canvas import Canvas, Fourier, Frame, Generator, Pixels, frame_of
from fastviz.engine.optimize.loop import Preview
from fastviz.engine.optimize.priors import L2, Prior, TotalVariation
from fastviz.engine.optimize.transforms import Jitter, Rotate, Scale, Transform
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.precision import Precision
from fastviz.models.loading import model_info
from fastviz.targets.objectives import Target

__all__ = ["Maximized", "canvas_by_name", "maximize", "start_parameters"]

CLASS_PRIORS: tuple[Prior, ...] = (L2(1e-4), TotalVariation(weight=1e-3))
"""What keeps images of classes soft, chosen by looking: scores are large enough to bear it, activations may not be."""

_SMALL = 16
"""Images of fewer pixels a side have nothing that a transform would leave in its place."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Maximized:
    """What :func:`maximize` made, an image a row: the first target's first, as many as there are starts.

    Attributes:
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        values: [N], the target at these images.
        probabilities: [N], of the class; NaN where the target is no class.
        steps: int64 [N], steps that each image took.
        history: [S, N], the target before each step; NaN after an image has stopped.
        reasons: why each image stopped: see :class:`fastviz.engine.optimize.Optimized`.
        box: top, left, bottom and right, half open, of the part of the usual image that single units see and that the
            images show; None for whole images, and where the units see different parts.
        interrupted: whether Ctrl-C ended it early.
    """

    images: Tensor
    pictures: Tensor
    values: Tensor
    probabilities: Tensor
    steps: Tensor
    history: Tensor
    reasons: tuple[str, ...]
    box: Box | None
    interrupted: bool


def maximize(
    model: nn.Module,
    target: Target,
    *,
    size: int | tuple[int, int] | None = None,
    start: str | Tensor | None = None,
    starts: int = 1,
    canvas: str | Canvas = "fourier",
    priors: Sequence[Prior] | None = None,
    transforms: Sequence[Transform] | None = None,
    optimizer: str | Optimizer = "adam",
    learning_rate: float | None = None,
    steps: int = 128,
    goal: float | None = None,
    crop: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    preview: Preview | None = None,
    preview_every: int = 10,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Maximized:
    """Images that make each target as large as possible: what a class or unit looks like to the network.

    ``argmax_I S(I) − penalties(I)``: Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034, with S the
    score before softmax and λ‖I‖²; priors of Yosinski et al. 2015, https://arxiv.org/abs/1506.06579; Fourier canvas and
    random transforms of Olah, Mordvintsev, Schubert 2017, https://distill.pub/2017/feature-visualization; with a
    :class:`fastviz.engine.optimize.canvas.Generator` as the canvas, the latent images of Nguyen et al. 2016,
    https://arxiv.org/abs/1605.09304. Defaults were chosen by looking at pictures; [S14] itself is ``canvas=Pixels(clip=
    False), priors=[L2(...)], transforms=(), optimizer="ascent"``, but for the step, which is normalised here.

    All images are made at once, and each as if it were alone. Where rectifiers block the whole gradient of a target, as
    at the start of many classes and units, see :func:`fastviz.engine.optimize.optimize`.

    Args:
        model: any module; not changed.
        target: unlike where images are explained, T targets are T images: a class, a tensor of T classes, an objective,
            one with tensors of T numbers such as ``fastviz.channel("conv1", torch.arange(64))``, or a list of them.
        size: height and width in pixels (one number for a square); None is the model's usual one. Targets inside the
            network take any size that it can.
        start: ``"zeros"`` (the mean colour), ``"grey"``, ``"noise"``, or images [1 or N, C, H, W] as the network takes
            them (for a generator: codes [1 or N, ...]). None is ``"zeros"``, for a generator ``"noise"``.
        starts: images of each target, with noise and transforms of their own.
        canvas: ``"fourier"``, ``"pixels"``, or a :class:`fastviz.engine.optimize.canvas.Canvas`.
        priors: see :mod:`fastviz.engine.optimize.priors`; None is ``L2(1e-4)`` and ``TotalVariation(weight=1e-3)`` for
            classes, nothing for others.
        transforms: see :mod:`fastviz.engine.optimize.transforms`; None is jitter of a 14th of the shorter side, scale
            0.8 to 1.2 and 10 degrees of rotation (single units: 0.95 to 1.05 and 5 degrees); none of them below 16
            pixels, for L-BFGS and for generators.
        optimizer: ``"adam"``, ``"ascent"`` (normalised gradient), ``"lbfgs"``, or a
            :class:`fastviz.engine.optimize.Optimizer`.
        learning_rate: None is the optimiser's own.
        steps: most steps.
        goal: an image is finished when the probability of its class, or the value of another target, is at least this.
        crop: make images of single units only as large as what they see of the usual image. The same numbers, sooner.
        seed: start number s of every target has seed ``seed + s``.
        batch_size: images the network sees at once: bounds the memory; None is all, on a CPU as many as its
            caches hold.
        precision: ``"bfloat16"`` runs the network under autocast: faster where the processor has it, approximate.
        preview, preview_every: called with the number of steps and the images [N, C, H, W] so far.
        progress: show a bar, on a terminal. Ctrl-C returns what there is.
        checkpoint: a file to go on from, see :func:`fastviz.engine.optimize.optimize`.

    Raises:
        TypeError, ValueError: arguments that do not fit; a class, layer, channel or position that does not exist; a
            size that the network cannot take; a start of another shape; a generator whose pictures have another shape.
        MemoryError: the images do not fit into memory at once; says how many would.

    >>> import fastviz as fv
    >>> made = fv.maximize(fv.load_model("demo"), [12, 5], steps=2)
    >>> made.pictures.shape, made.reasons
    (torch.Size([2, 3, 64, 64]), ('steps', 'steps'))
    """
    checks.whole_number(starts, "starts", minimum=1)
    checks.whole_number(seed, "seed", minimum=0)
    surface = canvas_by_name(canvas)
    objective = toward(model, target, repeats=starts, precision=precision, argument="size")
    frame, box = frame_of(model, size), None
    cropped = _cropped(model, objective, frame) if crop else None
    if cropped is not None:
        found, box = cropped
        frame = Frame((box[2] - box[0], box[3] - box[1]), frame.mean, frame.std)
        objective = toward(model, found, repeats=starts, precision=precision, argument="size")
    classes = [part.as_probability() is not None for part, count in objective.parts for _ in range(count * starts)]
    single = all(part.is_unit for part, _ in objective.parts)
    mover = by_name(optimizer, learning_rate)
    if priors is None:
        priors = CLASS_PRIORS if all(classes) and not isinstance(surface, Generator) else ()
    if transforms is None:
        plain = isinstance(surface, Generator) or not mover.random_objective
        transforms = () if plain else _transforms(min(frame.size), single=single)
    seeds = [seed + number for number in range(starts)] * objective.targets
    generator = surface.module if isinstance(surface, Generator) else None
    with nullcontext() if generator is None else frozen_model(generator):
        made = optimize(
            model,
            objective,
            start_parameters(model, start, surface, frame, seeds),
            canvas=surface,
            frame=frame,
            optimizer=mover,
            steps=steps,
            priors=priors,
            transforms=transforms,
            goal=goal,
            seeds=seeds,
            batch_size=batch_size,
            preview=preview,
            preview_every=preview_every,
            progress=progress,
            checkpoint=checkpoint,
            about=f"maximize {model_info(model)} {_in_words(objective)}",
        )
    return _result(made, frame, torch.tensor(classes), box)


def _result(made: Optimized, frame: Frame, classes: Tensor, box: Box | None) -> Maximized:
    is_class = classes.to(made.measures.device)
    return Maximized(
        images=made.images,
        pictures=frame.picture(made.images).clamp(0, 1),
        values=made.values,
        probabilities=torch.where(is_class, made.measures, torch.nan),
        steps=made.steps,
        history=made.history,
        reasons=made.reasons,
        box=box,
        interrupted=made.interrupted,
    )


def canvas_by_name(canvas: str | Canvas) -> Canvas:
    """The canvas of this name (``"pixels"``, ``"fourier"``), or the one given."""
    if isinstance(canvas, Canvas):
        return canvas
    if not isinstance(canvas, str):
        raise TypeError(f"canvas should be a name or a Canvas, got {type(canvas).__name__}")
    return Pixels() if checks.one_of(canvas, "canvas", ("fourier", "pixels")) == "pixels" else Fourier()


def start_parameters(
    model: nn.Module, start: str | Tensor | None, canvas: Canvas, frame: Frame, seeds: Sequence[int]
) -> Tensor:
    """Parameters to start from, a row for each of the ``seeds``; ``start`` as in :func:`maximize`.

    They are on the device of the model's parameters and of their dtype, but for images in float32 at least: small steps
    would be lost in less, and there are no waves of less.
    """
    N = len(seeds)
    like = next((value for value in model.parameters() if value.is_floating_point()), torch.empty(0)).detach()
    if not isinstance(canvas, Generator):
        like = like.to(torch.promote_types(like.dtype, torch.float32))
    if start is None:
        start = "noise" if isinstance(canvas, Generator) else "zeros"
    if isinstance(start, Tensor):
        shape = canvas.code if isinstance(canvas, Generator) else (len(frame.mean), *frame.size)
        if start.dim() != 1 + len(shape) or tuple(start.shape[1:]) != tuple(shape) or len(start) not in (1, N):
            rows = "1" if N == 1 else f"1 or {N}"
            raise ValueError(f"start should have shape [{rows}, {', '.join(map(str, shape))}], got {list(start.shape)}")
        checks.device(checks.tensor(start, "start").device, "start")
        given = start.detach().to(like).expand(N, *shape)
        return given if isinstance(canvas, Generator) else canvas.parameters(given, frame)
    if checks.one_of(start, "start", ("zeros", "grey", "noise")) == "noise":
        return canvas.noise(frame, [torch.Generator().manual_seed(seed) for seed in seeds], like)
    zeros = like.new_zeros(N, len(frame.mean), *frame.size)
    return canvas.parameters(zeros if start == "zeros" else frame.image(zeros + 0.5), frame)


def _transforms(side: int, *, single: bool) -> tuple[Transform, ...]:
    """What is done to images whose shorter side is ``side`` pixels unless it is said: less where a unit must be hit."""
    if side < _SMALL:
        return ()
    jitter = Jitter(side // 14)
    return (jitter, Scale(0.95, 1.05), Rotate(5)) if single else (jitter, Scale(0.8, 1.2), Rotate(10))


def _cropped(model: nn.Module, objective: Toward, frame: Frame) -> tuple[targets.Objective, Box] | None:
    """The same single units on the part of the image that they see, and that part; None if it is the whole image.

    None as well where targets are no single units of one layer, or see parts of different shapes.
    """
    parts = objective.parts
    layers = {name for part, _ in parts for name in part.layers}
    if not all(part.is_unit for part, _ in parts) or len(layers) != 1:
        return None
    (layer,) = layers
    try:
        shape = unit_gradients.map_shape(model, layer, frame.size)
        places = [
            [int(at if isinstance(at, int) else at[number]) for at in part.places((count, *shape))]
            for part, count in parts
            for number in range(count)
        ]
        if len(shape) != 3:
            return None
        crops = unit_gradients.unit_crops(model, layer, [(row, column) for _, row, column in places], frame.size)
    except unit_gradients.NoCrop:
        return None
    sizes = crops.groups()
    if len(sizes) != 1 or frame.size in sizes:
        return None
    rows, columns = (torch.tensor(each) for each in zip(*crops.positions, strict=True))
    unit = targets.neuron(layer, torch.tensor([channel for channel, _, _ in places]), (rows, columns))
    return unit, crops.boxes[0]


def _in_words(objective: Toward) -> str:
    """The targets, for a checkpoint to agree on."""
    return "; ".join(f"{type(part).__name__} {vars(part)}" for part, _ in objective.parts)
