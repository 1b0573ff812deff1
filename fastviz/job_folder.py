"""The folder of a job on disk: its settings, its results, and what of them a later run may keep.

It holds ``settings.json``, ``results.jsonl`` (one line for a photograph and method), ``inputs/NAME.png`` (what the
network saw), ``overlays/NAME.METHOD.png`` and ``arrays/NAME.npz`` (the maps of all methods).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fastviz.images import whole_file

__all__ = ["PARTS", "JobFolder", "Photo", "Result", "Settings", "read_results"]

PARTS = ("overlays", "arrays", "inputs")
"""Names of the folders of files inside a job's folder."""

_SETTINGS, _RESULTS = "settings.json", "results.jsonl"
_FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a job; a run that goes on in a folder must have the same.

    ``model`` and ``weights`` as :func:`fastviz.load_model` takes them; ``methods`` are names of the registry;
    ``target`` is ``"predicted"``, a class index or a class name; ``layer``, ``window`` and ``stride`` (pixels) go to
    the methods that take them, None is each method's default.
    """

    model: str
    weights: str | None = None
    methods: tuple[str, ...] = ("saliency", "guided_backprop", "grad_cam", "occlusion")
    target: str = "predicted"
    layer: str | None = None
    window: int | None = None
    stride: int | None = None

    def fingerprint(self) -> dict[str, object]:
        """The settings as JSON values, a weights file by its content (SHA-256) so that it may be moved."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        weights = None if self.weights is None else Path(self.weights).expanduser()
        if weights is not None and weights.is_file():
            digest = hashlib.sha256()
            with weights.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            values["weights"] = f"sha256:{digest.hexdigest()}"
        return values


@dataclass(frozen=True)
class Result:
    """One line of ``results.jsonl``: what one method made of one photograph.

    ``probability`` (0 to 1, softmax) is the target's; ``seconds`` is the photograph's share of its batch; ``overlay``,
    ``arrays`` and ``photo`` are paths relative to the job's folder; ``source``, ``bytes`` and ``modified`` (ns since
    1970) tell whether the photograph is still the one that was explained.
    """

    file: str
    method: str
    target: int
    class_name: str
    probability: float
    predicted: int
    predicted_class_name: str
    predicted_probability: float
    seconds: float
    overlay: str
    arrays: str
    photo: str
    source: str
    bytes: int
    modified: int


@dataclass(frozen=True)
class Photo:
    """A photograph to explain: its path, its name in reports, what identifies it, and the stem of its output files."""

    path: Path
    name: str
    source: str
    bytes: int
    modified: int
    stem: str = ""


def read_results(out: str | os.PathLike[str]) -> Iterator[list[Result]]:
    """The results in a job's folder, a list for each photograph (one result a method), in the order of the file.

    One photograph is in memory at a time. A line cut off by a crash is left out.
    """
    group: list[Result] = []
    for result in _results(Path(out)):
        if group and result.source != group[0].source:
            yield group
            group = []
        group.append(result)
    if group:
        yield group


def _results(out: Path) -> Iterator[Result]:
    """The results in a job's folder, line by line."""
    try:
        file = (out / _RESULTS).open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            with suppress(ValueError, TypeError):
                yield Result(**json.loads(line))


def _lines(results: Iterable[Result]) -> bytes:
    return "".join(json.dumps(asdict(result)) + "\n" for result in results).encode()


class JobFolder:
    """The folder of a job: what is done in it, and how results are added.

    Raises:
        OSError: it cannot be written.
        ValueError: it has files of the same names that fastviz did not make, or results of other settings (unless
            ``overwrite``, which removes them when the first new ones are there).
    """

    def __init__(self, out: Path, settings: Settings, *, overwrite: bool) -> None:
        self.out = out
        self._methods = list(settings.methods)
        self._settings = settings.fingerprint()
        there = out
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(f"out: {there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"out: {there} cannot be written: permission denied")
        found = self._found_settings()
        self._fresh = found is None or overwrite
        if found is not None and not overwrite and found != self._settings:
            others = [key for key, value in self._settings.items() if found.get(key) != value]
            raise ValueError(
                f"out: {out} holds results made with other settings ({', '.join(others) or 'of another version'}); "
                "give another folder, or --overwrite to replace them"
            )

    def _found_settings(self) -> dict[str, object] | None:
        """The settings of the job that is already in the folder; None if there is none."""
        occupied = [name for name in (_SETTINGS, _RESULTS, *PARTS) if (self.out / name).exists()]
        if not occupied:
            return None
        try:
            found = json.loads((self.out / _SETTINGS).read_bytes())
            if found["fastviz"] == _FORMAT and isinstance(found["settings"], dict):
                return dict(found["settings"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            pass
        raise ValueError(f"out: {self.out} has {' and '.join(occupied)} that fastviz did not make; give another folder")

    def start(self, photos: Sequence[Photo]) -> tuple[list[Photo], int]:
        """The photographs still to do, with their stems, and the number that are done.

        Lines that no longer hold (a photograph that changed, files that are gone) are dropped.
        """
        if self._fresh:
            return _named(photos, {}), 0
        asked = {photo.source: photo for photo in photos}
        kept: dict[str, str] = {}
        length = 0
        for group in read_results(self.out):
            if self._holds(group, asked.get(group[0].source)):
                length += len(_lines(group))
                kept[group[0].source] = Path(group[0].photo).relative_to("inputs").with_suffix("").as_posix()
        results = self.out / _RESULTS
        if results.exists() and results.stat().st_size != length:
            with whole_file(results) as file:
                for group in read_results(self.out):
                    if group[0].source in kept:
                        file.write(_lines(group))
        todo = [photo for photo in photos if photo.source not in kept]
        return _named(todo, kept), len(photos) - len(todo)

    def _holds(self, group: list[Result], photo: Photo | None) -> bool:
        """Whether every method is there with its files, and the photograph has not changed since."""
        if [result.method for result in group] != self._methods:
            return False
        if photo is not None and (photo.bytes, photo.modified) != (group[0].bytes, group[0].modified):
            return False
        files = {path for result in group for path in (result.overlay, result.arrays, result.photo)}
        return all((self.out / path).is_file() for path in files)

    def prepare(self) -> None:
        """Make the folder and empty it of an earlier job: when the first results come, so a failed start leaves it."""
        if not self._fresh:
            return
        for name in PARTS:
            shutil.rmtree(self.out / name, ignore_errors=True)
        (self.out / _RESULTS).unlink(missing_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        with whole_file(self.out / _SETTINGS) as file:
            file.write(json.dumps({"fastviz": _FORMAT, "settings": self._settings}, indent=2).encode() + b"\n")
        self._fresh = False

    def append(self, results: Sequence[Result]) -> None:
        """Add the lines of one photograph, all or none."""
        data = _lines(results)
        path = self.out / _RESULTS
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            except BaseException:
                file.truncate(end)
                raise


def _named(photos: Sequence[Photo], kept: Mapping[str, str]) -> list[Photo]:
    """``photos`` with stems that differ from each other and from those in ``kept``."""
    # Case is folded because a.jpg and A.png would share their files on macOS and Windows.
    taken = {stem.casefold() for stem in kept.values()}
    named = []
    for photo in photos:
        stem = first = Path(photo.name).with_suffix("").as_posix()
        number = 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{first}-{number}"
        taken.add(stem.casefold())
        named.append(replace(photo, stem=stem))
    return named
