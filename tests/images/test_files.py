"""Pictures in and out: files of every kind, a network's preprocessing, colour maps, overlays, grids, saving."""

from __future__ import annotations

import errno
import os
import random
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn
from torch.testing import assert_close

from fastviz import images, models
from fastviz.images.files import ImageError
from fastviz.models.loading import Preprocessing

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(*rows: tuple[tuple[int, int, int], ...]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def photograph(height: int = 60, width: int = 90) -> Image.Image:
    """Smooth colours with some noise: what a photograph is to a decoder."""
    generator = np.random.default_rng(5)
    ramps = np.stack(np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height)), axis=-1)
    colours = np.concatenate([ramps, ramps[..., :1] / 2], axis=-1) + generator.integers(0, 56, (height, width, 3))
    return Image.fromarray(colours.astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def bytes_of(tensor: torch.Tensor) -> list[Any]:
    """[3, H, W] in 0 to 1 as rows of (red, green, blue) in 0 to 255, as a person writes them."""
    return [[tuple(pixel) for pixel in row] for row in (tensor * 255).round().int().permute(1, 2, 0).tolist()]


# ----------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp", "qoi"])
def test_colour_files_are_their_bytes_over_255(tmp_path: Path, ending: str) -> None:
    photograph().save(tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    read = images.read_image(tmp_path / f"a.{ending}")
    assert (read.shape, read.dtype, read.is_contiguous()) == ((3, 60, 90), torch.float32, True)
    assert torch.equal(read, as_tensor(photograph()))


def test_jpeg_and_avif_are_near(tmp_path: Path) -> None:
    smooth = photograph().reduce(6).resize((90, 60), Image.Resampling.BICUBIC)
    for ending in ("jpg", "avif"):
        try:
            smooth.save(tmp_path / f"a.{ending}", quality=95)
        except (KeyError, OSError):
            continue  # this Pillow was built without AVIF
        assert (images.read_image(tmp_path / f"a.{ending}") - as_tensor(smooth)).abs().mean() < 0.02


# Where the red, green, blue and white corner of the stored 2x2 picture stand when it is shown (EXIF 2.32, table 6).
UPRIGHT = {
    1: ((RED, GREEN), (BLUE, WHITE)),
    2: ((GREEN, RED), (WHITE, BLUE)),
    3: ((WHITE, BLUE), (GREEN, RED)),
    4: ((BLUE, WHITE), (RED, GREEN)),
    5: ((RED, BLUE), (GREEN, WHITE)),
    6: ((BLUE, RED), (WHITE, GREEN)),
    7: ((WHITE, GREEN), (BLUE, RED)),
    8: ((GREEN, WHITE), (RED, BLUE)),
}


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    picture((RED, GREEN), (BLUE, WHITE)).save(tmp_path / f"a.{ending}", exif=exif, **options)
    assert bytes_of(images.read_image(tmp_path / f"a.{ending}")) == [list(row) for row in UPRIGHT[orientation]]


PREPARATIONS = {
    "crop": Preprocessing((30, 40), 44, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    "whole": Preprocessing((30, 50), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "any size": Preprocessing(None, 31, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic"),
    "as it is": Preprocessing(None, None, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    "grey": Preprocessing((30, 30), 30, (0.5,), (0.2,)),
}


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "P transparent", "RGBA", "LA", "I;16", "CMYK", "turned"])
def test_read_and_prepared_at_once_gives_the_same_numbers(tmp_path: Path, mode: str, preparation: str) -> None:
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(np.array(photograph().convert("L")).astype(np.uint16) * 257)
    elif mode == "turned":
        image, exif = photograph(), Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        options["exif"] = exif
    else:
        image = photograph().convert(mode.split()[0])
        if mode.endswith("transparent"):
            options["transparency"] = 0
    path = tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}"
    image.save(path, **options)
    settings = PREPARATIONS[preparation]
    expected = images.preprocess(images.read_image(path), settings)
    assert_close(images.read_prepared(path, settings), expected, rtol=0, atol=0)


def test_read_and_prepared_at_once_fails_in_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (60_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(ImageError, match=r"text\.png': is not an image that can be read"):
        images.read_prepared(tmp_path / "text.png", PREPARATIONS["crop"])
    with pytest.raises(ImageError, match=r"line\.png': image of 1x60000 pixels is too narrow"):
        images.read_prepared(tmp_path / "line.png", Preprocessing(None, 200, (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(ImageError, match=r"line\.png': 60000x1 pixels are more than the 100 allowed"):
        images.read_prepared(tmp_path / "line.png", PREPARATIONS["crop"], limit_pixels=100)


def test_exif_orientation_of_a_jpeg_and_of_16_bit_grey(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph().save(tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").shape == (3, 90, 60)
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "b.png", exif=exif)
    assert bytes_of(images.read_image(tmp_path / "b.png")) == [[(0, 0, 0)], [WHITE]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_leaves_the_picture_upright(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + b"\xff" * 20)
    assert images.read_image(tmp_path / "a.jpg").shape == (3, 60, 90)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert images.read_image(tmp_path / "a.png").tolist() == [[[0.0, pytest.approx(0.2), 1.0]]] * 3
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "b.png")
    assert images.read_image(tmp_path / "b.png").tolist() == [[[0.0, 1.0]]] * 3


def test_what_is_transparent_lies_over_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[(255, 0, 0, 255), (255, 0, 0, 51), (255, 0, 0, 0)]], dtype=np.uint8)).save(
        tmp_path / "rgba.png"
    )
    assert bytes_of(images.read_image(tmp_path / "rgba.png")) == [[RED, (255, 204, 204), WHITE]]
    grey = Image.merge("LA", [Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 51)])
    grey.save(tmp_path / "la.png")
    assert_close(images.read_image(tmp_path / "la.png"), torch.full((3, 1, 1), 100 / 255 * 0.2 + 0.8))


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_palettes_and_their_transparent_colour(tmp_path: Path, ending: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for column in range(3):
        image.putpixel((column, 0), column)
    image.save(tmp_path / f"a.{ending}")
    assert bytes_of(images.read_image(tmp_path / f"a.{ending}")) == [[RED, GREEN, BLUE]]
    image.save(tmp_path / f"b.{ending}", transparency=1)
    assert bytes_of(images.read_image(tmp_path / f"b.{ending}")) == [[RED, WHITE, BLUE]]


def test_a_palette_with_half_transparent_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([255, 51]))
    assert bytes_of(images.read_image(tmp_path / "a.png")) == [[RED, (204, 255, 204)]]


def test_a_transparent_colour_without_a_palette(tmp_path: Path) -> None:
    picture((RED, GREEN)).save(tmp_path / "a.png", transparency=GREEN)
    assert bytes_of(images.read_image(tmp_path / "a.png")) == [[RED, WHITE]]


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    length = struct.unpack(">H", jpeg[start + 2 : start + 4])[0]
    return jpeg[:start] + jpeg[start + 2 + length :]


def test_cmyk(tmp_path: Path) -> None:
    """Ink 0, 255, 0, 0 is magenta; half black (128) on white paper is grey 127. JPEG stores both inverted."""
    inks = Image.fromarray(np.array([[(0, 255, 0, 0), (0, 0, 0, 128)]], dtype=np.uint8), mode="CMYK")
    expected = [[(255, 0, 255), (127, 127, 127)]]
    inks.save(tmp_path / "a.tif")
    assert bytes_of(images.read_image(tmp_path / "a.tif")) == expected
    wide = inks.resize((32, 16), Image.Resampling.NEAREST)
    wide.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    stored = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(without_adobe_marker(stored))
    assert b"Adobe" in stored
    for name in ("a.jpg", "b.jpg"):
        read = images.read_image(tmp_path / name)[:, 8, [4, 28]] * 255
        assert_close(read, torch.tensor(expected[0]).T.float(), rtol=0, atol=3)


def test_16_bit_grey(tmp_path: Path) -> None:
    values = np.array([[0, 1, 257, 65535]], dtype=np.uint16)
    for ending in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
    Image.fromarray(values.astype(">u2")).save(tmp_path / "big-endian.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "big-endian.tif", "a.pgm"):
        assert images.read_image(tmp_path / name)[1, 0].tolist() == pytest.approx([0, 1 / 65535, 1 / 255, 1])


def png(colour_type: int, depth: int, width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_has_the_high_byte(tmp_path: Path) -> None:
    """Pillow reads no 16-bit colour; what it drops is less than 1/255."""
    values = [0x0000, 0x80FF, 0xFFFF]
    (tmp_path / "a.png").write_bytes(png(2, 16, 1, 1, b"\0" + struct.pack(">3H", *values)))
    read = images.read_image(tmp_path / "a.png")[:, 0, 0]
    assert bytes_of(read.view(3, 1, 1)) == [[(0x00, 0x80, 0xFF)]]
    assert (read - torch.tensor(values) / 65535).abs().max() < 1 / 255
    (tmp_path / "b.png").write_bytes(png(4, 16, 1, 1, b"\0" + struct.pack(">2H", 0x8000, 0xFFFF)))
    assert bytes_of(images.read_image(tmp_path / "b.png")) == [[(0x80, 0x80, 0x80)]]


def test_floating_point_pixels_are_taken_if_in_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.25, 1]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert images.read_image(tmp_path / "a.tif")[2, 0].tolist() == [0, 0.25, 1]
    for value, shown in ((7.5, "7.5"), (float("nan"), "nan")):
        Image.fromarray(np.array([[0, value]], dtype=np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(ImageError, match=rf"b.tif': pixels of torch.float32 should be 0 to 1, got .*{shown}"):
            images.read_image(tmp_path / "b.tif")
    Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(ImageError, match=r"c.tif': pixels of torch.int32 should be 0 to 65535, got -1 to 70000"):
        images.read_image(tmp_path / "c.tif")


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{ending}") as saved:
        assert getattr(saved, "n_frames", 1) == 3
    assert bytes_of(images.read_image(tmp_path / f"a.{ending}"))[0][0] == RED


def test_names_with_spaces_and_other_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "мой кот #1 [a] 猫.png"
    picture((RED,)).save(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bytes_of(images.read_image(f"~/{name}")) == [[RED]]
    assert [path.name for path in images.find_images(f"~/{name}")] == [name]
    (tmp_path / "naïve [1].png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"naïve \[1\].png': is empty"):
        images.read_image(tmp_path / "naïve [1].png")


# ------------------------------------------------------------------------------------------------ broken files


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "jp2"])
def test_cut_off_files_are_named(tmp_path: Path, ending: str) -> None:
    photograph().save(tmp_path / f"a.{ending}")
    content = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(
        ImageError, match=rf"image '.*a\.{ending}': (broken or cut off \(.+\)|is not an image)"
    ) as caught:
        images.read_image(tmp_path / f"a.{ending}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\0", "is not an image that can be read"),
        (b"just text\n" * 50, "is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "is not an image that can be read"),
        (b"\x89PNG\r\n\x1a\n", "is not an image that can be read"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    """PostScript too: Pillow would hand it to Ghostscript, a program."""
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=rf"image '.*a.jpg': {reason}"):
        images.read_image(tmp_path / "a.jpg")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none.png': there is no such file"):
        images.read_image(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder.png': is a folder"):
        images.read_image(tmp_path / "folder.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "qoi", "ppm", "jp2"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_picture_or_an_image_error(tmp_path: Path, ending: str) -> None:
    """Decoders raise all sorts of things; only one may come out."""
    generator = random.Random(1)
    photograph(20, 30).save(tmp_path / f"a.{ending}")
    content = (tmp_path / f"a.{ending}").read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 8)):
            place = generator.randrange(min(len(damaged), 300)) if generator.random() < 0.7 else -1
            damaged[place if place >= 0 else generator.randrange(len(damaged))] = generator.randrange(256)
        (tmp_path / "b").write_bytes(damaged)
        try:
            read = images.read_image(tmp_path / "b", limit_pixels=1_000_000)
        except ImageError:
            refused += 1
        else:
            assert read.shape[0] == 3
    assert refused


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(2, 8, 9000, 9000, b""))
    with pytest.raises(ImageError, match=r"bomb.png': 9000x9000 pixels are more than the 80000000 allowed"):
        images.read_image(tmp_path / "bomb.png", limit_pixels=80_000_000)
    with pytest.raises(ImageError, match=r"bomb.png': broken or cut off"):
        images.read_image(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes(png(2, 8, 60000, 60000, b""))
    with pytest.raises(ImageError, match=r"bomb.png': .*exceeds limit"):
        images.read_image(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes(png(2, 8, 9999, 10002, b""))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="9999x10002 pixels are more than the 100000000 allowed"),
    ):
        images.read_image(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="limit_pixels should be at least 1, got 0"):
        images.read_image(tmp_path / "bomb.png", limit_pixels=0)


# ----------------------------------------------------------------------------------------------------- finding


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


def found(paths: images.Paths, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in images.find_images(paths)]


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


# ----------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (300, 451, 256, 224),
        (451, 300, 232, 224),
        (100, 131, 256, 227),
        (64, 64, 64, 64),
        (7, 500, 33, 32),
        (65, 64, 64, 63),
    ],
)
def test_preprocessing_is_torchvisions(mode: Any, height: int, width: int, resize: int, crop: int) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    from torchvision.transforms import InterpolationMode

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = presets.ImageClassification(
        crop_size=crop, resize_size=resize, mean=mean, std=std, interpolation=InterpolationMode(mode)
    )
    image = photograph(height, width)
    ours = images.preprocess(as_tensor(image), Preprocessing((crop, crop), resize, mean, std, mode))
    assert_close(ours, transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_other_values_are_resized_without_rounding(mode: Any) -> None:
    """16-bit values between multiples of 1/255 stay between them, and near what Pillow makes of the rounded ones."""
    x = (as_tensor(photograph()) * 0.9 + 0.05).repeat(2, 1, 1, 1)
    settings = Preprocessing((20, 24), 30, (0.0,) * 3, (1.0,) * 3, mode)
    exact, rounded = images.preprocess(x, settings), images.preprocess((x * 255).round() / 255, settings)
    assert exact.shape == (2, 3, 20, 24)
    assert ((exact * 255).frac() - 0.5).abs().min() < 0.4
    assert_close(exact, rounded, rtol=0, atol=1.6 / 255)
    assert images.preprocess(x.double(), settings).dtype == torch.float64
    assert_close(images.preprocess(x.half(), settings), exact.half(), rtol=0, atol=2e-3)


def test_sharp_edges_stay_in_range() -> None:
    x = torch.zeros(3, 40, 40)
    x[:, :, 20:] = 0.9999
    resized = images.preprocess(x, Preprocessing((90, 90), 90, (0.0,) * 3, (1.0,) * 3, "bicubic"))
    assert 0 <= resized.min() <= resized.max() <= 1


def test_preprocessing_without_crop_or_resizing() -> None:
    x = as_tensor(photograph(40, 60))
    unit = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert images.preprocess(x, Preprocessing(None, 20, **unit)).shape == (3, 20, 30)
    assert images.preprocess(x, Preprocessing((30, 70), None, **unit)).shape == (3, 30, 70)
    assert torch.equal(images.preprocess(x, Preprocessing(None, None, **unit)), x)


def test_normalisation_by_hand_and_back() -> None:
    settings = Preprocessing(None, None, (0.5, 0.0, 0.25), (0.5, 0.25, 1.0))
    x = images.preprocess(torch.tensor([[[1.0]], [[0.5]], [[0.25]]]), settings)
    assert x.flatten().tolist() == [1.0, 2.0, 0.0]
    assert images.restore(x, settings).flatten().tolist() == [1.0, 0.5, 0.25]
    assert images.restore(x[None] + 10, settings).flatten().tolist() == [1.0, 1.0, 1.0]


def test_a_grey_network_gets_grey_pictures() -> None:
    settings = Preprocessing((1, 1), 1, (0.5,), (0.5,))
    x = images.preprocess(torch.tensor([[[1.0]], [[0.0]], [[1.0]]]), settings)
    assert_close(x, torch.tensor([[[(0.413 - 0.5) / 0.5]]]))
    assert_close(images.restore(x, settings), torch.full((3, 1, 1), 0.413))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.ones(3, 4, 4) * 255, ValueError, r"image should have values 0 to 1, got 255 to 255"),
        (torch.full((3, 4, 4), torch.nan), ValueError, r"image should have values 0 to 1, got nan to nan"),
        (
            torch.ones(3, 4, 4, dtype=torch.uint8),
            TypeError,
            r"image should be a floating-point tensor, got torch.uint8",
        ),
        (torch.ones(4, 4), ValueError, r"image should have shape \[3, H, W\] or \[N, 3, H, W\], got \[4, 4\]"),
        (torch.ones(2, 4, 4), ValueError, r"image should have 3 channels as the model has, got 2"),
        (torch.ones(3, 0, 4), ValueError, r"image should have at least one pixel, got shape \[3, 0, 4\]"),
        (torch.ones(3, 4, 4, requires_grad=True), ValueError, r"image should not require gradients"),
    ],
)
def test_wrong_pictures_for_preprocessing(image: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images.preprocess(image, models.preprocessing(nn.Identity()))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(1, 300), (300, 1), (2, 301), (3, 400)])
def test_of_a_narrow_picture_only_the_crop_is_computed(
    mode: Any, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of a pixel or a few, whose resized picture would be huge: the numbers of torchvision's way."""
    from torchvision.transforms import InterpolationMode, _presets

    image = photograph(height, width)
    transform = _presets.ImageClassification(crop_size=28, resize_size=32, interpolation=InterpolationMode(mode))
    usual = models.preprocessing(nn.Identity())
    settings = Preprocessing((28, 28), 32, usual.mean, usual.std, mode)
    monkeypatch.setattr(images.files, "LIMIT_PIXELS", 1000)
    one_level = 1.01 / 255 / min(settings.std)
    assert_close(images.prepare(image, settings), transform(image), rtol=0, atol=one_level)
    assert_close(images.preprocess(as_tensor(image), settings), transform(image), rtol=0, atol=one_level)
    deep = as_tensor(image) * 0.999
    expected = images.pictures.resize(deep[None], *images.files._resized_size(height, width, settings), mode)
    top, left, bottom, right = images.files._crop(images.files._resized_size(height, width, settings), settings)
    found = images.restore(images.preprocess(deep, settings), settings)
    assert_close(found, expected[0, :, top:bottom, left:right], rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="pixels is too narrow"):
        images.preprocess(as_tensor(image), Preprocessing(None, 32, usual.mean, usual.std))


def test_wrong_input_for_restoring() -> None:
    settings = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="x should have 3 channels as the model has, got 1"):
        images.restore(torch.ones(1, 4, 4), settings)


# ----------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("one.png", "sub/one.png", "sub/two.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(60 + number, 90).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_loading_for_a_model(photos: Path) -> None:
    model = nn.Identity()
    settings = Preprocessing((16, 20), 24, (0.5,) * 3, (0.25,) * 3)
    models.describe(model, preprocessing=settings)
    x, names = images.load_images(photos, model=model)
    assert (x.shape, x.dtype) == ((3, 3, 16, 20), torch.float32)
    assert names == ["one.png", "sub/one.png", "sub/two.png"]
    assert torch.equal(x[2], images.preprocess(images.read_image(photos / "sub" / "two.png"), settings))


def test_a_folder_with_a_line_of_a_pixel_loads(photos: Path) -> None:
    """Resized whole it would have 197 million pixels, of which the crop takes a part in four thousand."""
    Image.new("RGB", (1, 3000), (0, 51, 255)).save(photos / "line.png")
    x, names = images.load_images(photos)
    assert x.shape == (4, 3, 224, 224)
    assert torch.equal(x[names.index("line.png")], torch.tensor([0, 0.2, 1])[:, None, None].expand(3, 224, 224))


def test_every_failure_names_the_file(photos: Path) -> None:
    """Also those that the file itself is not at fault for."""
    model = nn.Identity()
    for settings, words in (
        (Preprocessing((8, 8), 8, (0.5,) * 4, (0.5,) * 4), "image should have 4 channels as the model has, got 3"),
        (Preprocessing(None, 10_000_000, (0.5,) * 3, (0.5,) * 3), "image of 60x90 pixels is too narrow"),
    ):
        models.describe(model, preprocessing=settings)
        with pytest.raises(ImageError, match=rf"one\.png': {words}"):
            images.load_images(photos, model=model)
    with pytest.raises(ImageError, match=r"one\.png': is not a folder|one\.png/x': Not a directory|no such file"):
        images.read_prepared(photos / "one.png" / "x", settings)
    with pytest.raises(ImageError, match=r"aaa': File name too long|aaa': broken .*File name too long"):
        images.read_image(photos / ("a" * 300))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "LA"])
def test_large_photographs_are_never_whole_in_floating_point(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 million pixels are 288 MB as floats; loading took 5 s and 1.8 GB. Opaque alpha is no reason either."""
    monkeypatch.setattr(images.files, "_decoded", lambda image: pytest.fail("decoded to floats"))
    image = photograph().convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    assert images.load_images(tmp_path, size=16)[0].shape == (1, 3, 16, 16)


def test_views_of_one_decoded_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph().save(tmp_path / "a.png")
    views = [PREPARATIONS["crop"], PREPARATIONS["any size"]]
    expected = [images.read_prepared(tmp_path / "a.png", view) for view in views]
    opened: list[Any] = []
    image_open = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: (opened.append(args), image_open(*args, **options))[1])
    for found, wanted in zip(images.read_views(tmp_path / "a.png", views), expected, strict=True):
        assert_close(found, wanted, rtol=0, atol=0)
    assert len(opened) == 1


def test_loading_without_a_model(photos: Path) -> None:
    x, _ = images.load_images(photos)
    assert x.shape == (3, 3, 224, 224)
    assert 0 <= x.min() < x.max() <= 1


def test_loading_at_another_size(photos: Path) -> None:
    """227 is cropped from the usual 256 pixels; more than 256 take the whole shorter side."""
    model, one = nn.Identity(), photos / "one.png"
    usual = models.preprocessing(model)
    for size, resize in ((227, 256), ((100, 40), 256), ((300, 280), 300)):
        x, _ = images.load_images(one, model=model, size=size)
        wanted = (size, size) if isinstance(size, int) else size
        expected = Preprocessing(wanted, resize, usual.mean, usual.std)
        assert torch.equal(x[0], images.preprocess(images.read_image(one), expected))
    with pytest.raises(ValueError, match="size should be at least 1, got 0"):
        images.load_images(one, size=0)
    with pytest.raises(ValueError, match=r"size should be \(height, width\) or None, got \(1, 2, 3\)"):
        images.load_images(one, size=(1, 2, 3))  # type: ignore[arg-type]


def test_names_that_would_be_the_same_become_longer(photos: Path) -> None:
    _, names = images.load_images([photos / "one.png", photos / "sub" / "one.png"], size=8)
    assert names == ["one.png", "sub/one.png"]
    _, names = images.load_images([photos / "sub", photos / "one.png"], size=8)
    assert names == ["sub/one.png", "sub/two.png", "one.png"]


def test_pictures_of_different_sizes_need_a_size(photos: Path) -> None:
    model = nn.Identity()
    models.describe(model, preprocessing=Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3))
    message = r"pictures should have one size, got \[60, 90\] for 'one.png' and \[61, 90\] for 'sub/one.png'; give size"
    with pytest.raises(ValueError, match=message):
        images.load_images(photos, model=model)
    assert images.load_images(photos, model=model, size=8)[0].shape == (3, 3, 8, 8)


def test_a_broken_photograph_is_named(photos: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"bad.jpg': is not an image"):
        images.load_images(photos)
    with pytest.raises(ImageError, match=r"one.png': 90x60 pixels are more than the 50 allowed"):
        images.load_images(photos / "one.png", limit_pixels=50)


# ----------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("name", ["viridis", "inferno", "jet", "grey", "seismic"])
def test_colours_are_matplotlibs(name: Any) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    values = torch.rand(2, 30, 40)
    values[0, 0] = torch.linspace(0, 1, 40)
    expected = matplotlib.colormaps["gray" if name == "grey" else name](values.numpy())[..., :3]
    ours = images.colour_map(values, name)
    assert ours.shape == (2, 3, 30, 40)
    assert_close(ours, torch.from_numpy(expected).movedim(-1, 1).float(), rtol=0, atol=0.5 / 255 + 1e-6)


def test_colours_by_hand() -> None:
    ends = torch.tensor([[0.0, 0.5, 1.0]])
    assert bytes_of(images.colour_map(ends, "grey")) == [[(0, 0, 0), (128, 128, 128), WHITE]]
    assert bytes_of(images.colour_map(ends, "jet")) == [[(0, 0, 128), (125, 255, 122), (128, 0, 0)]]
    assert bytes_of(images.colour_map(ends, "viridis")) == [[(68, 1, 84), (33, 145, 140), (253, 231, 37)]]
    assert images.colour_map(ends.double(), "inferno").dtype == torch.float64


def test_wrong_values_for_colours() -> None:
    with pytest.raises(ValueError, match=r"values should have values 0 to 1, got -1 to 2"):
        images.colour_map(torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"values should have shape \[..., H, W\], got \[3\]"):
        images.colour_map(torch.zeros(3))
    with pytest.raises(ValueError, match=r"name should be one of 'viridis', 'inferno', .*got 'rainbow'"):
        images.colour_map(torch.zeros(2, 2), "rainbow")  # type: ignore[arg-type]


def test_scaling_by_hand() -> None:
    maps = torch.tensor([[[-2.0, 0.0, 2.0]], [[5.0, 5.0, 5.0]], [[0.0, -1.0, -4.0]]])
    assert images.normalise(maps).tolist() == [[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]], [[1.0, 0.75, 0.0]]]
    assert images.normalise(maps, symmetric=True).tolist() == [[[0, 0.5, 1]], [[1, 1, 1]], [[0.5, 0.375, 0]]]
    assert images.normalise(torch.zeros(1, 2), symmetric=True).tolist() == [[0.5, 0.5]]
    assert images.normalise(maps, dims=3).tolist()[0][0] == pytest.approx([2 / 9, 4 / 9, 6 / 9])


def test_percentiles_by_hand() -> None:
    """Of 0 to 9 and 100, 90 % (ten of eleven) do not exceed 9, and as many are not below 1."""
    maps = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100]])
    scaled = images.normalise(maps, percentile=90)[0]
    assert_close(scaled, ((maps[0] - 1) / 8).clamp(0, 1))
    scaled = images.normalise(-maps, symmetric=True, percentile=90)[0]
    assert_close(scaled, (0.5 - maps[0] / 18).clamp(0, 1))
    assert torch.equal(images.normalise(maps, percentile=100), images.normalise(maps))


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (torch.tensor([[0.0, torch.inf]]), {}, "maps should be finite, got NaN or infinity"),
        (torch.zeros(2, 0), {}, r"maps should have at least 2 dimensions and one value, got shape \[2, 0\]"),
        (torch.zeros(2), {}, r"maps should have at least 2 dimensions and one value, got shape \[2\]"),
        (torch.zeros(2, 2), {"percentile": 50}, "percentile should be above 50 and at most 100, got 50"),
        (torch.zeros(2, 2), {"percentile": 101}, "percentile should be above 50 and at most 100, got 101"),
    ],
)
def test_wrong_maps(maps: torch.Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.normalise(maps, **options)


def test_overlays_by_hand() -> None:
    image = torch.full((1, 3, 2, 4), 0.5)
    heat = torch.tensor([[[0.0, 1.0]]])
    over = images.overlay(image, heat, alpha=0.25, name="grey")
    # Two values over four pixels: bilinear at 1/4 and 3/4 between the centres, in 256 steps.
    expected = 0.75 * 0.5 + 0.25 * torch.tensor([0.0, 64 / 255, 192 / 255, 1.0])
    assert_close(over, expected.expand(1, 3, 2, 4))
    assert torch.equal(images.overlay(image, heat, alpha=0.0), image)
    assert torch.equal(images.overlay(image, heat.expand(1, 2, 2)[..., [0, 0, 1, 1]], alpha=1.0),
                       images.colour_map(heat.expand(1, 2, 2)[..., [0, 0, 1, 1]], "jet"))  # fmt: skip


def test_wrong_overlays() -> None:
    image, heat = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 2)
    with pytest.raises(ValueError, match=r"image should have values 0 to 1, got -3 to -3"):
        images.overlay(image - 3, heat)
    with pytest.raises(ValueError, match=r"heat should have values 0 to 1, got 5 to 5"):
        images.overlay(image, heat + 5)
    with pytest.raises(ValueError, match="heat should have 2 maps, one an image, got 1"):
        images.overlay(image, heat[:1])
    with pytest.raises(ValueError, match=r"image should have shape \[N, 3, H, W\], got \[2, 1, 4, 4\]"):
        images.overlay(image[:, :1], heat)
    with pytest.raises(ValueError, match="alpha should be 0 to 1, got 2"):
        images.overlay(image, heat, alpha=2)


def test_grid_by_hand() -> None:
    pictures = torch.stack([torch.full((3, 1, 2), value) for value in (0.1, 0.2, 0.3)])
    sheet = images.grid(pictures, columns=2, padding=1, background=0.9)
    b = 0.9
    expected = [
        [b, b, b, b, b, b, b],
        [b, 0.1, 0.1, b, 0.2, 0.2, b],
        [b, b, b, b, b, b, b],
        [b, 0.3, 0.3, b, b, b, b],
        [b, b, b, b, b, b, b],
    ]
    assert_close(sheet, torch.tensor(expected).expand(3, 5, 7))
    assert images.grid(pictures, padding=0).shape == (3, 2, 4)
    assert images.grid(torch.zeros(5, 3, 2, 2), padding=0).shape == (3, 4, 6)
    assert images.grid(torch.zeros(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_wrong_grids() -> None:
    with pytest.raises(ValueError, match="pictures should hold at least one picture, got none"):
        images.grid(torch.zeros(0, 3, 2, 2))
    with pytest.raises(ValueError, match=r"pictures should have shape \[N, 3, H, W\], got \[2, 1, 2, 2\]"):
        images.grid(torch.zeros(2, 1, 2, 2))
    with pytest.raises(ValueError, match="columns should be at least 1, got 0"):
        images.grid(torch.zeros(2, 3, 2, 2), columns=0)
    with pytest.raises(ValueError, match="background should be 0 to 1, got 255"):
        images.grid(torch.zeros(2, 3, 2, 2), background=255)


# ----------------------------------------------------------------------------------------------------- writing


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


# ----------------------------------------------------------------------------------------------------- package


def test_the_three_photographs_are_there() -> None:
    x, names = images.load_images(Path(images.__file__).parents[1] / "models" / "data" / "photos")
    assert names == ["espresso.jpg", "rocket.jpg", "tabby_cat.jpg"]
    assert x.std((1, 2, 3)).min() > 0.1


@pytest.mark.cuda
@pytest.mark.parametrize(
    "draw",
    [
        lambda x: images.preprocess(x, Preprocessing((9, 9), 12, (0.5,) * 3, (0.5,) * 3)),
        lambda x: images.restore(x, Preprocessing((9, 9), 12, (0.5,) * 3, (0.5,) * 3)),
        lambda x: images.colour_map(x, "inferno"),
        lambda x: images.normalise(x, percentile=90),
        lambda x: images.overlay(x, x[:, 0, ::2, ::2]),
        lambda x: images.grid(x),
    ],
)
def test_pictures_stay_on_their_device(draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.rand(3, 3, 16, 20)
    on_gpu = draw(x.cuda())
    assert on_gpu.is_cuda
    # One colour step apart where rounding falls on the other side.
    assert_close(on_gpu.cpu(), draw(x), rtol=0, atol=0.05)
