"""Many photographs × many methods: streamed in batches, resumable, with overlays, raw arrays and a JSON line each."""

from __future__ import annotations

import errno
import inspect
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastviz import images, models
from fastviz._util import checks
from fastviz._util.output_folder import clear_way, printable
from fastviz._util.progress import Advance, bar
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.hooks import layer_module
from fastviz.images import drawing
from fastviz.images.paths import Identity
from fastviz.images.streams import ahead
from fastviz.jobs.folder import PARTS, JobFolder, Photo, Result, Settings, read_results
from fastviz.methods import EXPLAINERS, Method
from fastviz.models.loading import Preprocessing

__all__ = [
    "Interrupted",
    "Result",
    "Settings",
    "Summary",
    "choose_device",
    "choose_methods",
    "explain",
    "read_results",
    "target_index",
]

SHOWN_SIZE = 384
"""Shorter side of the pictures that are written, in pixels: a person sees more than the network's 224 or 64."""

# What a file system says of names that it cannot have: no reason to lose the other photographs.
_BAD_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

_BATCH = 8
_READERS, _WRITERS = 4, 2


@dataclass
class Summary:
    """What a job did: counts of photographs, failures as (file, reason), seconds spent by method and in all."""

    done: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a job; ``summary`` says what was done until then."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


def explain(
    photos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    model: nn.Module | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Maps of every photograph by every method, as files in the folder ``out``; the summary of what was done.

    A few batches are in memory at a time, however many photographs there are. Results that ``out`` already holds (same
    settings, same photograph by its content) are kept and not computed again; those of photographs that are gone are
    removed. When the call is interrupted, every photograph that has its lines in ``results.jsonl`` has all its files,
    complete; what was damaged since is made again.

    Args:
        photos: files, folders and globs, see :func:`fastviz.images.find_images`.
        out: the folder to write, made if need be: see :mod:`fastviz.jobs.folder` for what is in it.
        settings: model, methods and target.
        model: the network to use instead of loading ``settings.model``; it stays on its device.
        device: where a loaded network runs: ``"auto"`` (a GPU if torch can use one), ``"cpu"``, ``"cuda"``, …
        batch_size: photographs in a forward pass, and for methods that run many passes a photograph (occlusion) passes
            at once; None is 8 photographs and each method's default.
        limit: explain only the first so many photographs; None for all.
        overwrite: replace what ``out`` holds instead of going on.
        progress: show a bar on a terminal.

    Raises:
        TypeError, ValueError: bad settings, an unknown name, no photographs, an ``out`` with other results, or into
            which another run is writing. Nothing has been written then.
        Interrupted: Ctrl-C, a KeyboardInterrupt with the summary.
        OSError: ``out`` cannot be written. A photograph that cannot be read is a failure in the summary instead.
    """
    start = time.perf_counter()
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    if limit is not None:
        checks.whole_number(limit, "limit", minimum=1)
    methods = choose_methods(settings.methods)
    settings = replace(settings, methods=tuple(method.name for method in methods))
    options = _options(methods, settings, batch_size)
    place = choose_device(device)
    folder = JobFolder(Path(out), settings, overwrite=overwrite)
    found = _find(photos, Path(out))[:limit]
    if model is None:
        model = models.load_model(settings.model, settings.weights).to(place)
    if settings.layer is not None:
        layer_module(model, settings.layer)
    explainer = _Explainer(model, methods, options, settings.target)

    summary = Summary(seconds={method.name: 0.0 for method in methods})
    try:
        with folder.locked():
            todo, summary.skipped = folder.start(found)
            done = summary.skipped * len(methods)
            with bar(progress, len(found) * len(methods), done=done, unit="maps") as explainer.advance:
                _run(explainer, folder, todo, batch_size or _BATCH, summary)
    except KeyboardInterrupt:
        raise Interrupted(summary) from None
    finally:
        summary.total_seconds = time.perf_counter() - start
    return summary


# ---------------------------------------------------------------------------------------------------- arguments


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``"auto"`` is the first GPU that torch can use, else the CPU.

    Raises:
        ValueError: not a device name, or one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device should be auto, cpu, cuda or cuda:INDEX, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device {name!r} is not there: torch can use {count} GPUs (`fastviz info` says why)")
    return device


def choose_methods(names: Iterable[str]) -> list[Method]:
    """The methods of the registry called ``names``, each once, in that order.

    Raises:
        ValueError: an unknown name (the nearest are listed), or none at all.
    """
    chosen = list(dict.fromkeys(checks.nearest(name, "method", EXPLAINERS) for name in names))
    if not chosen:
        raise ValueError(f"methods should be one or more of {', '.join(EXPLAINERS)}, got none")
    return [EXPLAINERS[name] for name in chosen]


def target_index(target: str, names: Sequence[str]) -> int | None:
    """Index of the class that ``target`` means, where class i is called ``names[i]``; None for ``"predicted"``.

    A target of digits is an index, anything else a class name, in upper or lower case. Some names of ImageNet stand for
    two classes: those must be given by index.

    >>> target_index("Tabby Cat", ["espresso", "tabby cat"])
    1

    Raises:
        ValueError: an index out of range, an unknown name (the nearest are listed) or a name of several classes.
    """
    if target == "predicted":
        return None
    if target.removeprefix("-").isdigit():
        if not 0 <= int(target) < len(names):
            raise ValueError(f"target should be a class from 0 to {len(names) - 1} for this model, got {target}")
        return int(target)
    wanted = target.strip().casefold()
    found = [index for index, name in enumerate(names) if name.casefold() == wanted]
    if not found:
        checks.nearest(wanted, "target", ["predicted", *(name.casefold() for name in names)])
    if len(found) > 1:
        indices = " or ".join(map(str, found))
        raise ValueError(f"target {target!r} is the name of {len(found)} classes, give its index: {indices}")
    return found[0]


def _options(methods: Sequence[Method], settings: Settings, batch_size: int | None) -> dict[str, dict[str, Any]]:
    """Keyword arguments of each method: its defaults, and what ``settings`` say of the arguments it takes."""
    takes = {name: inspect.signature(method.function).parameters for name, method in EXPLAINERS.items()}
    offered: dict[str, Any] = {"layer": settings.layer, "window": settings.window, "stride": settings.stride}
    offered = {key: value for key, value in offered.items() if value is not None}
    for key in offered:
        if not any(key in takes[method.name] for method in methods):
            takers = ", ".join(name for name, parameters in takes.items() if key in parameters)
            raise ValueError(f"{key} is not an argument of the chosen methods; it is one of {takers}")
    for key in offered.keys() & {"window", "stride"}:
        checks.whole_number(offered[key], key, minimum=1)
    if batch_size is not None:
        offered["batch_size"] = batch_size
    return {
        method.name: dict(method.defaults) | {key: value for key, value in offered.items() if key in takes[method.name]}
        for method in methods
    }


def _find(photos: Sequence[str | os.PathLike[str]], out: Path) -> list[Photo]:
    """The photographs that ``photos`` name, each once, without the pictures that an earlier run wrote into ``out``."""
    home = os.path.abspath(out)
    written = (*(os.path.join(home, part) + os.sep for part in PARTS), os.path.join(home, "contact_sheet"))
    found: dict[str, Photo] = {}
    for given in photos:
        place = Path(given).expanduser()
        folder = place if place.is_dir() else None
        for path in images.find_images([given]):
            source = os.path.abspath(path)
            if source.startswith(written):
                continue
            name = path.relative_to(folder).as_posix() if folder else path.name
            found.setdefault(source, Photo(path, name, source))
    if not found:
        raise ValueError(f"photos should name at least one photograph, got only pictures that fastviz wrote into {out}")
    return list(found.values())


# ------------------------------------------------------------------------------------------------------ the run


@dataclass
class _Loaded:
    """A photograph that was read: the network's input [C, h, w], and the same crop to look at [3, H, W]."""

    photo: Photo
    identity: Identity
    x: Tensor
    shown: Tensor


@dataclass
class _Explained:
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


class _Explainer:
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

    def load(self, photo: Photo) -> _Loaded | tuple[Photo, str]:
        """The photograph read and prepared, or why it cannot be."""
        try:
            identity = Identity(0, 0, 0)
            with suppress(OSError):  # reading has better words for it
                identity = Identity.of(photo.path)
            return _Loaded(photo, identity, *images.read_views(photo.path, (self.seen, self.shown)))
        except (ValueError, OSError) as error:  # not a picture, or one that cannot be prepared
            return photo, str(error)

    def explain(self, batch: Sequence[_Loaded]) -> Iterator[_Explained | tuple[Photo, str]]:
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
                _Explained(each.photo, each.identity, each.shown, size, target, predicted, probabilities[at])
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

    def _apply(self, method: Method, x: Tensor, targets: Tensor, explained: Sequence[_Explained]) -> None:
        """Add the maps of ``method`` for the batch ``x`` to ``explained``, with the time they took."""
        start = time.perf_counter()
        found = method.function(self.model, x, targets, **self.options[method.name])
        found = found if isinstance(found, Tensor) else found.attribution
        maps = found.detach().float().cpu()  # the copy waits for the GPU, so the time is that of the work
        seconds = (time.perf_counter() - start) / len(explained)
        for each, one in zip(explained, maps, strict=True):
            each.maps[method.name], each.seconds[method.name] = one, seconds
        self.advance(len(explained), printable(explained[-1].photo.name))

    def write(self, out: Path, explained: _Explained) -> list[Result]:
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
        with images.whole_file(out / arrays) as file:
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


def _run(explainer: _Explainer, folder: JobFolder, todo: Sequence[Photo], batch_size: int, summary: Summary) -> None:
    """Explain ``todo``: threads read ahead of the network, and others write behind it."""
    readers, writers = ThreadPoolExecutor(_READERS), ThreadPoolExecutor(_WRITERS)
    pending: deque[tuple[Photo, Future[list[Result]]]] = deque()

    def store(keep: int) -> None:
        while len(pending) > keep:
            photo, written = pending.popleft()
            try:
                results = written.result()
            except OSError as error:
                if error.errno not in _BAD_NAMES:
                    raise
                summary.failures.append((photo.name, str(error)))  # its steps on the bar are done
                continue
            folder.append(results)
            summary.done += 1
            for result in results:
                summary.seconds[result.method] += result.seconds

    def fail(photo: Photo, reason: str) -> None:
        summary.failures.append((photo.name, reason))
        explainer.advance(len(explainer.methods), printable(photo.name))

    try:
        for batch in _batches(ahead(readers, explainer.load, todo, 2 * batch_size), batch_size, fail):
            for explained in explainer.explain(batch):
                if isinstance(explained, tuple):
                    fail(*explained)
                    continue
                folder.prepare()
                pending.append((explained.photo, writers.submit(explainer.write, folder.out, explained)))
                store(batch_size)
        store(0)
    except BaseException:
        with suppress(OSError):  # what is finished is kept, as far as it can be written
            store(0)
        raise
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _batches(
    loaded: Iterable[_Loaded | tuple[Photo, str]], size: int, fail: Callable[[Photo, str], None]
) -> Iterator[list[_Loaded]]:
    """Batches of up to ``size`` photographs of one shape; those that could not be read go to ``fail``."""
    batch: list[_Loaded] = []
    for each in loaded:
        if isinstance(each, tuple):
            fail(*each)
            continue
        if batch and (len(batch) == size or each.x.shape != batch[0].x.shape):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
