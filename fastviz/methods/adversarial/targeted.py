"""Fooling images: small changes that make a network sure of a class it should not see, and noise that does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.optimize import Ascent
from fastviz.engine.optimize.canvas import Pixels, frame_of
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.inputs import input_batch
from fastviz.methods.adversarial.box_lbfgs import shortest
from fastviz.methods.adversarial.fooling import LEVEL, Ball, Unrecognisable, Victim, class_batch, probability_goal

__all__ = ["Fooled", "fool", "fool_from_noise"]

_NOISE = 5.0
"""Standard deviation of the noise, in units of the usual one of ``canvas.Pixels``: 0.5 of the images'."""
_MOST = 1_000_003
"""Seeds of one noise stand this far from those of the next."""


@dataclass(frozen=True, eq=False)
class Fooled:
    """What :func:`fool` made, a row an image. Lengths are those of the change of the picture, whose values are 0 to 1.

    Attributes:
        images: [N, C, H, W] as the network takes them, their pictures between black and white.
        success: bool [N], whether the target has at least the probability that was the goal.
        target: int64 [N], the classes aimed at.
        original: int64 [N], the classes with the highest score before.
        target_before: [N], probability of the target before.
        target_after: [N], and after.
        original_before: [N], probability of the original class before.
        original_after: [N], and after.
        l2: [N], Euclidean length of the change.
        linf: [N], largest change of a value.
        psnr: [N], peak signal-to-noise ratio in dB, 10 · log10(1 / mean square of the change); infinite without one.
        steps: int64 [N], steps taken.
        interrupted: whether Ctrl-C ended it early.
    """

    images: Tensor
    success: Tensor
    target: Tensor
    original: Tensor
    target_before: Tensor
    target_after: Tensor
    original_before: Tensor
    original_after: Tensor
    l2: Tensor
    linf: Tensor
    psnr: Tensor
    steps: Tensor
    interrupted: bool


def fool(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor,
    *,
    method: Literal["lbfgs", "sign", "gradient"] = "lbfgs",
    norm: Literal["inf", "2"] = "inf",
    radius: float | None = None,
    goal: float = 0.99,
    step: float = LEVEL,
    steps: int = 100,
    quantize: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Fooled:
    """Images that look like ``x`` and that the network takes for ``target``, with how sure it is and what was changed.

    ``"lbfgs"``, the box method of Szegedy et al. 2013, "Intriguing properties of neural networks",
    https://arxiv.org/abs/1312.6199: minimise c · ‖r‖² − log p_target(x + r) with x + r between black and white, for the
    largest c at which p_target reaches the goal. As there, c is searched for each image by itself: it starts where the
    length of the change outweighs the class and falls a little after every step, so that r follows the minimisers; on
    the last stretch r ends where the goal is first reached. (The paper writes c · |r| and searches c by solving anew;
    the square is smooth at r = 0, and has the same minimisers for another c.)

    ``"sign"``: x ← x + step · sign(∂ log p_target / ∂x), until the goal is reached. Goodfellow, Shlens, Szegedy 2014,
    https://arxiv.org/abs/1412.6572, with one step; Kurakin, Goodfellow, Bengio 2016, https://arxiv.org/abs/1607.02533,
    with many. ``"gradient"``: the same with the gradient itself, divided by its root mean square. After each step the
    change is brought back within the ``radius``, then the picture between black and white.

    Every image is a problem of its own and stops by itself; what is beside it in the batch changes nothing. ``model``
    runs in evaluation mode and is left as it was.

    Args:
        model: any module that maps ``x`` to scores [N, K].
        x: [N, C, H, W], as the network takes them; as pictures (see :func:`fastviz.models.preprocessing`) from 0 to 1.
        target: the class to be seen, or int64 [N] with one an image; never the class that has the highest score.
        method: see above; ``"lbfgs"`` makes the smallest changes, ``"sign"`` takes the fewest steps.
        norm: what the radius bounds: ``"inf"`` the largest change of a value, ``"2"`` the Euclidean length.
        radius: of the change of the picture, for ``"sign"`` and ``"gradient"``; None bounds it by black and white only.
        goal: probability of the target at which an image is done.
        step: of the picture: the change of each value with ``"sign"``, its root mean square with ``"gradient"``;
            ``"lbfgs"`` finds its own.
        steps: most steps.
        quantize: round the pictures to 8 bits, so that a saved PNG is the same image. Where rounding takes the
            probability below the goal, values are moved by one level, those with the largest gradient first.
        batch_size: images the network sees at once; None is all.
        progress: show a bar, on a terminal.

    Raises:
        TypeError: arguments of the wrong type; the model returns no scores.
        ValueError: a target that is the original class or does not exist; a radius, goal or step out of range; a radius
            for ``"lbfgs"``, or below one level when rounding to 8 bits; ``x`` darker than black or brighter than white;
            scores that are not finite.
        MemoryError: the images do not fit into memory at once; says how many would.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    >>> _ = nn.init.constant_(model[1].weight[0].detach(), 1.0), nn.init.constant_(model[1].weight[1].detach(), -1.0)
    >>> found = fool(model, torch.full((1, 3, 2, 2), 0.5), target=1, goal=0.9)
    >>> found.original.item(), found.success.item(), round(found.target_after.item(), 2)
    (0, True, 0.9)
    """
    images = input_batch(model, x).detach()
    checks.one_of(method, "method", ("lbfgs", "sign", "gradient"))
    checks.one_of(norm, "norm", ("inf", "2"))
    checks.positive(step, "step")
    checks.whole_number(steps, "steps", minimum=1)
    if radius is not None:
        checks.positive(radius, "radius")
        if method == "lbfgs":
            raise ValueError('radius is for the methods "sign" and "gradient"; "lbfgs" looks for the shortest change')
        if quantize and norm == "inf" and radius < LEVEL:
            raise ValueError(f"radius should be at least 1/255 = {LEVEL:.5f} with quantize, got {radius}")
    probability_goal(goal)
    with frozen_model(model):
        victim = Victim(model, Victim.frame_for(model, images), goal, batch_size, progress, "x")
        clean = victim.pictures(images)
        before = victim.probabilities(clean)
        if not before.isfinite().all():
            raise ValueError(
                "model should give finite scores for x, got probabilities that are not finite for image "
                f"{int((~before.isfinite().all(1)).nonzero()[0])}"
            )
        original = before.argmax(1)
        classes = _aims(target, original, before.shape[1])
        ball = None if radius is None else Ball(clean, radius, norm)
        if not len(clean):
            pictures, taken, interrupted = clean, classes, False
        elif method == "lbfgs":
            pictures, taken, interrupted = shortest(victim, clean, classes, steps)
        else:
            ascent = Ascent(step, norm="sign" if method == "sign" else "rms")
            made = victim.optimize(clean, classes, ascent, steps, [] if ball is None else [ball])
            pictures, taken, interrupted = made.images, made.steps, made.interrupted
        if quantize and len(clean):
            pictures = victim.in_8_bits(pictures, classes, ball)
        after = victim.probabilities(pictures)
    change = (pictures - clean).double().flatten(1)
    reached = after.gather(1, classes[:, None])[:, 0]
    return Fooled(
        images=victim.frame.image(pictures),
        success=reached >= goal,
        target=classes,
        original=original,
        target_before=before.gather(1, classes[:, None])[:, 0],
        target_after=reached,
        original_before=before.gather(1, original[:, None])[:, 0],
        original_after=after.gather(1, original[:, None])[:, 0],
        l2=change.norm(dim=1).to(clean),
        linf=change.abs().amax(1).to(clean),
        psnr=(-10 * change.square().mean(1).log10()).to(clean),
        steps=taken,
        interrupted=interrupted,
    )


def _aims(target: int | Tensor, original: Tensor, count: int) -> Tensor:
    """The class to be seen in each image, int64 [N]."""
    classes = class_batch(target, count, original.device)
    if len(classes) not in (1, len(original)) and len(original):
        raise ValueError(f"target should be one class or one for each of {len(original)} images, got {len(classes)}")
    classes = classes.expand(len(original)).contiguous() if len(classes) == 1 else classes
    same = (classes == original).nonzero()[:, 0].tolist()
    if same:
        which = ", ".join(f"image {row}" for row in same[:5]) + (", ..." if len(same) > 5 else "")
        raise ValueError(
            f"target should not be the class that the model sees already, got class {int(classes[same[0]])} for {which}"
        )
    return classes


def fool_from_noise(
    model: nn.Module,
    target: int | Sequence[int] | Tensor,
    *,
    goal: float = 0.996,
    step: float = LEVEL,
    steps: int = 500,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    quantize: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Unrecognisable:
    """Noise that the network takes for each of the ``target`` classes with near certainty, one image a class.

    Gradient ascent of log p_target from noise around the mean colour, without anything that would make it look like a
    picture. Nguyen, Yosinski, Clune 2015, "Deep Neural Networks are Easily Fooled", https://arxiv.org/abs/1412.1897,
    section 3.4 (there with a weak L2 decay and towards the score). Each step is the gradient divided by its root mean
    square; each image stops by itself.

    Args:
        model: any module that maps images [N, C, H, W] to scores [N, K].
        target: a class, or several.
        goal: probability of the target at which an image is done; 0.996 is the median that the paper reports.
        step: root mean square of the change of the picture (values 0 to 1) in one step.
        steps: most steps.
        seed: of the noise; image i depends on it and on i only.
        size: height and width in pixels; None is the model's own.
        quantize: round the pictures to 8 bits, as :func:`fool` does.
        batch_size: images the network sees at once; None is all.
        progress: show a bar, on a terminal.

    Raises:
        TypeError: arguments of the wrong type; the model returns no scores.
        ValueError: a class that does not exist; a goal or step out of range.

    >>> from fastviz.models import load_model
    >>> bool((fool_from_noise(load_model("demo"), [3, 9]).probability >= 0.996).all())
    True
    """
    checks.module(model)
    probability_goal(goal)
    checks.positive(step, "step")
    checks.whole_number(steps, "steps", minimum=1)
    checks.whole_number(seed, "seed", minimum=0)
    with frozen_model(model):
        victim = Victim(model, frame_of(model, size), goal, batch_size, progress, "size")
        like = next((value for value in model.parameters() if value.is_floating_point()), torch.empty(0))
        probe = torch.zeros(1, len(victim.frame.mean), *victim.frame.size).to(like)
        classes = class_batch(target, victim.probabilities(probe).shape[1], like.device)
        generators = [torch.Generator().manual_seed((seed * _MOST + row) % 2**63) for row in range(len(classes))]
        start = victim.frame.picture(_NOISE * Pixels().noise(victim.frame, generators, like)).clamp(0, 1)
        made = victim.optimize(start, classes, Ascent(step), steps)
        pictures = victim.in_8_bits(made.images, classes) if quantize else made.images
        return victim.judged(pictures, classes, made.steps, interrupted=made.interrupted)
