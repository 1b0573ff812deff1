"""The options shared by all methods that optimise images."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from torch import Tensor

from fastviz._util import checks
from fastviz.engine.optimize.canvas import Canvas, canvas_by_name
from fastviz.engine.optimize.loop import Preview
from fastviz.engine.optimize.optimizers import Optimizer, by_name

__all__ = ["Optimization", "with_defaults"]


@dataclass(frozen=True, eq=False)
class Optimization:
    """How images are optimised: passed as ``optimization=`` to every method that optimises images by gradients.

    Attributes that are None have a default for each method, given in its documentation.

    Attributes:
        optimizer: ``"adam"``, ``"ascent"`` (normalised gradient), ``"lbfgs"``, or a
            :class:`fastviz.engine.optimize.Optimizer`.
        learning_rate: for an optimiser given by name; roughly how much parameters change in a step.
        canvas: the parametrisation of the images: ``"fourier"`` (Fourier coefficients), ``"pixels"``, or a canvas of
            :mod:`fastviz.canvas`, such as a generator.
        start: ``"zeros"`` (the mean colour), ``"grey"``, ``"noise"``, a word that the method defines, or images [1 or
            N, C, H, W] as the network takes them (for a generator: codes [1 or N, ...]).
        preview: called with the number of finished steps and the current images [N, C, H, W].
        preview_every: steps between two calls of ``preview``.
        checkpoint: a file that is written every 50 steps and at the end. If it exists, the run resumes from it and
            gives the same numbers as an uninterrupted run; ``steps`` may be larger than before.

    Raises:
        TypeError, ValueError: an unknown optimiser or canvas; a number out of range; a learning rate for an optimiser
            that has its own.

    >>> import fastviz as fv
    >>> quick = fv.Optimization(optimizer="adam", learning_rate=0.1, canvas="pixels", start="noise")
    >>> fv.maximize(fv.load_model("demo"), 3, steps=2, optimization=quick).reasons
    ('steps',)
    """

    optimizer: str | Optimizer | None = None
    learning_rate: float | None = None
    canvas: str | Canvas | None = None
    start: str | Tensor | None = None
    preview: Preview | None = None
    preview_every: int = 10
    checkpoint: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            by_name(self.optimizer, self.learning_rate)
        elif self.learning_rate is not None:
            checks.positive(self.learning_rate, "learning_rate")
        if self.canvas is not None:
            canvas_by_name(self.canvas)
        if self.start is not None and not isinstance(self.start, (str, Tensor)):
            raise TypeError(f"start should be a word or a tensor of images, got {type(self.start).__name__}")
        if self.preview is not None and not callable(self.preview):
            raise TypeError(f"preview should be a function, got {type(self.preview).__name__}")
        checks.whole_number(self.preview_every, "preview_every", minimum=1)
        if self.checkpoint is not None:
            checks.path(self.checkpoint, "checkpoint")

    def chosen_optimizer(self) -> Optimizer:
        """The optimiser; :attr:`optimizer` must be set."""
        assert self.optimizer is not None
        return by_name(self.optimizer, self.learning_rate)

    def chosen_canvas(self) -> Canvas:
        """The canvas; :attr:`canvas` must be set."""
        assert self.canvas is not None
        return canvas_by_name(self.canvas)


def with_defaults(
    given: Optimization | None, *, optimizer: str, canvas: str | Canvas = "fourier", start: str | None = None
) -> Optimization:
    """``given``, with a method's defaults for attributes that are None.

    Raises:
        TypeError: ``given`` is not an :class:`Optimization`.
    """
    if given is None:
        given = Optimization()
    if not isinstance(given, Optimization):
        raise TypeError(f"optimization should be a fastviz.Optimization, got {type(given).__name__}")
    return replace(
        given,
        optimizer=given.optimizer if given.optimizer is not None else optimizer,
        canvas=given.canvas if given.canvas is not None else canvas,
        start=given.start if given.start is not None else start,
    )
