"""The build's record, read at import: whether the native libraries exist and were built from these sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["source_hash"]


def source_hash(folder: Path, *, cuda: bool) -> str:
    """One hash over the native sources in ``folder``, without the tests and, if not ``cuda``, without its kernels."""
    skipped = {"tests"} if cuda else {"tests", "cuda"}
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in {".h", ".cuh", ".cpp", ".cu"} and not skipped.intersection(name.parts):
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
