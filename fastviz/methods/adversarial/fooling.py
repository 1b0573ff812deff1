"""What fooling images share: a network's probabilities for pictures, ascent towards classes, rounding to 8 bits.

Pictures here are [N, C, H, W] with values 0 to 1; :class:`Victim` turns them into what its network takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz._util.memory import is_out_of_memory
from fastviz.engine.optimize import Optimized, Optimizer, optimize, what_fits
from fastviz.engine.optimize.canvas import Frame, Pixels, frame_of
from fastviz.engine.optimize.priors import Prior
from fastviz.execution.differentiation import differentiate
from fastviz.execution.fast_conv.memory_format import image_gradients

__all__ = ["LEVEL", "Ball", "Unrecognisable", "Victim", "class_batch", "logit", "probability_goal"]

_Found = TypeVar("_Found")

LEVEL = 1 / 255
"""One step of an 8-bit pixel."""
_REPAIRS = 100
"""Most looks at the gradient after rounding to 8 bits."""
_REPAIRED = 0.05
"""The largest part of an image's values that moves by one level at each of them."""
_SURE = 0.01
"""log(p / (1 − p)) by which float32 can miss the goal: what is beside an image in a pass changes how it is rounded."""


@dataclass(frozen=True, eq=False)
class Unrecognisable:
    """Images that show nothing and that a network is sure of, a row a class.

    Attributes:
        images: [T, C, H, W] as the network takes them, their pictures between black and white.
        target: int64 [T], the classes aimed at.
        success: bool [T], whether the target has at least the probability that was the goal.
        probability: [T], of the target.
        steps: int64 [T], steps taken, or generations until the image was found.
        interrupted: whether Ctrl-C ended it early.
    """

    images: Tensor
    target: Tensor
    success: Tensor
    probability: Tensor
    steps: Tensor
    interrupted: bool


@dataclass(frozen=True, eq=False)
class Ball(Prior):
    """Brings pictures back to within ``radius`` of the ``centre`` [N, C, H, W] after each step.

    ``norm`` ``"inf"`` bounds the change of each value, ``"2"`` the Euclidean length of the change.
    """

    centre: Tensor
    radius: float
    norm: str
    changes_images = True

    def changed(self, images: Tensor, gradients: Tensor | None, rows: Tensor, step: int) -> Tensor:
        """The nearest pictures of the ball."""
        change = images - self.centre[rows]
        if self.norm == "inf":
            return self.centre[rows] + change.clamp(-self.radius, self.radius)
        length = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        inside: Tensor = self.centre[rows] + change * (self.radius / length.clamp(min=self.radius))
        return inside

    def on_levels(self, levels: Tensor, rows: Tensor) -> Tensor:
        """Pictures of whole ``levels``, 0 to 255, in the ball: the smallest changes are dropped where there is no room.

        Dropping leaves less than half a level of the change, which is what rounding an image to 8 bits takes.
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
class Victim:
    """A network to be fooled, held in ``frozen_model`` by the caller.

    Attributes:
        model: maps images to scores [N, K].
        frame: size and normalisation of its images.
        goal: the probability at which an image is done.
        batch_size: images it sees at once; None is all.
        progress: whether to show bars.
        argument: what errors call the images.
    """

    model: nn.Module
    frame: Frame
    goal: float
    batch_size: int | None = None
    progress: bool = False
    argument: str = "images"

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            checks.whole_number(self.batch_size, "batch_size", minimum=1)

    @staticmethod
    def frame_for(model: nn.Module, images: Tensor) -> Frame:
        """The frame of ``images`` [N, C, H, W].

        Raises:
            ValueError: another number of channels than the model's preprocessing has.
        """
        return frame_of(model, (images.shape[2], images.shape[3]), images.shape[1])

    def pictures(self, images: Tensor) -> Tensor:
        """What ``images`` show, 0 to 1.

        Raises:
            ValueError: some are darker than black or brighter than white by more than rounding.
        """
        shown = self.frame.picture(images)
        slack = 0.02 if images.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if shown.numel() and not (-slack <= float(shown.amin()) and float(shown.amax()) <= 1 + slack):
            raise ValueError(
                f"x should be pictures from 0 to 1 after normalisation with mean {self.frame.mean} and std "
                f"{self.frame.std}, got {float(shown.amin()):.3f} "
                f"to {float(shown.amax()):.3f} (fastviz.models."
                "describe tells those of a model of your own)"
            )
        return shown.clamp(0, 1)

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Of all classes, [N, K]."""
        with torch.no_grad():
            return torch.cat(self._in_parts(pictures, lambda part: self._logarithms(pictures[part]).exp()))

    def optimize(
        self, start: Tensor, classes: Tensor, optimizer: Optimizer, steps: int, priors: Sequence[Prior] = ()
    ) -> Optimized:
        """Pictures on the way from ``start`` to high log p of their ``classes``, each until it reaches the goal."""

        def likely(pictures: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            values = _picked(self._logarithms(pictures), classes[rows])
            return values, values.detach().exp()

        whole = Frame(self.frame.size, (0.0,) * len(self.frame.mean), (1.0,) * len(self.frame.mean))
        return optimize(
            *(self.model, likely, start),
            canvas=Pixels(),
            frame=whole,
            optimizer=optimizer,
            steps=steps,
            priors=priors,
            goal=self.goal,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def look(self, pictures: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """log p of the ``classes``, [N], and its gradient for each picture."""

        def at(part: slice) -> tuple[Tensor, Tensor]:
            leaf = pictures[part].detach().requires_grad_()
            with image_gradients(self.model):
                found = _picked(self._logarithms(leaf), classes[part])
                (gradient,) = differentiate(found.sum(), [leaf]) if found.requires_grad else (None,)
            return found.detach(), torch.zeros_like(leaf) if gradient is None else gradient.contiguous()

        values, gradients = zip(*self._in_parts(pictures, at), strict=True)
        return torch.cat(values), torch.cat(gradients)

    def in_8_bits(self, pictures: Tensor, classes: Tensor, ball: Ball | None = None) -> Tensor:
        """The ``pictures`` rounded to multiples of 1/255, inside of the ``ball``.

        Small changes are lost in rounding. Where that takes the probability of one that is at the goal below it (less
        than a hundredth above it in log(p / (1 − p)): float32 decides nothing there), the values with the largest
        gradient move by one level, as many as would be enough if log(p / (1 − p)) were linear, at most a twentieth, and
        again until it is: in small steps, because each changes which values have the largest gradient. What has moved
        by m levels counts as if its gradient were 1 + 2m times smaller, for so much does the square of its change grow.
        """
        goal = logit(pictures.new_tensor(self.goal).log())
        everyone = torch.arange(len(pictures), device=pictures.device)
        levels = (pictures * 255).round()
        levels = levels if ball is None else ball.on_levels(levels, everyone)
        before = logit(self.probabilities(pictures).gather(1, classes[:, None])[:, 0].log())
        rounded, short, goal = levels, everyone[before >= goal - _SURE], goal + _SURE
        for _ in range(_REPAIRS if len(short) else 0):
            found, gradient = self.look(levels[short] / 255, classes[short])
            at = logit(found)
            low = at < goal
            short, gradient, at = short[low], gradient[low], at[low]
            if not len(short):
                break
            moved = (levels[short] + gradient.sign()).clamp(0, 255)
            if ball is not None and ball.norm == "inf":
                moved = ball.on_levels(moved, short)
            cost = 1 + 2 * (levels[short] - rounded[short]).abs()
            gain = (gradient.abs() / cost * (moved != levels[short])).flatten(1)
            most = gain.topk(max(1, int(gain.shape[1] * _REPAIRED)), dim=1)
            # d log(p / (1 − p)) = d log p / (1 − p)
            steep = gradient.flatten(1).gather(1, most.indices).abs() / -found[low].expm1()[:, None]
            brought = steep * LEVEL
            needed = (most.values > 0) & (brought.cumsum(1) - brought < (goal - at)[:, None])
            chosen = torch.zeros_like(gain, dtype=torch.bool).scatter_(1, most.indices, needed).view_as(moved)
            better = torch.where(chosen, moved, levels[short])
            levels = levels.index_copy(0, short, better if ball is None else ball.on_levels(better, short))
        return levels / 255

    def judged(self, pictures: Tensor, classes: Tensor, steps: Tensor, *, interrupted: bool) -> Unrecognisable:
        """What was made, with what the network thinks of it."""
        found = self.probabilities(pictures).gather(1, classes[:, None])[:, 0]
        images = self.frame.image(pictures)
        return Unrecognisable(images, classes, found >= self.goal, found, steps, interrupted)

    def _in_parts(self, pictures: Tensor, call: Callable[[slice], _Found]) -> list[_Found]:
        """What ``call`` gives for each part of the ``pictures`` that the network sees at once."""
        size = self.batch_size or max(1, len(pictures))
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

    def _logarithms(self, pictures: Tensor) -> Tensor:
        """log p of all classes, [N, K], in the graph of ``pictures``."""
        # Convolutions are fastest with channels last.
        images = self.frame.image(pictures).contiguous(memory_format=torch.channels_last)
        output, _ = targets.run(self.model, images, argument=self.argument)
        targets.predicted(output)  # says what is wrong with it
        assert isinstance(output, Tensor)
        return output.log_softmax(1)


def logit(logarithm: Tensor) -> Tensor:
    """``log(p / (1 − p))`` of log p, finite where p is rounded to 1.

    >>> round(logit(torch.tensor(0.9).log()).exp().item(), 4)
    9.0
    """
    tiny = torch.finfo(logarithm.dtype).eps
    return logarithm - (-logarithm.expm1()).clamp(min=tiny).log()


def _picked(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None])[:, 0]


def probability_goal(goal: float) -> float:
    """``goal``, if it is a probability that can be reached.

    Raises:
        TypeError, ValueError: it is not between 0 and 1.
    """
    if checks.positive(goal, "goal") >= 1:
        raise ValueError(f"goal should be a probability below 1, got {goal}")
    return goal


def class_batch(target: int | Sequence[int] | Tensor, count: int, device: torch.device) -> Tensor:
    """``target``, one class or several, as int64 [T]; there are ``count`` classes.

    Raises:
        TypeError: not whole numbers.
        ValueError: a class that does not exist, none at all, or more than one dimension.
    """
    if isinstance(target, bool) or not isinstance(target, (int, Sequence, Tensor)) or isinstance(target, str):
        raise TypeError(f"target should be a class index or several, got {type(target).__name__}")
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
