"""DeepDream: its steps by hand, targets, guides, tiles, octaves, flights, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastviz as fv
from fastviz import images, models
from fastviz.engine.optimize import target_objective
from fastviz.engine.optimize.canvas import frame_of
from fastviz.engine.optimize.default_layers import dream_layer
from fastviz.execution.forward import layer_outputs
from fastviz.images.animation import save_gif
from fastviz.methods.synthesis import deep_dream as dream
from fastviz.methods.synthesis import dream_objectives
from fastviz.methods.synthesis.deep_dream import deep_dream, dream_zoom
from fastviz.methods.synthesis.dream_objectives import TiledObjective, cuts, squared

f64 = torch.float64
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def network(size: int = 40) -> nn.Sequential:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    models.describe(model, preprocessing=models.Preprocessing((size, size), size, MEAN, STD))
    return model


def photos(n: int = 1, height: int = 40, width: int = 48, seed: int = 0) -> Tensor:
    """Smooth pictures as the network takes them, away from black and white."""
    coarse = torch.rand(n, 3, 5, 6, dtype=f64, generator=torch.Generator().manual_seed(seed))
    return frame_of(network()).image(0.3 + 0.4 * F.interpolate(coarse, (height, width), mode="bilinear"))


def picture(x: Tensor) -> Tensor:
    return frame_of(network()).picture(x)


PLAIN = {"octaves": 1, "jitter": 0}


# ------------------------------------------------------------------------------------------------- the definition


def test_one_octave_of_pixels_by_hand():
    """Each step follows the layer's own activation, brought back to the image, and divided by its size."""
    model, x = network(), photos()
    made = deep_dream(model, x, layer="3", canvas="pixels", steps=3, strength=0.02, **PLAIN)
    expected = x
    for _ in range(3):
        leaf = expected.clone().requires_grad_()
        a = model[:4](leaf)
        (g,) = torch.autograd.grad(a, leaf, grad_outputs=a.detach())
        expected = expected + 0.02 * g / g.square().mean().sqrt()
        expected = frame_of(model).image(picture(expected).clamp(0, 1))
    torch.testing.assert_close(made.images, expected)
    torch.testing.assert_close(made.pictures, picture(expected))
    torch.testing.assert_close(made.values, model[:4](expected).detach().square().sum().view(1) / 2)
    assert made.sizes == ((40, 48),)
    assert not made.interrupted


def test_one_octave_of_waves_by_hand():
    """The same for the amplitudes of waves, whose picture is sigmoid(A · F⁻¹(c / f^½))."""
    model, x = network(), photos()
    made = deep_dream(model, x, layer="3", steps=2, strength=0.03, **PLAIN)
    down, across = torch.fft.fftfreq(40, dtype=f64), torch.fft.rfftfreq(48, dtype=f64)
    damped = (down[:, None].square() + across.square()).sqrt().clamp(min=1 / 48).pow(-0.5)
    axes = torch.tensor(fv.canvas._COLOUR_AXES, dtype=f64)

    def shown(c: Tensor) -> Tensor:
        waves = torch.fft.irfft2(torch.view_as_complex(c) * damped, s=(40, 48), norm="ortho")
        return torch.einsum("ca,nahw->nchw", axes, waves).sigmoid()

    waves = torch.einsum("ac,nchw->nahw", axes.inverse(), picture(x).logit())
    c = torch.view_as_real(torch.fft.rfft2(waves, norm="ortho") / damped)
    torch.testing.assert_close(shown(c), picture(x))
    for _ in range(2):
        leaf = c.clone().requires_grad_()
        (g,) = torch.autograd.grad(model[:4](frame_of(model).image(shown(leaf))).square().sum() / 2, leaf)
        c = c + 0.03 * g / g.square().mean().sqrt()
    torch.testing.assert_close(made.pictures, shown(c))


def test_octaves_dream_on_what_the_smaller_ones_added():
    """Two octaves are two dreams: the second of the photograph with what the first added, enlarged."""
    model, x = network(), photos(height=66, width=88)
    options = {"canvas": "pixels", "steps": 2, "jitter": 0, "strength": 0.02}
    made = deep_dream(model, x, layer="3", octaves=2, octave_scale=2, **options)
    assert made.sizes == ((33, 44), (66, 88))
    small = F.interpolate(picture(x), (33, 44), mode="bicubic", antialias=True).clamp(0, 1)
    first = deep_dream(model, frame_of(model).image(small), layer="3", octaves=1, **options)
    added = F.interpolate(first.pictures - small, (66, 88), mode="bicubic", antialias=True)
    begun = frame_of(model).image((picture(x) + added).clamp(0, 1))
    second = deep_dream(model, begun, layer="3", octaves=1, **options)
    torch.testing.assert_close(made.pictures, second.pictures)
    torch.testing.assert_close(made.values, second.values)


def test_sizes_of_octaves():
    model = network()
    sizes = deep_dream(model, photos(height=70, width=100), layer="3", octaves=4, octave_scale=1.4, steps=0).sizes
    assert sizes == ((36, 51), (50, 71), (70, 100))  # that of 26x36 is too small to see anything
    narrow = nn.Sequential(nn.Conv2d(3, 4, 45), nn.ReLU()).double()  # sees nothing in less than 45 pixels
    assert deep_dream(narrow, photos(height=70, width=100), layer="1", octaves=3, steps=0).sizes == (
        (50, 71),
        (70, 100),
    )


def test_no_steps_give_the_photograph():
    x = photos(2)
    for canvas in ("pixels", "fourier"):
        made = deep_dream(network(), x, layer="3", steps=0, canvas=canvas)
        torch.testing.assert_close(made.images, x)


def test_the_dream_grows_what_the_layer_sees():
    model, x = network(), photos(height=64, width=64)
    before = model[:4](x).detach().square().sum() / 2
    for canvas in ("pixels", "fourier"):
        made = deep_dream(model, x, layer="3", canvas=canvas)
        assert float(made.values) > 3 * float(before)
        assert float(made.pictures.min()) >= 0
        assert float(made.pictures.max()) <= 1


# -------------------------------------------------------------------------------------------------------- targets


def test_a_squared_unit_is_its_own_gradient():
    model, x = network(), photos().requires_grad_()
    unit = fv.neuron("3", 2, (4, 5))
    height = model[:4](x)[0, 2, 4, 5]
    assert float(height.detach()) != 0
    values, _ = target_objective(model, squared(unit))(x, torch.tensor([0]))
    torch.testing.assert_close(values, height.detach().square().view(1) / 2)
    (found,) = torch.autograd.grad(values.sum(), x)
    (plain,) = torch.autograd.grad(height, x)
    torch.testing.assert_close(found, height.detach() * plain)
    made = deep_dream(model, x.detach(), squared(unit), steps=3, **PLAIN)
    assert float(made.values) > float(values.detach())


def test_squares_keep_targets_of_each_image():
    objective = squared(fv.channel("3", torch.tensor([0, 3]))) + squared(fv.class_score(1))
    assert objective.layers == ("3",)
    assert objective.samples == 2
    assert objective.reads_output
    assert not squared(fv.channel("3", 1)).reads_output
    model, x = network(), photos()
    made = deep_dream(model, x, squared(fv.channel("3", torch.tensor([0, 3]))), steps=2, **PLAIN)
    assert made.images.shape == (2, 3, 40, 48)
    for row, channel in enumerate((0, 3)):
        alone = deep_dream(model, x, squared(fv.channel("3", channel)), steps=2, **PLAIN)
        torch.testing.assert_close(made.images[row : row + 1], alone.images)


def test_any_objective_and_each_image_as_if_alone():
    model, x = network(), photos(2)
    for target in (fv.layer("3"), 1, fv.class_score(2) - 0.1 * fv.channel("3", 1), [0, fv.channel("5", 2)]):
        made = deep_dream(model, x, target, octaves=2, steps=2, seed=3)
        for row in range(2):
            mine = target[row] if isinstance(target, list) else target
            alone = deep_dream(model, x[row : row + 1], mine, octaves=2, steps=2, seed=3)
            torch.testing.assert_close(made.images[row : row + 1], alone.images)
    batched = deep_dream(model, x, layer="3", octaves=2, steps=2, seed=3, batch_size=1)
    torch.testing.assert_close(batched.images, deep_dream(model, x, layer="3", octaves=2, steps=2, seed=3).images)


def test_the_layer_that_is_dreamt_of_unless_named():
    model, x = network(), photos()
    # Maps of 20x20 and 10x10, then, as the coarsest, 8x8: the last of 10x10. Single pixels do not count.
    assert dream_layer(model) == "4"
    assert dream_layer(fv.load_model("demo")) == "relu5_1"
    torch.testing.assert_close(deep_dream(model, x, steps=1).images, deep_dream(model, x, layer="4", steps=1).images)
    with pytest.raises(ValueError, match=r"layer should be named for this model, which has no maps"):
        dream_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)))


# --------------------------------------------------------------------------------------------------------- guides


def test_a_guide_is_matched_feature_by_feature():
    """Σ_p max_q ⟨a_p, b_q⟩ of the last image, and a first step along its gradient, in plain loops."""
    model, x, guide = network(), photos(1, 16, 20), photos(1, 14, 12, seed=7)
    made = deep_dream(model, x, layer="3", guide=guide, canvas="pixels", steps=1, strength=0.01, **PLAIN)
    b = model[:4](guide).detach()[0].flatten(1).unbind(1)

    def value(image: Tensor) -> Tensor:
        a = model[:4](image)[0].flatten(1).unbind(1)
        return torch.stack([torch.stack([(one * other).sum() for other in b]).max() for one in a]).sum()

    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(value(leaf), leaf)
    expected = (x + 0.01 * g / g.square().mean().sqrt()).detach()
    torch.testing.assert_close(made.images, expected)
    torch.testing.assert_close(made.values, value(expected).detach().view(1))


def test_products_of_a_guide_in_parts(monkeypatch):
    model, x, guide = network(), photos(2), photos(2, 36, 40, seed=7)
    whole = deep_dream(model, x, layer="3", guide=guide, steps=2)
    monkeypatch.setattr(dream_objectives, "_MAX_PRODUCTS", 1000)
    torch.testing.assert_close(deep_dream(model, x, layer="3", guide=guide, steps=2).images, whole.images)
    for row in range(2):  # a guide an image, or one for all
        alone = deep_dream(model, x[row : row + 1], layer="3", guide=guide[row : row + 1], steps=2)
        torch.testing.assert_close(whole.images[row : row + 1], alone.images)
    torch.testing.assert_close(deep_dream(model, x, layer="3", guide=guide[:1], steps=2).images[:1], whole.images[:1])


# ---------------------------------------------------------------------------------------------------------- tiles


def test_tiles_have_the_sum_of_their_gradients():
    """Four quarters, each seen alone; without a shift their edges are known."""
    model, x = network(), photos(2, 64, 80).requires_grad_()
    rows = torch.arange(2)
    inner = target_objective(model, fv.layer("3"), repeats=2)
    values = TiledObjective(inner, 36)(x, rows)
    (found,) = torch.autograd.grad(values.sum(), x)
    total, expected = torch.zeros(2, dtype=f64), torch.zeros_like(x)
    for down in (slice(0, 32), slice(32, 64)):
        for across in (slice(0, 40), slice(40, 80)):
            leaf = x.detach()[..., down, across].clone().requires_grad_()
            value = model[:4](leaf).square().sum((1, 2, 3)) / 2
            (expected[..., down, across],) = torch.autograd.grad(value.sum(), leaf)
            total += value.detach()
    torch.testing.assert_close(values.detach(), total)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(TiledObjective(inner, 36)(x.detach(), rows), total)


def test_sides_in_equal_parts():
    assert cuts(100, 512) == [slice(0, 100)]
    assert cuts(100, 33) == [slice(0, 33), slice(33, 66), slice(66, 100)]
    assert cuts(96, 64) == [slice(0, 48), slice(48, 96)]  # round(1.5) is 2


def test_no_seam_stays_between_tiles():
    """What tiles add is no stronger at the edges that they have without a shift than elsewhere."""
    model, x = network(), photos(1, 64, 64)
    made = deep_dream(model, x, layer="3", tile=32, octaves=1, steps=30, canvas="pixels")
    added = (made.pictures - picture(x)).abs().mean((0, 1))
    steps = (made.pictures[..., 1:] - made.pictures[..., :-1]).abs().mean((0, 1, 2))
    assert float(steps[31]) < 1.5 * float(steps.median())
    assert float(added[:, 30:34].mean()) > 0.5 * float(added.mean())


def test_large_images_are_dreamt_in_tiles(monkeypatch):
    seen = []
    model, x = network(), photos(1, 64, 80)
    model[0].register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    deep_dream(model, x, layer="3", steps=1, octaves=1)
    assert (64, 80) in seen
    seen.clear()
    monkeypatch.setattr(dream, "_MAX_UNTILED", 64 * 80 - 1)
    monkeypatch.setattr(dream, "_TILE", 40)
    deep_dream(model, x, layer="3", steps=1, octaves=1)
    assert {(32, 40)} <= set(seen)
    assert (64, 80) not in seen


# ------------------------------------------------------------------------------------------------------ behaviour


def test_seeds():
    model, x = network(), photos(1, 50, 60)
    first, again, other = (deep_dream(model, x, layer="3", steps=2, seed=seed).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    still = [deep_dream(model, x, layer="3", steps=2, seed=seed, jitter=0).images for seed in (1, 2)]
    assert torch.equal(*still)


def test_the_model_and_random_numbers_are_left_as_they_were():
    model = network().train()
    model[3].eval()
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    x = photos()
    kept = x.clone()
    deep_dream(model, x, layer="3", steps=1, tile=32)
    with pytest.raises(ValueError, match="the model cannot be run on x of 2x2 pixels"):
        deep_dream(model, photos(1, 2, 2), layer="6", steps=1)
    with torch.no_grad():
        list(dream_zoom(model, x, guide=x, frames=2, steps=1))
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)


def test_grey_images_and_no_images():
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU())
    models.describe(model, preprocessing=models.Preprocessing((40, 40), 40, (0.5,), (0.2,)))
    made = deep_dream(model, torch.zeros(1, 1, 40, 44), layer="1", steps=2)
    assert made.pictures.shape == (1, 1, 40, 44)
    none = deep_dream(network(), photos()[:0], layer="3", steps=2)
    assert none.images.shape == none.pictures.shape == (0, 3, 40, 48)
    assert none.values.shape == (0,)


def test_ctrl_c_returns_the_dream_so_far():
    model, x = network(), photos(1, 66, 88)
    passes = 0

    def stop(module, inputs, output):
        nonlocal passes
        passes += 1
        if passes == 5:
            raise KeyboardInterrupt

    handle = model[3].register_forward_hook(stop)
    made = deep_dream(model, x, layer="3", octaves=2, octave_scale=2, steps=100)
    handle.remove()
    assert made.interrupted
    assert made.images.shape == x.shape
    assert float((made.pictures - picture(x)).abs().max()) > 0.01
    assert not model[3]._forward_hooks


@pytest.mark.parametrize("canvas", ["pixels", "fourier"])
def test_models_of_16_bits_dream_in_float32(canvas):
    made = deep_dream(network().bfloat16(), photos().bfloat16(), layer="3", canvas=canvas, octaves=2, steps=2)
    assert made.pictures.dtype == made.images.dtype == torch.float32
    assert float((made.pictures - picture(photos())).abs().max()) > 0.01


def test_reduced_precision_is_close():
    model, x = network().float(), photos().float()
    whole, low = (
        deep_dream(model, x, layer="3", steps=2, precision=precision, **PLAIN) for precision in ("model", "bfloat16")
    )
    assert low.images.dtype == torch.float32
    torch.testing.assert_close(low.pictures, whole.pictures, atol=0.03, rtol=0)
    assert not torch.equal(low.pictures, whole.pictures)


# -------------------------------------------------------------------------------------------------------- flights


def test_a_flight_dreams_of_the_enlarged_frame():
    model, x = network(), photos(1, 40, 48)
    options = {"layer": "3", "octaves": 1, "steps": 2, "strength": 0.02}
    frames = list(dream_zoom(model, x, frames=2, zoom=1.25, **options))
    assert len(frames) == 2
    torch.testing.assert_close(frames[0], deep_dream(model, x, **options).pictures)
    # 40x48 pixels of the middle 32x38.4, the colours as in the photograph
    rows, columns = ((torch.arange(n, dtype=f64) + 0.5 - n / 2) / 1.25 / (n / 2) for n in (40, 48))
    grid = torch.stack([columns.expand(40, 48), rows[:, None].expand(40, 48)], 2)[None]
    near = F.grid_sample(frames[0], grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
    photo = picture(x)
    for channel in range(3):
        mine, usual = near[0, channel], photo[0, channel]
        near[0, channel] = (mine - mine.mean()) / mine.std() * usual.std() + usual.mean()
    expected = deep_dream(model, frame_of(model).image(near.clamp(0, 1)), **options).pictures
    torch.testing.assert_close(frames[1], expected)


def test_flights_are_short_dreams_by_default(monkeypatch):
    given = []
    original = dream.deep_dream
    monkeypatch.setattr(
        dream, "deep_dream", lambda *args, **options: given.append(options) or original(*args, **options)
    )
    for options in ({}, {"canvas": "pixels"}, {"steps": 1, "octaves": 1, "strength": 0.1}):
        next(dream_zoom(network(), photos(), layer="3", **options))
    assert given == [
        {"layer": "3", "octaves": 2, "steps": 4, "strength": 0.01},
        {"layer": "3", "octaves": 2, "steps": 4, "strength": 0.015, "canvas": "pixels"},
        {"layer": "3", "octaves": 1, "steps": 1, "strength": 0.1},
    ]


def test_ctrl_c_ends_a_flight_after_whole_frames():
    model, x = network(), photos()
    flight = dream_zoom(model, x, layer="3", frames=50, steps=2, octaves=1)
    frames = [next(flight), next(flight)]

    def stop(module, inputs, output):
        if len(frames) == 2:
            frames.append(None)
            raise KeyboardInterrupt

    handle = model[3].register_forward_hook(stop)
    assert not list(flight)
    handle.remove()
    assert frames[2] is None


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"x": photos()[0]}, ValueError, r"x should have shape \[N, C, H, W\]"),
        ({"x": torch.zeros(1, 3, 40, 40, dtype=torch.int64)}, TypeError, "x should be a floating-point tensor"),
        ({"x": photos()[:, :2]}, ValueError, "x should have the 3 channels of the model.s preprocessing, got 2"),
        ({"layer": "33"}, ValueError, "layer '33' is not known; nearest: 3"),
        ({"target": 1, "layer": "3"}, ValueError, "layer should be None with a target"),
        ({"target": "3"}, TypeError, "target should be None, a class index"),
        ({"target": fv.channel("3", 9)}, ValueError, "channel should be a channel of layer '3' from 0 to 4"),
        ({"target": 7}, ValueError, "target should be a class from 0 to 2"),
        ({"target": [0, 1]}, ValueError, "target should be one or 3, one per image of x, got 2"),
        ({"target": 3.5}, TypeError, "target should be None, a class index"),
        ({"guide": photos(2)}, ValueError, "guide should have 1 or 3 images, as x has, got 2"),
        ({"guide": photos(), "target": 1}, ValueError, "guide should be None with a target"),
        (
            {"guide": photos(), "layer": "9"},
            ValueError,
            r"layer should have maps \[N, C, H, W\] for a guide",
        ),
        ({"octaves": 0}, ValueError, "octaves should be at least 1, got 0"),
        ({"octave_scale": 1.0}, ValueError, "octave_scale should be above 1, got 1.0"),
        ({"steps": -1}, ValueError, "steps should be at least 0, got -1"),
        ({"strength": 0}, ValueError, "strength should be finite and above 0, got 0"),
        ({"jitter": 1.5}, TypeError, "jitter should be a whole number, got 1.5"),
        ({"canvas": "clouds"}, ValueError, "canvas should be one of 'fourier', 'pixels', got 'clouds'"),
        ({"tile": 8}, ValueError, "tile should be at least 32, got 8"),
        (
            {"x": photos().half()},
            TypeError,
            "x should have the dtype of the model, torch.float64, got torch.float16: give x.to",
        ),
        ({"precision": "half"}, ValueError, "precision should be one of 'model', 'bfloat16', got 'half'"),
        ({"batch_size": 0}, ValueError, "batch_size should be at least 1, got 0"),
    ],
)
def test_what_is_refused(options, error, words):
    usual = {"layer": options.get("layer", "3")}
    with pytest.raises(error, match=words):
        deep_dream(network(), **{"x": photos(3), "steps": 1, **options} | ({} if "target" in options else usual))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"frames": 0}, ValueError, "frames should be at least 1, got 0"),
        ({"zoom": 0.9}, ValueError, "zoom should be at least 1, got 0.9"),
        ({"canvas": "clouds"}, ValueError, "canvas should be one of"),
        ({"x": photos()[0]}, ValueError, r"x should have shape \[N, C, H, W\]"),
    ],
)
def test_flights_are_refused_at_once(options, error, words):
    with pytest.raises(error, match=words):
        dream_zoom(network(), **{"x": photos(), **options})


def test_squares_of_something_else():
    with pytest.raises(TypeError, match=r"objective should be one such as neuron\(...\), got int"):
        squared(3)


# -------------------------------------------------------------------------------------------------- GIF, networks


def test_gif(tmp_path):
    frames = [torch.full((3, 9, 12), level / 3) for level in range(4)]
    save_gif(iter(frames), tmp_path / "a.gif", seconds=0.25)
    from PIL import Image

    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.size, film.info["loop"], film.info["duration"]) == (4, (12, 9), 0, 250)
        for number, frame in enumerate(frames):
            film.seek(number)
            assert film.convert("RGB").getpixel((5, 5)) == (round(float(frame[0, 0, 0]) * 255),) * 3
    torch.testing.assert_close(images.read_image(tmp_path / "a.gif"), frames[0])


def test_small_things_keep_their_colour_in_a_gif(tmp_path):
    """Pillow's usual palette spends its 256 colours on the large brown part, and a blue eye turns grey."""
    frame = (
        torch.rand(3, 90, 90, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.9, 0.5, 0.1])[:, None, None]
    )
    frame[:, 40:44, 40:44] = torch.tensor([0.1, 0.1, 0.9])[:, None, None]
    save_gif([frame], tmp_path / "a.gif")
    shown = images.read_image(tmp_path / "a.gif")
    torch.testing.assert_close(shown[:, 41:43, 41:43].mean((1, 2)), torch.tensor([0.1, 0.1, 0.9]), atol=0.08, rtol=0)


def test_broken_gifs_are_not_left_behind(tmp_path):
    def frames():
        yield torch.zeros(3, 4, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_gif(frames(), tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"frames should have shape one size, \[3, 4, 4\], got \[3, 4, 5\]"):
        save_gif([torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="frames should hold at least one picture"):
        save_gif([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"path should end in \.gif"):
        save_gif([torch.zeros(3, 4, 4)], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"seconds should be at least 0\.02, got 0\.01"):
        save_gif([torch.zeros(3, 4, 4)], tmp_path / "a.gif", seconds=0.01)
    assert not list(tmp_path.iterdir())


def test_the_built_in_network_dreams_of_photographs_of_any_size():
    model = fv.load_model("demo")
    x = torch.zeros(1, 3, 100, 70)
    made = deep_dream(model, x, layer="relu4_1", octaves=2, steps=3)
    assert made.sizes == ((71, 50), (100, 70))
    assert made.pictures.shape == (1, 3, 100, 70)
    with pytest.raises(ValueError, match=r"x should have shape \[N, 3, 64, 64\] for the built-in network"):
        deep_dream(model, x, 3, steps=1)
    with pytest.raises(
        ValueError, match=r"x should have shape \[N, 3, 64, 64\] for the built-in network, got \[1, 3, 12"
    ):
        model(torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match=r"x should have shape \[N, 3, 64, 64\] for the built-in network, got \[3, 64"):
        model(torch.zeros(3, 64, 64))


def test_the_real_network_sees_more_in_a_photograph(shared):
    model = fv.load_model("squeezenet1_0", weights=shared / "models" / "squeezenet1_0_imagenet.safetensors")
    assert dream_layer(model) == "features.10"
    x, _ = fv.load_images([shared / "images" / "espresso.jpg"], model=model, size=128)
    with layer_outputs(model, ["features.10"]) as seen, torch.no_grad():
        model(x)
    made = deep_dream(model, x, octaves=2, steps=5)
    assert float(made.values) > 2 * float(seen["features.10"].square().sum() / 2)
