"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastviz._util.files import whole_file


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append((os.fstat(handle).st_size, (tmp_path / "a.bin").exists()))
    )
    with whole_file(tmp_path / "a.bin") as stream:
        stream.write(b"four")
    assert flushed == [(4, False)]
    assert (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with whole_file(tmp_path / "a.bin") as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(tmp_path) == []
    with whole_file(tmp_path / "a.bin") as stream, whole_file(tmp_path / "b.bin") as other:
        stream.write(b"all")
        other.write(b"more")
    assert (tmp_path / "a.bin").read_bytes() == b"all"
    assert (tmp_path / "b.bin").read_bytes() == b"more"
