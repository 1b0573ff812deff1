"""Maps drawn over the photograph they explain."""

from __future__ import annotations

import pytest
import torch

from fastviz.images import drawing


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("draws", ["heat", "signed", "gradient"])
@pytest.mark.parametrize("channels", [1, 3])
def test_drawings_are_pictures_of_the_size_of_the_photograph(photo, draws, channels):
    shape = (channels, 10, 15) if draws == "gradient" else (10, 15)
    attribution = torch.randn(shape)
    for coarse in (False, True):
        picture = drawing.draw(draws, attribution, photo, coarse=coarse)
        assert picture.shape == photo.shape
        assert picture.min() >= 0
        assert picture.max() <= 1
        zero = drawing.draw(draws, torch.zeros(shape), photo, coarse=coarse)
        assert zero.isfinite().all()


def test_a_signed_map_is_red_above_zero_and_blue_below(photo):
    attribution = torch.zeros(8, 12)
    attribution[:, :4], attribution[:, 8:] = 1.0, -1.0
    red, _, blue = drawing.draw("signed", attribution, photo).mean(1)
    assert (red[:12] > blue[:12] + 0.2).all()
    assert (blue[48:] > red[48:] + 0.2).all()
    torch.testing.assert_close(red[25:35], blue[25:35])


def test_a_heat_map_is_bright_where_it_is_large(photo):
    attribution = torch.zeros(8, 12)
    attribution[:, 9:] = 1.0
    fine = drawing.draw("heat", attribution, photo)
    assert fine[0, :, 50:].mean() > 0.9
    assert fine[:, :, :35].mean() < 0.2
    red, _, blue = drawing.draw("heat", attribution, photo, coarse=True).mean(1)
    assert (red[52:] > blue[52:] + 0.1).all()
    assert (blue[:35] > red[:35] + 0.1).all()


def test_a_gradient_is_drawn_about_grey_and_one_outlier_does_not_hide_the_rest(photo):
    attribution = torch.zeros(3, 20, 20)
    attribution[0, :, :10] = 1.0
    attribution[1, :, :10] = -1.0
    attribution[0, 0, 0] = 1e6
    picture = drawing.draw("gradient", attribution, photo)
    torch.testing.assert_close(picture[:, 20, 50], torch.tensor([0.5, 0.5, 0.5]))
    torch.testing.assert_close(picture[:, 20, 10], torch.tensor([1.0, 0.0, 0.5]))


@pytest.mark.parametrize("draws", ["heat", "signed", "gradient"])
@pytest.mark.parametrize("coarse", [False, True])
def test_a_map_of_zeros_is_said_and_not_drawn(draws: str, coarse: bool) -> None:
    photo = torch.rand(3, 64, 120, generator=torch.Generator().manual_seed(0)) * 0.5
    zeros = torch.zeros(*(3,) * (draws == "gradient"), 8, 15)
    picture = drawing.draw(draws, zeros, photo, coarse=coarse)
    assert picture.shape == photo.shape
    assert torch.equal(picture[0], picture[2])  # grey, no colour of a scale
    assert picture[:, -20:].amax() > 0.9  # the words
    assert drawing.draw(draws, zeros[..., :4], photo[..., :10, :12]).shape == (3, 10, 12)


def test_of_several_channels_of_both_signs_the_sum_is_drawn():
    attribution, photo = torch.randn(3, 6, 6), torch.rand(3, 12, 12)
    summed = drawing.draw("signed", attribution.sum(0), photo)
    torch.testing.assert_close(drawing.draw("signed", attribution, photo), summed)
