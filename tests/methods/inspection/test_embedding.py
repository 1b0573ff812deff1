"""Feature vectors of many images: what they are, where they come from, how they are kept; neighbours among them."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import fastviz as fv
from fastviz import models
from fastviz.execution import forward
from fastviz.models.descriptions import Preprocessing
from fastviz.vectors.nearest_neighbours import nearest


class Network(nn.Module):
    """Two convolutions, the mean over the places, two linear layers; counts the images it sees."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.drop, self.fc7, self.fc8 = nn.Dropout(), nn.Linear(6, 5), nn.Linear(5, 2)
        self.seen = 0
        settings = Preprocessing((12, 12), 12, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        models.describe(self, preprocessing=settings)

    def forward(self, x):
        self.seen += len(x)
        x = self.conv2(self.conv1(x).relu_()).mean((2, 3))
        return self.fc8(self.drop(self.fc7(x).relu_()))


@pytest.fixture
def model() -> Network:
    return Network()


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (15 + number, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def body(model: Network, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.fc7(model.conv2(model.conv1(x).relu()).mean((2, 3))).relu()


# ------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_vectors_are_the_input_of_the_last_layer(model, photos, batch_size):
    x, names = fv.load_images(photos, model=model)
    found = fv.embedding(model, photos, batch_size=batch_size)
    torch.testing.assert_close(found.vectors, body(model, x))
    assert found.names == names
    assert found.layer == "input of fc8"
    assert model.training


def test_another_layer(model):
    x = torch.rand(5, 3, 12, 12)
    with torch.no_grad():
        maps = model.conv1(x)
    found = fv.embedding(model, x, "conv1", batch_size=2)
    torch.testing.assert_close(found.vectors, maps.mean((2, 3)))
    assert found.layer == "conv1"
    torch.testing.assert_close(fv.embedding(model, x, "conv1", pool="flatten").vectors, maps.flatten(1))
    assert fv.embedding(model, x, "fc7").vectors.shape == (5, 5)


def test_a_network_that_ends_in_a_convolution():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(3, 3, 8, 8)
    found = fv.embedding(model, x)
    torch.testing.assert_close(found.vectors, model[0](x).relu().mean((2, 3)).detach())
    assert found.layer == "input of 2"


def test_tokens():
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(16, 7), nn.Linear(7, 2))
    x = torch.rand(4, 3, 4, 4)
    expected = tokens[1](x.flatten(2)).detach()
    torch.testing.assert_close(fv.embedding(tokens, x).vectors, expected.mean(1))
    torch.testing.assert_close(fv.embedding(tokens, x, pool="flatten").vectors, expected.flatten(1))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_dtype(model, photos, dtype, expected):
    assert fv.embedding(model.to(dtype), photos).vectors.dtype == expected


def test_small_pictures(model, photos):
    found = fv.embedding(model, photos, thumbnails=12)
    x, _ = fv.load_images(photos, model=model)
    shown = fv.images.restore(x, models.preprocessing(model))
    assert found.pictures.dtype == torch.uint8
    torch.testing.assert_close(found.pictures.float() / 255, shown, rtol=0, atol=0.51 / 255)
    assert fv.embedding(model, photos, thumbnails=5).pictures.shape == (6, 3, 5, 5)


def test_unreadable_images_are_left_out(model, photos):
    (photos / "2.png").write_bytes(b"no picture")
    found = fv.embedding(model, photos, batch_size=2)
    assert found.names == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    assert [name for name, _ in found.failures] == ["2.png"]
    x, _ = fv.load_images([photos / name for name in found.names], model=model)
    torch.testing.assert_close(found.vectors, body(model, x))


def test_a_dataset_without_a_length(model):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (torch.full((3, 12, 12), index / 100) for index in range(70))

    found = fv.embedding(model, Stream(), batch_size=4)
    expected = body(model, torch.stack(list(Stream())))
    torch.testing.assert_close(found.vectors, expected)
    assert found.names[-1] == "69"


ARCHITECTURES = {
    "alexnet": ("input of classifier.6", 4096, (64, 3, 11, 11)),
    "vgg16": ("input of classifier.6", 4096, (64, 3, 3, 3)),
    "squeezenet1_0": ("input of classifier.1", 512, (96, 3, 7, 7)),
    "googlenet": ("input of fc", 1024, (64, 3, 7, 7)),
    "resnet50": ("input of fc", 2048, (64, 3, 7, 7)),
    "densenet121": ("input of classifier", 1024, (64, 3, 7, 7)),
    "inception_v3": ("input of fc", 2048, (32, 3, 3, 3)),
    "mobilenet_v2": ("input of classifier.1", 1280, (32, 3, 3, 3)),
    "vit_b_16": ("input of heads.head", 768, (768, 3, 16, 16)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    """The default layers of torchvision's networks, of whatever weights the memory holds: names and shapes only."""
    vision = pytest.importorskip("torchvision.models")
    layer, numbers, first = ARCHITECTURES[name]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    side = {"inception_v3": 96, "vit_b_16": 224}.get(name, 64)
    with torch.device("meta"):
        model = vision.get_model(name, weights=None, **options).eval()
    model.to_empty(device="cpu")
    x = torch.zeros(2, 3, side, side)
    last = forward.penultimate(model, x)
    assert f"input of {last}" == layer
    taken: list[torch.Tensor] = []
    hook = lambda module, inputs, output: taken.append(forward.vectors(inputs[0], last, "mean"))  # noqa: E731
    with torch.no_grad():
        forward.run(model, x, {last: hook}, forward.Counter())
    assert taken[0].shape == (2, numbers)
    found = fv.activations(model, x)
    assert next(iter(found.values())).shape[1] == first[0]
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    convolution.to_empty(device="cpu").reset_parameters()
    assert fv.filters(model).shape == first


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "fc9"}, "layer 'fc9' is not known; nearest: "),
        ({"pool": "max"}, "pool should be one of 'mean', 'flatten', got 'max'"),
        ({"thumbnails": 0}, "thumbnails should be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size should be at least 1, got 0"),
        ({"file": "x.safetensors"}, "file can only keep the vectors of a source of files"),
    ],
)
def test_refuses(model, options, words):
    with pytest.raises(ValueError, match=words):
        fv.embedding(model, torch.zeros(2, 3, 12, 12), **options)


def test_vectors_of_different_lengths(model):
    images = [torch.zeros(3, 12, 12), torch.zeros(3, 14, 14)]
    with pytest.raises(ValueError, match=r"vectors should have one length, got 400 and 576 numbers: give size"):
        fv.embedding(model, images, "conv1", pool="flatten")
    assert fv.embedding(model, images, "conv1").vectors.shape == (2, 4)


def test_nothing_readable(model, photos):
    for path in photos.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"source should have at least one image .*, got none; .*is empty"):
        fv.embedding(model, photos)


def test_models_without_a_layer_to_take():
    with pytest.raises(ValueError, match="layer should be given for this model: it calls no linear layer"):
        fv.embedding(nn.Flatten(), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"layer '1' should have vectors .* got shape \[2, 1, 3, 4, 4\]"):
        fv.embedding(nn.Sequential(nn.Identity(), nn.Unflatten(0, (-1, 1))), torch.zeros(2, 3, 4, 4), "1")
    with pytest.raises(ValueError, match=r"layer '1' should have one row per image, got 6 for 3"):
        fv.embedding(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (2, -1))), torch.zeros(3, 3, 4, 4), "1")


# -------------------------------------------------------------------------------------------------------- a file


def test_what_holds_is_not_computed_again(model, photos, tmp_path):
    file = tmp_path / "new" / "vectors.safetensors"
    first = fv.embedding(model, photos, file=file)
    seen = model.seen
    again = fv.embedding(model, photos, file=file)
    assert model.seen == seen
    assert (first.reused, again.reused) == (0, 6)
    for one in (again, fv.load_embedding(file)):
        torch.testing.assert_close(one.vectors, first.vectors, rtol=0, atol=0)
        assert torch.equal(one.pictures, first.pictures)
        assert (one.names, one.layer) == (first.names, first.layer)
    assert fv.embedding(model, photos, file=file, limit=2).names == ["0.png", "1.png"]
    assert len(fv.load_embedding(file).names) == 6  # asking for fewer throws nothing away


def test_only_what_is_new_or_changed_is_computed(model, photos, tmp_path):
    file = tmp_path / "vectors.safetensors"
    fv.embedding(model, photos, file=file)
    (photos / "4.png").unlink()
    Image.new("RGB", (20, 20), "red").save(photos / "1.png")
    Image.new("RGB", (20, 20), "blue").save(photos / "7.png")
    before = model.seen
    found = fv.embedding(model, photos, file=file)
    assert model.seen - before == 3  # and one to find the layer
    assert found.names == ["0.png", "1.png", "2.png", "3.png", "5.png", "7.png"]
    assert found.reused == 4
    torch.testing.assert_close(found.vectors, fv.embedding(model, photos).vectors)
    assert fv.load_embedding(file).names == found.names


def test_the_content_matters_and_not_the_time(model, photos, tmp_path):
    """A photograph replaced by one of the same size and time is another; a copy with another time is the same."""
    file = tmp_path / "vectors.safetensors"
    fv.embedding(model, photos, file=file)
    os.utime(photos / "3.png", ns=(1, 1))
    assert fv.embedding(model, photos, file=file).reused == 6
    status, content = (photos / "3.png").stat(), (photos / "3.png").read_bytes()
    Image.effect_noise((20, 20), 60).save(photos / "new.png")
    new = (photos / "new.png").read_bytes()
    (photos / "new.png").unlink()
    length = max(len(content), len(new))
    for _ in range(2):
        (photos / "3.png").write_bytes(content.ljust(length, b"\0"))  # what follows a picture is passed over
        os.utime(photos / "3.png", ns=(status.st_mtime_ns, status.st_mtime_ns))
        found = fv.embedding(model, photos, file=file)
        content = new
    assert found.reused == 5
    torch.testing.assert_close(found.vectors, fv.embedding(model, photos).vectors)


def test_a_folder_whose_name_is_no_utf8(model, photos, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (photos / "3.png").rename(photos / os.fsdecode(b"n\xe9w\n.png"))
    fv.embedding(model, photos, file=folder / "v.safetensors")
    found = fv.embedding(model, photos, file=folder / "v.safetensors")
    assert found.reused == 6
    assert os.fsdecode(b"n\xe9w\n.png") in found.names


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_call_goes_on_where_it_was(model, photos, tmp_path, error):
    file = tmp_path / "vectors.safetensors"
    forward = model.forward

    def fail(x):
        if model.seen >= 5:
            raise error("stop")
        return forward(x)

    model.forward = fail
    with pytest.raises(error):
        fv.embedding(model, photos, batch_size=2, file=file)
    model.forward = forward
    assert fv.load_embedding(file).names == ["0.png", "1.png", "2.png", "3.png"]
    found = fv.embedding(model, photos, batch_size=2, file=file)
    assert found.reused == 4
    torch.testing.assert_close(found.vectors, fv.embedding(model, photos).vectors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": "conv1"}, "another layer;"),
        ({"pool": "flatten"}, "another pool;"),
        ({"thumbnails": 8}, "another thumbnails;"),
        ({"size": 14}, "another preprocessing;"),
        ({"seed": 1}, "another model;"),
        ({"seed": 1, "layer": "fc7"}, "another model and layer;"),
    ],
)
def test_other_vectors_are_not_replaced_unasked(model, photos, tmp_path, change, words):
    file = tmp_path / "vectors.safetensors"
    fv.embedding(model, photos, file=file)
    other = Network(change.pop("seed", 0))
    with pytest.raises(ValueError, match=f"holds vectors made with {words} give another file, or overwrite it"):
        fv.embedding(other, photos, file=file, **change)
    found = fv.embedding(other, photos, file=file, overwrite=True, **change)
    assert found.reused == 0
    torch.testing.assert_close(fv.load_embedding(file).vectors, found.vectors, rtol=0, atol=0)


def test_files_that_hold_something_else(model, photos, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    for name in ("text", "weights"):
        with pytest.raises(ValueError, match=rf"file '.*{name}\.safetensors' is no embedding: "):
            fv.embedding(model, photos, file=tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="cannot be read: there is no such file"):
        fv.load_embedding(tmp_path / "missing.safetensors")


def test_the_file_can_be_read_by_others(model, photos, tmp_path):
    file = tmp_path / "vectors.safetensors"
    found = fv.embedding(model, photos, file=file)
    torch.testing.assert_close(load_file(file)["vectors"], found.vectors)
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert json.loads(header["__metadata__"]["names"]) == found.names
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert not list(tmp_path.glob("*.part"))


# ---------------------------------------------------------------------------------------------------- neighbours


def squares() -> fv.Embedding:
    """Five images whose features and whose pixels put them in different orders."""
    pictures = torch.tensor([0, 10, 20, 200, 255], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    return fv.Embedding(torch.tensor([[0.0], [9.0], [1.0], [3.0], [8.0]]), pictures, list("abcde"), "layer")


def test_neighbours_by_features_and_by_pixels():
    found = fv.neighbours(squares(), 2)
    assert found.features.tolist() == [[2, 3], [4, 3], [0, 3], [2, 0], [1, 3]]
    assert found.feature_distances[0].tolist() == [1, 3]
    assert found.pixels.tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2]]
    assert found.pixel_distances[0, 0] == pytest.approx(10 / 255 * 48**0.5)
    some = fv.neighbours(squares(), 2, queries=["d", 0])
    assert some.queries.tolist() == [3, 0]
    assert torch.equal(some.features, found.features[[3, 0]])
    assert torch.equal(found.part(slice(1, 3)).pixels, found.pixels[1:3])


def test_neighbours_refuses():
    one = fv.embedding(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="found should hold at least 2 images, to be neighbours of each other, got 1"):
        fv.neighbours(one)
    with pytest.raises(ValueError, match="k should be at most 4, one less than the number of images, got 5"):
        fv.neighbours(squares(), 5)
    with pytest.raises(ValueError, match="query 'f' is not known"):
        fv.neighbours(squares(), 2, queries=["f"])
    with pytest.raises(ValueError, match="query should be a row from 0 to 4 or a name, got 5"):
        fv.neighbours(squares(), 2, queries=[5])


def test_a_sheet_shows_the_query_and_both_rows():
    found = squares()
    near = fv.neighbours(found, 3, queries=["a", "d"])
    sheet = fv.neighbour_sheet(found, near, tile=20)
    block = sheet.shape[1] // 2
    query = 2 * 20 + 3
    for number, (row, by_features, by_pixels) in enumerate(zip("ad", near.features, near.pixels, strict=True)):
        part = sheet[0, number * block : (number + 1) * block]
        top = block - 8 - query + 10
        values = found.pictures[:, 0, 0, 0] / 255
        assert part[top, 20] == pytest.approx(float(values["abcde".index(row)]), abs=0.003)
        for at in range(3):
            left = 8 + query + 8 + 1 + 21 * at + 10
            assert part[top, left] == pytest.approx(float(values[by_features[at]]), abs=0.003)
            assert part[top + 21, left] == pytest.approx(float(values[by_pixels[at]]), abs=0.003)
    with pytest.raises(ValueError, match="near should have at least one query, got none"):
        fv.neighbour_sheet(found, near.part(slice(0, 0)))


# ------------------------------------------------------------------------------------------------- a real network


def accuracy(vectors: torch.Tensor, labels: torch.Tensor) -> float:
    """How many have the class that most of their ten nearest neighbours have."""
    votes = labels[nearest(vectors, 10)[0]]
    return float((votes.mode(1).values == labels).float().mean())


def test_tsne_of_the_built_in_network_groups_its_classes(shared, tmp_path):
    """On the plane, neighbours tell the class nearly as well as in feature space, and far better than pixels."""
    pytest.importorskip("sklearn")
    with zipfile.ZipFile(shared / "data/tiny20.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("val/") and name.endswith(".JPEG"))
        archive.extractall(tmp_path, [name for at, name in enumerate(names) if at % 50 < 10])
    found = fv.embedding(fv.load_model("demo"), tmp_path / "val", batch_size=100)
    classes = [name.split("/")[0] for name in found.names]
    labels = torch.tensor([sorted(set(classes)).index(name) for name in classes])
    assert found.vectors.shape == (200, 144)
    in_features = accuracy(found.vectors, labels)
    on_the_plane = accuracy(fv.tsne(found.vectors, engine="sklearn"), labels)
    assert in_features > 0.5
    assert on_the_plane > in_features - 0.15
    assert accuracy(found.pictures.flatten(1).float(), labels) < in_features - 0.3


def test_maps_with_channels_last_are_averaged_over_their_places() -> None:
    """[N, H, W, C] was averaged over columns and channels: a vector of rows, without a word."""

    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))

    torch.manual_seed(0)
    model, x = ChannelsLast(), torch.rand(3, 3, 8, 8)
    expected = model.norm(model.conv(x).permute(0, 2, 3, 1)).mean((1, 2)).detach()
    torch.testing.assert_close(fv.embedding(model, x, "norm").vectors, expected)
    torch.testing.assert_close(fv.embedding(model, x).vectors, expected)
