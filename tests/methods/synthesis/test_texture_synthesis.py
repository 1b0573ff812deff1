"""Textures grown from a sample: the paper's algorithm pixel by pixel, what it does with simple samples, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastviz import images, ops, reference
from fastviz.cli.texture import sample_path
from fastviz.methods.synthesis import texture_synthesis
from fastviz.methods.synthesis.texture_synthesis import fill_hole, synthesize_texture

STRIPES = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).repeat(4).expand(1, 12, 12)


def windows_of(image: Tensor, y: int, x: int, reach: int) -> tuple[Tensor, list[tuple[int, int, int, int]]]:
    """A window of zeros and the places (i, j, row, column) of it that lie in the image."""
    side = range(-reach, reach + 1)
    inside = [(i + reach, j + reach, y + i, x + j) for i in side for j in side]
    places = [place for place in inside if 0 <= place[2] < image.shape[1] and 0 <= place[3] < image.shape[2]]
    return image.new_zeros(len(image), 2 * reach + 1, 2 * reach + 1), places


def grow_plainly(
    image: Tensor, known: Tensor, sample: Tensor, window: int, epsilon: float, max_error: float, generator
) -> Tensor:
    """The paper's pseudo-code: every pixel of a round by itself, one after the other."""
    reach = window // 2
    image, known = image.clone(), known.clone()
    bell = torch.exp(-((torch.arange(window, dtype=image.dtype) - reach) ** 2) / (2 * (window / 6.4) ** 2))
    free = [  # windows of the sample without NaN, which stands for a hole
        (y, x)
        for y in range(sample.shape[1] - window + 1)
        for x in range(sample.shape[2] - window + 1)
        if not sample[:, y : y + window, x : x + window].isnan().any()
    ]
    while not known.all():
        neighbours = {}
        for y, x in (~known).nonzero().tolist():
            neighbours[y, x] = int(known[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].sum())
        pixels = [pixel for pixel in neighbours if neighbours[pixel]]
        pixels = [pixels[i] for i in torch.randperm(len(pixels), generator=generator)]
        pixels.sort(key=lambda pixel: -neighbours[pixel])
        chances = torch.rand(len(pixels), generator=generator, dtype=torch.float64).tolist()
        progress = False
        for (y, x), chance in zip(pixels, chances, strict=True):
            neighbourhood, places = windows_of(image, y, x, reach)
            mask = torch.zeros(window, window, dtype=torch.bool)
            for i, j, row, column in places:
                mask[i, j] = known[row, column]
                neighbourhood[:, i, j] = image[:, row, column]
            distances = reference.patch_search(sample.nan_to_num(), neighbourhood, mask, torch.outer(bell, bell))
            best = min(float(distances[place]) for place in free)
            good = [place for place in free if distances[place] <= (1 + epsilon) * best]
            row, column = good[int(chance * len(good))]
            if distances[row, column] / len(image) < max_error:
                image[:, y, x] = sample[:, row + reach, column + reach]
                known[y, x] = progress = True
        if not progress:
            max_error *= 1.1
    return image


@pytest.fixture(params=["in turn", "in batches"])
def growth(request, monkeypatch):
    """Both ways of filling pixels: the CPU's, and that of other devices."""
    if request.param == "in batches":
        monkeypatch.setattr(texture_synthesis, "_fill_in_turn", texture_synthesis._fill_in_batches)


@pytest.mark.parametrize("max_error", [0.3, 0.004])
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_the_paper_pixel_by_pixel(channels, max_error, growth):
    """The same numbers drawn in the same order: every pixel is the same, those that had to wait too."""
    noise = torch.rand(channels, 11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sample = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    grown = synthesize_texture(sample, (10, 14), window=5, max_error=max_error, seed=7)
    generator = torch.Generator().manual_seed(7)
    H, W = sample.shape[1:]
    top, left = (int(torch.randint(limit, (), generator=generator)) for limit in (H - 2, W - 2))
    start, known = sample.new_zeros(channels, 10, 14), torch.zeros(10, 14, dtype=torch.bool)
    start[:, 3:6, 5:8] = sample[:, top : top + 3, left : left + 3]
    known[3:6, 5:8] = True
    plain = grow_plainly(start, known, sample, 5, 0.1, max_error, generator)
    torch.testing.assert_close(grown, plain, rtol=0, atol=0)


def test_holes_are_filled_as_the_paper_would(growth):
    image = torch.rand(2, 14, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    hole = torch.zeros(14, 12, dtype=torch.bool)
    hole[2:5, 1:4] = hole[9, 11] = hole[10, 10] = True
    filled = fill_hole(image, hole, window=3, epsilon=0.5, seed=3)
    sample = image.masked_fill(hole, torch.nan)
    generator = torch.Generator().manual_seed(3)
    plain = grow_plainly(sample.nan_to_num(), ~hole, sample, 3, 0.5, 0.3, generator)
    torch.testing.assert_close(filled, plain, rtol=0, atol=0)
    assert (filled == image)[:, ~hole].all()


@pytest.mark.parametrize("window", [3, 7, 11])
@pytest.mark.parametrize("epsilon", [0, 0.1, 2.0])
def test_giving_windows_up_early_changes_nothing(window, epsilon, monkeypatch):
    """Wide samples, so that whole rows of windows are given up; real texture, with its many windows that are alike."""
    picture = images.read_image(sample_path("brick")).double()
    sample = torch.nn.functional.avg_pool2d(picture, 4)[:, :40, :70]
    options = {"window": window, "epsilon": epsilon, "seed": 5}
    fast = synthesize_texture(sample, 40, **options)
    monkeypatch.setattr(texture_synthesis, "_fill_in_turn", texture_synthesis._fill_in_batches)
    assert torch.equal(fast, synthesize_texture(sample, 40, **options))


def test_the_number_of_threads_changes_nothing():
    sample = torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(synthesize_texture(sample, 40, window=5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_pixels_searched_together_are_out_of_each_others_windows():
    pixels = torch.randint(30, (200, 2), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1))]
    distance = (pixels[:, None] - pixels).abs().amax(2)
    batches = list(texture_synthesis._independent(pixels, (30, 30), 2))
    order = torch.cat(batches)
    assert order.sort().values.tolist() == list(range(len(pixels)))
    assert len(batches) < len(pixels) / 8
    for batch in batches:
        assert (distance[batch][:, batch] + 9 * torch.eye(len(batch)) > 2).all()
    place = order.argsort()
    earlier = (distance <= 2) & (torch.arange(len(pixels))[:, None] < torch.arange(len(pixels)))
    assert (place[:, None] < place)[earlier].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_stripes_go_on(dtype):
    grown = synthesize_texture(STRIPES.to(dtype), (20, 17), window=5, seed=1)
    assert grown.shape == (1, 20, 17)
    assert grown.dtype == dtype
    assert (grown == grown[:, :1]).all()
    assert (grown[..., 3:] == grown[..., :-3]).all()
    assert set(grown.flatten().tolist()) == {0.0, 0.5, 1.0}


def test_one_colour_gives_that_colour():
    colour = torch.tensor([0.2, 0.7, 0.1])
    grown = synthesize_texture(colour.view(3, 1, 1).expand(3, 5, 6), 9, window=5)
    assert (grown == colour.view(3, 1, 1)).all()


def test_the_seed_decides():
    sample = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first, again, other = (synthesize_texture(sample, 12, window=5, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_result_does_not_depend_on_how_many_are_searched_together(monkeypatch):
    monkeypatch.setattr(texture_synthesis, "_fill_in_turn", texture_synthesis._fill_in_batches)
    sample = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = synthesize_texture(sample, 16, window=5)
    monkeypatch.setattr(texture_synthesis, "_MAX_DISTANCES", 1)
    assert torch.equal(synthesize_texture(sample, 16, window=5), together)


@pytest.mark.parametrize("size", [1, 2, (1, 9), (9, 2)])
def test_sizes_below_the_first_patch(size):
    grown = synthesize_texture(STRIPES, size, window=3)
    assert grown.shape[1:] == (size if isinstance(size, tuple) else (size, size))


def test_a_sample_of_the_size_of_the_window_has_one_window():
    sample = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    grown = synthesize_texture(sample, 5, window=5)
    grown[:, 1:4, 1:4] = sample[0, 2, 2]  # the first patch may come from anywhere
    assert (grown == sample[0, 2, 2]).all()


def test_a_hole_in_a_pattern_is_filled_without_a_trace():
    board = (torch.arange(24)[:, None] // 2 + torch.arange(20) // 2).remainder(2).float().expand(3, 24, 20)
    hole = torch.zeros(24, 20, dtype=torch.bool)
    hole[8:15, 6:12] = hole[0, 0] = True
    assert torch.equal(fill_hole(board.masked_fill(hole, torch.nan), hole, window=7), board)


@pytest.mark.cuda
def test_on_cuda():
    sample = STRIPES.float().cuda()
    grown = synthesize_texture(sample, 40, window=7)
    assert grown.is_cuda
    assert (grown[..., 3:] == grown[..., :-3]).all()
    hole = torch.zeros(12, 12, dtype=torch.bool, device="cuda")
    hole[4:7, 4:7] = True
    assert torch.equal(fill_hole(sample, hole, window=3), sample)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sample": [[1.0]]}, TypeError, "sample should be a tensor, got list"),
        ({"sample": torch.rand(1, 3, 9, 9)}, ValueError, r"sample should have shape \[C, H, W\], got \[1, 3, 9, 9\]"),
        ({"sample": torch.rand(3, 9, 4)}, ValueError, r"at least 5x5 pixels, as the window has, got shape \[3, 9, 4\]"),
        ({"sample": torch.rand(0, 9, 9)}, ValueError, r"sample should have a channel .* got shape \[0, 9, 9\]"),
        ({"sample": torch.full((1, 9, 9), torch.nan)}, ValueError, "sample should be finite, got NaN or infinity"),
        (
            {"sample": torch.full((1, 9, 9), -1e20)},
            ValueError,
            r"sample should have values of at most 1e\+15, got 1e\+20",
        ),
        ({"window": 6}, ValueError, "window should be odd, so that it has a middle pixel, got 6"),
        ({"window": 1}, ValueError, "window should be at least 3, got 1"),
        ({"window": 5.0}, TypeError, "window should be a whole number, got 5.0"),
        ({"epsilon": -0.1}, ValueError, "epsilon should be finite and at least 0, got -0.1"),
        ({"epsilon": "0"}, TypeError, "epsilon should be a number, got '0'"),
        ({"max_error": 0}, ValueError, "max_error should be finite and above 0, got 0"),
        ({"seed": -1}, ValueError, "seed should be at least 0, got -1"),
        ({"size": 0}, ValueError, "size should be at least 1, got 0"),
        ({"size": (3, 4, 5)}, ValueError, r"size should be one number or \(height, width\), got 3 numbers"),
        ({"size": "12"}, TypeError, "size should be a whole number, got '12'"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        synthesize_texture(**{"sample": torch.rand(3, 9, 9), "size": 8, "window": 5, **change})


@pytest.mark.parametrize(
    ("hole", "error", "message"),
    [
        (torch.zeros(9, 9), TypeError, "hole should be a tensor of bool, got torch.float32"),
        (torch.zeros(9, 8) > 0, ValueError, r"hole should have the shape \[9, 9\] of image, got \[9, 8\]"),
        (torch.zeros(1, 9, 9) > 0, ValueError, r"hole should have shape \[H, W\], got \[1, 9, 9\]"),
        (torch.zeros(9, 9) > 0, ValueError, "hole should mark at least one pixel, got none"),
        (torch.eye(9) > 0, ValueError, "hole should leave at least one window of 5x5 pixels free, got none"),
    ],
)
def test_bad_holes(hole, error, message):
    with pytest.raises(error, match=message):
        fill_hole(torch.rand(3, 9, 9), hole, window=5)


def test_a_bad_match_waits(monkeypatch):
    """With a bound that nothing meets, it is raised until something does."""
    sample = torch.rand(1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounds = []
    fill = texture_synthesis._fill_in_turn
    monkeypatch.setattr(texture_synthesis, "_fill_in_turn", lambda *arguments: rounds.append(1) or fill(*arguments))
    synthesize_texture(sample, 6, window=5)
    few = len(rounds)
    synthesize_texture(sample, 6, window=5, max_error=1e-3)
    assert len(rounds) > 2 * few


def grow(**change):
    """How many pixels are filled."""
    filled = torch.zeros(7, 8, dtype=torch.bool)
    arguments = {
        "canvas": (torch.zeros(1, 7, 8), filled, torch.full((7, 8), -1)),
        "places": torch.tensor([9, 10]),
        "chances": torch.zeros(2, dtype=torch.float64),
        "sample": torch.rand(1, 5, 6),
        "usable": None,
        "weights": torch.ones(3, 3),
        "epsilon": 0.1,
        "limit": 1.0,
    }
    ops.grow_texture(**{**arguments, **change})
    return int(filled.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"places": torch.tensor([9, 7])}, "places should have their windows inside of values, got 7"),
        ({"places": torch.tensor([9, 48])}, "places should have their windows inside of values, got 48"),
        ({"places": torch.tensor([9, -1])}, "places should have their windows inside of values, got -1"),
        ({"places": torch.tensor([9])}, "chances should have 1 elements in dimension 0, got 2"),
        ({"chances": torch.zeros(2)}, "chances should be float64, got another dtype"),
        (
            {"weights": torch.ones(2, 2)},
            "at least 3 and at most the sides of sample, got 2",
        ),
        (
            {"weights": torch.ones(7, 7)},
            "at least 3 and at most the sides of sample, got 7",
        ),
        ({"weights": torch.ones(1, 1)}, "at least 3 and at most the sides of sample, got 1"),
        ({"weights": -torch.ones(3, 3)}, "weights should be finite and at least 0, got -1"),
        ({"weights": torch.full((3, 3), torch.nan)}, "weights should be finite and at least 0, got nan"),
        ({"epsilon": -0.1}, "epsilon should be finite and at least 0, got -0.1"),
        ({"epsilon": torch.nan}, "epsilon should be finite and at least 0, got nan"),
        ({"limit": torch.nan}, "limit should be a number, got nan"),
        ({"chances": torch.tensor([0.0, torch.nan]).double()}, "chances should be at least 0 and below 1, got nan"),
        ({"chances": torch.tensor([0.0, 1.0]).double()}, "chances should be at least 0 and below 1, got 1"),
        ({"weights": torch.ones(3, 3).double()}, "weights should have the dtype of sample"),
        ({"sample": torch.rand(1, 5, 6).half()}, "values should have the dtype of sample"),
        ({"usable": torch.zeros(3, 4, dtype=torch.bool)}, "usable should leave a window, got none"),
        ({"usable": torch.ones(3, 3, dtype=torch.bool)}, "usable should have 4 elements in dimension 1, got 3"),
    ],
)
def test_growth_refuses_what_would_leave_its_memory(change, message):
    with pytest.raises(RuntimeError, match=message):
        grow(**change)


def test_growth_fills_what_is_near_enough():
    assert grow() == 2
    assert grow(limit=0.0) == 0
    assert grow(places=torch.tensor([], dtype=torch.int64), chances=torch.zeros(0, dtype=torch.float64)) == 0
