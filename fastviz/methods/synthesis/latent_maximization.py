"""Images of a class through a layer: a code that maximises the target, and a picture with that code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize import (
    Adam,
    FeatureNetwork,
    ImageObjective,
    Optimized,
    TargetObjective,
    optimize,
    target_objective,
)
from fastviz.engine.optimize.canvas import Canvas, Frame, Pixels, frame_of, start_parameters
from fastviz.engine.optimize.optimizers import per_row
from fastviz.engine.optimize.priors import L2
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import hooked
from fastviz.execution.precision import Precision, as_taken
from fastviz.images import notebook
from fastviz.methods.synthesis.inversion import Inverted, invert
from fastviz.targets.selection import Target

__all__ = ["CodeImages", "maximize_code"]

_DECODING = frozenset(inspect.signature(invert).parameters) - {"model", "x", "layer", "features", "size"}

_DECAY = 1e-4
"""Weight of the squared norm of a code, in units of the root mean square of the initial code."""
_LEARNING_RATE = 0.02
"""Learning rate: the approximate change of a code in a step, in the same units."""


@dataclass(frozen=True, eq=False, repr=False)
class CodeImages(notebook.NotebookResult):
    """The result of :func:`maximize_code`, one row per image.

    Attributes:
        codes: [N, ...], outputs of the layer.
        code_values: [N], the target when the network continues from these codes.
        code_probability: [N], of the class; NaN if the target is not a class.
        decoded: the images with these codes, see :class:`fastviz.Inverted`; None after an earlier Ctrl-C.
        values: [N], the target at the decoded images; NaN without them.
        probability: [N], of the class at the decoded images; NaN without them, or if the target is not a class.
        steps: int64 [N], the number of steps of each code.
        history: [S, N], the target before each step of the codes; NaN after a code has stopped.
        reasons: why each code stopped: see :class:`fastviz.engine.optimize.Optimized`.
        interrupted: whether Ctrl-C ended it early.

    >>> import fastviz as fv
    >>> made = fv.maximize_code(fv.load_model("demo"), 3, "pool5", steps=1, decoding={"steps": 1})
    >>> made.codes.shape[0], made.decoded is None
    (1, False)
    """

    codes: Tensor
    code_values: Tensor
    code_probability: Tensor
    decoded: Inverted | None
    values: Tensor
    probability: Tensor
    steps: Tensor
    history: Tensor
    reasons: tuple[str, ...]
    interrupted: bool

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        if self.decoded is None:
            return []
        return notebook.captioned(self.decoded.pictures, value=self.values, probability=self.probability)


class _Codes(Canvas):
    """The parameters are the codes, bounded to 0 or more after a rectifier."""

    def __init__(self, rectified: bool) -> None:
        self.rectified = rectified

    def __repr__(self) -> str:
        return f"_Codes(rectified={self.rectified})"

    def images(self, parameters: Tensor, frame: Frame) -> Tensor:
        """The codes."""
        return parameters

    def parameters(self, images: Tensor, frame: Frame) -> Tensor:
        """The codes."""
        return images

    def bounds(self, frame: Frame, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """None, or 0 and infinity."""
        return (like.new_tensor(0.0), like.new_tensor(torch.inf)) if self.rectified else None


def maximize_code(
    model: nn.Module,
    target: Target,
    layer: str,
    *,
    size: int | tuple[int, int] | None = None,
    starts: int = 1,
    steps: int = 100,
    goal: float | None = 0.99,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
    decoding: Mapping[str, Any] | None = None,
) -> CodeImages:
    """Images whose code in ``layer`` maximises a target: ``h* = argmax_h S(h) − λ ‖h/σ‖²``, ``Φ(x) = h*``.

    The latent images of Nguyen et al. 2016, https://arxiv.org/abs/1605.09304, with the network's own features as the
    latent space and inversion (:func:`fastviz.invert`) as the decoder; their generator, if available, can be the canvas
    of :func:`fastviz.maximize`. A code starts as that of a faint noise image and is optimised by Adam, in units of σ,
    the root mean square of that code, with λ = 1e-4. After a rectifier (if no start has a negative number) it stays at
    0 or above.

    Args:
        model: any module; not changed.
        target: as in :func:`fastviz.maximize`; it must depend on the layer.
        layer: torch's dotted name.
        size: height and width of the images in pixels; None is the model's own input size.
        starts: codes per target, from different noise.
        steps: the maximum number of steps of the codes.
        goal: a code stops once the probability of its class, or the value of another target, is at least this; None
            takes all steps.
        seed: start s of every target has seed ``seed + s``.
        batch_size, precision, progress: as in :func:`fastviz.maximize`.
        decoding: further arguments of :func:`fastviz.invert`, such as ``{"steps": 200}``.

    Returns:
        A :class:`CodeImages`; N is the number of targets times ``starts``.

    Raises:
        TypeError, ValueError: as in :func:`fastviz.maximize`; a target that does not depend on the layer.
        MemoryError: as in :func:`fastviz.maximize`.

    >>> import fastviz as fv
    >>> made = fv.maximize_code(fv.load_model("demo"), 12, "fc6", steps=3, decoding={"steps": 2})
    >>> made.codes.shape, made.decoded.pictures.shape
    (torch.Size([1, 144]), torch.Size([1, 3, 64, 64]))
    """
    checks.whole_number(starts, "starts", minimum=1)
    checks.whole_number(seed, "seed", minimum=0)
    if decoding is not None and not isinstance(decoding, Mapping):
        raise TypeError(f"decoding should be a mapping of arguments of invert, got {decoding!r}")
    for name in decoding or {}:
        if name not in _DECODING:
            raise TypeError(f"decoding should hold arguments of invert: {', '.join(sorted(_DECODING))}; got {name!r}")
    frame = frame_of(model, size)
    objective = target_objective(model, target, repeats=starts, precision=precision, argument="size")
    seeds = [seed + number for number in range(starts)] * objective.targets
    noise = start_parameters(model, "noise", Pixels(), frame, seeds)
    with frozen_model(model), torch.no_grad():
        begin = FeatureNetwork(model, [layer], output=False, precision=precision, argument="size")(noise)[1][
            layer
        ].detach()
    sigma = begin.flatten(1).square().mean(1).sqrt().clamp(min=torch.finfo(begin.dtype).tiny)
    sigma = per_row(sigma, begin)
    made = optimize(
        model,
        _code_objective(model, objective, layer, noise, sigma),
        begin / sigma,
        canvas=_Codes(bool((begin >= 0).all())),
        frame=frame,
        optimizer=Adam(_LEARNING_RATE),
        steps=steps,
        priors=[L2(_DECAY)],
        goal=goal,
        seeds=seeds,
        batch_size=batch_size,
        progress=progress,
    )
    codes, decoded = made.parameters * sigma, None
    if not made.interrupted:
        common = {"batch_size": batch_size, "precision": precision, "progress": progress, "seed": seed}
        decoded = invert(model, None, layer, features=codes, size=frame.size, **common | dict(decoding or {}))
    return _result(model, objective, codes, made, decoded)


def _code_objective(
    model: nn.Module, objective: TargetObjective, layer: str, images: Tensor, sigma: Tensor
) -> ImageObjective:
    """The objective of codes, in units of ``sigma``, that replace the output of ``layer`` for the ``images``."""

    def evaluate(codes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        whole = codes * sigma[rows]
        wanted = torch.is_grad_enabled()

        def replaced(module: nn.Module, inputs: object, output: object) -> Tensor:
            torch.set_grad_enabled(wanted)
            # The network gets a copy, because a rectifier after the layer may work in place.
            return as_taken(model, whole.clone())

        # The part before the layer needs no graph.
        with torch.no_grad(), hooked(model, {layer: replaced}):
            return objective(images[rows], rows)

    return evaluate


def _result(
    model: nn.Module, objective: TargetObjective, codes: Tensor, made: Optimized, decoded: Inverted | None
) -> CodeImages:
    """The result, with the network's values for the decoded images."""
    is_class = torch.tensor(objective.is_class(), device=codes.device)
    values = probability = torch.full_like(made.values, torch.nan)
    if decoded is not None:
        with frozen_model(model), torch.no_grad():
            values, measures = objective(decoded.images, torch.arange(len(codes), device=codes.device))
        probability = torch.where(is_class, measures, torch.nan)
    return CodeImages(
        codes=codes,
        code_values=made.values,
        code_probability=torch.where(is_class, made.measures, torch.nan),
        decoded=decoded,
        values=values,
        probability=probability,
        steps=made.steps,
        history=made.history,
        reasons=made.reasons,
        interrupted=made.interrupted or (decoded is not None and decoded.interrupted),
    )
