"""Canvases, priors and transforms: their formulas worked by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastviz import models
from fastviz.engine.optimize.canvas import Fourier, Frame, Generator, Pixels, frame_of
from fastviz.engine.optimize.priors import L2, LP, Blur, ClipContribution, ClipNorm, TotalVariation
from fastviz.engine.optimize.transforms import Jitter, Rotate, Scale, Warp, transformed

f64 = torch.float64
FRAME = Frame((6, 5), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
GREY = Frame((4, 4), (0.5,), (0.25,))
NOTHING = torch.zeros(0, dtype=torch.int64)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def photos(n: int = 2, frame: Frame = FRAME) -> torch.Tensor:
    """Images of pictures between 0.1 and 0.9."""
    pictures = 0.1 + 0.8 * torch.rand(n, len(frame.mean), *frame.size, dtype=f64, generator=generators(0)[0])
    return frame.image(pictures)


# ------------------------------------------------------------------------------------------------------- canvases


def test_frame_turns_pictures_into_images_and_back():
    pictures = torch.tensor([0.7, 0.4, 0.8], dtype=f64).view(1, 3, 1, 1)
    images = FRAME.image(pictures)
    torch.testing.assert_close(images.flatten(), torch.tensor([1.0, 0.0, 1.0], dtype=f64))
    torch.testing.assert_close(FRAME.picture(images), pictures)


def test_frame_of_a_model():
    model = nn.Conv2d(3, 1, 1)
    assert frame_of(model).size == (224, 224)
    assert frame_of(model, 32).size == (32, 32)
    assert frame_of(model, (8, 12)).size == (8, 12)
    models.describe(model, preprocessing=models.Preprocessing(None, None, (0.5,), (0.5,)))
    assert frame_of(model, 7).mean == (0.5,)
    with pytest.raises(ValueError, match="size should be given for a model whose preprocessing has no size"):
        frame_of(model)


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        ((1, 2, 3), ValueError, r"one number or \(height, width\)"),
        (0, ValueError, "at least 1"),
        (2.5, TypeError, "whole"),
    ],
)
def test_frame_refuses(size, error, words):
    with pytest.raises(error, match=words):
        frame_of(nn.Conv2d(3, 1, 1), size)


@pytest.mark.parametrize("frame", [FRAME, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize(
    "canvas",
    [Pixels(), Pixels(clip=False), Pixels(decorrelate=True), Fourier(), Fourier(decay=0.5, decorrelate=False)],
    ids=str,
)
def test_a_canvas_can_be_set_to_an_image(canvas, frame):
    images = photos(frame=frame)
    torch.testing.assert_close(canvas.images(canvas.parameters(images, frame), frame), images)


def test_fourier_is_the_formula():
    """One wave of one cycle down the image: sigmoid(A cos), A its amplitude after the division by f^decay."""
    frame = Frame((8, 8), (0.0,), (1.0,))
    parameters = torch.zeros(1, 1, 8, 5, 2, dtype=f64)
    parameters[0, 0, 1, 0, 0] = parameters[0, 0, 7, 0, 0] = 0.5  # a real wave is a pair of complex ones
    frequency, decay = 1 / 8, 1.5
    row = torch.arange(8, dtype=f64)
    wave = frequency**-decay * torch.cos(2 * torch.pi * row / 8) / 8  # 1 / √(8 · 8): the transform that keeps lengths
    expected = wave.sigmoid()[:, None].expand(8, 8)
    torch.testing.assert_close(Fourier(decay).images(parameters, frame)[0, 0], expected)


def test_sigmoid_canvases_keep_pictures_within_0_and_1():
    for canvas in (Fourier(), Pixels(decorrelate=True)):
        wild = 1000 * canvas.noise(FRAME, generators(1), torch.zeros(1, dtype=f64))
        pictures = FRAME.picture(canvas.images(wild, FRAME))
        assert float(pictures.min()) >= -1e-9
        assert float(pictures.max()) <= 1 + 1e-9
        black = canvas.parameters(FRAME.image(torch.zeros(1, 3, 6, 5, dtype=f64)), FRAME)
        assert bool(black.isfinite().all())


def test_brightness_is_the_strongest_axis_of_colour():
    """Equal steps along the three axes change the picture most along the first, which is nearly grey."""
    coordinates = torch.eye(3, dtype=f64).view(3, 3, 1, 1)
    pictures = FRAME.picture(Pixels(decorrelate=True).images(coordinates, FRAME)).flatten(1) - 0.5
    lengths = pictures.norm(dim=1)
    assert lengths[0] > 2 * lengths[1] > 2 * lengths[2]
    assert float(pictures[0].std()) < 0.01


def test_pixels_have_bounds_only_where_they_are_clipped():
    low, high = Pixels().bounds(FRAME, torch.zeros(1, dtype=f64))
    torch.testing.assert_close(FRAME.picture(low), torch.zeros(1, 3, 1, 1, dtype=f64))
    torch.testing.assert_close(FRAME.picture(high), torch.ones(1, 3, 1, 1, dtype=f64))
    assert Pixels(clip=False).bounds(FRAME, low) is None
    assert Pixels(decorrelate=True).bounds(FRAME, low) is None
    assert Fourier().bounds(FRAME, low) is None


@pytest.mark.parametrize(
    "canvas", [Pixels(), Fourier(), Generator(nn.Identity(), (7,))], ids=["pixels", "fourier", "g"]
)
def test_noise_depends_on_the_seed_of_its_row_only(canvas):
    like = torch.zeros(1, dtype=f64)
    both = canvas.noise(FRAME, generators(3, 4), like)
    assert both.dtype == f64
    torch.testing.assert_close(both[1:], canvas.noise(FRAME, generators(4), like), rtol=0, atol=0)
    assert not torch.equal(both[0], both[1])


class Decoder(nn.Module):
    """Codes [N, 2] → pictures of one colour."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, z):
        return z[:, :1, None, None].expand(-1, self.channels, 6, 5)


def test_generator_outputs():
    codes = torch.tensor([[0.5, 9.0]], dtype=f64)
    for output, value in (("picture", 0.5), ("tanh", 0.75)):
        pictures = FRAME.picture(Generator(Decoder(), (2,), output).images(codes, FRAME))
        torch.testing.assert_close(pictures, torch.full((1, 3, 6, 5), value, dtype=f64))
    images = Generator(Decoder(), (2,), "image").images(codes, FRAME)
    torch.testing.assert_close(images, torch.full((1, 3, 6, 5), 0.5, dtype=f64))


def test_generator_penalty_and_limits():
    canvas = Generator(Decoder(), (2,), decay=0.5, limits=(0, 2))
    assert canvas.penalty(torch.tensor([[3.0, 4.0]], dtype=f64)).tolist() == [12.5]
    assert [float(each) for each in canvas.bounds(FRAME, torch.zeros(1))] == [0, 2]
    assert Generator(Decoder(), (2,)).penalty(torch.ones(1, 2)) is None


def test_generator_refuses():
    codes = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"pictures of shape \[1, 3, 6, 5\].*got \[1, 1, 6, 5\]"):
        Generator(Decoder(1), (2,)).images(codes, FRAME)
    with pytest.raises(TypeError, match="should return a floating-point tensor of pictures, got list"):
        Generator(nn.Flatten(), (2,)).__class__(
            type("G", (nn.Module,), {"forward": lambda self, z: [z]})(), (2,)
        ).images(codes, FRAME)
    with pytest.raises(ValueError, match="cannot be set to an image"):
        Generator(Decoder(), (2,)).parameters(torch.zeros(1, 3, 6, 5), FRAME)
    with pytest.raises(ValueError, match="output should be one of 'picture', 'tanh', 'image'"):
        Generator(Decoder(), (2,), "pixels")
    with pytest.raises(TypeError, match=r"module should be a torch\.nn\.Module"):
        Generator(lambda z: z, (2,))


# --------------------------------------------------------------------------------------------------------- priors


def test_penalties_are_their_formulas():
    x = torch.tensor([[[[1.0, -2.0], [0.5, 3.0]]], [[[0.0, 0.0], [0.0, 0.0]]]], dtype=f64)
    cases = {
        L2(2): 2 * (1 + 4 + 0.25 + 9),
        LP(6, 1): 1 + 64 + 0.5**6 + 729,
        LP(3, 1): 1 + 8 + 0.125 + 27,
        LP(2.5, 1): 1 + 2**2.5 + 0.5**2.5 + 3**2.5,
        TotalVariation(2, 0.1): 0.1 * (0.5**2 + 3**2),
        TotalVariation(3, 1): (0.5**2 + 3**2) ** 1.5,
    }
    for prior, value in cases.items():
        torch.testing.assert_close(prior.penalty(x, NOTHING), torch.tensor([value, 0.0], dtype=f64), msg=str(prior))


def test_blur_is_a_normalized_gaussian_every_few_steps():
    x = torch.zeros(1, 2, 9, 9, dtype=f64)
    x[0, 0, 4, 4] = 1
    blur = Blur(every=3, sigma=0.8)
    assert blur.changed(x, None, NOTHING, 2) is x
    made = blur.changed(x, None, NOTHING, 3)
    place = torch.arange(-2, 3, dtype=f64)
    weights = torch.exp(-place.square() / (2 * 0.8**2))
    weights /= weights.sum()
    torch.testing.assert_close(made[0, 0, 2:7, 2:7], torch.outer(weights, weights))
    torch.testing.assert_close(made[0, 1], x[0, 1])
    flat = torch.full((1, 1, 5, 5), 2.5, dtype=f64)
    torch.testing.assert_close(blur.changed(flat, None, NOTHING, 3), flat)  # also at the border


def test_clipping_sets_the_smallest_pixels_to_the_mean_colour():
    x = torch.tensor([[[[1.0, -2.0], [0.5, 3.0]], [[1.0, 0.0], [0.0, 0.0]]]], dtype=f64)
    small = ClipNorm(0.5).changed(x, None, NOTHING, 1)  # norms √2, 2, 0.5, 3
    assert small.tolist() == [[[[0, -2], [0, 3]], [[0, 0], [0, 0]]]]
    gradients = torch.tensor([[[[1.0, 0.1], [8.0, 0.0]], [[-1.0, 9.0], [9.0, 9.0]]]], dtype=f64)
    little = ClipContribution(0.5).changed(x, gradients, NOTHING, 1)  # |1 - 1|, 0.2, 4, 0
    assert little.tolist() == [[[[0, -2], [0.5, 0]], [[0, 0], [0, 0]]]]
    few = ClipNorm(0.1)
    assert few.changed(x, None, NOTHING, 1) is x  # a tenth of four pixels is none


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: L2(0), "weight should be finite and above 0"),
        (lambda: LP(-1), "alpha should be finite and above 0"),
        (lambda: TotalVariation(2, -1), "weight should be finite and above 0"),
        (lambda: Blur(0), "every should be at least 1"),
        (lambda: Blur(1, 0), "sigma should be finite and above 0"),
        (lambda: ClipNorm(1), "fraction should be a number between 0 and 1, got 1"),
        (lambda: ClipContribution(0), "fraction should be a number between 0 and 1, got 0"),
        (lambda: Jitter(0), "pixels should be at least 1"),
        (lambda: Scale(1.2, 0.8), "low and high should be above 0, in this order"),
        (lambda: Rotate(0), "degrees should be finite and above 0"),
    ],
)
def test_arguments_are_checked(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ----------------------------------------------------------------------------------------------------- transforms


def test_jitter_rolls_each_image_by_its_own_numbers():
    x = torch.arange(2 * 25, dtype=f64).view(2, 1, 5, 5)
    made = Jitter(2)(x, generators(0, 5))
    for seed, image, moved in zip((0, 5), x, made, strict=True):
        shift = torch.randint(-2, 3, (2,), generator=generators(seed)[0]).tolist()
        torch.testing.assert_close(moved, image.roll(shift, (1, 2)))
    assert not torch.equal(made[0] + 25, made[1])


def test_scale_enlarges_around_the_centre():
    x = torch.rand(1, 1, 6, 6, dtype=f64, generator=generators(0)[0])
    torch.testing.assert_close(Scale(1, 1)(x, generators(0)), x)
    # Twice as large: pixel centres fall on quarters, e.g. the first between the second and third of the original.
    made = Scale(2, 2)(x, generators(0))[0, 0]
    torch.testing.assert_close(
        made[0, 0],
        (0.75 * 0.75 * x[0, 0, 1, 1] + 0.75 * 0.25 * (x[0, 0, 1, 2] + x[0, 0, 2, 1]) + 0.0625 * x[0, 0, 2, 2]),
    )


def test_rotate_turns_around_the_centre(monkeypatch):
    x = torch.rand(1, 2, 5, 7, dtype=f64, generator=generators(0)[0])
    monkeypatch.setattr(
        "fastviz.engine.optimize.transforms._uniform", lambda low, high, each: torch.tensor([180.0], dtype=f64)
    )
    torch.testing.assert_close(Rotate(180)(x, generators(0)), x.flip(2, 3))
    square = x[..., :5]
    monkeypatch.setattr(
        "fastviz.engine.optimize.transforms._uniform", lambda low, high, each: torch.tensor([90.0], dtype=f64)
    )
    torch.testing.assert_close(Rotate(90)(square, generators(0)), square.rot90(1, (2, 3)))


@pytest.mark.parametrize("transform", [Jitter(2), Scale(), Rotate()], ids=str)
def test_transforms_treat_each_image_alone(transform):
    x = photos(3)
    made = transform(x, generators(1, 2, 3))
    torch.testing.assert_close(made[1:2], transform(x[1:2], generators(2)))
    assert made.shape == x.shape
    assert made.dtype == f64


def test_warps_in_a_row_interpolate_once(monkeypatch):
    """Half as large, turned, twice as large: nothing is lost where the steps alone would blur."""
    x = torch.rand(2, 1, 8, 12, dtype=f64, generator=generators(0)[0])
    row = [Scale(2, 2), Rotate(30), Rotate(30), Scale(0.5, 0.5)]
    turns = iter([30.0, -30.0])
    whole = torch.ones(2, dtype=f64)

    def drawn(low: float, high: float, each: object) -> torch.Tensor:
        return whole * (next(turns) if low < 0 else low)

    monkeypatch.setattr("fastviz.engine.optimize.transforms._uniform", drawn)
    torch.testing.assert_close(transformed(x, row, generators(1, 2)), x)


def test_transforms_apply_in_order(monkeypatch):
    x = torch.rand(2, 3, 9, 9, dtype=f64, generator=generators(0)[0])
    row = [Scale(1.5, 1.5), Jitter(3), Scale(0.7, 0.7), Jitter(2)]
    expected, used = x, generators(1, 2)
    for transform in row:
        expected = transform(expected, used)
    torch.testing.assert_close(transformed(x, row, generators(1, 2)), expected)
    # A stretch and a quarter turn do not commute.
    monkeypatch.setattr(
        "fastviz.engine.optimize.transforms._uniform", lambda low, high, each: torch.tensor([90.0] * 2, dtype=f64)
    )
    expected = Rotate(90)(Stretch()(x, used), used)
    torch.testing.assert_close(transformed(x, [Stretch(), Rotate(90)], used), expected)


class Stretch(Warp):
    """Twice as wide."""

    def matrices(self, size, generators):
        return torch.diag(torch.tensor([0.5, 1.0], dtype=f64)).expand(len(generators), 2, 2)
