"""Patches: the places equal a full sort, boxes hold all that a unit sees, pictures are cut where they should be."""

from __future__ import annotations

import json
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import fastviz as fv
from fastviz import cli, graph
from fastviz.execution.forward import layer_outputs
from fastviz.images import streams
from fastviz.methods import Patches, patch_pictures, patch_sheet, patches
from fastviz.vectors.top_k import TopK, best_per_image, best_places
from tests.methods.inspection.common import as_places, by_sorting, found_places

f64 = torch.float64


# ---------------------------------------------------------------------------------------------- the k best of a stream


def test_worked_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 5.0], [5.0, 2.0]]], [[[0.0, 0.0], [7.0, 5.0]]]])  # two images of one channel
    assert as_places(*best_per_image(maps)) == [[(5, 0, 0, 1), (7, 1, 1, 0)]]
    assert as_places(*best_places(maps, 3)) == [[(5, 0, 0, 1), (5, 0, 1, 0), (7, 1, 1, 0)]]
    best = TopK(3, 1)
    best.add(*best_per_image(maps))
    assert as_places(best.values, best.places) == [[(7, 1, 1, 0), (5, 0, 0, 1)]]
    assert best.values[0, 2] == -torch.inf
    best.add(torch.tensor([[5.0, 5.0, 6.0]]), torch.tensor([[[2, 0, 0], [3, 0, 0], [4, 0, 0]]]))
    assert as_places(best.values, best.places) == [[(7, 1, 1, 0), (6, 4, 0, 0), (5, 0, 0, 1)]]


@pytest.mark.parametrize("one_per_image", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_sorting_whatever_the_batches(dtype, order, one_per_image) -> None:
    """Few different values, so that there are ties everywhere."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((11, 3, 5, 7), (11, 20, 1, 9), (11, 1, 9, 1), (11, 2, 1, 1), (4, 3, 12, 3)):
        maps = torch.randint(-3, 4, shape, generator=generator).to(dtype).contiguous(memory_format=order)
        expected = by_sorting(maps, 6, one_per_image=one_per_image)
        for sizes in ([shape[0]], [1] * shape[0], [3, shape[0] - 3]):
            best = TopK(6, shape[1], dtype=dtype)
            start = 0
            for part in maps.split(sizes):
                values, places = best_per_image(part) if one_per_image else best_places(part, 6)
                best.add(values, places + torch.tensor([start, 0, 0]))
                start += len(part)
            assert as_places(best.values, best.places) == expected, (shape, sizes)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_map_with_nan_gives_no_place_and_infinities_count(order) -> None:
    maps = torch.zeros(4, 2, 3, 3)
    maps[0, 0, 1, 1], maps[0, 0, 0, 0] = torch.nan, 9.0
    maps[1, 0, 2, 2] = torch.inf
    maps[2, 0] = -torch.inf
    maps[3, 0, 0, 2] = 4.0
    maps = maps.contiguous(memory_format=order)
    expected = [(torch.inf, 1, 2, 2), (4, 3, 0, 2)]
    for values, places in (best_per_image(maps), best_places(maps, 4)):
        best = TopK(4, 2)
        best.add(values, places)
        found = as_places(best.values, best.places)
        assert found[0][:2] == expected
        assert all(image in (1, 3) for _, image, _, _ in found[0])
        assert [image for _, image, _, _ in found[1]] in ([0, 1, 2, 3], [0, 0, 0, 0])
    best = TopK(2, 1)
    best.add(*best_places(torch.full((2, 1, 2, 2), torch.nan), 2))
    assert as_places(best.values, best.places) == [[]]
    assert (best.places == -1).all()


# -------------------------------------------------------------------------------------------------- over a network


class Net(nn.Module):
    """Whole numbers, so that sums are exact in any order; a rectifier in place, a layer used twice, branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 5, padding=2)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).to(f64)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        x = self.twice(self.twice(x))
        return self.head(x.amax((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    return Net().to(f64)


@pytest.fixture
def x() -> Tensor:
    return torch.randint(-1, 2, (7, 2, 13, 11), generator=torch.Generator().manual_seed(2)).to(f64)


LAYERS = ["first", "left", "right", "twice"]


def activations(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), layer_outputs(net, LAYERS) as recorded:
        net(x)
    return dict(recorded)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("one_per_image", [True, False])
def test_equals_sorting_all_activations(net, x, one_per_image, batch_size) -> None:
    found = patches(net, x, k=4, one_per_image=one_per_image, batch_size=batch_size)
    assert list(found) == LAYERS
    for name, maps in activations(net, x).items():
        assert found_places(found[name]) == by_sorting(maps, 4, one_per_image=one_per_image), name
    alone = patches(net, x, layers=["right"], k=4, one_per_image=one_per_image)
    assert list(alone) == ["right"]
    assert torch.equal(alone["right"].values, found["right"].values)


def test_values_are_those_before_a_rectifier_in_place() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True))
    net[0].weight.data.fill_(-1.0)
    found = patches(net, torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1, 1).expand(-1, -1, 2, 2), layers=["0", "1"], k=2)
    assert found["0"].values.tolist() == [[-1.0, -2.0]]
    assert found["1"].values.tolist() == [[0.0, 0.0]]
    assert found["1"].images.tolist() == [[0, 1]]  # of equal ones the first


def test_a_single_unit(net, x) -> None:
    for batch_size in (2, 7):
        found = patches(net, x, layers=["first", "twice"], k=3, position=(2, 4), batch_size=batch_size)
        for name, each in found.items():
            maps = activations(net, x)[name][:, :, 2:3, 4:5]
            expected = [[(v, n, 2, 4) for v, n, _, _ in one] for one in by_sorting(maps, 3, one_per_image=True)]
            assert found_places(each) == expected


def test_fewer_images_than_k(net, x) -> None:
    found = patches(net, x[:2], "twice", k=5)
    assert found.values.shape == (6, 5)
    assert (found.fields[:, 2:] == 0).all()
    assert (found.values[:, 2:] == -torch.inf).all()
    assert (found.images[:, 2:] == -1).all()
    assert (found.positions[:, 2:] == -1).all()
    assert (found.boxes[:, 2:] == 0).all()
    assert (found.images[:, :2] >= 0).all()
    assert found.names == {0: "0", 1: "1"}


def test_boxes_are_receptive_fields_and_hold_all_that_a_unit_sees(net, x) -> None:
    found = patches(net, x, k=3)
    generator = torch.Generator().manual_seed(3)
    for name, each in found.items():
        field = graph.receptive_field(fv_describe(net), name, (13, 11))
        assert each.receptive_field == field
        cut = 0
        for channel in range(len(each.values)):
            for rank in range(3):
                position = tuple(each.positions[channel, rank].tolist())
                assert each.fields[channel, rank].tolist() == list(field.box(position))
                top, left, bottom, right = each.boxes[channel, rank].tolist()
                assert [top, left, bottom, right] == list(field.box(position, (13, 11)))
                cut += [top, left, bottom, right] != each.fields[channel, rank].tolist()
                # the same activation when all other pixels change
                other = torch.randint(-9, 9, x.shape[1:], generator=generator).to(f64)
                other[:, top:bottom, left:right] = x[each.images[channel, rank], :, top:bottom, left:right]
                value = activations(net, other[None])[name][0, channel][position]
                assert value == each.values[channel, rank]
        assert cut


def fv_describe(net: nn.Module) -> nn.Module:
    """``net``, with two channels known of its images."""
    fv.describe(net, preprocessing=fv.models.Preprocessing((13, 11), None, (0.0, 0.0), (1.0, 1.0)))
    return net


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.b, self.b_norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.c_norm, self.c = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)
        self.unused = nn.Conv2d(1, 1, 1)
        self.gate = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a_norm(self.a(x)), inplace=True)
        x = self.b_norm(F.relu(self.b(x), inplace=True))
        x = self.c(self.c_norm(x))
        x = x * self.gate(x.mean((2, 3), keepdim=True))
        return self.last(x).mean((2, 3))


def test_layers_if_none_are_named() -> None:
    """After a batch norm that takes what a convolution gave, and not what a rectifier made of it; no gates."""
    torch.manual_seed(0)
    found = patches(Normed(), torch.randn(2, 1, 8, 8))
    assert list(found) == ["a_norm", "b", "c", "last"]
    assert found["c"].reason == ""
    # behind the gate a unit depends on the whole image
    assert found["last"].receptive_field is None
    assert "whole image" in found["last"].reason
    assert found["last"].boxes.unique(dim=0).shape[0] == 1
    assert found["last"].boxes[0, 0].tolist() == [0, 0, 8, 8]


class ChannelsBehind(nn.Module):
    """Patches as words, as transformers have them; maps with their channels last, as Swin and ConvNeXt have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.behind = nn.Linear(6, 6)
        self.mixed = nn.Linear(6, 6)
        self.words = nn.Linear(6, 6)
        self.two = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind(self.embed(x).permute(0, 2, 3, 1))
        x = self.mixed(x - x.mean((1, 2), keepdim=True))
        x = self.words(x.flatten(1, 2))
        return self.two((x.mean(1), x.amax(1)))[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"layer": "behind"},
            ValueError,
            r"layer 'behind' should give feature maps \[N, C, H, W\]; its output \[N, 4",
        ),
        ({"layer": "mixed"}, ValueError, "'mixed' should give feature maps .* not known to have, its channels second"),
        ({"layer": "words"}, ValueError, r"layer 'words' should give feature maps .*, got \[2, 16, 6\]"),
        ({"layer": "two"}, TypeError, "layer 'two' should return one floating-point tensor, got tuple"),
        ({"layer": "imbed"}, ValueError, "layer 'imbed' is not known; nearest: embed"),
        ({"layers": []}, ValueError, "layers should hold at least one name, got none"),
        ({"layers": [3]}, TypeError, r"layers should be a list of names, got \[3\]"),
        ({"k": 0}, ValueError, "k should be at least 1, got 0"),
        ({"k": 2.0}, TypeError, "k should be a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size should be at least 1, got 0"),
        ({"position": 3}, ValueError, r"position should be \(row, column\), got 3"),
        ({"position": (1, -1)}, ValueError, "position should be at least 0, got -1"),
        ({"position": (4, 0)}, ValueError, r"position should be inside the map of layer 'embed', 4x4, got \(4, 0\)"),
        ({"source": torch.zeros(3, 16, 16)}, ValueError, r"source should have shape \[N, C, H, W\]"),
        ({"source": 5}, TypeError, "source should be paths, a tensor .* got int"),
        (
            {"source": [torch.zeros(3, 16, 16), torch.zeros(3, 20, 20)]},
            ValueError,
            r"one size, got \[16, 16\] and \[20",
        ),
    ],
)
def test_bad_input_is_named(options, error, message) -> None:
    model = ChannelsBehind()
    source = options.pop("source", torch.rand(2, 3, 16, 16))
    with pytest.raises(error, match=message):
        patches(model, source, **options)
    assert_untouched(model)


def test_the_patch_embedding_of_a_transformer_works() -> None:
    found = patches(ChannelsBehind(), torch.rand(3, 3, 16, 16), k=2)
    assert list(found) == ["embed"]
    assert (found["embed"].boxes[..., 2:] - found["embed"].boxes[..., :2] == 4).all()


def test_models_without_convolutions_and_layers_that_are_not_called() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="model should have convolutions"):
        patches(flat, torch.zeros(1, 3, 2, 2))
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got int"):
        patches(3, torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="layer 'unused' was not called"):
        patches(Normed(), torch.zeros(1, 1, 8, 8), layers=["a", "unused"])


@pytest.mark.cuda
def test_the_same_on_a_gpu(net, x) -> None:
    expected = patches(net, x, k=4, one_per_image=False)
    found = patches(net.cuda(), x.cuda(), k=4, one_per_image=False, batch_size=3)
    for name, each in found.items():
        assert each.values.is_cuda
        assert found_places(each) == found_places(expected[name])
        assert torch.equal(each.boxes.cpu(), expected[name].boxes)


# ----------------------------------------------------------------------------------------------------- the model kept


def assert_untouched(model: nn.Module) -> None:
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_as_before_also_when_the_call_stops(net, x, error) -> None:
    class Stopping(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> Tensor:
            if index == 5:
                raise error("stop")
            return x[index]

    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    patches(net, x)
    assert_untouched(net)
    threads = threading.active_count()
    with pytest.raises(error):
        patches(net, Stopping(), batch_size=2)
    assert_untouched(net)
    assert threading.active_count() == threads
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_pass_ends_behind_the_last_layer(net, x) -> None:
    ran = []
    net.head.register_forward_hook(lambda *_: ran.append("head"))
    found = patches(net, x, "left", batch_size=2)
    assert len(ran) == 1  # once in full, to learn how often each layer is called
    assert found_places(found) == by_sorting(activations(net, x)["left"], 9, one_per_image=True)


# ------------------------------------------------------------------------------------------------------------ files


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five photographs of different sizes, and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (70 + 9 * number, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "2b.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def demo() -> nn.Module:
    return fv.load_model("demo")


def test_folders_with_pictures_that_cannot_be_read(demo, photos) -> None:
    with pytest.warns(UserWarning, match="1 images could not be read; 2b.png: .*not an image"):
        found = patches(demo, photos, layers=["conv1", "conv3_1"], k=5, batch_size=2)["conv3_1"]
    assert sorted(set(found.names.values())) == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert 3 not in found.images  # the broken one keeps its place in the source
    stream = streams.batches(photos, model=demo, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = patches(demo, stream, "conv3_1", k=5)
    assert [name for name, _ in stream.failures] == ["2b.png"]
    assert torch.equal(again.images, found.images)
    assert torch.equal(again.positions, found.positions)
    with pytest.raises(ValueError, match=r"at least one image that can be read, got none; the first: .*2b\.png"):
        patches(demo, [photos / "2b.png"])


def test_a_dataset_that_only_iterates_has_places_but_no_pictures(net, x) -> None:
    class Once(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(x)

    found = patches(net, Once(), "left", k=2)
    assert found_places(found) == by_sorting(activations(net, x)["left"], 2, one_per_image=True)
    with pytest.raises(ValueError, match="others are read only once"):
        patch_pictures(net, found, Once(), 0)


# --------------------------------------------------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def seen(demo) -> tuple[Tensor, dict[str, Patches]]:
    x, _ = fv.load_images(Path(fv.__file__).parent / "models" / "data" / "photos", model=demo)
    return x, patches(demo, x, layers=["conv1", "conv3_1", "conv5_1"], k=4)


def cut(picture: Tensor, field: list[int], outside: float) -> Tensor:
    """The part of a picture [3, H, W] in a box that may stick out, pixel by pixel."""
    top, left, bottom, right = field
    part = torch.full((3, bottom - top, right - left), outside)
    for row in range(max(0, top), min(picture.shape[1], bottom)):
        for column in range(max(0, left), min(picture.shape[2], right)):
            part[:, row - top, column - left] = picture[:, row, column]
    return part


def test_pictures_are_cut_where_the_units_see(demo, seen) -> None:
    x, all_found = seen
    found = all_found["conv3_1"]
    shown = patch_pictures(demo, found, x, [5, 2], batch_size=5)
    assert shown.channels == (5, 2)
    assert shown.photos.shape == shown.guided.shape == (2, 4, 3, 26, 26)
    stuck_out = 0
    for at, channel in enumerate(shown.channels):
        for rank in range(3):
            image = int(found.images[channel, rank])
            field = found.fields[channel, rank].tolist()
            stuck_out += field != found.boxes[channel, rank].tolist()
            photo = fv.images.restore(x[image], fv.models.preprocessing(demo))
            torch.testing.assert_close(shown.photos[at, rank], cut(photo, field, 0.5))
            row, column = found.positions[channel, rank].tolist()
            gradient = fv.guided_backprop(demo, x[image : image + 1], fv.neuron("conv3_1", channel, (row, column)))[0]
            part = cut(gradient, field, 0.0)
            assert part.abs().sum() > 0
            torch.testing.assert_close(part.abs().sum(), gradient.abs().sum())  # nothing of it lies outside
            scaled = fv.images.normalize(part, symmetric=True, percentile=99, dims=3)
            torch.testing.assert_close(shown.guided[at, rank], scaled, atol=1e-4, rtol=0)
        assert (shown.photos[at, 3] == 1).all()  # only three photographs
        assert (shown.guided[at, 3] == 1).all()
    assert stuck_out
    assert patch_pictures(demo, found, x, 5, guided=False).guided is None


def test_fields_larger_than_the_image_show_all_of_it(demo, seen) -> None:
    x, all_found = seen
    shown = patch_pictures(demo, all_found["conv5_1"], x, 0, guided=False)
    assert shown.photos.shape == (1, 4, 3, 64, 64)
    first = fv.images.restore(x[all_found["conv5_1"].images[0, 0]], fv.models.preprocessing(demo))
    assert torch.equal(shown.photos[0, 0], first)


def test_no_warning_before_the_first_rectifier(demo, seen) -> None:
    x, all_found = seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch_pictures(demo, all_found["conv1"], x, [0])


def test_sheets(demo, seen) -> None:
    x, all_found = seen
    shown = patch_pictures(demo, all_found["conv3_1"], x, [4, 1, 9])
    sheet, one = patch_sheet(shown), patch_sheet(shown, 9)
    for picture in (sheet, one):
        assert picture.dim() == 3
        assert picture.shape[0] == 3
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    assert one.shape[2] > 4 * 144
    assert patch_sheet(shown, columns=1).shape[1] > 2 * sheet.shape[1]
    with pytest.raises(ValueError, match="columns should be at least 1, got 0"):
        patch_sheet(shown, columns=0)
    plain = patch_pictures(demo, all_found["conv3_1"], x, [4, 1, 9], guided=False)
    assert patch_sheet(plain).shape[2] < sheet.shape[2]
    assert patch_sheet(plain, 9).shape[1] < one.shape[1]
    with pytest.raises(ValueError, match="channel should be one of 4, 1, 9, got 2"):
        patch_sheet(shown, 2)
    for channels, error, message in (
        (128, ValueError, "channels should be from 0 to 127, got 128"),
        ([], ValueError, "channels should hold at least one"),
        ([1.5], TypeError, "channels should be a whole number"),
        (-1, ValueError, "channels should be at least 0"),
    ):
        with pytest.raises(error, match=message):
            patch_pictures(demo, all_found["conv3_1"], x, channels)


# ------------------------------------------------------------------------------------------------- the command line


def run(*args: object, status: int = 0):
    result = CliRunner().invoke(cli.app, ["patches", *(str(arg) for arg in args)])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    if status == 2:
        assert re.fullmatch(r"fastviz: error: .*\n", result.stderr), result.stderr
    return result


def test_command(demo, photos, tmp_path) -> None:
    (photos / "2b.png").unlink()
    out = tmp_path / "deep" / "out"
    result = run(photos, "--layers", "conv2_1, conv3_1", "--k", 3, "--channels", "0,4-5", "--out", out)
    sheets = {path.name for path in (out / "sheets").iterdir()}
    assert sheets == {
        f"{layer}{end}.png" for layer in ("conv2_1", "conv3_1") for end in ("", ".channel0", ".channel4", ".channel5")
    }
    assert str(out / "sheets") in result.stdout
    assert re.search(r"^conv3_1 +128 +26x26 pixels +\d", result.stdout, re.MULTILINE)
    hits = [json.loads(line) for line in (out / "hits.jsonl").read_text().splitlines()]
    found = patches(demo, photos, layers=["conv2_1", "conv3_1"], k=3)
    assert len(hits) == 3 * (64 + 128)
    hit = hits[3 * 64 + 3 * 7 + 1]
    each = found["conv3_1"]
    assert hit == {
        "layer": "conv3_1",
        "channel": 7,
        "rank": 1,
        "value": float(each.values[7, 1]),
        "image": int(each.images[7, 1]),
        "file": each.names[int(each.images[7, 1])],
        "position": each.positions[7, 1].tolist(),
        "box": each.boxes[7, 1].tolist(),
        "field": each.fields[7, 1].tolist(),
    }
    run(photos, "--layers", "conv1", "--out", out, "--no-guided", "--limit", 2, status=2)
    run(photos, "--layers", "conv1", "--out", out, "--no-guided", "--limit", 2, "--overwrite")
    assert {path.name for path in (out / "sheets").iterdir()} == {"conv1.png"}
    assert len((out / "hits.jsonl").read_text().splitlines()) == 2 * 32


def test_command_leaves_out_what_it_cannot_read(photos, tmp_path) -> None:
    result = run(photos, "--layers", "conv1", "--no-guided", "--out", tmp_path / "out", status=1)
    assert re.search(r"^fastviz: failed: .*2b.png.*not an image", result.stderr, re.MULTILINE)
    assert (tmp_path / "out" / "sheets" / "conv1.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "conv9"], "layer 'conv9' is not known; nearest: conv"),
        (["--layers", "fc6"], "layer 'fc6' should give feature maps"),
        (["--layers", ","], "layers should hold at least one name"),
        (["--channels", "3-x"], "--channels should be numbers and ranges such as 3,7,16-31, got '3-x'"),
        (["--channels", "5-3"], "--channels should be numbers and ranges"),
        (["--channels", ","], "--channels should be numbers and ranges"),
        (["--layers", "conv1", "--channels", "40"], "--channels should be below 32, the number in layer conv1, got 40"),
        (["--position", "3"], "--position should be a row and a column such as 3,7, got '3'"),
        (["--position", "90,1"], "position should be inside the map of layer 'conv1', 64x64"),
        (["--k", "0"], "k should be at least 1"),
        (["--batch-size", "0"], "batch_size should be at least 1"),
        (["--model", "resnet18"], "--weights is needed for resnet18"),
    ],
)
def test_command_says_what_is_wrong(photos, tmp_path, options, message) -> None:
    result = run(photos, *options, "--out", tmp_path / "out", status=2)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_command_without_photographs(tmp_path) -> None:
    assert "paths should exist" in run(tmp_path / "nowhere", "--out", tmp_path / "out", status=2).stderr
    (tmp_path / "empty").mkdir()
    assert "at least one image" in run(tmp_path / "empty", "--out", tmp_path / "out", status=2).stderr


def test_command_stopped_by_ctrl_c(photos, tmp_path, monkeypatch) -> None:
    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    from fastviz import methods

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(methods, "patches", stopped)
        result = run(photos, "--layers", "conv1", "--out", out, status=130)
    assert "nothing was written" in result.stderr
    assert not out.exists()
    monkeypatch.setattr(methods, "patch_pictures", stopped)
    result = run(photos, "--layers", "conv1", "--out", out, status=130)
    assert "hits.jsonl is complete, the sheets of 0 of 1 layers are drawn" in result.stderr
    assert (out / "hits.jsonl").is_file()


# ------------------------------------------------------------------------------------------------------ real networks


def test_late_channels_of_the_built_in_network_like_one_kind_of_thing(demo, shared, tmp_path) -> None:
    """Of the nine images that excite a late channel most, many are of one class of twenty: more than by chance."""
    import zipfile

    with zipfile.ZipFile(shared / "data" / "tiny20.zip") as archive:
        members = [name for name in archive.namelist() if name.startswith("val/") and name.endswith(".JPEG")]
        chosen = [name for name in members if int(re.findall(r"(\d+)\.JPEG", name)[0]) % 4 == 0]
        archive.extractall(tmp_path, chosen)
    found = patches(demo, tmp_path / "val", "conv5_1", batch_size=64)
    largest = []
    for channel in range(len(found.values)):
        classes = [found.names[image].split("/")[0] for image in found.images[channel].tolist()]
        largest.append(max(classes.count(name) for name in classes))
    assert sum(largest) / len(largest) > 3.5


@pytest.mark.parametrize("layers", [0, nn.ReLU()])
def test_layers_that_are_no_names(layers):
    with pytest.raises(TypeError, match="layer should be one name, got"):
        fv.patches(nn.Sequential(nn.Conv2d(3, 2, 3)), None, layers)


def test_a_source_of_nothing():
    with pytest.raises(TypeError, match=r"source should be paths, .* got NoneType"):
        fv.patches(nn.Sequential(nn.Conv2d(3, 2, 3)), None, "0")
