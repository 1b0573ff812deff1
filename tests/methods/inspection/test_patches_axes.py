"""Patches of signals [N, C, L] and volumes [N, C, D, H, W]: by a full sort, with boxes that hold what a unit sees."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastviz as fv
from fastviz.methods import patch_pictures, patch_sheet, patches
from fastviz.vectors.top_k import best_per_image, best_places
from tests.methods.inspection.common import as_places, by_sorting, found_places

f64 = torch.float64
SIZES = {1: (23,), 3: (9, 7, 11)}


def network(axes: int) -> nn.Sequential:
    """Whole numbers, so that sums are exact in any order and there are ties; batch norm behind the second."""
    kinds: dict[str, Any] = {name: getattr(nn, f"{name}{axes}d") for name in ("Conv", "BatchNorm", "AdaptiveAvgPool")}
    body = (kinds["Conv"](2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), kinds["Conv"](4, 5, 3, bias=False))
    model = nn.Sequential(*body, kinds["BatchNorm"](5), kinds["AdaptiveAvgPool"](1), nn.Flatten(), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(axes)
    for parameter in model.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).to(f64)
    return model.to(f64).eval()


def inputs(axes: int, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(-1, 2, (count, 2, *SIZES[axes]), generator=generator).to(f64)


def test_worked_by_hand() -> None:
    signal = torch.tensor([[[1.0, 5.0, 5.0]], [[0.0, 0.0, 7.0]]])
    assert as_places(*best_per_image(signal)) == [[(5, 0, 1), (7, 1, 2)]]
    assert as_places(*best_places(signal, 3)) == [[(5, 0, 1), (5, 0, 2), (7, 1, 2)]]
    volume = torch.zeros(1, 1, 2, 3, 4)
    volume[0, 0, 1, 2, 3] = 1
    assert as_places(*best_per_image(volume)) == [[(1, 0, 1, 2, 3)]]


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("one_per_image", [True, False])
@pytest.mark.parametrize("batch_size", [2, None])
def test_equals_sorting_all_activations(axes: int, one_per_image: bool, batch_size: int | None) -> None:
    model, x = network(axes), inputs(axes)
    found = patches(model, x, k=4, one_per_image=one_per_image, batch_size=batch_size)
    assert list(found) == ["0", "3"]  # the batch norm stands for its convolution
    for name, maps in fv.activations(model, x, layers=["0", "3"]).items():
        assert found_places(found[name]) == by_sorting(maps, 4, one_per_image=one_per_image), name
    assert found["0"].input_size == SIZES[axes]


@pytest.mark.parametrize("axes", [1, 3])
def test_boxes_hold_what_a_unit_sees_and_no_more(axes: int) -> None:
    model, x = network(axes), inputs(axes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().add_(1)  # every value in the window has a say
    found = patches(model, x, "3", k=3)
    assert found.boxes.shape == (5, 3, 2 * axes)
    for rank, channel in product(range(3), range(5)):
        unit = fv.neuron("2", channel, found.positions[channel, rank].tolist())
        image = x[found.images[channel, rank]].abs()[None] + 1
        seen = fv.input_gradient(model, image, unit)[0].abs().sum(0)
        where = seen.nonzero()
        box = [*where.amin(0).tolist(), *(where.amax(0) + 1).tolist()]
        assert found.boxes[channel, rank].tolist() == box


def test_a_signal_is_a_picture_of_one_row() -> None:
    model, x = network(1), inputs(1)
    flat = nn.Sequential(nn.Conv2d(2, 4, (1, 3), (1, 2), (0, 1)), nn.ReLU(), nn.Conv2d(4, 5, (1, 3), bias=False)).to(
        f64
    )
    for number in (0, 2):
        for mine, other in zip(flat[number].parameters(), model[number].parameters(), strict=True):
            mine.data = other.data.unsqueeze(2) if other.dim() == 3 else other.data
    signals, rows = patches(model, x, "2", k=3), patches(flat, x.unsqueeze(2), "2", k=3)
    assert torch.equal(signals.values, rows.values)
    assert torch.equal(signals.positions[..., 0], rows.positions[..., 1])
    assert torch.equal(signals.boxes, rows.boxes[..., [1, 3]])


@pytest.mark.parametrize("axes", [1, 3])
def test_one_position(axes: int) -> None:
    model, x = network(axes), inputs(axes)
    place = (2, 1, 3)[:axes]
    found = patches(model, x, "0", k=2, position=place)
    maps = fv.activations(model, x, "0")
    expected = maps[(slice(None), slice(None), *place)].sort(0, descending=True).values[:2].T
    assert torch.equal(found.values, expected)
    assert (found.positions == torch.tensor(place)).all()
    with pytest.raises(ValueError, match=r"position should be inside the map of layer '0', .*got"):
        patches(model, x, "0", position=(99,) * axes)
    with pytest.raises(ValueError, match=r"position should be \((place,\) in signals|slice, row, column\) in volumes)"):
        patches(model, x, "0", position=(1, 1))


@pytest.mark.parametrize("axes", [1, 3])
def test_sources(axes: int) -> None:
    """Datasets, loaders that give labels, too, lists of tensors and of arrays, a stream."""
    model, x = network(axes), inputs(axes)
    expected = patches(model, x, "3", k=3)
    data = TensorDataset(x, torch.arange(len(x)))
    sources: list[Any] = [
        data,
        DataLoader(data, batch_size=2),
        DataLoader(data, batch_size=None),
        DataLoader(data, batch_size=2, collate_fn=list),
        list(x),
        [each.numpy() for each in x],
        [{"x": each} for each in x],
        fv.batches(x, model=model, batch_size=2, axes=axes),
    ]
    for source in sources:
        found = patches(model, source, "3", k=3)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.positions, expected.positions)
    with pytest.raises(TypeError, match=r"floating-point tensors \[C, (L|D, H, W)\], got torch.int64: item 0"):
        patches(model, [each.long() for each in x], "3")
    with pytest.raises(ValueError, match=r"source should give (signals|volumes) \[C, (L|D, H, W)\], got .*: item 0"):
        patches(model, [each[0] for each in x], "3")
    with pytest.raises(TypeError, match="got paths of files"):
        patches(model, "photos", "3")


def test_layers_without_maps_of_the_signal_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer '6' should give feature maps \[N, C, L\], got"):
        patches(network(1), inputs(1), "6")


@pytest.mark.parametrize("axes", [1, 3])
def test_pictures(axes: int) -> None:
    model, x = network(axes), inputs(axes)
    found = patches(model, x, "3", k=4)
    shown, plain = (patch_pictures(model, found, x, [0, 3], guided=guided) for guided in (True, False))
    assert shown.guided is None
    assert shown.photos.shape == plain.photos.shape == (2, 4, *shown.photos.shape[2:])
    assert float(shown.photos.min()) >= 0
    assert float(shown.photos.max()) <= 1
    assert not torch.equal(shown.photos, plain.photos)  # the colours
    grey = plain.photos[:, :, :1].expand_as(plain.photos)
    torch.testing.assert_close(plain.photos, grey, atol=0.02, rtol=0)
    number, corner = int(found.images[3, 1]), found.boxes[3, 1]
    sides = zip(corner[:axes].tolist(), corner[axes:].tolist(), strict=True)
    window = x[number].float()[(slice(None), *(slice(*side) for side in sides))]
    if (found.fields == found.boxes).all(-1)[3, 1]:
        draw: Any = fv.images.draw_signal if axes == 1 else fv.images.draw_volume
        options = {"width": 220, "height": 48} if axes == 1 else {"slices": 3, "columns": 3}
        torch.testing.assert_close(plain.photos[1, 1], draw(window, None, **options))
    sheet, row = patch_sheet(shown), patch_sheet(shown, 3)
    assert sheet.shape[0] == row.shape[0] == 3
    assert len(shown.shown()) == 8
    none = patch_pictures(model, patches(model, x[:2], "3", k=4), x[:2], [0])
    assert (none.photos[0, 3] == 1).all()  # fewer places than k: empty


def test_a_video_network() -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.video.r3d_18(weights=None).eval()
    x = torch.rand(2, 3, 8, 32, 32)
    found = patches(model, x, layers=["stem.1", "layer2.0.conv1.1"], k=2)
    assert found["stem.1"].receptive_field is not None
    assert found["stem.1"].receptive_field.size == (3, 7, 7)
    maps = fv.activations(model, x, "layer2.0.conv1.1")
    torch.testing.assert_close(found["layer2.0.conv1.1"].values[:, 0], maps.amax((0, 2, 3, 4)))
    shown = patch_pictures(model, found["stem.1"], x, [0, 1])
    assert shown.photos.shape[:3] == (2, 2, 3)


def test_numpy_arrays_of_signals() -> None:
    model, x = network(1), inputs(1)
    found = patches(model, np.asarray(x), "3", k=3)
    assert torch.equal(found.values, patches(model, x, "3", k=3).values)
