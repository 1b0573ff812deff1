"""Pictures of signals and volumes, and of their maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastviz import images


def test_a_band_is_red_above_zero_and_blue_below() -> None:
    signal = torch.sin(torch.linspace(0, 9, 300)).expand(2, 300)
    attribution = torch.zeros(300)
    attribution[:100], attribution[200:] = 1.0, -1.0
    picture = images.draw_signal(signal, attribution, width=300, height=40)
    assert picture.shape == (3, 80, 300)
    assert 0 <= picture.min() < 0.3  # the curve
    red, green, blue = (plane[5:75].median(0).values for plane in picture)
    assert (red[:95] > blue[:95] + 0.4).all()
    assert (blue[205:] > red[205:] + 0.4).all()
    assert (torch.stack([red, green, blue])[:, 110:190] > 0.95).all()


def test_nothing_short_is_lost_in_a_long_signal() -> None:
    signal, attribution = torch.zeros(50_000), torch.zeros(50_000)
    signal[20_000], attribution[40_000], attribution[10_000] = 1.0, -5.0, 5.0
    picture = images.draw_signal(signal, attribution, width=100, height=50)
    assert picture[:, 8:20, 39:42].amin() < 0.6  # a peak of one sample
    blue = picture[2] - picture[0]
    assert blue[:30, 80].median() > 0.4
    assert blue[:30, 20].median() < -0.4
    heat = images.draw_signal(signal, attribution.abs(), "heat", width=100, height=50)
    assert (heat[0] - heat[2])[:30, 80].median() > 0.4


@pytest.mark.parametrize("length", [1, 2, 17, 959, 960, 961, 4000])
def test_any_length(length: int) -> None:
    for coarse in (1, 5):
        picture = images.draw_signal(torch.rand(1, length), torch.rand(coarse))
        assert picture.shape == (3, 96, 960)
        assert picture.isfinite().all()


def test_slices_share_one_scale_and_stand_in_order() -> None:
    volume, attribution = torch.rand(5, 32, 48) * 0.1, torch.zeros(5, 32, 48)
    attribution[3, 16:], attribution[1, 16:] = 4.0, -2.0
    sheet = images.draw_volume(volume, attribution, columns=5)
    cells = sheet[:, 4:-4].split(48 * 3 + 4, dim=2)
    red = [float((cell[0] - cell[2])[60:70, 80:].mean()) for cell in cells[:5]]
    assert red[3] > 0.2 > 0.05 > red[0]
    assert red[1] < -0.2
    assert abs(red[1]) != pytest.approx(red[3], abs=0.02)
    assert images.draw_volume(volume.expand(2, 5, 32, 48), attribution, "heat", slices=2).shape[0] == 3


def test_maps_of_zeros_are_said() -> None:
    signal = images.draw_signal(torch.rand(1, 50), torch.zeros(50))
    assert signal[:, -25:, :200].amax() > 0.9
    torch.testing.assert_close(signal[0], signal[2], rtol=0, atol=0.02)  # no colours
    sheet = images.draw_volume(torch.rand(2, 64, 128), torch.zeros(2, 64, 128))
    assert torch.equal(sheet[0], sheet[2])


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (
            lambda: images.draw_signal(torch.rand(1, 2, 3), torch.rand(3)),
            ValueError,
            r"signal should have shape \[C, L\]",
        ),
        (lambda: images.draw_signal(torch.full((3,), torch.nan), torch.rand(3)), ValueError, "signal should be finite"),
        (lambda: images.draw_signal(torch.rand(3), torch.rand(2, 3)), ValueError, "attribution should have shape"),
        (lambda: images.draw_signal(torch.rand(3), torch.rand(3), "warm"), ValueError, "draws should be"),
        (lambda: images.draw_volume(torch.rand(3, 3), torch.rand(3, 3, 3)), ValueError, "volume should have shape"),
        (
            lambda: images.draw_volume(torch.rand(3, 3, 3), torch.rand(3, 3)),
            ValueError,
            "attribution should have shape",
        ),
    ],
)
def test_what_cannot_be_drawn(draw: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw()
