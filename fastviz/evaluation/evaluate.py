"""Evaluates methods by measures over many images: one row for each image, method and measure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz._util.batch_size import images_at_once
from fastviz._util.progress import bar
from fastviz.evaluation._explain import Explain, explained, single_objective
from fastviz.evaluation._maps import Channels, own_maps
from fastviz.evaluation._seeds import generator
from fastviz.evaluation._values import reading
from fastviz.evaluation.localisation import object_masks
from fastviz.evaluation.measures import MEASURES, RANDOM, Case, Measure
from fastviz.images.streams import Batch, Source, Stream, batches
from fastviz.methods.registry import EXPLAINERS
from fastviz.targets.objectives import Objective
from fastviz.targets.selection import Target

__all__ = ["Options", "Row", "Targets", "WhereObjects", "chosen_methods", "evaluate", "row_batches", "rows", "table"]

Row = dict[str, Any]
"""One row of a table: ``image`` (its name), ``index`` (its position), ``method``, ``measure``, ``value`` (a float, NaN
if the measure is undefined), ``target`` (the class's index, or None), ``probability`` (of that class for the unchanged
image, else the target's value), and, for measures with a curve, ``curve`` and ``places`` (lists of floats)."""

Targets = Target | Mapping[str, int]
"""What to explain: None for the predicted class; a class; an objective; a tensor with the class of each image of the
source, by position; or a mapping from the name of each image to its class."""

WhereObjects = Tensor | Sequence[Tensor] | Mapping[str, Tensor] | Callable[[str], Tensor | None]
"""Positions of objects, in pixels of the network's input: masks, bool [N, H, W], or boxes [N, 4], by position; a
sequence with a mask [H, W] or boxes [n, 4] for each image; or a mapping or function from names to these, in which
missing images (or None) have no object."""

Options = Mapping[str, Mapping[str, Any]]
"""Further arguments of the function of a method or measure, by its name."""

_BATCH = 8
"""The default number of images in a batch."""
_CHANNELS: dict[str, Channels] = {"gradient_times_input": "sum"}
"""How maps with one number per channel are reduced to one per pixel, if not by the largest absolute value:
contributions that sum to the score are summed."""


def evaluate(
    model: nn.Module,
    images: Source,
    methods: Sequence[str] | Mapping[str, str | Explain],
    measures: Sequence[str],
    *,
    target: Targets = None,
    objects: WhereObjects | None = None,
    options: Options | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Any:
    """A table of methods by measures over many images, one row for each image, method and measure.

    The table is a ``pyarrow.Table`` if pyarrow is installed (``to_pandas()`` converts it), else a list of dictionaries;
    its columns are those of :data:`fastviz.evaluation.Row`. Images are read and measured one batch at a time, so memory
    only grows with the rows; :func:`fastviz.evaluation.rows` yields these one by one.

    Args:
        model: maps images to scores [N, K].
        images: files, folders, a dataset or a tensor: see :func:`fastviz.batches`.
        methods: names of ``fastviz.METHODS`` that explain, or ``"random"``; or a mapping from any name to one of those
            or to a function of a model, images and a target. Maps with one number per channel are reduced by the
            largest absolute value, those of ``gradient_times_input`` by the sum.
        measures: names of ``fastviz.evaluation.MEASURES``.
        target: see :data:`fastviz.evaluation.Targets`.
        objects: see :data:`fastviz.evaluation.WhereObjects`; needed by localisation measures such as the pointing game.
        options: name of a method or measure → further arguments, e.g. ``{"deletion": {"step": 448}}``.
        limit: the maximum number of images; None for all.
        batch_size: images in a batch; None is 8.
        seed: for the random numbers of measures; image i of the source gets ``seed + i``, so batches do not affect
            results. Random methods have their own seed, and may depend on an image's place in the batch, as
            ``smooth_grad`` does.
        progress: show a progress bar on a terminal.

    Returns:
        A ``pyarrow.Table``, or a list of dictionaries without pyarrow, with N · methods · measures rows.

    Raises:
        TypeError, ValueError: an unknown method, measure or option; a measure whose objects are missing; arguments that
            the methods or measures refuse.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    >>> found = evaluate(model, torch.rand(3, 3, 4, 4), ["saliency", "random"], ["deletion"])
    >>> len(found)
    6
    """
    return table(
        rows(
            *(model, images, methods, measures),
            target=target,
            objects=objects,
            options=options,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    )


def rows(
    model: nn.Module,
    images: Source | Stream,
    methods: Sequence[str] | Mapping[str, str | Explain],
    measures: Sequence[str],
    *,
    target: Targets = None,
    objects: WhereObjects | None = None,
    options: Options | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Row]:
    """Yields the rows of :func:`evaluate` one by one, with its arguments; ``images`` may be an existing stream.

    All arguments are checked before the first row.

    Returns:
        An iterator of dictionaries, one for each image, method and measure, in this order.

    Raises:
        TypeError, ValueError: as :func:`evaluate`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    >>> row = next(rows(model, torch.rand(3, 3, 4, 4), ["saliency"], ["deletion"]))
    >>> row["method"], row["measure"]
    ('saliency', 'deletion')
    """
    found = row_batches(
        *(model, images, methods, measures),
        target=target,
        objects=objects,
        options=options,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    return (row for batch in found for row in batch)


def row_batches(
    model: nn.Module,
    images: Source | Stream,
    methods: Sequence[str] | Mapping[str, str | Explain],
    measures: Sequence[str],
    *,
    target: Targets = None,
    objects: WhereObjects | None = None,
    options: Options | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    done: Collection[int] = (),
) -> Iterator[list[Row]]:
    """:func:`rows`, one batch of images at a time, skipping batches whose images' positions are all ``done``."""
    chosen = chosen_methods(methods, options or {})
    wanted = [MEASURES[checks.nearest(name, "measure", MEASURES)] for name in dict.fromkeys(measures)]
    if not wanted:
        raise ValueError(f"measures should be one or more of {', '.join(MEASURES)}, got none")
    for measure in wanted:
        if measure.needs_objects and objects is None:
            raise ValueError(f"measure {measure.name!r} needs objects: boxes or masks")
    for name in options or {}:
        checks.nearest(name, "options for", [*chosen, *(measure.name for measure in wanted)])
    checks.whole_number(seed, "seed", minimum=0)
    if not isinstance(target, Mapping):
        targets.resolve(target, model)
    at_once = images_at_once(batch_size, _BATCH)
    stream = images if isinstance(images, Stream) else batches(images, model=model, batch_size=at_once, limit=limit)
    work = _Work(model, chosen, wanted, target, objects, options or {}, seed, at_once)
    return _streamed(work, stream, progress, done)


def table(found: Iterator[Row] | Sequence[Row]) -> Any:
    """Rows as a ``pyarrow.Table`` if pyarrow is installed, else as a list.

    Args:
        found: the rows, from :func:`rows`.

    Returns:
        A ``pyarrow.Table``, or a list of dictionaries.

    Raises:
        Nothing itself.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    >>> len(table(rows(model, torch.rand(3, 3, 4, 4), ["saliency"], ["deletion"])))
    3
    """
    listed = list(found)
    if find_spec("pyarrow") is None:
        return listed
    import pyarrow

    floats = pyarrow.list_(pyarrow.float32())
    schema = pyarrow.schema(
        [
            *(("image", pyarrow.string()), ("index", pyarrow.int64())),
            *(("method", pyarrow.string()), ("measure", pyarrow.string()), ("value", pyarrow.float64())),
            *(("target", pyarrow.int64()), ("probability", pyarrow.float64())),
            *(("curve", floats), ("places", floats)),
        ]
    )
    return pyarrow.Table.from_pylist(listed, schema=schema)


def _streamed(work: _Work, stream: Stream, progress: bool, done: Collection[int]) -> Iterator[list[Row]]:
    each = len(work.methods) * len(work.measures)
    total = None if stream.names is None else len(stream.names) * each
    with bar(progress, total, unit="values") as advance:
        for batch in stream:
            if set(batch.indices) <= set(done):
                advance(len(batch) * each, "measured before")
            else:
                yield list(work.batch(batch, lambda count, name: advance(count, name)))


@dataclass(frozen=True, eq=False)
class _Work:
    model: nn.Module
    methods: Mapping[str, tuple[Explain, Channels]]
    measures: Sequence[Measure]
    target: Targets
    objects: WhereObjects | None
    options: Options
    seed: int
    batch_size: int

    def batch(self, batch: Batch, advance: Callable[[int, str], object]) -> Iterator[Row]:
        """The rows of one batch of images."""
        images = batch.images.detach()
        count = len(batch)
        objective = single_objective(self.model, images, self._target(batch), self.batch_size)
        clean = reading(self.model, images, objective, "probability", self.batch_size).clean
        classes = _classes(objective, count)
        seeds = [self.seed + index for index in batch.indices]
        masks = self._masks(batch)
        maps, usable, again = {}, {}, {}
        for name, (explain, channels) in self.methods.items():
            found = (
                _uniform_noise(images, seeds) if name == RANDOM else explained(explain, self.model, images, objective)
            )
            usable[name] = found.flatten(1).isfinite().all(1)
            again[name] = _with_known_maps(explain, self.model, images, found)
            maps[name] = own_maps(found.nan_to_num(0.0, 0.0, 0.0), count, channels)
        # A second loop: some measures compare a method's maps with those of all others.
        for name in self.methods:
            case = Case(self.model, images, objective, name, again[name], maps, masks, seeds, self.batch_size)
            for measure in self.measures:
                scores = measure.compute(case, **self.options.get(measure.name, {}))
                # a map that is not finite has no value
                values = torch.where(usable[name].to(scores.values.device), scores.values, torch.nan)
                listed = [values.double().tolist()]
                listed += [[None] * count if each is None else each.tolist() for each in (scores.curve, scores.places)]
                advance(count, f"{name.replace('_', ' ')}: {measure.name.replace('_', ' ')}")
                for at in range(count):
                    yield {
                        "image": batch.names[at],
                        "index": batch.indices[at],
                        "method": name,
                        "measure": measure.name,
                        "value": listed[0][at],
                        "target": classes[at],
                        "probability": float(clean[at]),
                        "curve": listed[1][at],
                        "places": listed[2][at],
                    }

    def _target(self, batch: Batch) -> Target:
        if isinstance(self.target, Mapping):
            missing = [name for name in batch.names if name not in self.target]
            if missing:
                raise ValueError(f"target should have a class for each image, got none for {missing[0]!r}")
            return torch.tensor([int(self.target[name]) for name in batch.names])
        if isinstance(self.target, Tensor) and self.target.dim():
            if max(batch.indices) >= len(self.target):
                raise ValueError(
                    f"target should have a class for each image, got {len(self.target)} for image {max(batch.indices)}"
                )
            return self.target[torch.tensor(batch.indices, device=self.target.device)]
        return self.target

    def _masks(self, batch: Batch) -> Tensor | None:
        """Bool [n, H, W], all False for an image without an object."""
        if self.objects is None:
            return None
        size = (batch.images.shape[2], batch.images.shape[3])
        masks = []
        for name, index in zip(batch.names, batch.indices, strict=True):
            found = self._object(name, index)
            if found is None or not len(found):
                masks.append(torch.zeros(1, *size, dtype=torch.bool))
            elif found.dtype == torch.bool:
                masks.append(object_masks(found[None], 1, size))
            else:
                masks.append(object_masks([found.reshape(-1, 4)], 1, size))
        return torch.cat([mask.to(batch.images.device) for mask in masks])

    def _object(self, name: str, index: int) -> Tensor | None:
        if isinstance(self.objects, Mapping):
            return self.objects.get(name)
        if callable(self.objects):
            return self.objects(name)
        assert self.objects is not None
        if index >= len(self.objects):
            raise ValueError(f"objects should have an entry for each image, got {len(self.objects)} for image {index}")
        return self.objects[index]


def chosen_methods(
    methods: Sequence[str] | Mapping[str, str | Explain], options: Options
) -> dict[str, tuple[Explain, Channels]]:
    """Each method's function with its options, and how channels are reduced; arguments as in :func:`evaluate`."""
    if isinstance(methods, str):
        raise TypeError(f"methods should be a sequence of names or a mapping, got {methods!r}")
    given = methods if isinstance(methods, Mapping) else {name: name for name in methods}
    if not given:
        raise ValueError(f"methods should be one or more of {', '.join(EXPLAINERS)}, got none")
    found: dict[str, tuple[Explain, Channels]] = {}
    for name, method in given.items():
        further = dict(options.get(name, {}))
        if not isinstance(method, str):
            if not callable(method):
                raise TypeError(f"method {name!r} should be a name or a function, got {type(method).__name__}")
            found[name] = (_with(method, further), "max_abs")
        elif method == RANDOM:
            found[name] = (_random, "max_abs")
        else:
            entry = EXPLAINERS[checks.nearest(method, "method", [*EXPLAINERS, RANDOM])]
            parameters = inspect.signature(entry.function).parameters
            for key in further:
                checks.nearest(key, f"option of {name}", list(parameters))
            chosen = _with(entry.function, dict(entry.defaults) | further)
            found[name] = (chosen, _CHANNELS.get(method, "max_abs"))
    return found


def _with(function: Explain, options: Mapping[str, Any]) -> Explain:
    def explain(model: nn.Module, images: Tensor, target: Any) -> Any:
        return function(model, images, target, **options)

    return explain


def _with_known_maps(explain: Explain, model: nn.Module, images: Tensor, found: Tensor) -> Explain:
    """``explain``, but for these images it returns the maps already ``found``."""

    def explained_again(network: nn.Module, x: Tensor, target: Any) -> Any:
        if network is model and x.shape == images.shape and torch.equal(x, images):
            return found
        return explain(network, x, target)

    return explained_again


def _random(model: nn.Module, images: Tensor, target: Any) -> Tensor:
    """A random map seeded by the image's values, so that the same image gets the same map."""
    sums = images.double().nan_to_num(0.0, 0.0, 0.0).flatten(1).sum(1).abs()
    return _uniform_noise(images, [int(1e6 * total) % (1 << 40) for total in sums.tolist()])


def _uniform_noise(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Uniform noise [N, H, W] from these seeds."""
    drawn = [torch.rand(images.shape[2:], generator=generator(seed, 7)) for seed in seeds]
    return torch.stack(drawn).to(images.device) if drawn else images.new_zeros(0, *images.shape[2:])


def _classes(objective: Objective, count: int) -> list[int | None]:
    """The class that each image is measured for; None if the target is not a class."""
    k = getattr(objective, "k", None) if objective.as_probability() is not None else None
    if isinstance(k, Tensor):
        return [int(index) for index in k.tolist()]
    return [k] * count
