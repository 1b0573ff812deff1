"""The folder of a job: the names in it, its description, and whether a run may go on there.

It holds ``job.json`` (what was asked for), ``part-00000.parquet`` and so on (the rows), and ``stats.json`` (what the
last run took). Pages and sheets stand beside them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastviz._util import output_folder
from fastviz._util.files import whole_file

__all__ = [
    "JOB",
    "SCHEMA_VERSION",
    "STATS",
    "check",
    "clear",
    "differences",
    "is_own_picture",
    "next_number",
    "part_path",
    "parts",
    "read_job",
    "write_json",
]

JOB, STATS = "job.json", "stats.json"

SCHEMA_VERSION = 1

_PART = re.compile(r"part-(\d{5,})\.parquet")

# What pages and sheets are made of: folders, and files that begin so.
_PICTURES, _SHEETS = "report_files", "contact_sheet"


def parts(out: str | os.PathLike[str]) -> list[Path]:
    """The parts in a job's folder, in the order of their numbers."""
    try:
        names = os.listdir(out)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), name) for name in names if (match := _PART.fullmatch(name))]
    return [Path(out, name) for _, name in sorted(found)]


def part_path(out: Path, number: int) -> Path:
    """The path of the part with this number."""
    return out / f"part-{number:05d}.parquet"


def next_number(out: Path) -> int:
    """The number of the next part."""
    return max((int(path.stem.removeprefix("part-")) for path in parts(out)), default=-1) + 1


def read_job(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The description of the job in a folder.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    path = Path(out) / JOB
    try:
        found = json.loads(path.read_bytes())
        if found["fastviz_job"] == SCHEMA_VERSION and isinstance(found["settings"], dict):
            return dict(found)
    except FileNotFoundError:
        raise ValueError(f"out: {os.fspath(out)} holds no job (there is no {JOB})") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(f"out: {path} is damaged or of another version of fastviz")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    if path.is_dir():
        output_folder.remove(path)
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=2, default=str).encode() + b"\n")


def check(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether a run begins anew in ``out``; False goes on with what is there.

    Raises:
        OSError: it cannot be written.
        ValueError: it holds results of other settings, of unknown ones, or files that fastviz did not make.
    """
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"out: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"out: {there} cannot be written: permission denied")
    ours = parts(out)
    if not ours and not os.path.lexists(out / JOB):
        return True
    try:
        found = read_job(out)["settings"]
    except ValueError as error:
        if not any(_is_part(path) for path in ours):
            named = ", ".join(path.name for path in [out / JOB, *ours[:2]] if os.path.lexists(path))
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


def differences(there: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two settings, in words: ``methods.occlusion.window: 8 there, 16 now``.

    >>> differences({"target": "cat", "top_k": 1}, {"target": "dog", "top_k": 1})
    ["target: 'cat' there, 'dog' now"]
    """
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [*there, *(key for key in now if key not in there)]
        return [
            words
            for key in keys
            for words in differences(there.get(key, "none"), now.get(key, "none"), f"{name}.{key}" if name else key)
        ]
    return [] if there == now else [f"{name}: {_short(there)} there, {_short(now)} now"]


def clear(out: Path) -> None:
    """Remove an earlier job."""
    for path in (*parts(out), out / JOB, out / STATS):
        output_folder.remove(path)


def is_own_picture(path: str, out: Path) -> bool:
    """Whether the absolute ``path`` is a picture that fastviz wrote into the job's folder."""
    home = os.path.abspath(out)
    return path.startswith((os.path.join(home, _PICTURES) + os.sep, os.path.join(home, _SHEETS)))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "other options" if value else "no options"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _is_part(path: Path) -> bool:
    """Whether a file of a part's name has a part's columns, or is a damaged one."""
    import pyarrow as pa
    from pyarrow import parquet

    with suppress(OSError, pa.ArrowInvalid):
        return {"id", "method", "status"} <= set(parquet.read_schema(path).names)
    return False


def _was_job(path: Path) -> bool:
    with suppress(OSError):
        return b'"fastviz_job"' in path.read_bytes()[:4000]
    return False
