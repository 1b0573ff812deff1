"""Pictures to files: rounding, formats, full disks."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from fastviz import images


@pytest.mark.parametrize("ending", [".png", ".webp", ".PNG"])
def test_saving_rounds_to_8_bits(tmp_path: Path, ending: str) -> None:
    x = torch.rand(3, 5, 7)
    images.save_image(x.requires_grad_(), tmp_path / f"a{ending}")
    assert torch.equal(images.read_image(tmp_path / f"a{ending}"), (x.detach() * 255).round() / 255)
    assert os.listdir(tmp_path) == [f"a{ending}"]
    images.save_image(torch.zeros(3, 1, 1), tmp_path / f"a{ending}")
    assert images.read_image(tmp_path / f"a{ending}").shape == (3, 1, 1)


def test_saved_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    images.save_image(torch.zeros(3, 2, 2), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_saving_jpeg(tmp_path: Path) -> None:
    x = torch.zeros(3, 32, 32)
    x[0, :, 16:] = 1
    images.save_image(x, tmp_path / "a.jpg")
    assert (images.read_image(tmp_path / "a.jpg") - x).abs().max() < 0.1


@pytest.mark.parametrize(
    ("picture", "name", "error", "message"),
    [
        (torch.zeros(1, 3, 2, 2), "a.png", ValueError, r"picture should have shape \[3, H, W\], got \[1, 3, 2, 2\]"),
        (torch.zeros(1, 2, 2), "a.png", ValueError, r"picture should have shape \[3, H, W\], got \[1, 2, 2\]"),
        (torch.full((3, 2, 2), -2.0), "a.png", ValueError, "picture should have values 0 to 1, got -2 to -2"),
        (torch.zeros(3, 2, 2), "a.tiff", ValueError, r"path should end in .png, .jpg, .jpeg, .webp, got '.*a.tiff'"),
        (torch.zeros(3, 2, 2, dtype=torch.int32), "a.png", TypeError, "picture should be .* tensor, got .*torch.int32"),
        (torch.zeros(3, 2, 2), "none/a.png", OSError, "No such file or directory: '.*none/a.png'"),
        (torch.zeros(3, 2, 2), "file/a.png", OSError, "Not a directory: '.*file/a.png'"),
        (torch.zeros(3, 2, 2), "folder.png", OSError, "Is a directory: '.*folder.png'"),
    ],
)
def test_wrong_saving(tmp_path: Path, picture: torch.Tensor, name: str, error: type[Exception], message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error, match=message):
        images.save_image(picture, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_no_space_leaves_the_older_file(tmp_path: Path) -> None:
    """The system refuses to write more than 1000 bytes, as a full disk would."""
    images.save_image(torch.zeros(3, 2, 2), tmp_path / "a.png")
    older = (tmp_path / "a.png").read_bytes()
    noise = torch.rand(3, 64, 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*a.png'") as caught:
            images.save_image(noise, tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "a.png").read_bytes() == older
    assert os.listdir(tmp_path) == ["a.png"]
