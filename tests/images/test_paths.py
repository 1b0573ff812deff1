"""Which image files a path, a folder or a pattern means."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastviz import images
from tests.images.common import found


def test_folders_are_searched_in_natural_order(folder: Path) -> None:
    expected = [
        "9.PNG", "10.png", "A.jpeg", "b.jpg", "deep/1.webp", "deep/er/2.gif", "other/b.jpg", "with space/ü.tif",
    ]  # fmt: skip
    assert found(folder, folder) == expected
    assert found(str(folder), folder) == expected
    assert found([folder / "deep", folder / "b.jpg", folder], folder) == [
        "deep/1.webp", "deep/er/2.gif", "b.jpg", "9.PNG", "10.png", "A.jpeg", "other/b.jpg", "with space/ü.tif",
    ]  # fmt: skip


def test_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(f"{folder}/*.jp*g", folder) == ["A.jpeg", "b.jpg"]
    assert found(f"{folder}/**/*.jpg", folder) == ["b.jpg", "other/b.jpg"]
    assert found(f"{folder}/deep*", folder) == ["deep/1.webp", "deep/er/2.gif"]
    assert found(f"{folder}/[0-9]*", folder) == ["9.PNG", "10.png"]
    monkeypatch.setenv("HOME", str(folder))
    assert found("~/dee?/*.webp", folder) == ["deep/1.webp"]
    monkeypatch.chdir(folder)
    assert images.find_images("deep") == [Path("deep/1.webp"), Path("deep/er/2.gif")]


def test_a_file_may_be_called_anything_and_is_found_once(folder: Path) -> None:
    assert found([folder / "notes.txt", folder / "notes.txt"], folder) == ["notes.txt"]
    (folder / "photo[1].jpg").touch()
    assert found(f"{folder}/photo[1].jpg", folder) == ["photo[1].jpg"]


def test_links_to_folders_are_followed_once(folder: Path) -> None:
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "deep" / "copy").symlink_to(folder / "with space")
    (folder / "deep" / "other").symlink_to(folder / "other")
    assert found(folder / "deep", folder) == [
        "deep/1.webp", "deep/copy/ü.tif", "deep/er/2.gif", "deep/other/b.jpg",
        "deep/up/9.PNG", "deep/up/10.png", "deep/up/A.jpeg", "deep/up/b.jpg",
    ]  # fmt: skip


def test_nothing_found(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"paths should hold at least one image, got none in '.*empty'"):
        images.find_images(folder / "empty")
    with pytest.raises(ValueError, match=r"got none in '.*\*\.bmp', '.*empty'"):
        images.find_images([f"{folder}/*.bmp", folder / "empty"])
    with pytest.raises(ValueError, match="got none in no paths"):
        images.find_images([])
    with pytest.raises(ValueError, match=r"paths should exist, got '.*/nowhere'"):
        images.find_images(folder / "nowhere")
    with pytest.raises(ValueError, match="paths should not hold an empty path"):
        images.find_images("")
    with pytest.raises(TypeError, match="paths should be a path or several, got int"):
        images.find_images([3])  # type: ignore[list-item]
