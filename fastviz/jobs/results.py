"""The settings and the results of a job, as they stand in its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path, PurePosixPath

from fastviz.images import paths
from fastviz.images.paths import Identity

__all__ = [
    "PARTS",
    "RESULTS_FILE",
    "SETTINGS_FILE",
    "SHEETS",
    "Photo",
    "Result",
    "Settings",
    "is_whole",
    "lines_of",
    "paged",
    "read_results",
    "result_lines",
]

PARTS = ("overlays", "arrays", "inputs")
"""Names of the folders of files inside a job's folder."""

SHEETS = "contact_sheet*.png"
"""The pattern of the names of a job's contact sheets."""

SETTINGS_FILE, RESULTS_FILE = "settings.json", "results.jsonl"


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

    Args:
        out: the folder of a job; one without results, or none at all, gives nothing.

    Returns:
        An iterator of lists.

    >>> list(read_results("no such folder"))
    []
    """
    group: list[Result] = []
    for result in result_lines(Path(out)):
        if group and result.source != group[0].source:
            yield group
            group = []
        group.append(result)
    if group:
        yield group


def result_lines(out: Path) -> Iterator[Result]:
    """The results in a job's folder, line by line; what is no result is left out."""
    try:
        file = (out / RESULTS_FILE).open("rb")
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


def lines_of(results: Iterable[Result]) -> bytes:
    """``results`` as lines of ``results.jsonl``."""
    return "".join(json.dumps(asdict(result)) + "\n" for result in results).encode()


def is_whole(path: Path) -> bool:
    """Whether a picture (.png) or a file of arrays (.npz) is there and has its end."""
    try:
        with path.open("rb") as file:
            file.seek(-22, os.SEEK_END)
            end = file.read()
    except OSError:  # not there, a folder, or shorter
        return False
    return end.startswith(b"PK\5\6") if path.suffix == ".npz" else end.endswith(b"IEND\xaeB`\x82")


def paged(out: Path, size: int) -> Iterator[list[list[Result]]]:
    """The results in ``out``, ``size`` photographs at a time."""
    groups = read_results(out)
    while page := list(islice(groups, size)):
        yield page
