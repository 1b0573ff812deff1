"""The folder of a job: its file names, the job's description, and whether a run may resume there.

It holds ``job.json`` (the description), ``part-00000.parquet`` and so on (the rows), and ``stats.json`` (statistics of
the last run). Pages and contact sheets are written into the same folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastviz.jobs.places import Place, open_parquet, place_of, remove, whole_file
from fastviz.jobs.s3 import S3Path

__all__ = [
    "JOB",
    "SCHEMA_VERSION",
    "STATS",
    "check",
    "clear",
    "differences",
    "next_number",
    "own_pictures",
    "part_path",
    "parts",
    "read_job",
    "write_json",
]

JOB, STATS = "job.json", "stats.json"

SCHEMA_VERSION = 1

_PART = re.compile(r"part-(\d{5,})\.parquet")

# The folder of a page's pictures, and the prefix of contact sheets.
_PICTURES, _SHEETS = "report_files", "contact_sheet"


def parts(out: str | os.PathLike[str]) -> list[Any]:
    """The parts in a job's folder, in the order of their numbers."""
    home = place_of(out)
    try:
        names = [each.base_name for each in home.entries()] if isinstance(home, S3Path) else os.listdir(home)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), name) for name in names if (match := _PART.fullmatch(name))]
    return [home / name for _, name in sorted(found)]


def part_path(out: Place, number: int) -> Place:
    """The path of the part with this number."""
    return out / f"part-{number:05d}.parquet"


def next_number(out: Place) -> int:
    """The number of the next part."""
    return max((int(path.stem.removeprefix("part-")) for path in parts(out)), default=-1) + 1


def read_job(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The description of the job in a folder.

    Raises:
        ValueError: there is no description, or it is damaged or of another version.
        OSError: the server cannot be reached or refuses.
    """
    path = place_of(out) / JOB
    try:
        found = json.loads(path.read_bytes())
        if found["fastviz_job"] == SCHEMA_VERSION and isinstance(found["settings"], dict):
            return dict(found)
    except FileNotFoundError:
        raise ValueError(f"out: {os.fspath(out)} holds no job (there is no {JOB})") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(path, S3Path) and isinstance(error, OSError):
            raise  # an error of the server or the network, not of the job
    raise ValueError(f"out: {path} is damaged or of another version of fastviz")


def write_json(path: Place, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    if isinstance(path, Path) and path.is_dir():
        remove(path)
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=2, default=str).encode() + b"\n")


def check(out: Place, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether a run starts from scratch in ``out``; False means that it resumes the job there.

    Raises:
        OSError: ``out`` cannot be written.
        ValueError: it holds results with other or unknown settings, or files that fastviz did not make.
    """
    _can_be_written(out)
    ours = parts(out)
    if not ours and not _is_there(out / JOB):
        return True
    try:
        found = read_job(out)["settings"]
    except ValueError as error:
        if not any(_is_part(path) for path in ours):
            named = ", ".join(path.name for path in [out / JOB, *ours[:2]] if _is_there(path))
            if not _was_job(out / JOB):
                raise ValueError(f"out: {out} has {named} that fastviz did not make; give another folder") from None
        if overwrite:
            return True
        raise ValueError(
            f"out: {out} holds results, and their {JOB} is missing, damaged or of another version; "
            "give another folder, or --overwrite to replace them"
        ) from error
    if overwrite:
        return True
    changed = differences(found, settings)
    if changed:
        raise ValueError(
            f"out: {out} holds results made with other settings: {'; '.join(changed)}; "
            "give another folder, or --overwrite to replace them"
        )
    return False


def _can_be_written(out: Place) -> None:
    if isinstance(out, S3Path):
        if not out.root.exists():
            raise FileNotFoundError(
                f"out: bucket {out.bucket!r} does not exist or is not visible with these credentials"
            )
        return
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"out: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"out: {there} cannot be written: permission denied")


def _is_there(path: Place) -> bool:
    return path.exists() if isinstance(path, S3Path) else os.path.lexists(path)


def differences(there: Any, now: Any, name: str = "") -> list[str]:
    """The differences between two settings as text, such as ``methods.occlusion.window: 8 before, 16 now``.

    >>> differences({"target": "cat", "top_k": 1}, {"target": "dog", "top_k": 1})
    ["target: 'cat' before, 'dog' now"]
    """
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [*there, *(key for key in now if key not in there)]
        return [
            words
            for key in keys
            for words in differences(there.get(key, "none"), now.get(key, "none"), f"{name}.{key}" if name else key)
        ]
    return [] if there == now else [f"{name}: {_short(there)} before, {_short(now)} now"]


def clear(out: Place) -> None:
    """Remove an earlier job's files."""
    for path in (*parts(out), out / JOB, out / STATS):
        remove(path)


def own_pictures(out: Place) -> tuple[str, ...]:
    """How the absolute paths of the pictures begin that fastviz wrote into the job's folder."""
    home = out.url if isinstance(out, S3Path) else os.path.abspath(out)
    return os.path.join(home, _PICTURES) + os.sep, os.path.join(home, _SHEETS)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "other options" if value else "no options"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _is_part(path: Place) -> bool:
    """Whether a file that is named like a part has a part's columns."""
    import pyarrow as pa

    with suppress(OSError, pa.ArrowInvalid), open_parquet(path) as file:
        return {"id", "method", "status"} <= set(file.schema_arrow.names)
    return False


def _was_job(path: Place) -> bool:
    with suppress(OSError):
        return b'"fastviz_job"' in path.read_bytes()[:4000]
    return False
