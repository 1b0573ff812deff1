"""Shared parts of fooling methods: the attacked model, a bound on changes, and rounding to 8 bits.

Pictures here are [N, C, H, W] with values 0 to 1; :class:`AttackedModel` converts them to network inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz._util.memory import images_at_once, is_out_of_memory, what_fits
from fastviz.engine.gradients import input_gradients
from fastviz.engine.optimize import Optimized, Optimizer, optimize
from fastviz.engine.optimize.canvas import Frame, Pixels, frame_of
from fastviz.engine.optimize.priors import Prior
from fastviz.execution.differentiation import differentiate
from fastviz.execution.fast_conv.memory_format import image_gradients
from fastviz.execution.precision import Precision, as_taken, reduced_precision
from fastviz.images import notebook

if TYPE_CHECKING:
    from fastviz.methods.adversarial.aims import Aim

__all__ = ["LEVEL", "AttackedModel", "FoolingImages", "NormBall", "class_batch", "probability_goal"]

_Result = TypeVar("_Result")

LEVEL = 1 / 255
"""One level of an 8-bit pixel."""
_ROUNDING = LEVEL / 2
"""How far rounding may take pictures beyond black and white; images of bfloat16 need two thirds of it."""
_MAX_REPAIRS = 100
"""The maximum number of gradients computed after rounding to 8 bits."""
_MAX_REPAIRED = 0.05
"""The maximum fraction of an image's values that move by one level for each gradient."""


@dataclass(frozen=True, eq=False, repr=False)
class FoolingImages(notebook.NotebookResult):
    """Meaningless images that a network classifies with high confidence, one row per class.

    Attributes:
        images: [T, C, H, W] as the network takes them.
        pictures: [T, C, H, W] in 0 to 1.
        target: int64 [T], the target classes.
        success: bool [T], whether the target's probability reached the goal.
        probability: [T], of the target.
        steps: int64 [T], the number of steps, or generations until the image was found.
        interrupted: whether Ctrl-C ended it early.

    >>> import fastviz as fv
    >>> fv.fool_from_noise(fv.load_model("demo"), [3, 4], steps=1).pictures.shape
    torch.Size([2, 3, 64, 64])
    """

    images: Tensor
    pictures: Tensor
    target: Tensor
    success: Tensor
    probability: Tensor
    steps: Tensor
    interrupted: bool

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        each = zip(self.target.tolist(), notebook.captioned(self.pictures, probability=self.probability), strict=True)
        return [(f"class {target}, {caption}", picture) for target, (caption, picture) in each]


@dataclass(frozen=True, eq=False)
class NormBall(Prior):
    """Projects pictures onto the ball of this ``radius`` around the ``centre`` [N, C, H, W] after each step.

    ``norm`` ``"inf"`` bounds the change of each value, ``"2"`` the Euclidean norm of the change.
    """

    centre: Tensor
    radius: float
    norm: str
    changes_images = True

    def changed(self, images: Tensor, gradients: Tensor | None, rows: Tensor, step: int) -> Tensor:
        """The closest pictures in the ball."""
        change = images - self.centre[rows]
        if self.norm == "inf":
            return self.centre[rows] + change.clamp(-self.radius, self.radius)
        length = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        inside: Tensor = self.centre[rows] + change * (self.radius / length.clamp(min=self.radius))
        return inside

    def on_levels(self, levels: Tensor, rows: Tensor) -> Tensor:
        """Pictures of integer ``levels``, 0 to 255, inside the ball; the smallest changes that do not fit are dropped.

        A dropped change leaves less than half a level, the error of rounding to 8 bits.
        """
        centre = self.centre[rows] * 255
        if self.norm == "inf":
            low, high = (centre - self.radius * 255 - 1e-3).ceil(), (centre + self.radius * 255 + 1e-3).floor()
            return torch.minimum(torch.maximum(levels, low), high).clamp(0, 255)
        square = (levels - centre).flatten(1).square()
        order = square.argsort(dim=1, descending=True)
        fits = square.gather(1, order).cumsum(1) <= (self.radius * 255) ** 2
        kept = torch.zeros_like(fits).scatter_(1, order, fits).view_as(levels)
        return torch.where(kept, levels, centre.round())


@dataclass(frozen=True, eq=False)
class AttackedModel:
    """A network under attack, which takes pictures; to be used inside ``frozen_model``.

    Attributes:
        model: maps images to scores [N, K], or has the layers of an objective.
        frame: size and normalisation of its images.
        batch_size: images in a pass; None is all on a GPU, and on a CPU as many as fit its caches.
        precision: ``"bfloat16"`` runs the network under autocast.
        progress: whether to show bars.
        argument: the name of the images in errors.
    """

    model: nn.Module
    frame: Frame
    batch_size: int | None = None
    precision: Precision = "model"
    progress: bool = False
    argument: str = "images"

    def __post_init__(self) -> None:
        input_gradients.check_options(self.batch_size, self.precision)

    @staticmethod
    def frame_for(model: nn.Module, images: Tensor) -> Frame:
        """The frame of ``images`` [N, C, H, W]: their size, and the normalisation of the model.

        Raises:
            ValueError: the number of channels differs from the model's preprocessing.
        """
        return frame_of(model, (images.shape[2], images.shape[3]), images.shape[1])

    def pictures(self, images: Tensor) -> Tensor:
        """The pictures for ``images``, 0 to 1.

        Raises:
            ValueError: some are darker than black or brighter than white by more than rounding.
        """
        shown = self.frame.picture(images)
        if shown.numel() and not (float(shown.amin()) >= -_ROUNDING and float(shown.amax()) <= 1 + _ROUNDING):
            raise ValueError(
                f"x should be pictures from 0 to 1 after normalization with mean {self.frame.mean} and std "
                f"{self.frame.std}, got {float(shown.amin()):.3f} "
                f"to {float(shown.amax()):.3f} (fastviz.models."
                "describe sets those of your own model)"
            )
        return shown.clamp(0, 1)

    def log_probabilities(self, pictures: Tensor) -> Tensor:
        """log p of all classes, [N, K], in the graph of ``pictures``.

        Raises:
            TypeError, ValueError: the model does not return scores.
        """
        # Convolutions are fastest with channels last.
        images = as_taken(self.model, self.frame.image(pictures)).contiguous(memory_format=torch.channels_last)
        with reduced_precision(images, self.precision):
            output, _ = targets.run(self.model, images, argument=self.argument)
        scores = targets.class_scores(output)
        return scores.log_softmax(1, dtype=torch.promote_types(scores.dtype, pictures.dtype))

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Probabilities of all classes, [N, K]."""
        with torch.no_grad():
            return torch.cat(self._in_parts(pictures, lambda part: self.log_probabilities(pictures[part]).exp()))

    def values(self, aim: Aim, pictures: Tensor, rows: Tensor) -> Tensor:
        """The values of ``aim``, [n], for pictures with these indices in the batch (int64 [n], ascending)."""
        if not len(pictures):
            return pictures.new_zeros(0)
        with torch.no_grad():
            return torch.cat(self._in_parts(pictures, lambda part: aim.values(self, pictures[part], rows[part])))

    def values_and_gradients(self, aim: Aim, pictures: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The values of ``aim``, [n], and their gradients for the pictures, [n, C, H, W]."""

        def at(part: slice) -> tuple[Tensor, Tensor]:
            leaf = pictures[part].detach().requires_grad_()
            with image_gradients(self.model):
                found = aim.values(self, leaf, rows[part])
                (gradient,) = differentiate(found.sum(), [leaf]) if found.requires_grad else (None,)
            return found.detach(), torch.zeros_like(leaf) if gradient is None else gradient.contiguous()

        values, gradients = zip(*self._in_parts(pictures, at), strict=True)
        return torch.cat(values), torch.cat(gradients)

    def optimize(
        self, aim: Aim, start: Tensor, optimizer: Optimizer, steps: int, priors: Sequence[Prior] = ()
    ) -> Optimized:
        """Pictures optimised from ``start`` for high values of ``aim``, each until it reaches the goal."""

        def objective(pictures: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            values = aim.values(self, pictures, rows)
            return values, aim.measures(values.detach())

        whole = Frame(self.frame.size, (0.0,) * len(self.frame.mean), (1.0,) * len(self.frame.mean))
        return optimize(
            *(self.model, objective, start),
            canvas=Pixels(),
            frame=whole,
            optimizer=optimizer,
            steps=steps,
            priors=priors,
            goal=aim.goal,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def in_8_bits(self, aim: Aim, pictures: Tensor, ball: NormBall | None = None) -> Tensor:
        """The ``pictures`` rounded to multiples of 1/255, inside the ``ball``.

        Small changes are lost in rounding. If that takes a picture from the goal to below it, the values with the
        largest gradient move by one level: as many as would suffice if :meth:`Aim.linearised` were linear in the
        picture, at most a twentieth. This repeats until the goal is reached; steps are small because each changes which
        values have the largest gradient. The gradient of a value that has moved by m levels is divided by 1 + 2m,
        because the square of its change grows that much. A picture counts as at the goal if it is less than
        ``aim.margin`` below it, because rounding errors depend on the other images in the pass.
        """
        everyone = torch.arange(len(pictures), device=pictures.device)
        levels = (pictures * 255).round()
        levels = levels if ball is None else ball.on_levels(levels, everyone)
        if aim.goal is None:
            return levels / 255
        goal = aim.linearised_goal(pictures)
        before = aim.linearised_measures(aim.measures(self.values(aim, pictures, everyone)))
        rounded, short, goal = levels, everyone[before >= goal - aim.margin], goal + aim.margin
        for _ in range(_MAX_REPAIRS if len(short) else 0):
            found, gradient = self.values_and_gradients(aim, levels[short] / 255, short)
            at = aim.linearised(found)
            low = at < goal
            short, gradient, at = short[low], gradient[low], at[low]
            if not len(short):
                break
            moved = (levels[short] + gradient.sign()).clamp(0, 255)
            if ball is not None and ball.norm == "inf":
                moved = ball.on_levels(moved, short)
            cost = 1 + 2 * (levels[short] - rounded[short]).abs()
            gain = (gradient.abs() / cost * (moved != levels[short])).flatten(1)
            most = gain.topk(max(1, int(gain.shape[1] * _MAX_REPAIRED)), dim=1)
            steep = aim.linearised_gradients(gradient.flatten(1).gather(1, most.indices).abs(), found[low])
            brought = steep * LEVEL
            needed = (most.values > 0) & (brought.cumsum(1) - brought < (goal - at)[:, None])
            chosen = torch.zeros_like(gain, dtype=torch.bool).scatter_(1, most.indices, needed).view_as(moved)
            better = torch.where(chosen, moved, levels[short])
            levels = levels.index_copy(0, short, better if ball is None else ball.on_levels(better, short))
        return levels / 255

    def judged(
        self, pictures: Tensor, classes: Tensor, goal: float, steps: Tensor, *, interrupted: bool
    ) -> FoolingImages:
        """The result for ``pictures`` with target ``classes`` and the network's probabilities."""
        found = self.probabilities(pictures).gather(1, classes[:, None])[:, 0]
        return FoolingImages(
            self.frame.image(pictures), pictures, classes, found >= goal, found, steps, interrupted
        )  # fmt: skip

    def _in_parts(self, pictures: Tensor, call: Callable[[slice], _Result]) -> list[_Result]:
        """The results of ``call`` for batches of the ``pictures``."""
        size = self.batch_size or images_at_once(len(pictures), self.frame.size, pictures.device)
        found = []
        for start in range(0, max(1, len(pictures)), size):
            try:
                found.append(call(slice(start, start + size)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                part = pictures[start : start + size]
                words = what_fits(lambda count, start=start: call(slice(start, start + count)), part)  # type: ignore[misc]
                raise MemoryError(words) from error
        return found


def probability_goal(goal: float) -> float:
    """``goal``, checked to be a probability that softmax can reach.

    Raises:
        TypeError, ValueError: it is not between 0 and 1.
    """
    if checks.positive(goal, "goal") >= 1:
        raise ValueError(f"goal should be a probability below 1, got {goal}")
    return goal


def class_batch(target: object, count: int, device: torch.device) -> Tensor:
    """``target``, one or several of ``count`` classes, as int64 [T].

    Raises:
        TypeError: not whole numbers.
        ValueError: a class that does not exist, none at all, or more than one dimension.
    """
    if isinstance(target, bool) or not isinstance(target, (int, Sequence, Tensor)) or isinstance(target, str):
        raise TypeError(f"target should be the class to be seen, an index or several, got {type(target).__name__}")
    classes = torch.as_tensor(target, device=device)
    if classes.dim() > 1 or not classes.numel():
        raise ValueError(f"target should be one class or a list of them, got shape {list(classes.shape)}")
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"target should be whole numbers, got {classes.dtype}")
    classes = classes.detach().long().reshape(-1)
    outside = (classes < 0) | (classes >= count)
    if outside.any():
        raise ValueError(f"target should be a class from 0 to {count - 1}, got {int(classes[outside][0])}")
    return classes
