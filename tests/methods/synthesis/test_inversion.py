"""Inversion: the formula, exact where a layer keeps everything, strips, starts, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz import models
from fastviz.engine.optimize.canvas import Frame, frame_of
from fastviz.engine.optimize.priors import LP, TotalVariation, natural_image
from fastviz.methods.synthesis.inversion import invertible_layers

f64 = torch.float64


def network() -> nn.Sequential:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Dropout(), nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)),
        nn.Flatten(), nn.Linear(4 * 6 * 6, 3),
    ).double().eval()  # fmt: skip
    models.describe(model, preprocessing=models.Preprocessing((16, 16), 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)))
    return model


def photo(n: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth pictures."""
    pictures = torch.rand(n, 3, 4, 4, dtype=f64, generator=torch.Generator().manual_seed(seed))
    pictures = 0.1 + 0.8 * nn.functional.interpolate(pictures, (16, 16), mode="bicubic").clamp(0, 1)
    return frame_of(network()).image(pictures)


def test_error_and_history_are_the_formula():
    model, x = network(), photo(2)
    made = fv.invert(model, x, "3.1", steps=6)
    wanted, found = (model[:4](each).detach() for each in (x, made.images))
    error = (found - wanted).flatten(1).square().sum(1) / wanted.flatten(1).square().sum(1)
    torch.testing.assert_close(made.error, error)
    assert made.history.shape == (6, 2)
    assert bool((made.history[-1] < made.history[0]).all())
    mse = (made.pictures - frame_of(model).picture(x)).square().mean((1, 2, 3))
    torch.testing.assert_close(made.psnr, -10 * mse.log10())


def test_priors_weigh_the_same_at_any_size():
    """An image of twos costs the range weight; one whose neighbours differ by 0.3 in one direction costs the other."""
    for size in ((8, 8), (16, 30)):
        frame = Frame(size, (0.0,) * 3, (1.0,) * 3)
        power, variation = natural_image(frame, 0.7, 0.2)
        assert isinstance(power, LP)
        assert isinstance(variation, TotalVariation)
        nothing = torch.zeros(0)
        torch.testing.assert_close(power.penalty(torch.full((1, 3, *size), 2.0), nothing), torch.tensor([0.7]))
        slope = 0.3 * torch.arange(size[1], dtype=torch.float32).expand(1, 3, *size)
        inner = (size[0] - 1) * (size[1] - 1) / (size[0] * size[1])
        torch.testing.assert_close(variation.penalty(slope, nothing), torch.tensor([0.2 * inner]))
    assert natural_image(frame, 0, 0) == ()
    with pytest.raises(ValueError, match="variation_weight should be finite and at least 0, got -1"):
        natural_image(frame, variation_weight=-1)


def test_a_layer_that_keeps_everything_gives_the_photograph():
    x = photo(2)
    made = fv.invert(network(), x, "1", steps=60, priors=(), optimization=fv.Optimization(canvas="pixels"))
    assert bool((made.error < 1e-5).all())
    assert bool((made.psnr > 40).all())


def test_deeper_layers_keep_less():
    x = photo()
    strip = fv.invert_all(network(), x, steps=30)
    assert list(strip) == [made.layer for made in strip.values()] == ["0", "1", "3.0", "3.1", "5"]
    assert float(strip["0"].psnr) > float(strip["3.1"].psnr) > float(strip["5"].psnr)


def test_features_instead_of_a_photograph():
    model, x = network(), photo()
    features = model[:4](x).detach()
    made = fv.invert(model, None, "3.1", features=features, steps=5)
    torch.testing.assert_close(made.images, fv.invert(model, x, "3.1", steps=5).images)
    assert bool(made.psnr.isnan().all())


def test_several_starts_differ_and_fit_one_code():
    model, x = network(), photo(2)
    made = fv.invert(model, x, "5", starts=3, steps=40)
    assert made.images.shape[0] == 6
    assert bool((made.error < 0.01).all())
    for first in (0, 3):
        assert float((made.pictures[first] - made.pictures[first + 1]).abs().max()) > 0.01
    alone = fv.invert(model, x[1:], "5", steps=40, seed=2)
    torch.testing.assert_close(made.images[5:], alone.images)


def test_goal_stops_at_an_error():
    made = fv.invert(network(), photo(), "1", goal=0.3, steps=60)
    assert made.reasons == ("goal",)
    assert 0 < int(made.steps) < 60
    assert float(made.error) <= 0.3


def test_layers_of_a_strip():
    assert invertible_layers(network()) == ["0", "1", "3.0", "3.1", "5"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Identity()

        def forward(self, x):
            return self.a(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.unused = nn.Sequential(Block(), nn.ModuleList([Block()])[0]), nn.Linear(1, 1)

        def forward(self, x):
            return self.blocks(x)

    assert invertible_layers(Net()) == ["blocks.0", "blocks.1", "unused"]
    x = 0.1 * torch.randn(1, 3, 8, 8)
    assert list(fv.invert_all(Net(), x, steps=1)) == ["blocks.0", "blocks.1"]


def test_strips_stop_at_ctrl_c():
    def stop(step: int, images: torch.Tensor) -> None:
        raise KeyboardInterrupt

    strip = fv.invert_all(network(), photo(), optimization=fv.Optimization(preview=stop, preview_every=2))
    assert [made.layer for made in strip.values()] == ["0"]
    assert strip["0"].interrupted


def test_the_model_is_left_as_it_was():
    model = network().train()
    fv.invert(model, photo(), "3.1", steps=2)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("x", "layer", "options", "error", "words"),
    [
        (photo(), "4.9", {}, ValueError, "layer '4.9' is not known"),
        (None, "1", {}, ValueError, "either x or features should be given"),
        (photo(), "1", {"features": photo()}, ValueError, "either x or features should be given"),
        (photo()[0], "1", {}, ValueError, r"x should have shape \[N, C, H, W\]"),
        (
            None,
            "1",
            {"features": torch.ones(1, 8, 5, 5, dtype=f64)},
            ValueError,
            r"\[1, 8, 16, 16\], as layer '1' gives",
        ),
        (None, "1", {"features": torch.zeros(1, 8, 16, 16)}, ValueError, "should not be zero everywhere, as those of"),
        (photo(), "1", {"starts": 0}, ValueError, "starts should be at least 1"),
    ],
)
def test_arguments_are_checked(x, layer, options, error, words):
    with pytest.raises(error, match=words):
        fv.invert(network(), x, layer, steps=1, **options)


def test_out_of_memory_says_what_would_fit():
    def small(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 2 and torch.is_grad_enabled():
            torch.empty(1 << 60)  # more than any machine has: the allocator's own error

    model = network()
    model.register_forward_pre_hook(small)
    with pytest.raises(MemoryError, match="4 images of 16x16 pixels at once do not fit on cpu, 2 would: batch_size=2"):
        fv.invert(model, photo(2), "1", starts=2, steps=1, batch_size=4)
    fv.invert(model, photo(2), "1", starts=2, steps=1, batch_size=2)


def test_the_layers_of_a_strip_are_a_list():
    with pytest.raises(TypeError, match=r"layers should be a list of names, got '0'; give one as layer='0'"):
        fv.invert_all(network(), photo(), "0")


def test_unknown_layers_are_reported_before_work_begins():
    with pytest.raises(ValueError, match="layer 'nothing' is not known"):
        fv.invert_all(network(), photo(), ["0", "nothing"], steps=10**9)


def test_early_layers_of_the_real_network_give_the_photograph(shared):
    model = fv.load_model("squeezenet1_0", weights=shared / "models" / "squeezenet1_0_imagenet.safetensors")
    x, _ = fv.load_images([shared / "images" / "tabby.jpg"], model=model)
    made = fv.invert(model, x, "features.1", steps=40)
    assert float(made.psnr) >= 25
    assert float(made.error) < 0.02
