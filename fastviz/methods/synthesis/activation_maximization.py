"""Images that a class, a unit, a channel or a layer responds to most."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.gradients import unit_gradients
from fastviz.engine.optimize import (
    Optimization,
    Optimized,
    TargetObjective,
    optimize,
    target_objective,
    with_defaults,
)
from fastviz.engine.optimize.canvas import Frame, Generator, frame_of, start_parameters
from fastviz.engine.optimize.priors import L2, Prior, TotalVariation
from fastviz.engine.optimize.transforms import Jitter, Rotate, Scale, Transform
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.precision import Precision
from fastviz.images import notebook
from fastviz.models.descriptions import model_info
from fastviz.targets.selection import Target

__all__ = ["Maximized", "maximize"]

CLASS_PRIORS: tuple[Prior, ...] = (L2(1e-4), TotalVariation(weight=1e-3))
"""Default priors for classes, chosen by eye. Other activations may be too small compared with them."""

_MIN_TRANSFORMED = 16
"""Images with fewer pixels per side are not transformed, because that would displace everything in them."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Maximized(notebook.NotebookResult):
    """The result of :func:`maximize`, one row per image: first those of the first target, one for each start.

    Attributes:
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        values: [N], the target at these images.
        probability: [N], of the class; NaN if the target is not a class.
        steps: int64 [N], the number of steps of each image.
        history: [S, N], the target before each step; NaN after an image has stopped.
        reasons: why each image stopped: see :class:`fastviz.engine.optimize.Optimized`.
        box: top, left, bottom and right, half-open, of the receptive field of single units, to which the images are
            cropped; None for full images, and if the units have different receptive fields.
        interrupted: whether Ctrl-C ended it early.

    >>> import fastviz as fv
    >>> fv.maximize(fv.load_model("demo"), [3, 4], steps=1).pictures.shape
    torch.Size([2, 3, 64, 64])
    """

    images: Tensor
    pictures: Tensor
    values: Tensor
    probability: Tensor
    steps: Tensor
    history: Tensor
    reasons: tuple[str, ...]
    box: Box | None
    interrupted: bool

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        return notebook.captioned(self.pictures, value=self.values, probability=self.probability)


def maximize(
    model: nn.Module,
    target: Target,
    *,
    size: int | tuple[int, int] | None = None,
    starts: int = 1,
    priors: Sequence[Prior] | None = None,
    transforms: Sequence[Transform] | None = None,
    steps: int = 128,
    goal: float | None = None,
    crop: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
    optimization: Optimization | None = None,
) -> Maximized:
    """Images that maximise each target: what a class or unit looks like to the network.

    ``argmax_I S(I) − penalties(I)``: Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034, with S the
    score before softmax and λ‖I‖²; priors of Yosinski et al. 2015, https://arxiv.org/abs/1506.06579; Fourier canvas and
    random transforms of Olah, Mordvintsev, Schubert 2017, https://distill.pub/2017/feature-visualization; with a
    :class:`fastviz.canvas.Generator` as the canvas, the latent images of Nguyen et al. 2016,
    https://arxiv.org/abs/1605.09304. Defaults were chosen by eye. The method of Simonyan et al. is ``priors=[L2(...)],
    transforms=(), optimization=Optimization(optimizer="ascent", canvas=Pixels(clip=False))``, except that the step
    length is normalised here.

    All images are optimised together, but independently of each other. For targets whose whole gradient is blocked by
    rectifiers, as at the start of many classes and units, see :func:`fastviz.engine.optimize.optimize`.

    Args:
        model: any module; not changed.
        target: a class, a tensor of T classes, an objective, one with tensors of T numbers such as
            ``fastviz.channel("conv1", torch.arange(64))``, or a list of them. Unlike in attribution methods, T targets
            give T images. None is refused, because there is no image yet whose class could be predicted.
        size: height and width in pixels (one number for a square); None is the model's own input size. Targets inside
            the network allow any size that the network accepts.
        starts: images per target, with different noise and transforms.
        priors: see :mod:`fastviz.priors`; None is ``L2(1e-4)`` and ``TotalVariation(weight=1e-3)`` for classes, and
            nothing for other targets.
        transforms: see :mod:`fastviz.transforms`; None is jitter of a 14th of the shorter side, scale 0.8 to 1.2 and 10
            degrees of rotation (single units: 0.95 to 1.05 and 5 degrees); none of them below 16 pixels, for L-BFGS and
            for generators.
        steps: the maximum number of steps.
        goal: an image stops once the probability of its class, or the value of another target, is at least this.
        crop: only optimise the receptive field of single units, which is faster and gives the same values.
        seed: start s of every target has seed ``seed + s``.
        batch_size: images in a pass, which bounds the memory; None is all on a GPU, and on a CPU as many as fit its
            caches.
        precision: ``"bfloat16"`` runs the network under autocast: approximate, and faster where the processor supports
            it.
        progress: show a progress bar on a terminal. Ctrl-C returns the images so far.
        optimization: see :class:`fastviz.Optimization`. The defaults are Adam on the Fourier canvas from ``"zeros"``,
            for a generator from ``"noise"``.

    Returns:
        A :class:`Maximized` with T · starts images, at least float32, on the device of the model.

    Raises:
        TypeError, ValueError: invalid arguments; a class, layer, channel or position that does not exist; a size that
            the network cannot take; a start of another shape; a generator whose pictures have another shape.
        MemoryError: the images do not fit into memory together; the message says how many would.

    >>> import fastviz as fv
    >>> made = fv.maximize(fv.load_model("demo"), [12, 5], steps=2)
    >>> made.pictures.shape, made.reasons
    (torch.Size([2, 3, 64, 64]), ('steps', 'steps'))
    """
    checks.whole_number(starts, "starts", minimum=1)
    checks.whole_number(seed, "seed", minimum=0)
    options = with_defaults(optimization, optimizer="adam")
    canvas, optimizer = options.chosen_canvas(), options.chosen_optimizer()
    objective, frame, box = _problem(model, target, size, starts, crop, precision)
    is_class = objective.is_class()
    if priors is None:
        priors = CLASS_PRIORS if all(is_class) and not isinstance(canvas, Generator) else ()
    if transforms is None:
        plain = isinstance(canvas, Generator) or not optimizer.random_objective
        single = all(part.is_unit for part, _ in objective.parts)
        transforms = () if plain else _transforms(min(frame.size), single=single)
    seeds = [seed + number for number in range(starts)] * objective.targets
    generator = canvas.module if isinstance(canvas, Generator) else None
    with nullcontext() if generator is None else frozen_model(generator):
        made = optimize(
            model,
            objective,
            start_parameters(model, options.start, canvas, frame, seeds),
            canvas=canvas,
            frame=frame,
            optimizer=optimizer,
            steps=steps,
            priors=priors,
            transforms=transforms,
            goal=goal,
            seeds=seeds,
            batch_size=batch_size,
            preview=options.preview,
            preview_every=options.preview_every,
            progress=progress,
            checkpoint=options.checkpoint,
            about=f"maximize {model_info(model)} {_description(objective)}",
        )
    return _result(made, frame, torch.tensor(is_class), box)


def _problem(
    model: nn.Module, target: Target, size: int | tuple[int, int] | None, starts: int, crop: bool, precision: Precision
) -> tuple[TargetObjective, Frame, Box | None]:
    """The objective, the frame of its images, and their box if they are cropped to receptive fields."""
    objective = target_objective(model, target, repeats=starts, precision=precision, argument="size")
    frame = frame_of(model, size)
    cropped = _cropped(model, objective, frame) if crop else None
    if cropped is None:
        return objective, frame, None
    unit, box = cropped
    frame = Frame((box[2] - box[0], box[3] - box[1]), frame.mean, frame.std)
    return target_objective(model, unit, repeats=starts, precision=precision, argument="size"), frame, box


def _result(made: Optimized, frame: Frame, classes: Tensor, box: Box | None) -> Maximized:
    is_class = classes.to(made.measures.device)
    return Maximized(
        images=made.images,
        pictures=frame.picture(made.images).clamp(0, 1),
        values=made.values,
        probability=torch.where(is_class, made.measures, torch.nan),
        steps=made.steps,
        history=made.history,
        reasons=made.reasons,
        box=box,
        interrupted=made.interrupted,
    )


def _transforms(side: int, *, single: bool) -> tuple[Transform, ...]:
    """The default transforms for images whose shorter side is ``side`` pixels; weaker for a ``single`` unit."""
    if side < _MIN_TRANSFORMED:
        return ()
    jitter = Jitter(side // 14)
    return (jitter, Scale(0.95, 1.05), Rotate(5)) if single else (jitter, Scale(0.8, 1.2), Rotate(10))


def _cropped(model: nn.Module, objective: TargetObjective, frame: Frame) -> tuple[targets.Objective, Box] | None:
    """The same single units on their receptive field, and its box; None if it is the whole image.

    Also None if the targets are not single units of one layer, or have receptive fields of different shapes.
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


def _description(objective: TargetObjective) -> str:
    """A description of the targets, for checkpoints."""
    return "; ".join(f"{type(part).__name__} {vars(part)}" for part, _ in objective.parts)
