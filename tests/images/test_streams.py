"""Streams of images: what comes out, in what order, how far ahead is read, and how the threads end."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fastviz as fv
from fastviz import images, models
from fastviz.images import streams
from fastviz.models.descriptions import Preprocessing

SIZES = [(40, 30), (30, 30), (20, 50), (33, 35), (64, 20)]  # width, height


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for number, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    models.describe(model, preprocessing=Preprocessing((16, 16), 18, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    return model


class Numbers(Dataset):
    """Items [3, 4, 4] full of their own index, with a label; notes what is read and by which threads."""

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.read: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        self.read.append(index)
        self.threads.add(threading.get_ident())
        return torch.full((3, 4, 4), float(index)), "label"


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastviz-read")]


# ------------------------------------------------------------------------------------------------ what comes out


def test_files_come_as_load_images_gives_them(photos, model):
    expected, names = fv.load_images(photos, model=model)
    found = list(fv.batches(photos, model=model, batch_size=2))
    assert [len(batch) for batch in found] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([batch.images for batch in found]), expected, rtol=0, atol=0)
    assert [name for batch in found for name in batch.names] == names
    assert [index for batch in found for index in batch.indices] == [0, 1, 2, 3, 4]


def test_size_and_limit(photos):
    (batch,) = fv.batches([photos / "1.png", photos / "0.png", photos / "2.png"], size=(8, 12), limit=2)
    assert batch.images.shape == (2, 3, 8, 12)
    assert batch.names == ["1.png", "0.png"]


def test_the_model_decides_the_dtype(photos, model):
    assert next(iter(fv.batches(photos, model=model.double()))).images.dtype == torch.float64
    assert next(iter(fv.batches(torch.zeros(1, 3, 4, 4), model=model.bfloat16()))).images.dtype == torch.bfloat16


def test_a_tensor_is_taken_as_the_networks_input(model):
    x = torch.randn(5, 3, 7, 7)
    found = list(fv.batches(x, model=model, batch_size=3))
    torch.testing.assert_close(torch.cat([batch.images for batch in found]), x, rtol=0, atol=0)
    assert [batch.names for batch in found] == [["0", "1", "2"], ["3", "4"]]


def test_eight_bits_are_pictures(photos, model):
    """A uint8 tensor, a Pillow picture and the file they came from give one input."""
    (expected,) = fv.batches(photos / "0.png", model=model)
    picture = Image.open(photos / "0.png")
    eight_bits = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    for source in (eight_bits[None], [eight_bits], [picture], [(picture, 7)]):
        (batch,) = fv.batches(source, model=model)
        torch.testing.assert_close(batch.images, expected.images, rtol=0, atol=0)


@pytest.mark.parametrize("key", ["image", "pixel_values", "img", "x"])
def test_items_of_every_kind_give_the_input_of_the_file(photos, model, key):
    """Dictionaries, NumPy arrays with colours last or first, nested tuples: what datasets of other libraries give."""
    (expected,) = fv.batches(photos / "0.png", model=model)
    picture = Image.open(photos / "0.png")
    array = np.array(picture)
    for item in (
        {key: picture, "label": 1},
        {"label": 1, key: array},
        array,
        (array, 1),
        ({key: array}, 1),
        array.transpose(2, 0, 1),
        array[:, ::-1][:, ::-1],
    ):
        (batch,) = fv.batches([item], model=model)
        torch.testing.assert_close(batch.images, expected.images, rtol=0, atol=0)
    (batch,) = fv.batches(np.stack([array, array]), model=model)
    torch.testing.assert_close(batch.images[1], expected.images[0], rtol=0, atol=0)
    ready = expected.images[0]
    for item in ({key: ready}, ready.numpy(), {key: ready.double().numpy()}):
        (batch,) = fv.batches([item], model=model)
        torch.testing.assert_close(batch.images[0], ready, rtol=0, atol=0)


def test_grey_items_are_read_as_grey_files(model, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "grey.png")
    (expected,) = fv.batches(tmp_path, model=model)
    for item in (array, array[..., None], torch.from_numpy(array)[None], Image.fromarray(array)):
        (batch,) = fv.batches([item], model=model)
        torch.testing.assert_close(batch.images, expected.images, rtol=0, atol=0)


class Labelled(Numbers):
    """Items as dictionaries."""

    def __getitem__(self, index: int):
        return {"label": index, "pixel_values": torch.full((3, 4, 4), float(index))}


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Numbers(7), batch_size=3),
        DataLoader(Labelled(7), batch_size=3),
        DataLoader(Numbers(7), batch_size=3, collate_fn=list),
        DataLoader(Labelled(7), batch_size=3, collate_fn=list),
        DataLoader(Numbers(7), batch_size=3, collate_fn=lambda items: [image for image, _ in items]),
        DataLoader(Numbers(7), batch_size=3, collate_fn=lambda items: (torch.stack([i for i, _ in items]).numpy(), 0)),
        DataLoader(Numbers(7), batch_size=None),
        DataLoader(Numbers(7), batch_size=3, num_workers=1),
    ],
)
def test_a_data_loader(loader):
    stream = fv.batches(loader, batch_size=4)
    for _ in range(2):
        assert [batch.images[:, 0, 0, 0].tolist() for batch in stream] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [batch.indices for batch in fv.batches(loader, batch_size=4, limit=5)] == [[0, 1, 2, 3], [4]]


def test_a_data_loader_goes_through_every_method_that_streams(model):
    x = torch.rand(5, 3, 16, 16)
    loader = DataLoader(TensorDataset(x, torch.arange(5)), batch_size=2)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    torch.testing.assert_close(fv.embedding(network, loader).vectors, fv.embedding(network, x).vectors)
    found, expected = (fv.patches(network, source, "0", k=2) for source in (loader, x))
    torch.testing.assert_close(found.values, expected.values)
    assert torch.equal(found.images, expected.images)
    with pytest.raises(
        TypeError, match=r"x should be a tensor, got DataLoader: loop over fastviz.batches\(x, model=model\)"
    ):
        fv.saliency(network, loader)


def test_a_dataset_by_index():
    dataset = Numbers()
    found = list(fv.batches(dataset, batch_size=4, limit=6))
    assert [batch.images[:, 0, 0, 0].tolist() for batch in found] == [[0, 1, 2, 3], [4, 5]]
    assert len(dataset.threads) == 1
    assert threading.get_ident() not in dataset.threads


def test_a_dataset_by_iteration():
    class Stream(IterableDataset):
        def __iter__(self):
            return (torch.full((3, 4, 4), float(index)) for index in range(5))

    stream = fv.batches(Stream(), batch_size=2)
    for _ in range(2):  # from the beginning in every loop
        assert [batch.images[:, 0, 0, 0].tolist() for batch in stream] == [[0, 1], [2, 3], [4]]
    assert [batch.indices for batch in fv.batches(Stream(), batch_size=2, limit=3)] == [[0, 1], [2]]
    assert stream.names is None
    with pytest.raises(ValueError, match="others are read only once"):
        stream.image(0)
    with pytest.raises(ValueError, match="to be read in part"):
        stream.only([1])


def test_items_of_another_size_begin_a_batch():
    items = [torch.zeros(3, side, side) for side in (4, 4, 5, 5, 4)]
    assert [batch.indices for batch in fv.batches(items)] == [[0, 1], [2, 3], [4]]


def test_unreadable_pictures_are_left_out_and_named(photos, model):
    (photos / "1.png").write_bytes(b"no picture")
    (photos / "3.png").write_bytes((photos / "0.png").read_bytes()[:200])
    stream = fv.batches(photos, model=model, batch_size=2)
    for _ in range(2):
        assert [(batch.names, batch.indices) for batch in stream] == [
            (["0.png", "2.png"], [0, 2]),
            (["4.png"], [4]),
        ]
        assert [name for name, _ in stream.failures] == ["1.png", "3.png"]
    assert "is not an image" in stream.failures[0][1]


def test_a_picture_too_narrow_to_resize_is_left_out(tmp_path):
    model = nn.Identity()
    models.describe(model, preprocessing=Preprocessing(None, 200, (0.5,) * 3, (0.5,) * 3))
    Image.new("RGB", (60_000, 1)).save(tmp_path / "line.png")
    stream = fv.batches(tmp_path, model=model)
    assert list(stream) == []
    assert "line.png" in stream.failures[0][1]
    assert "too narrow" in stream.failures[0][1]


def test_a_dataset_whose_file_cannot_be_read():
    class Broken(Numbers):
        def __getitem__(self, index: int):
            if index == 1:
                raise OSError("disk on fire")
            return super().__getitem__(index)

    stream = fv.batches(Broken(3))
    assert [batch.indices for batch in stream] == [[0, 2]]
    assert stream.failures == [("1", "disk on fire")]


def test_single_images_again(photos, model):
    stream = fv.batches(photos, model=model)
    (batch,) = stream
    torch.testing.assert_close(stream.image(3), batch.images[3], rtol=0, atol=0)
    torch.testing.assert_close(stream.image("3.png"), batch.images[3], rtol=0, atol=0)
    expected = images.restore(batch.images, stream.preprocessing)
    torch.testing.assert_close(stream.picture(3), expected[3], rtol=0, atol=0)
    torch.testing.assert_close(stream.pictures(batch), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"image '5\.png' is not known; nearest: "):
        stream.image("5.png")
    with pytest.raises(ValueError, match="image should be a position from 0 to 4, got 5"):
        stream.image(5)
    (photos / "3.png").write_bytes(b"")
    with pytest.raises(images.ImageError, match=r"3\.png.*is empty"):
        stream.image(3)


def test_only_some_keep_their_positions_and_names(photos):
    stream = fv.batches(photos, batch_size=2)
    assert [(batch.names, batch.indices) for batch in stream.only([4, 1, 2])] == [
        (["4.png", "1.png"], [4, 1]),
        (["2.png"], [2]),
    ]
    assert [batch.indices for batch in stream] == [[0, 1], [2, 3], [4]]


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (torch.zeros(3, 4, 4), {}, r"source should have shape \[N, C, H, W\], got \[3, 4, 4\]"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), {}, r"source of uint8 should have shape \[N, 3 or 1, H, W\]"),
        (torch.zeros(0, 3, 4, 4), {}, "source should hold at least one image, got none"),
        ([], {}, "source should hold at least one image, got none"),
        ("missing", {}, "paths should exist, got 'missing'"),
        (torch.zeros(1, 3, 4, 4), {"batch_size": 0}, "batch_size should be at least 1, got 0"),
        (torch.zeros(1, 3, 4, 4), {"limit": 0}, "limit should be at least 1, got 0"),
        ([torch.zeros(4, 4)], {}, r"source should give images \[C, H, W\], got \[4, 4\]: item 0"),
        ([torch.zeros(2, 4, 4, dtype=torch.uint8)], {}, r"uint8 images \[3, H, W\] or \[1, H, W\], got .*: item 0"),
        (
            [np.zeros((9, 9, 3))],
            {},
            r"floating-point images \[C, H, W\], got \[9, 9, 3\], which looks like \[H, W, C\]",
        ),
        ([np.zeros((9, 9, 4), np.uint8)], {}, r"uint8 arrays \[H, W, 3\], .* got \[9, 9, 4\]: item 0"),
        (
            np.zeros((9, 9, 3), np.uint8),
            {},
            r"source should have shape \[N, H, W, 3\] or \[N, C, H, W\], got \[9, 9, 3\]",
        ),
        (DataLoader([torch.zeros(4)]), {}, r"batches of images \[N, C, H, W\], got \[1, 4\]: batch 0"),
    ],
)
def test_bad_sources(source, options, words):
    with pytest.raises(ValueError, match=words):
        list(fv.batches(source, **options))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (7, "source should be paths, a tensor .* a torch Dataset or DataLoader, got int"),
        ({"image": torch.zeros(1, 3, 4, 4)}, "source should be paths, .* got dict"),
        ([{"image": 1}], "source should give images as tensors .*; item 0 is dict of int"),
        ([torch.zeros(3, 4, 4), {"label": 1, "id": 2}], "dictionaries with their image under .*'label', 'id': item 1"),
        ([("a.jpg", 1)], "source should give images as tensors .*; item 0 is tuple of str, int"),
        ([torch.zeros(3, 4, 4, dtype=torch.int64)], "source should give images of uint8 .*got torch.int64: item 0"),
        ([np.zeros((4, 4, 3), np.uint16)], "source should give arrays of uint8 .*got uint16: item 0"),
        (DataLoader([{"label": 1}]), "source should give batches of images .*, got dict of Tensor: batch 0"),
    ],
)
def test_sources_of_another_kind(source, words):
    with pytest.raises(TypeError, match=words):
        list(fv.batches(source))


# -------------------------------------------------------------------------------------------- threads and memory


def test_what_is_read_ahead_is_bounded():
    dataset = Numbers(50)
    given = 0
    for batch in fv.batches(dataset, batch_size=5):
        assert len(dataset.read) - given <= 5 + 2 * 5 + 1  # the batch, two ahead, and the one that is being read
        given += len(batch)
    assert given == 50


def test_threads_end_with_the_loop(photos):
    assert list(fv.batches(photos))
    assert not readers()
    stream = iter(fv.batches(photos, batch_size=1))
    next(stream)
    assert readers()
    stream.close()
    assert not readers()

    def fail() -> None:
        for _ in fv.batches(photos, batch_size=1):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not readers()


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_threads_end_when_a_dataset_raises(error):
    class Broken(Numbers):
        def __getitem__(self, index: int):
            if index == 7:
                raise error
            return super().__getitem__(index)

    with pytest.raises(type(error)):
        list(fv.batches(Broken(40), batch_size=2))
    assert not readers()


def test_the_bar_reaches_its_end(photos, monkeypatch):
    (photos / "1.png").write_bytes(b"")
    bars: list[tuple[bool, int | None, list[int]]] = []

    @contextmanager
    def bar(wanted, total, unit):
        bars.append((wanted, total, []))
        yield lambda steps: bars[-1][2].append(steps)

    monkeypatch.setattr(streams, "bar", bar)
    list(fv.batches(photos, batch_size=2, progress=True))
    ((wanted, total, steps),) = bars
    assert (wanted, total, sum(steps)) == (True, 5, 5)
