"""Applies the network and the methods of a job to batches of decoded inputs, and gives finished rows."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from fastviz import images, models
from fastviz._util import checks
from fastviz._util.errors import one_line
from fastviz._util.memory import images_at_once, is_out_of_memory
from fastviz.images import drawing, tensors
from fastviz.images.pillow import encoded
from fastviz.jobs.arguments import target_index
from fastviz.jobs.engines.decoding import Decoded
from fastviz.jobs.job import Job
from fastviz.jobs.one_pass import OnePass
from fastviz.jobs.scores import Scores
from fastviz.jobs.tables.schema import batch_of, encode_map, schema_of
from fastviz.jobs.weights_hash import weights_hash
from fastviz.methods.registry import EXPLAINERS
from fastviz.models.descriptions import Preprocessing
from fastviz.targets.objectives import Objective
from fastviz.targets.parsing import is_expression, parse_target

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SHOWN_SIZE", "THUMBNAIL", "Explainer", "enlarged"]

SHOWN_SIZE = 384
"""Shorter side of overlays, in pixels: larger than the network's input, because overlays are for people."""

THUMBNAIL = 224
"""Longer side of thumbnails, in pixels."""

_GPU_BATCH = 64
"""Batch size on a GPU, if the memory is large enough."""

_SLOW_BATCH = 8
"""The largest batch with slow methods, which an actor returns as a whole: what is lost if it dies should be little."""


@dataclass
class _Image:
    """An input and its results so far."""

    decoded: Decoded
    targets: list[int] = field(default_factory=list)
    probabilities: Tensor | None = None
    predicted: int | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class Explainer:
    """The network and the methods of a job. Its inputs and outputs can be sent between processes.

    Attributes:
        seen: the network's preprocessing.
        shown: the preprocessing of pictures for people; None if no pictures are kept.
        batch_size: images in a batch.
        schema: the schema of the rows.
        weights: a hash of all weights.
        waited: seconds that the device was idle, as counted by the engine.

    Raises:
        TypeError, ValueError: the model, a layer, a target or an option of a method does not exist or is not suitable.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.waited = 0.0
        if isinstance(job.model, nn.Module):
            self.model = job.model
            self.device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        else:
            self.device = checks.device(job.device)
            self.model = models.load_model(job.model, job.weights).to(self.device)
        self.seen = models.preprocessing(self.model)
        self.shown = enlarged(self.seen) if job.thumbnails or job.overlays else None
        size = self.seen.size or (224, 224)
        at_once = images_at_once(_GPU_BATCH, size, self.device)
        self.batch_size = job.batch_size or (min(at_once, _SLOW_BATCH) if _slow(job) else at_once)
        self._limit = self.batch_size  # reduced when memory runs out
        self.scores = Scores(self.model, self.device)
        self._of_classes = not isinstance(job.target, Objective) and not is_expression(str(job.target))
        self.names = self._class_names(size)
        self.target = self._target()
        self.weights = weights_hash(self.model)
        self._one_pass = self._shared(size)
        self._parameters = {name: job.parameters(name) for name in job.options}
        shapes = self._shapes(size)
        self.coarse = {name for name, shape in shapes.items() if shape is not None and tuple(shape[-2:]) != size}
        if job.map_size is not None:
            shapes = {n: None if s is None else (*s[:-2], *job.map_size) for n, s in shapes.items()}  # type: ignore[misc]
        known = list(shapes.values()) if self.seen.size is not None or job.map_size is not None else [None]
        self.schema = schema_of(job.maps, known, {"fastviz": "job"})

    def _class_names(self, size: tuple[int, int]) -> list[str] | None:
        """The class names; "class 0" and so on if they are unknown; None if the network is not a classifier."""
        try:
            return models.class_names(self.model)
        except ValueError:
            black = torch.zeros(1, len(self.seen.mean), *size)
            scores = self.scores.of(black, needed=self._of_classes)
            return None if scores is None else [f"class {index}" for index in range(scores.shape[1])]

    def _target(self) -> int | Objective | str:
        """The class to explain for all images, an objective, ``"predicted"`` or ``"label"``."""
        target = self.job.target
        if isinstance(target, Objective) or target in ("predicted", "label"):
            return target  # type: ignore[no-any-return]
        found = parse_target(str(target), self.names or [])
        assert found is not None
        return found

    def _shared(self, size: tuple[int, int]) -> OnePass | None:
        """The methods that run together with the scores of a batch; None if there are none, or if the scores have to
        come first."""
        if self.job.top_k > 1 or not (self.target == "predicted" or isinstance(self.target, int)):
            return None
        fast = {name: options for name, options in self.job.options.items() if not _runs_per_image(name)}
        found = OnePass(self.model, fast, torch.zeros(1, len(self.seen.mean), *size, device=self.device))
        return found if found.methods else None

    def _shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, ...] | None]:
        """The shape of each method's map of one image, found with an empty batch, which also checks all options."""
        none = torch.zeros(0, len(self.seen.mean), *size, device=self.device)
        target = self.target if isinstance(self.target, Objective) else torch.zeros(0, dtype=torch.int64)
        found: dict[str, tuple[int, ...] | None] = {}
        for name, options in self.job.options.items():
            maps = self._call(name, none, target, options)
            found[name] = tuple(maps.shape[1:])
        return found

    # ------------------------------------------------------------------------------------------------------- rows

    def rows(self, decoded: Sequence[Decoded]) -> Iterator[pa.RecordBatch]:
        """Finished rows of all inputs of a batch: together, or image by image if there are slow methods."""
        bad = [each for each in decoded if each.x is None]
        if bad:
            yield batch_of([self._failed(each, each.error) for each in bad], self.schema)
        good = [each for each in decoded if each.x is not None]
        for _, same in groupby(good, key=lambda each: each.x.shape):  # type: ignore[union-attr]
            yield from self._rows_of_shape(list(same))

    def _rows_of_shape(self, decoded: list[Decoded]) -> Iterator[pa.RecordBatch]:
        """Like :meth:`rows`, for images of one shape; after running out of memory, batches are smaller."""
        while decoded:
            part = decoded[: self._limit]
            try:
                found = self._prepared(part)
            except (ValueError, RuntimeError, MemoryError) as error:
                if len(part) > 1 and is_out_of_memory(error):
                    self._limit = len(part) // 2
                    continue
                decoded = decoded[len(part) :]
                if len(part) == 1:
                    yield batch_of([self._failed(part[0], one_line(error))], self.schema)
                for each in part if len(part) > 1 else ():
                    yield from self._rows_of_shape([each])
                continue
            decoded = decoded[len(part) :]
            slow = _slow(self.job)
            if not slow:
                yield self._batch(found)
                continue
            for one in found:
                for name in slow:
                    if not one.errors:
                        self._apply(name, [one])
                yield self._batch([one])

    def _prepared(self, decoded: Sequence[Decoded]) -> list[_Image]:
        """The images with their targets, and the maps of all methods that run on batches."""
        found = [_Image(each) for each in decoded]
        fast = [name for name in self.job.options if not _runs_per_image(name)]
        self._find_targets(found)
        for name in fast:
            self._apply(name, [one for one in found if not one.errors and name not in one.maps])
        return found

    def _find_targets(self, found: list[_Image]) -> None:
        """Compute the scores of each image and choose its targets; the same pass gives the maps of some methods."""
        x = self._stacked(found)
        started = time.perf_counter()
        shared = None
        if self._one_pass is not None:
            shared = self._one_pass(x, self.target if isinstance(self.target, int) else None)
        scores, maps = (self.scores.of(x, needed=self._of_classes), {}) if shared is None else shared
        maps = {name: each.detach().float().cpu() for name, each in maps.items()}
        seconds = (time.perf_counter() - started) / len(found) / max(1, len(maps))
        for at, one in enumerate(found):
            if scores is not None:
                self._choose(one, scores[at])
            for name in maps if not one.errors else ():
                self._keep(one, name, maps[name][at : at + 1], seconds)

    def _choose(self, one: _Image, scores: Tensor) -> None:
        one.probabilities = scores.double().softmax(0)
        if not one.probabilities.isfinite().all():
            one.errors[""] = "the scores of the network are not finite"
            return
        one.predicted = int(scores.argmax())
        if self.target == "predicted":
            one.targets = [one.predicted]
            if self.job.top_k > 1:
                one.targets = one.probabilities.topk(min(self.job.top_k, len(scores))).indices.tolist()
        elif self.target == "label":
            try:
                if one.decoded.label is None:
                    raise ValueError("target is the label, and the input has none")
                index = target_index(one.decoded.label.strip(), self.names or [])
                one.targets = [] if index is None else [index]
            except ValueError as error:
                one.errors[""] = str(error).replace("target", "label")
        elif isinstance(self.target, int):
            one.targets = [self.target]

    def _apply(self, name: str, found: Sequence[_Image]) -> None:
        """Add a method's maps. If a batch fails, each image is tried alone, and those that fail get the error."""
        if not found:
            return
        started = time.perf_counter()
        try:
            maps = self._call(name, self._stacked(found), self._targets_of(found), self.job.options[name])
            maps = maps.detach().float().cpu()  # the copy waits for the GPU, so the time includes its work
        except (ValueError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and len(found) > 1:
                raise
            if len(found) == 1:
                found[0].errors[name] = one_line(error)
                return
            for one in found:
                self._apply(name, [one])
            return
        seconds = (time.perf_counter() - started) / len(found)
        for at, one in enumerate(found):
            self._keep(one, name, maps[at : at + 1], seconds)

    def _keep(self, one: _Image, name: str, maps: Tensor, seconds: float) -> None:
        """Store the maps [1, ...] or [1, T, ...] of an image as [T, ...]."""
        maps = maps.detach().float().cpu()
        if not maps.isfinite().all():
            one.errors[name] = "the map is not finite"
            return
        one.maps[name] = maps[0] if len(one.targets) > 1 else maps
        one.seconds[name] = seconds

    def _call(self, name: str, x: Tensor, target: Any, options: dict[str, Any]) -> Tensor:
        found = EXPLAINERS[name].function(self.model, x, target, **options)
        return found if isinstance(found, Tensor) else found.attribution

    def _stacked(self, found: Sequence[_Image]) -> Tensor:
        return torch.stack([one.decoded.x for one in found if one.decoded.x is not None]).to(self.device)

    def _targets_of(self, found: Sequence[_Image]) -> Any:
        if isinstance(self.target, Objective):
            return self.target
        chosen = torch.tensor([one.targets for one in found], device=self.device)
        return chosen if chosen.shape[1] > 1 else chosen[:, 0]

    # ---------------------------------------------------------------------------------------------------- as a table

    def _batch(self, found: Sequence[_Image]) -> pa.RecordBatch:
        return batch_of([row for one in found for row in self._rows_of(one)], self.schema)

    def _failed(self, decoded: Decoded, error: str) -> dict[str, Any]:
        """The row of an input for which everything failed."""
        item = decoded.item
        row: dict[str, Any] = {"id": item.id, "uri": item.uri, "source": item.place.source, "hash": decoded.digest}
        row |= dict(zip(("bytes", "modified", "changed"), item.stamp, strict=True))
        return row | {"label": decoded.label, "status": "failed", "error": error}

    def _rows_of(self, one: _Image) -> list[dict[str, Any]]:
        if "" in one.errors:
            return [self._failed(one.decoded, one.errors[""])]
        same = self._failed(one.decoded, "") | {"status": "ok", "error": None}
        if one.predicted is not None and one.probabilities is not None and self.names is not None:
            same["predicted"], same["predicted_name"] = one.predicted, self.names[one.predicted]
            same["predicted_probability"] = float(one.probabilities[one.predicted])
        found = []
        for rank, target in enumerate(one.targets or [None]):
            for name in self.job.options:
                row = same | {"method": name, "parameters": self._parameters[name]}
                row |= self._target_columns(one, target)
                if name in one.maps:
                    row |= self._map_columns(one, name, one.maps[name][rank])
                else:
                    row |= {"status": "failed", "error": one.errors.get(name, "another method failed")}
                found.append(row)
        if self.job.thumbnails and one.decoded.shown is not None:
            found[0]["thumbnail"] = _jpeg(one.decoded.shown, THUMBNAIL)
        return found

    def _target_columns(self, one: _Image, target: int | None) -> dict[str, Any]:
        if target is None:
            return {"target_name": self.job.target if isinstance(self.job.target, str) else repr(self.job.target)}
        name = None if self.names is None else self.names[target]
        probability = None if one.probabilities is None else float(one.probabilities[target])
        return {"target": target, "target_name": name, "probability": probability}

    def _map_columns(self, one: _Image, name: str, found: Tensor) -> dict[str, Any]:
        row: dict[str, Any] = {"seconds": one.seconds[name]}
        if self.job.overlays and one.decoded.shown is not None:
            photo = one.decoded.shown.float() / 255
            picture = drawing.draw(EXPLAINERS[name].draws, found, photo, coarse=name in self.coarse)
            row["overlay"] = _jpeg(tensors.eight_bits(picture), max(picture.shape[-2:]))
        if self.job.map_size is not None:
            found = tensors.resize_maps(found[None], *self.job.map_size)[0]  # type: ignore[misc]
        if self.job.maps != "none":
            stored, scale, zero = encode_map(found.numpy(), self.job.maps)
            row |= {"map": stored, "map_shape": list(found.shape), "map_scale": scale, "map_zero": zero}
        return row


def _slow(job: Job) -> list[str]:
    """The methods of a job that run on one image at a time."""
    return [name for name in job.options if _runs_per_image(name)]


def _runs_per_image(name: str) -> bool:
    """Whether a method runs on one image at a time: those that can show their progress take many forward passes, and
    each image should be saved as soon as it is done. So do all that draw random numbers, which would give an image
    different numbers at another place in the batch."""
    return "progress" in inspect.signature(EXPLAINERS[name].function).parameters


def _jpeg(picture: Tensor, size: int) -> bytes:
    """A uint8 picture [3, H, W] as JPEG, its longer side at most ``size`` pixels."""
    shown = images.picture_of(picture)
    shown.thumbnail((size, size), Image.Resampling.LANCZOS)
    return encoded(shown, "JPEG", quality=88)


def enlarged(seen: Preprocessing) -> Preprocessing:
    """The same crop as ``seen``, at a higher resolution for people and with values in 0 to 1."""
    plain = replace(seen, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if seen.size is None:
        return replace(plain, resize=SHOWN_SIZE)
    scale = max(1.0, SHOWN_SIZE / min(seen.size))
    height, width = (round(side * scale) for side in seen.size)
    return replace(plain, size=(height, width), resize=None if seen.resize is None else round(seen.resize * scale))
