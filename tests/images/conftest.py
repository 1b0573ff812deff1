"""A folder of image files for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of empty files; finding reads none."""
    for name in (
        "10.png", "9.PNG", "b.jpg", "A.jpeg", "notes.txt", ".hidden.png", "deep/er/2.gif", "deep/1.webp",
        ".thumbnails/t.png", "other/b.jpg", "with space/ü.tif",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path
