"""The folder of a job on disk: its settings, its results, and what of them a later run may keep.

It holds ``settings.json``, ``results.jsonl`` (one line for a photograph and method), ``inputs/NAME.png`` (what the
network saw), ``overlays/NAME.METHOD.png`` and ``arrays/NAME.npz`` (the maps of all methods).
"""

from __future__ import annotations

import errno
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from fastviz._util import output_folder
from fastviz._util.files import whole_file
from fastviz.images import paths
from fastviz.images.paths import Identity

__all__ = ["PARTS", "SHEETS", "JobFolder", "Photo", "Result", "Settings", "is_whole", "read_results"]

PARTS = ("overlays", "arrays", "inputs")
"""Names of the folders of files inside a job's folder."""

SHEETS = "contact_sheet*.png"
"""The pattern of the names of a job's contact sheets."""

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
            values["weights"] = f"sha256:{paths.digest(weights)}"
        return values


@dataclass(frozen=True)
class Result:
    """One line of ``results.jsonl``: what one method made of one photograph.

    ``probability`` (0 to 1, softmax) is the target's; ``seconds`` is the photograph's share of its batch; ``overlay``,
    ``arrays`` and ``photo`` are paths relative to the job's folder; ``source``, ``bytes``, ``modified``, ``changed``
    (ns since 1970) and ``digest`` tell whether the photograph is still the one that was explained, see
    :class:`fastviz.images.paths.Identity`.
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
    changed: int = 0
    digest: str = ""

    @property
    def files(self) -> tuple[str, str, str]:
        """The paths of its files."""
        return self.photo, self.arrays, self.overlay

    @property
    def identity(self) -> Identity:
        """Of the photograph, as it was."""
        return Identity(self.bytes, self.modified, self.changed, self.digest)


@dataclass(frozen=True)
class Photo:
    """A photograph to explain: its path, its name in reports, its absolute path, and the stem of its output files."""

    path: Path
    name: str
    source: str
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
    """The results in a job's folder, line by line; what is no result is left out."""
    try:
        file = (out / _RESULTS).open("rb")
    except (FileNotFoundError, IsADirectoryError):
        return
    with file:
        for line in file:
            with suppress(ValueError, TypeError, RecursionError):
                result = Result(**json.loads(line))
                if _is_sound(result):
                    yield result


_TYPES = {"str": (str,), "int": (int,), "float": (int, float)}


def _is_sound(result: Result) -> bool:
    """Whether every value has its type, and every path lies in the folder that it should lie in."""
    if not all(isinstance(getattr(result, each.name), _TYPES[str(each.type)]) for each in fields(Result)):
        return False
    paths = zip(map(PurePosixPath, result.files), ("inputs", "arrays", "overlays"), strict=True)
    return all(path.parts[:1] == (part,) and len(path.parts) > 1 and ".." not in path.parts for path, part in paths)


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
        self._overwrite = overwrite
        there = out
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(f"out: {there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"out: {there} cannot be written: permission denied")
        self._check()

    def _check(self) -> None:
        """Refuse what the folder holds, or know whether to go on with it."""
        found = self._found_settings()
        self._fresh = found is None or self._overwrite
        if found is None or self._overwrite or found == self._settings:
            return
        if not found:
            raise ValueError(
                f"out: {self.out} holds results, and their {_SETTINGS} is missing, damaged or of another version; give "
                "another folder, or --overwrite to replace them"
            )
        others = [key for key, value in self._settings.items() if found.get(key) != value]
        raise ValueError(
            f"out: {self.out} holds results made with other settings ({', '.join(others) or 'of another version'}); "
            "give another folder, or --overwrite to replace them"
        )

    def _found_settings(self) -> dict[str, object] | None:
        """The settings of the job in the folder, empty where they are damaged; None if there is no job."""
        occupied = [name for name in (_SETTINGS, _RESULTS, *PARTS) if os.path.lexists(self.out / name)]
        if not occupied:
            return None
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            found = json.loads((self.out / _SETTINGS).read_bytes())
            if found["fastviz"] == _FORMAT and isinstance(found["settings"], dict):
                return dict(found["settings"])
        if self._has_results():
            return {}
        raise ValueError(f"out: {self.out} has {' and '.join(occupied)} that fastviz did not make; give another folder")

    def _has_results(self) -> bool:
        """Whether a line or a file of arrays is there that can only come from a job: what it stands in may be replaced.

        Folders called "inputs", or a settings.json, may be anybody's.
        """
        if next(_results(self.out), None) is not None:
            return True
        arrays = self.out / "arrays"
        for path in islice(arrays.rglob("*.npz") if arrays.is_dir() else (), 100):
            with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
                if {"photograph.npy", "target.npy", "class_name.npy"} <= set(file.namelist()):
                    return True
        return False

    def locked(self) -> AbstractContextManager[None]:
        """The folder for this run alone, see :func:`fastviz._util.output_folder.locked`."""
        return output_folder.locked(self.out, PARTS)

    def start(self, photos: Sequence[Photo]) -> tuple[list[Photo], int]:
        """The photographs still to do, with their stems, and the number that are done.

        Lines that no longer hold are dropped with their files: the photograph changed or is gone, its files are gone or
        broken, or another line says the same.
        """
        self._check()  # another run may have ended since
        if self._fresh:
            return _named(photos, {}), 0
        if (self.out / _RESULTS).is_dir():
            output_folder.remove(self.out / _RESULTS)
        asked = {photo.source: photo for photo in photos}
        kept: dict[str, str] = {}
        verdicts: list[Identity | None] = []
        dropped: set[str] = set()
        length, touched = 0, False
        for group in read_results(self.out):
            first = group[0]
            now = None if first.source in kept else self._still(group, asked.get(first.source))
            verdicts.append(now)
            if now is None:
                dropped.update(path for result in group for path in result.files)
                continue
            length += len(_lines(group))
            touched |= now != first.identity
            kept[first.source] = PurePosixPath(first.photo).relative_to("inputs").with_suffix("").as_posix()
        results = self.out / _RESULTS
        if results.exists() and (touched or results.stat().st_size != length):
            self._rewrite(verdicts, dropped)
        todo = [photo for photo in photos if photo.source not in kept]
        return _named(todo, kept), len(photos) - len(todo)

    def _rewrite(self, verdicts: Sequence[Identity | None], dropped: set[str]) -> None:
        """Write the lines that hold anew, and remove the files of those that do not."""
        with whole_file(self.out / _RESULTS) as file:
            for group, now in zip(read_results(self.out), verdicts, strict=True):
                if now is not None:
                    file.write(_lines(replace(result, **asdict(now)) for result in group))
                    dropped.difference_update(path for result in group for path in result.files)
        for path in dropped:
            with suppress(OSError):
                (self.out / path).unlink()

    def _still(self, group: list[Result], photo: Photo | None) -> Identity | None:
        """What identifies the photograph of lines that hold: all methods and files are there, it has not changed."""
        if [result.method for result in group] != self._methods or len({result.identity for result in group}) > 1:
            return None
        if not all(is_whole(self.out / path) for path in {path for result in group for path in result.files}):
            return None
        return group[0].identity.still(Path(group[0].source) if photo is None else photo.path)

    def prepare(self) -> None:
        """Make the folder and empty it of an earlier job: when the first results come, so a failed start leaves it."""
        if not self._fresh:
            return
        for name in (*PARTS, _RESULTS, _SETTINGS):
            output_folder.remove(self.out / name)
        for sheet in self.out.glob(SHEETS):
            output_folder.remove(sheet)
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


def is_whole(path: Path) -> bool:
    """Whether a picture (.png) or a file of arrays (.npz) is there and has its end."""
    try:
        with path.open("rb") as file:
            file.seek(-22, os.SEEK_END)
            end = file.read()
    except OSError:  # not there, a folder, or shorter
        return False
    return end.startswith(b"PK\5\6") if path.suffix == ".npz" else end.endswith(b"IEND\xaeB`\x82")


def _named(photos: Sequence[Photo], kept: Mapping[str, str]) -> list[Photo]:
    """``photos`` with stems that differ from each other and from those in ``kept``."""
    stems = output_folder.unique_names(
        [PurePosixPath(photo.name).with_suffix("").as_posix() for photo in photos], kept.values()
    )
    return [replace(photo, stem=stem) for photo, stem in zip(photos, stems, strict=True)]
