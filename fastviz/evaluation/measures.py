"""The registry of measures, for tables and the command line: computation, better direction and paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz.evaluation._explain import Explain
from fastviz.evaluation._maps import resized
from fastviz.evaluation.complexity import complexity, sparseness
from fastviz.evaluation.confidence import confidence_change
from fastviz.evaluation.curves import Curve, deletion, insertion, region_perturbation
from fastviz.evaluation.localisation import energy_inside, intersection_over_union, pointing_game
from fastviz.evaluation.randomisation import parameter_randomisation
from fastviz.evaluation.road import road
from fastviz.evaluation.robustness import infidelity, max_sensitivity
from fastviz.evaluation.similarity import agreement
from fastviz.targets.objectives import Objective

__all__ = ["MEASURES", "RANDOM", "Case", "Measure", "Scores"]

RANDOM = "random"
"""The name of the method that returns random maps: the chance level."""


@dataclass(frozen=True, eq=False)
class Case:
    """The input of a measure: one method on a batch of images.

    Attributes:
        model: the network.
        images: [N, C, H, W].
        target: one per sample, with predicted classes filled in.
        method: the method's name.
        explain: the method.
        maps: the maps of each method by name, [N, h, w] at their own resolution, finite.
        objects: masks, bool [N, H, W], or None.
        seeds: one per image.
        batch_size: images in a pass; None is each measure's default.
    """

    model: nn.Module
    images: Tensor
    target: Objective
    method: str
    explain: Explain
    maps: Mapping[str, Tensor]
    objects: Tensor | None
    seeds: list[int]
    batch_size: int | None

    @property
    def own(self) -> Tensor:
        """The maps of the method, [N, h, w]."""
        return self.maps[self.method]

    @property
    def fine(self) -> Tensor:
        """The maps of the method resized to the images, [N, H, W]."""
        return resized(self.own, self.images)


@dataclass(frozen=True, eq=False)
class Scores:
    """The result of a measure for a batch: one value per image, [N], and for some measures the underlying curve, [N,
    S], at ``places`` [N, S] from 0 to 1."""

    values: Tensor
    curve: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True)
class Measure:
    """A measure of the quality of maps.

    Attributes:
        name: its name in tables and on the command line.
        compute: takes a :class:`Case` and options of the underlying function; returns :class:`Scores`.
        better: whether ``"higher"`` or ``"lower"`` values are better; None for neither.
        summary: one line for lists.
        paper: short citation and link.
        needs_objects: whether it needs the positions of objects.
        axes: labels for the curve's places and values; empty without a curve.

    >>> MEASURES["deletion"].better, MEASURES["pointing_game"].needs_objects
    ('lower', True)
    """

    name: str
    compute: Callable[..., Scores]
    better: Literal["higher", "lower"] | None
    summary: str
    paper: str
    needs_objects: bool = False
    axes: tuple[str, str] | tuple[()] = ()


def _of_curve(curve: Curve, values: Tensor) -> Scores:
    return Scores(values, curve.values, curve.fractions)


def _deletion(case: Case, **options: Any) -> Scores:
    curve = deletion(*_common(case), **_settings(case, options))
    return _of_curve(curve, curve.area)


def _insertion(case: Case, **options: Any) -> Scores:
    curve = insertion(*_common(case), **_settings(case, options))
    return _of_curve(curve, curve.area)


def _perturbed(order: Literal["morf", "lerf"]) -> Callable[..., Scores]:
    def compute(case: Case, **options: Any) -> Scores:
        settings = {"value": "probability"} | _settings(case, options)
        curve = region_perturbation(*_common(case), order=order, **settings)
        return _of_curve(curve, curve.aopc)

    return compute


def _road(case: Case, **options: Any) -> Scores:
    found = road(*_common(case), **_settings(case, options))
    places = (found.removed / 100).expand_as(found.morf)
    return Scores(found.combined, found.lerf - found.morf, places)


def _drop(case: Case, **options: Any) -> Scores:
    return Scores(confidence_change(*_common(case), **_settings(case, options, seeded=False)).drop)


def _increase(case: Case, **options: Any) -> Scores:
    found = confidence_change(*_common(case), **_settings(case, options, seeded=False))
    return Scores(found.increased.to(found.before.dtype))


def _pointing(case: Case, **options: Any) -> Scores:
    found = pointing_game(case.fine, _objects(case), **options)
    return Scores(torch.where(found.counted, found.hits.to(case.own.dtype), torch.nan))


def _energy(case: Case, **options: Any) -> Scores:
    return Scores(energy_inside(case.fine, _objects(case), **options))


def _overlap(case: Case, **options: Any) -> Scores:
    return Scores(intersection_over_union(case.fine, _objects(case), **options))


def _infidelity(case: Case, **options: Any) -> Scores:
    # maps of different kinds are only comparable in the scale-free form with indicator squares
    settings: dict[str, Any] = {"scaled": True, "value": "probability"} | _settings(case, options)
    settings.setdefault("indicator", settings.get("perturbation", "square") == "square")
    return Scores(infidelity(*_common(case), **settings))


def _sensitivity(case: Case, **options: Any) -> Scores:
    settings = _settings(case, options)
    return Scores(max_sensitivity(case.model, case.images, case.explain, case.target, **settings))


def _randomisation(case: Case, **options: Any) -> Scores:
    if case.method == RANDOM:  # random maps do not depend on the network
        return _undefined(case)
    settings: dict[str, Any] = {"similarities": ("rank_absolute",)} | _settings(case, options, seeded=False)
    found = parameter_randomisation(case.model, case.images, case.explain, case.target, **settings)
    # a map that became constant has no correlation with the original
    alike = next(iter(found.similarity.values())).nan_to_num(0.0).T
    curve = torch.cat([torch.ones_like(alike[:, :1]), alike], 1)
    places = torch.linspace(0, 1, curve.shape[1], device=curve.device).expand_as(curve)
    return Scores(alike.mean(1), curve, places)


def _sparseness(case: Case, **options: Any) -> Scores:
    return Scores(sparseness(case.fine, **options))


def _complexity(case: Case, **options: Any) -> Scores:
    return Scores(complexity(case.fine, **options))


def _agreement(case: Case, **options: Any) -> Scores:
    others = {name: maps for name, maps in case.maps.items() if name == case.method or name != RANDOM}
    if len(others) < 2:
        return _undefined(case)
    size = (case.images.shape[2], case.images.shape[3])
    found = agreement(others, size=size, similarities=("rank",), **options)
    return Scores(found.with_others("rank")[found.methods.index(case.method)])


def _settings(case: Case, options: dict[str, Any], *, seeded: bool = True) -> dict[str, Any]:
    """``options`` with those of every measure that runs the network: the batch size and, if ``seeded``, the seeds."""
    return {"batch_size": case.batch_size} | ({"seed": case.seeds} if seeded else {}) | options


def _undefined(case: Case) -> Scores:
    return Scores(torch.full((len(case.own),), torch.nan, dtype=case.own.dtype, device=case.own.device))


def _common(case: Case) -> tuple[nn.Module, Tensor, Tensor, Objective]:
    return case.model, case.images, case.own, case.target


def _objects(case: Case) -> Tensor:
    assert case.objects is not None
    return case.objects


_RISE = "Petsiuk, Das, Saenko 2018, https://arxiv.org/abs/1806.07421"
_SAMEK = "Samek et al. 2016, https://arxiv.org/abs/1509.06321"
_PLUS = "Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063"
_YEH = "Yeh et al. 2019, https://arxiv.org/abs/1901.09392"
_FRACTION = "fraction of pixels"

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "deletion",
            _deletion,
            "lower",
            "area under the class's probability as the highest-ranked pixels are removed",
            _RISE,
            axes=(f"{_FRACTION} removed", "probability"),
        ),
        Measure(
            "insertion",
            _insertion,
            "higher",
            "area under the class's probability as the highest-ranked pixels are shown on a blurred image",
            _RISE,
            axes=(f"{_FRACTION} shown", "probability"),
        ),
        Measure(
            "morf",
            _perturbed("morf"),
            "higher",
            "mean fall of the probability as windows are replaced by noise, the most relevant first",
            _SAMEK,
            axes=(f"{_FRACTION} perturbed", "probability"),
        ),
        Measure(
            "lerf",
            _perturbed("lerf"),
            "lower",
            "mean fall of the probability as windows are replaced by noise, the least relevant first",
            _SAMEK,
            axes=(f"{_FRACTION} perturbed", "probability"),
        ),
        Measure(
            "road",
            _road,
            "higher",
            "probability without the least relevant pixels minus that without the most relevant ones, halved",
            "Rong et al. 2022, https://arxiv.org/abs/2202.00449",
            axes=(f"{_FRACTION} removed", "LeRF − MoRF, probability"),
        ),
        Measure(
            "pointing_game",
            _pointing,
            "higher",
            "whether the maximum lies on the object, or within 15 pixels of it",
            "Zhang et al. 2018, https://arxiv.org/abs/1608.00507",
            needs_objects=True,
        ),
        Measure(
            "energy_inside",
            _energy,
            "higher",
            "fraction of the map that lies on the object",
            "Wang et al. 2020, https://arxiv.org/abs/1910.01279",
            needs_objects=True,
        ),
        Measure(
            "intersection_over_union",
            _overlap,
            "higher",
            "overlap of the object with the pixels above 20 % of the map's maximum",
            "Zhou et al. 2016, https://arxiv.org/abs/1512.04150",
            needs_objects=True,
        ),
        Measure(
            "average_drop",
            _drop,
            "lower",
            "relative fall of the probability when the image is multiplied by the map",
            _PLUS,
        ),
        Measure(
            "increase_in_confidence",
            _increase,
            "higher",
            "fraction of images whose probability rises when they are multiplied by the map",
            _PLUS,
        ),
        Measure(
            "parameter_randomisation",
            _randomisation,
            "lower",
            "rank correlation of a map with the original as the network's layers are randomised from the top",
            "Adebayo et al. 2018, https://arxiv.org/abs/1810.03292",
            axes=("fraction of steps randomised", "rank correlation"),
        ),
        Measure(
            "infidelity", _infidelity, "lower", "error of the map in predicting the effect of covered squares", _YEH
        ),
        Measure("max_sensitivity", _sensitivity, "lower", "largest relative change of the map under small noise", _YEH),
        Measure(
            "sparseness",
            _sparseness,
            "higher",
            "Gini index of the map: near 1 if few pixels dominate",
            "Chalasani et al. 2020, https://arxiv.org/abs/1810.06583",
        ),
        Measure(
            "complexity",
            _complexity,
            "lower",
            "entropy of the map in nats",
            "Bhatt, Weller, Moura 2020, https://arxiv.org/abs/2005.00631",
        ),
        Measure(
            "agreement",
            _agreement,
            None,
            "mean rank correlation of the map with those of the other methods",
            "Adebayo et al. 2018, https://arxiv.org/abs/1810.03292",
        ),
    )
}
"""All measures by name, in the order in which they are shown."""
