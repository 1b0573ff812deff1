"""Fooling images: small changes that make a network see something else, and noise that it classifies confidently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.optimize import Ascent, FeatureNetwork, TargetObjective
from fastviz.engine.optimize.canvas import Pixels, frame_of, image_like
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision
from fastviz.images import notebook, tensors
from fastviz.methods.adversarial.aims import Aim, ClassAim, ValueAim
from fastviz.methods.adversarial.box_lbfgs import shortest
from fastviz.methods.adversarial.fooling import (
    LEVEL,
    AttackedModel,
    FoolingImages,
    NormBall,
    class_batch,
    probability_goal,
)
from fastviz.targets.selection import Selection, Target

__all__ = ["Fooled", "fool", "fool_from_noise"]

_NOISE = 5.0
"""Standard deviation of the noise, in units of that of ``canvas.Pixels``: 0.5 in the images."""
_SEED_STEP = 1_000_003
"""Distance between the random seeds of consecutive ``seed`` values, so that images of different calls differ."""
_CLASS_GOAL = 0.99


@dataclass(frozen=True, eq=False, repr=False)
class Fooled(notebook.NotebookResult):
    """The result of :func:`fool`, one row per image. Norms are of the change of the picture, with values 0 to 1.

    Probabilities are NaN and class indices −1 if the target is not a class, or the network does not give scores [N, K].

    Attributes:
        images: [N, C, H, W] as the network takes them.
        pictures: [N, C, H, W] in 0 to 1.
        success: bool [N], whether the goal was reached; without a goal, whether the value has increased.
        target: int64 [N], the target classes.
        original: int64 [N], the predicted classes before.
        probability_before, probability: [N], of the target class before and after.
        original_probability_before, original_probability: [N], of the original class before and after.
        values_before, values: [N], the maximised value before and after: log p of a class, or the objective.
        l2: [N], Euclidean norm of the change.
        linf: [N], largest absolute change of a value.
        psnr: [N], peak signal-to-noise ratio in dB, 10 · log10(1 / mean square of the change); infinite without a
            change.
        steps: int64 [N], steps taken.
        interrupted: whether Ctrl-C ended it early.

    >>> import fastviz as fv
    >>> model, x = fv.load_model("demo"), torch.rand(1, 3, 64, 64)
    >>> fooled = fv.fool(model, x, 3, method="sign", radius=0.05, steps=2)
    >>> fooled.images.shape, bool(fooled.linf <= 0.0501)
    (torch.Size([1, 3, 64, 64]), True)
    """

    images: Tensor
    pictures: Tensor
    success: Tensor
    target: Tensor
    original: Tensor
    probability_before: Tensor
    probability: Tensor
    original_probability_before: Tensor
    original_probability: Tensor
    values_before: Tensor
    values: Tensor
    l2: Tensor
    linf: Tensor
    psnr: Tensor
    steps: Tensor
    interrupted: bool

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        captions = []
        for row, target in enumerate(self.target.tolist()):
            what = f"class {target}" if target >= 0 else "target"
            numbers = notebook.words(
                probability=float(self.probability[row]), value=float(self.values[row]), L2=float(self.l2[row])
            )
            captions.append(f"{what}, {numbers}")
        return list(zip(captions, self.pictures, strict=True))


def fool(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    method: Literal["lbfgs", "sign", "gradient"] = "lbfgs",
    norm: Literal["inf", "2"] = "inf",
    radius: float | None = None,
    goal: float | None = None,
    step: float = LEVEL,
    steps: int = 100,
    quantize: bool = False,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> Fooled:
    """Adversarial images: they look like ``x``, but the network sees ``target`` in them.

    ``"lbfgs"``, the box method of Szegedy et al. 2013, "Intriguing properties of neural networks",
    https://arxiv.org/abs/1312.6199: minimise c · ‖r‖² − log p_target(x + r) with x + r between black and white, for the
    largest c at which p_target reaches the goal. As in the paper, c is searched for each image separately: it starts
    where the norm of the change dominates and decreases a little after every step, so that r follows the minimisers; in
    the last step r stops where the goal is first reached. (The paper writes c · |r| and solves again for each c; the
    square is smooth at r = 0, and has the same minimisers for another c.)

    ``"sign"``: x ← x + step · sign(∂ log p_target / ∂x), until the goal is reached. Goodfellow, Shlens, Szegedy 2014,
    https://arxiv.org/abs/1412.6572, with one step; Kurakin, Goodfellow, Bengio 2016, https://arxiv.org/abs/1607.02533,
    with many. ``"gradient"``: the same with the gradient divided by its root mean square. After each step the change is
    projected onto the ``radius``, then the picture clipped between black and white.

    For a target that is not a class, its value replaces log p_target, and the goal is a value.

    Every image is optimised and stopped independently of the others in the batch. ``model`` runs in evaluation mode and
    is left unchanged.

    Args:
        model: any module that maps ``x`` to scores [N, K]; for objectives inside it, any module.
        x: [N, C, H, W], as the network takes them; their pictures (see :func:`fastviz.models.preprocessing`) must lie
            in 0 to 1.
        target: what the network should see: a class, int64 [N] with one per image, ``fastviz.class_score(k)``, any
            other objective such as ``fastviz.channel(layer, k)`` or ``-fastviz.class_score()`` (less of the predicted
            class), or a list of N of them, one per image. For one image, T targets make T images. The predicted class
            is refused, and so is None, which means that class elsewhere.
        method: see above; ``"lbfgs"`` makes the smallest changes, ``"sign"`` takes the fewest steps.
        norm: what the radius bounds: ``"inf"``: the largest change of a value; ``"2"``: the Euclidean norm.
        radius: of the change of the picture, for ``"sign"`` and ``"gradient"``; None only bounds pixels by black and
            white.
        goal: the probability of the class at which an image stops, None is 0.99; for other targets the value, where
            None takes all steps (``"lbfgs"`` needs a goal).
        step: step size: the change of each picture value with ``"sign"``, its root mean square with ``"gradient"``;
            ``"lbfgs"`` chooses its own.
        steps: the maximum number of steps.
        quantize: round the pictures to 8 bits, so that a saved PNG is the same image. If rounding takes an image below
            the goal, values are moved by one level, those with the largest gradient first.
        batch_size: images in a pass; None is all on a GPU, and on a CPU as many as fit its caches.
        precision: ``"bfloat16"`` runs the network under autocast: approximate, and faster where the processor supports
            it. Reported values are then computed in this precision.
        progress: show a progress bar on a terminal. Ctrl-C returns the images so far.

    Returns:
        A :class:`Fooled` with images, at least float32, on the device of ``x``.

    Raises:
        TypeError: arguments of the wrong type; the model does not return scores.
        ValueError: no target; a target that is the original class or does not exist; classes and other objectives in
            one list; a radius, goal or step out of range; no goal for ``"lbfgs"`` and a target that is not a class; a
            radius for ``"lbfgs"``, or below one level when rounding to 8 bits; ``x`` darker than black or brighter than
            white; scores that are not finite.
        MemoryError: the images do not fit into memory together; the message says how many would.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    >>> _ = nn.init.constant_(model[1].weight[0].detach(), 1.0), nn.init.constant_(model[1].weight[1].detach(), -1.0)
    >>> found = fool(model, torch.full((1, 3, 2, 2), 0.5), target=1, goal=0.9)
    >>> found.original.item(), found.success.item(), round(found.probability.item(), 2)
    (0, True, 0.9)
    """
    images = input_batch(model, x, wide=True).detach()
    _check(method, norm, radius, step, steps, quantize)
    if target is None:
        raise ValueError(
            "target should say what is to be seen: a class, one for each image, or an objective; None would be the "
            "class that the model sees already, and -fastviz.class_score() is less of that one"
        )
    with frozen_model(model):
        attacked = AttackedModel(model, AttackedModel.frame_for(model, images), batch_size, precision, progress, "x")
        clean = attacked.pictures(images)
        before = _class_probabilities(attacked, clean, target)
        original = None if before is None else before.argmax(1)
        aim, count = _aim(attacked, target, len(clean), original, before, goal, method)
        if count > len(clean):
            clean = clean.expand(count, -1, -1, -1).contiguous()
            before, original = (
                None if each is None else each.expand(count, *each.shape[1:]) for each in (before, original)
            )
        ball = None if radius is None else NormBall(clean, radius, norm)
        pictures, step_counts, interrupted = _attacked(attacked, aim, clean, ball, method, step, steps)
        if quantize and len(clean):
            pictures = attacked.in_8_bits(aim, pictures, ball)
        return _result(attacked, aim, clean, pictures, before, original, step_counts, interrupted)


def _check(method: str, norm: str, radius: float | None, step: float, steps: int, quantize: bool) -> None:
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


def _class_probabilities(attacked: AttackedModel, clean: Tensor, target: Target) -> Tensor | None:
    """The probabilities before, [N, K]; None if the target needs no classes and the model gives no scores.

    Raises:
        TypeError, ValueError: the target needs classes and the model gives no scores; the scores are not finite.
    """
    try:
        before = attacked.probabilities(clean)
    except (TypeError, ValueError):
        if _reads_output(target):
            raise
        return None
    if not before.isfinite().all():
        raise ValueError(
            "model should give finite scores for x, got probabilities that are not finite for image "
            f"{int((~before.isfinite().all(1)).nonzero()[0])}"
        )
    return before


def _reads_output(target: Target) -> bool:
    each = target if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    return any(not isinstance(entry, targets.Objective) or entry.reads_output for entry in each)


def _attacked(
    attacked: AttackedModel,
    aim: Aim,
    clean: Tensor,
    ball: NormBall | None,
    method: str,
    step: float,
    steps: int,
) -> tuple[Tensor, Tensor, bool]:
    """The pictures, the steps taken for each, and whether Ctrl-C ended the attack."""
    if not len(clean):
        return clean, torch.zeros(0, dtype=torch.int64, device=clean.device), False
    if method == "lbfgs":
        return shortest(attacked, aim, clean, steps)
    ascent = Ascent(step, norm="sign" if method == "sign" else "rms")
    made = attacked.optimize(aim, clean, ascent, steps, [] if ball is None else [ball])
    return made.images, made.steps, made.interrupted


def _result(
    attacked: AttackedModel,
    aim: Aim,
    clean: Tensor,
    pictures: Tensor,
    before: Tensor | None,
    original: Tensor | None,
    steps: Tensor,
    interrupted: bool,
) -> Fooled:
    everyone = torch.arange(len(clean), device=clean.device)
    after = None if before is None else attacked.probabilities(pictures)
    classes = aim.classes if isinstance(aim, ClassAim) else None
    reached = _picked(after, classes, clean)
    if classes is None:
        values_before, values = (attacked.values(aim, each, everyone) for each in (clean, pictures))
        success = values > values_before if aim.goal is None else values >= aim.goal
    else:
        values_before, values = _picked(before, classes, clean).log(), reached.log()
        assert aim.goal is not None
        success = reached >= aim.goal
    change = (pictures - clean).double().flatten(1)
    none = torch.full_like(everyone, -1)
    return Fooled(
        images=attacked.frame.image(pictures),
        pictures=pictures,
        success=success,
        target=none if classes is None else classes,
        original=none if original is None else original,
        probability_before=_picked(before, classes, clean),
        probability=reached,
        original_probability_before=_picked(before, original, clean),
        original_probability=_picked(after, original, clean),
        values_before=values_before,
        values=values,
        l2=change.norm(dim=1).to(clean),
        linf=change.abs().amax(1).to(clean),
        psnr=tensors.psnr(pictures.double(), clean.double()).to(clean),
        steps=steps,
        interrupted=interrupted,
    )


def _picked(probabilities: Tensor | None, classes: Tensor | None, like: Tensor) -> Tensor:
    """The probability of one class in each row, [N]; NaN if there is none."""
    if probabilities is None or classes is None:
        return like.new_full((len(like),), torch.nan)
    return probabilities.gather(1, classes[:, None])[:, 0]


# --------------------------------------------------------------------------------------------------------- targets


def _aim(
    attacked: AttackedModel,
    target: Target,
    images: int,
    original: Tensor | None,
    before: Tensor | None,
    goal: float | None,
    method: str,
) -> tuple[Aim, int]:
    """The aim of each image, and the number of images, which is larger than given for several targets of one image."""
    selection = None if _are_classes(target) else _with_predicted(attacked.model, target, original)
    if selection is None or all(part.class_index is not None for part in selection.objectives):
        assert original is not None
        assert before is not None
        classes = _classes(target if selection is None else _indices(selection), before.shape[1], original)
        return ClassAim(classes, probability_goal(_CLASS_GOAL if goal is None else goal)), len(classes)
    if any(part.class_index is not None for part in selection.objectives):
        raise ValueError("target should be classes or other objectives, whose goals are different things; got both")
    if goal is None and method == "lbfgs":
        raise ValueError(
            'goal should be the value at which an image is done, for "lbfgs" and a target that is no class'
        )
    if goal is not None and (isinstance(goal, bool) or not isinstance(goal, (int, float))):
        raise TypeError(f"goal should be a number, got {goal!r}")
    parts = [(part, part.samples or 1) for part in selection.objectives]
    count = sum(number for _, number in parts)
    if count not in (1, images) and images != 1:
        raise ValueError(f"target should be one or one for each of {images} images, got {count}")
    network = FeatureNetwork(
        attacked.model, selection.layers, output=selection.reads_output, precision=attacked.precision, argument="x"
    )
    return ValueAim(
        TargetObjective(network, parts, max(1, images) if count == 1 else 1), goal
    ), images if count == 1 else count


def _are_classes(target: object) -> bool:
    """Whether ``target`` is plain class indices."""
    if isinstance(target, Sequence) and not isinstance(target, str):
        return not any(isinstance(entry, targets.Objective) for entry in target)
    return not isinstance(target, targets.Objective)


def _with_predicted(model: nn.Module, target: Target, original: Tensor | None) -> Selection:
    """The targets, with each image's predicted class filled in."""
    selection = targets.resolve(target, model)
    if not selection.predicts:
        return selection
    assert original is not None
    if not selection.several:
        return selection.with_predicted(original)
    # An entry of a list is for one image: the one with the same index, or the only one.
    each = original.split(1) if len(original) == len(selection.objectives) else [original] * len(selection.objectives)
    objectives = tuple(part.with_predicted(seen) for part, seen in zip(selection.objectives, each, strict=True))
    return Selection(objectives, selection.several, selection.columns)


def _indices(selection: Selection) -> Tensor:
    """The classes of objectives that all have one, int64 [T]."""
    return torch.cat([torch.as_tensor(part.class_index).reshape(-1).cpu() for part in selection.objectives])


def _classes(target: object, count: int, original: Tensor) -> Tensor:
    """The target class of each image, int64 [N]."""
    classes = class_batch(target, count, original.device)
    if len(classes) not in (1, len(original)) and len(original) > 1:
        raise ValueError(f"target should be one class or one for each of {len(original)} images, got {len(classes)}")
    if len(original) != 1:
        classes = classes.expand(len(original)).contiguous() if len(classes) == 1 else classes[: len(original)]
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
    precision: Precision = "model",
    progress: bool = False,
) -> FoolingImages:
    """Noise that the network classifies as the ``target`` classes with near certainty, one image per class.

    Gradient ascent on log p_target from noise around the mean colour, without priors for natural images. Nguyen,
    Yosinski, Clune 2015, "Deep Neural Networks are Easily Fooled", https://arxiv.org/abs/1412.1897, section 3.4 (there
    with a weak L2 decay and towards the score). Each step is the gradient divided by its root mean square; each image
    stops independently.

    Args:
        model: any module that maps images [N, C, H, W] to scores [N, K].
        target: a class, or several.
        goal: probability of the target at which an image stops; 0.996 is the median reported in the paper.
        step: root mean square of the change of the picture (values 0 to 1) in one step.
        steps: the maximum number of steps.
        seed: for the noise; image i depends only on it and on i.
        size: height and width in pixels; None is the model's own.
        quantize: round the pictures to 8 bits, as :func:`fool` does.
        batch_size: images in a pass; None is all on a GPU, and on a CPU as many as fit its caches.
        precision: ``"bfloat16"`` runs the network under autocast: approximate, and faster where the processor supports
            it. Reported values are then computed in this precision.
        progress: show a progress bar on a terminal. Ctrl-C returns the images so far.

    Returns:
        A :class:`fastviz.FoolingImages` with an image for each class, at least float32, on the device of the model.

    Raises:
        TypeError: arguments of the wrong type; the model does not return scores.
        ValueError: a class that does not exist; a goal or step out of range.
        MemoryError: the images do not fit into memory together; the message says how many would.

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
        attacked = AttackedModel(model, frame_of(model, size), batch_size, precision, progress, "size")
        like = image_like(model)
        probe = torch.zeros(1, len(attacked.frame.mean), *attacked.frame.size).to(like)
        classes = class_batch(target, attacked.probabilities(probe).shape[1], like.device)
        generators = [torch.Generator().manual_seed((seed * _SEED_STEP + row) % 2**63) for row in range(len(classes))]
        start = attacked.frame.picture(_NOISE * Pixels().noise(attacked.frame, generators, like)).clamp(0, 1)
        aim = ClassAim(classes, goal)
        made = attacked.optimize(aim, start, Ascent(step), steps)
        pictures = attacked.in_8_bits(aim, made.images) if quantize else made.images
        return attacked.judged(pictures, classes, goal, made.steps, interrupted=made.interrupted)
