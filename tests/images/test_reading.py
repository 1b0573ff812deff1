"""Image files of every kind to tensors, broken ones, and batches for a model."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn
from torch.testing import assert_close

from fastviz import images, models
from fastviz.images.paths import ImageError
from fastviz.models.descriptions import Preprocessing
from tests.images.common import as_tensor, photograph, picture, png

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def bytes_of(tensor: torch.Tensor) -> list[Any]:
    """[3, H, W] in 0 to 1 as rows of (red, green, blue) in 0 to 255, as a person writes them."""
    return [[tuple(pixel) for pixel in row] for row in (tensor * 255).round().int().permute(1, 2, 0).tolist()]


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
    monkeypatch.setattr(images.preprocessing, "decoded", lambda image: pytest.fail("decoded to floats"))
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


def test_the_three_photographs_are_there() -> None:
    x, names = images.load_images(Path(images.__file__).parents[1] / "models" / "data" / "photos")
    assert names == ["espresso.jpg", "rocket.jpg", "tabby_cat.jpg"]
    assert x.std((1, 2, 3)).min() > 0.1


def test_tall_transparent_pictures_are_blended_row_by_row_alike(tmp_path: Path) -> None:
    """They are converted in bands."""
    values = np.random.default_rng(0).integers(0, 256, (600, 3, 4), dtype=np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "tall.png")
    pixels = torch.from_numpy(values).permute(2, 0, 1).float() / 255
    expected = pixels[:3] * pixels[3:] + (1 - pixels[3:])
    assert_close(images.read_image(tmp_path / "tall.png"), expected)
