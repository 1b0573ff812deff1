"""The network and the methods of a job, applied to one batch after another."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastviz import images, models
from fastviz._util.files import whole_file
from fastviz._util.output_folder import clear_way, printable
from fastviz._util.progress import Advance
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.images import drawing
from fastviz.images.paths import Identity
from fastviz.jobs.arguments import target_index
from fastviz.jobs.results import Photo, Result
from fastviz.methods.registry import Method
from fastviz.models.descriptions import Preprocessing

__all__ = ["SHOWN_SIZE", "Explained", "Explainer", "Loaded"]

SHOWN_SIZE = 384
"""Shorter side of the pictures that are written, in pixels: a person sees more than the network's 224 or 64."""


@dataclass
class Loaded:
    """A photograph that was read: the network's input [C, h, w], and the same crop to look at [3, H, W]."""

    photo: Photo
    identity: Identity
    x: Tensor
    shown: Tensor


@dataclass
class Explained:
    """What the methods made of a photograph, on the CPU, before it is written."""

    photo: Photo
    identity: Identity
    shown: Tensor
    size: tuple[int, ...]
    target: int
    predicted: int
    probabilities: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Explainer:
    """The model and the methods of a job, applied to one batch after another."""

    def __init__(
        self, model: nn.Module, methods: Sequence[Method], options: Mapping[str, dict[str, Any]], target: str
    ) -> None:
        self.model, self.methods, self.options = model, methods, options
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.seen = models.preprocessing(model)
        self.shown = _enlarged(self.seen)
        self.advance: Advance = lambda steps, text=None: None
        self.names = self._class_names()
        self.target = target_index(target, self.names)

    def _class_names(self) -> list[str]:
        """The names of the classes; for a network whose names are not known, "class 0", "class 1" and so on."""
        try:
            return models.class_names(self.model)
        except ValueError:
            scores = self._scores(torch.zeros(1, len(self.seen.mean), *(self.seen.size or (224, 224))))
            return [f"class {index}" for index in range(scores.shape[1])]

    def _scores(self, x: Tensor) -> Tensor:
        """Scores [N, K] of the batch ``x``, float64 on the CPU."""
        with frozen_model(self.model), torch.no_grad():
            batches = Batches(self.model)
            parts = batches(batches.run_model, x.to(self.device))
        if not all(isinstance(scores, Tensor) and scores.dim() == 2 for scores in parts):
            raise ValueError("model should return one tensor of scores [N, K]")
        return torch.cat(parts).double().cpu()

    def load(self, photo: Photo) -> Loaded | tuple[Photo, str]:
        """The photograph read and prepared, or why it cannot be."""
        try:
            identity = Identity(0, 0, 0)
            with suppress(OSError):  # reading has better words for it
                identity = Identity.of(photo.path)
            return Loaded(photo, identity, *images.read_views(photo.path, (self.seen, self.shown)))
        except (ValueError, OSError) as error:  # not a picture, or one that cannot be prepared
            return photo, str(error)

    def explain(self, batch: Sequence[Loaded]) -> Iterator[Explained | tuple[Photo, str]]:
        """What the methods make of each photograph of ``batch``, or why they cannot, each as soon as it is finished."""
        x = torch.stack([loaded.x for loaded in batch])
        probabilities = self._scores(x).softmax(1)
        finite = probabilities.isfinite().all(1)
        for at in (~finite).nonzero().flatten().tolist():
            yield batch[at].photo, "the scores of the network are not finite"
        explained = []
        for at in finite.nonzero().flatten().tolist():
            predicted = int(probabilities[at].argmax())
            target = predicted if self.target is None else self.target
            each, size = batch[at], tuple(x.shape[-2:])
            explained.append(
                Explained(each.photo, each.identity, each.shown, size, target, predicted, probabilities[at])
            )
        if not explained:
            return
        x = x[finite].to(self.device)
        targets = torch.tensor([each.target for each in explained], device=self.device)
        slow = [method for method in self.methods if _runs_many_passes(method)]
        for method in self.methods:
            if method not in slow:
                self._apply(method, x, targets, explained)
        # A sweep takes long: one photograph after another, so that each is kept when the job is interrupted.
        for at, each in enumerate(explained):
            for method in slow:
                self._apply(method, x[at : at + 1], targets[at : at + 1], [each])
            yield each

    def _apply(self, method: Method, x: Tensor, targets: Tensor, explained: Sequence[Explained]) -> None:
        """Add the maps of ``method`` for the batch ``x`` to ``explained``, with the time they took."""
        start = time.perf_counter()
        found = method.function(self.model, x, targets, **self.options[method.name])
        found = found if isinstance(found, Tensor) else found.attribution
        maps = found.detach().float().cpu()  # the copy waits for the GPU, so the time is that of the work
        seconds = (time.perf_counter() - start) / len(explained)
        for each, one in zip(explained, maps, strict=True):
            each.maps[method.name], each.seconds[method.name] = one, seconds
        self.advance(len(explained), printable(explained[-1].photo.name))

    def write(self, out: Path, explained: Explained) -> list[Result]:
        """Write the files of one photograph into ``out``; the lines that say so."""
        photo, target, predicted = explained.photo, explained.target, explained.predicted
        seen, arrays = f"inputs/{photo.stem}.png", f"arrays/{photo.stem}.npz"
        overlays = {method.name: f"overlays/{photo.stem}.{method.name}.png" for method in self.methods}
        for path in (seen, arrays, *overlays.values()):
            clear_way(out, path)
        images.save_image(explained.shown, out / seen)
        results = []
        for method in self.methods:
            found = explained.maps[method.name]
            coarse = tuple(found.shape[-2:]) != explained.size
            picture = drawing.draw(method.draws, found, explained.shown, coarse=coarse)
            images.save_image(picture, out / overlays[method.name])
            results.append(
                Result(
                    file=photo.name,
                    method=method.name,
                    target=target,
                    class_name=self.names[target],
                    probability=float(explained.probabilities[target]),
                    predicted=predicted,
                    predicted_class_name=self.names[predicted],
                    predicted_probability=float(explained.probabilities[predicted]),
                    seconds=round(explained.seconds[method.name], 6),
                    overlay=overlays[method.name],
                    arrays=arrays,
                    photo=seen,
                    source=photo.source,
                    **asdict(explained.identity),
                )
            )
        with whole_file(out / arrays) as file:
            arrays_of: dict[str, Any] = {name: found.numpy() for name, found in explained.maps.items()}
            np.savez(file, photograph=photo.name, target=target, class_name=self.names[target], **arrays_of)
        return results


def _runs_many_passes(method: Method) -> bool:
    """Whether a method runs many forward passes a photograph, which those that slide a window do."""
    return "stride" in inspect.signature(method.function).parameters


def _enlarged(seen: Preprocessing) -> Preprocessing:
    """The crop that ``seen`` makes, at a resolution to look at and in colours of 0 to 1."""
    plain = replace(seen, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if seen.size is None:
        return replace(plain, resize=SHOWN_SIZE)
    scale = max(1.0, SHOWN_SIZE / min(seen.size))
    height, width = (round(side * scale) for side in seen.size)
    return replace(plain, size=(height, width), resize=None if seen.resize is None else round(seen.resize * scale))
