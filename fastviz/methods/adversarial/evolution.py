"""Fooling images without gradients: pictures that evolve until a network classifies them confidently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.optimize.canvas import frame_of, image_like
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.precision import Precision
from fastviz.methods.adversarial.cppn import CPPN, Direct, Encoding, Genomes
from fastviz.methods.adversarial.fooling import AttackedModel, FoolingImages, class_batch, probability_goal

__all__ = ["evolve"]

_TARGET_PARENTS = 0.5
"""The fraction of parents that are drawn from the target classes."""


def evolve(
    model: nn.Module,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    encoding: Literal["cppn", "direct"] = "cppn",
    population: int = 32,
    generations: int = 200,
    goal: float = 0.996,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
    progress: bool = False,
) -> FoolingImages:
    """Meaningless pictures that the network classifies as the ``target`` classes, found without gradients.

    MAP-Elites, as in Nguyen, Yosinski, Clune 2015, "Deep Neural Networks are Easily Fooled",
    https://arxiv.org/abs/1412.1897: for every class, the image with the highest probability so far is kept. In each
    generation, ``population`` of the kept images are drawn as parents and mutated once; a child replaces the best image
    of every class for which it has a higher probability, whatever class its parent was kept for. The search ends when
    all target classes have reached the goal. We depart from the paper: half of the parents are drawn from the target
    classes that have not reached the goal (without a target, from the five most probable classes), the others from all
    classes; there is no crossover.

    Args:
        model: any module that maps images [N, C, H, W] to scores [N, K]; it is only run forwards.
        target: a class or several, or None for any class: ends with the first class at the goal, and returns the best
            one.
        encoding: ``"cppn"``: networks that render regular patterns, see :class:`fastviz.methods.adversarial.cppn.CPPN`;
            ``"direct"``: independent pixels, see :class:`fastviz.methods.adversarial.cppn.Direct`, which needs many
            more generations, and memory for a picture of each class.
        population: the number of images in each generation.
        generations: their maximum number.
        goal: probability at which a class is finished.
        seed: for all random numbers.
        size: height and width in pixels; None is the model's own.
        batch_size: images in a pass; None is all on a GPU, and on a CPU as many as fit its caches.
        precision: ``"bfloat16"`` runs the network under autocast: approximate, and faster where the processor supports
            it. Reported values are then computed in this precision.
        progress: show a progress bar on a terminal. Ctrl-C returns the best images so far.

    Returns:
        A :class:`fastviz.FoolingImages` with an image for each target class, at least float32, on the device of the
        model. Pictures are rounded to 8 bits before the network sees them, so a saved PNG is the same image.

    Raises:
        TypeError: arguments of the wrong type; the model does not return scores.
        ValueError: a class or encoding that does not exist; a goal or number out of range.
        MemoryError: the images do not fit into memory together; the message says how many would.

    >>> from fastviz.models import load_model
    >>> found = evolve(load_model("demo"), population=8, generations=2)
    >>> found.images.shape, found.steps.item() <= 2
    (torch.Size([1, 3, 64, 64]), True)
    """
    checks.module(model)
    probability_goal(goal)
    kind: Encoding = CPPN() if checks.one_of(encoding, "encoding", ("cppn", "direct")) == "cppn" else Direct()
    checks.whole_number(population, "population", minimum=1)
    checks.whole_number(generations, "generations", minimum=1)
    checks.whole_number(seed, "seed", minimum=0)
    generator = torch.Generator().manual_seed(seed)
    with frozen_model(model), torch.no_grad():
        attacked = AttackedModel(model, frame_of(model, size), batch_size, precision, argument="size")
        archive = _Archive(attacked, kind, goal)
        interrupted = False
        with bar(progress, generations, text="evolving", unit="generations") as advance:
            try:
                archive.admit(kind.start(population, archive.shape, generator), 0)
                wanted = None if target is None else class_batch(target, len(archive.best), archive.best.device)
                for generation in range(1, generations + 1):
                    if archive.done(wanted):
                        break
                    parents = archive.parents(population, wanted, generator)
                    archive.admit(kind.mutated(parents, generator), generation)
                    advance(1, f"evolving, best {archive.progress(wanted):.1%}")
            except KeyboardInterrupt:
                if not len(archive.best):
                    raise
                interrupted = True
        classes = archive.best.argmax()[None] if wanted is None else wanted
        return archive.found(classes, interrupted=interrupted)


class _Archive:
    """The best image of every class so far.

    Attributes:
        shape: (C, H, W) of the pictures.
        best: [K], their probabilities; empty before the first generation.
        since: int64 [K], the generations in which they were found.
    """

    def __init__(self, attacked: AttackedModel, encoding: Encoding, goal: float) -> None:
        self.attacked = attacked
        self.encoding = encoding
        self.goal = goal
        self.shape = (len(attacked.frame.mean), *attacked.frame.size)
        self.like = image_like(attacked.model)
        self.best = self.like.new_zeros(0)
        self.since = torch.zeros(0, dtype=torch.int64)
        self._elites: Genomes = {}

    def admit(self, genomes: Genomes, generation: int) -> None:
        """Replace the images of all classes for which images of ``genomes`` are better."""
        found = self.attacked.probabilities(self._pictures(genomes))
        highest, which = found.max(0)
        if not len(self.best):
            self._elites = {name: genes[which.cpu()] for name, genes in genomes.items()}
            self.best, self.since = highest, torch.full_like(which, generation).cpu()
            return
        better = highest > self.best
        classes, rows = better.nonzero()[:, 0].cpu(), which[better].cpu()
        for name, genes in genomes.items():
            self._elites[name][classes] = genes[rows]
        self.since[classes] = generation
        self.best = torch.where(better, highest, self.best)

    def parents(self, count: int, wanted: Tensor | None, generator: torch.Generator) -> Genomes:
        """``count`` of the images, half of them from the ``wanted`` classes (from the most probable ones if None)."""
        anyone = torch.randint(len(self.best), (count,), generator=generator)
        aims = self.best.topk(min(5, len(self.best))).indices if wanted is None else wanted[self._missing(wanted)]
        aims = aims.cpu()
        chosen = aims[torch.randint(len(aims), (count,), generator=generator)]
        rows = torch.where(torch.arange(count) < _TARGET_PARENTS * count, chosen, anyone)
        return {name: genes[rows] for name, genes in self._elites.items()}

    def done(self, wanted: Tensor | None) -> bool:
        """Whether all ``wanted`` classes, or any class for None, are at the goal."""
        return bool((self.best >= self.goal).any()) if wanted is None else not self._missing(wanted).any()

    def progress(self, wanted: Tensor | None) -> float:
        """The lowest probability of the ``wanted`` classes; for None the highest of all."""
        return float(self.best.max() if wanted is None else self.best[wanted].min())

    def found(self, classes: Tensor, *, interrupted: bool) -> FoolingImages:
        """The images of these ``classes``."""
        genomes = {name: genes[classes.cpu()] for name, genes in self._elites.items()}
        since = self.since.to(classes.device)[classes]
        return self.attacked.judged(self._pictures(genomes), classes, self.goal, since, interrupted=interrupted)

    def _missing(self, wanted: Tensor) -> Tensor:
        return self.best[wanted] < self.goal

    def _pictures(self, genomes: Genomes) -> Tensor:
        return (self.encoding.pictures(genomes, self.shape, self.like) * 255).round() / 255
