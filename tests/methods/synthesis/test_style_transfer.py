"""Style transfer and neural textures: the formulas by hand and step by step, regions, colours, levels, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastviz as fv
from fastviz.engine.optimize.canvas import Pixels, frame_of
from fastviz.engine.optimize.default_layers import style_layers
from tests.methods.synthesis.style_common import (
    described,
    f64,
    features,
    gram,
    noise,
    papers_weights,
    small,
    style_transfer,
)

FREE = Pixels(clip=False)


PLAIN = {"levels": 1, "variation_weight": 0.0, "canvas": FREE}
OF_STYLE, OF_CONTENT = ("1", "3", "6"), "3"


# ------------------------------------------------------------------------------------------- the formulas by hand

IMAGE = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], dtype=f64)  # F = [[1, 2], [0, 1]], G = [[5, 2], [2, 1]]
CONTENT = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]], dtype=f64)  # ½ Σ (F − P)² = 1, ‖P‖² = 4
STYLE = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=f64)  # A = identity: Σ (G − A)² = 24, (tr A / (N m))² = 1/4


def by_hand(style: Tensor | fv.Style | list[fv.Style] = STYLE, **options: object) -> tuple[float, float]:
    """Content and style loss of ``IMAGE`` in a network that gives the image itself."""
    network = described(nn.Sequential(nn.Identity(), nn.Conv2d(2, 1, 1).double()), channels=2)
    made = style_transfer(
        network, CONTENT, style, steps=0, start=IMAGE, **{"layers": "0", "content_layers": "0", **PLAIN, **options}
    )
    torch.testing.assert_close(made.images, IMAGE.clamp(0, 1))
    return float(made.content_loss), float(made.style_loss)


def test_losses_by_hand():
    assert by_hand() == pytest.approx((1.0 / 4, 24 / (4 * 2**2 * 2**2) * 4))


def test_weights_times_scales_give_the_papers_losses():
    given = papers_weights(nn.Sequential(nn.Identity()), CONTENT, [(1.0, STYLE)], 1.0, ("0",), "0")
    assert given == {"layers": {"0": 1 / 4}, "content_layers": {"0": 4.0}}
    assert by_hand(**given) == pytest.approx((1.0, 24 / (4 * 2**2 * 2**2)))


def test_a_style_of_another_size_counts_a_place_as_much():
    assert by_hand(STYLE.repeat(1, 1, 3, 2)) == pytest.approx(by_hand())


def test_weights_of_layers_multiply():
    assert by_hand(layers={"0": 3.0}, content_layers={"0": 0.5}) == pytest.approx((0.125, 3 * 1.5))


def test_regions_by_hand():
    # One place each: G = [1, 0; 0, 0] against A / 2, and [4, 2; 2, 1]; each half of the picture.
    left, right = torch.tensor([[1.0, 0.0]], dtype=f64), torch.tensor([[0.0, 1.0]], dtype=f64)
    first, second = 0.25 + 0.25, 3.5**2 + 2 * 4 + 0.25
    assert by_hand(fv.Style(STYLE, mask=left))[1] == pytest.approx(0.5 * first / 4)
    assert by_hand(fv.Style(STYLE, mask=right))[1] == pytest.approx(0.5 * second / 4)
    both = by_hand([fv.Style(STYLE, mask=left), fv.Style(STYLE, mask=right)])[1]
    assert both == pytest.approx(0.5 * (first + second) / 4)
    assert by_hand(fv.Style(STYLE, mask=torch.ones(1, 2))) == pytest.approx(by_hand())
    weighted = by_hand([fv.Style(STYLE, 3, left), fv.Style(STYLE, 1, right)])[1]
    assert weighted == pytest.approx(0.5 * (1.5 * first + 0.5 * second) / 4)


# ------------------------------------------------------------------------------------------------- step by step


def gatys_loop(
    model: nn.Sequential,
    content: Tensor,
    styles: list[tuple[float, Tensor]],
    alpha: float,
    beta: float,
    of_style: tuple[str, ...] = OF_STYLE,
    of_content: str = OF_CONTENT,
    rate: float = 0.02,
) -> tuple[list[float], Tensor]:
    """The loss before each of ten steps of Adam, and the image after them: the paper as people write it."""
    last = of_style[-1]
    with torch.no_grad():
        wanted = features(model, content, last)[of_content]
        targets = [(v, {n: (gram(m), m[0, 0].numel()) for n, m in features(model, s, last).items()}) for v, s in styles]
    image = content.clone().requires_grad_()
    optimiser = torch.optim.Adam([image], lr=rate)
    history = []
    for _ in range(10):
        optimiser.zero_grad()
        found = features(model, image, last)
        loss = alpha * 0.5 * (found[of_content] - wanted).square().sum()
        for share, grams in targets:
            for name in of_style:
                N, M = found[name].shape[1], found[name][0, 0].numel()
                A, m = grams[name]
                E = (gram(found[name]) - A * (M / m)).square().sum() / (4 * N**2 * M**2)
                loss = loss + beta * share * E / len(of_style)
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    return history, image.detach()


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_the_papers_loop_step_by_step(size):
    model, content, style = small(), noise(1, 3, 16, 16), noise(1, 3, *size, seed=1) ** 3
    history, image = gatys_loop(model, content, [(1.0, style)], 0.1, 1e3)
    made = style_transfer(
        model, content, style, style_weight=1e3, optimizer="adam", steps=10, **PLAIN,
        **papers_weights(model, content, [(1.0, style)], 0.1, OF_STYLE, OF_CONTENT),
    )  # fmt: skip
    torch.testing.assert_close(made.history[:, 0], torch.tensor(history, dtype=f64), rtol=1e-8, atol=0)
    torch.testing.assert_close(made.images, image.clamp(0, 1), rtol=0, atol=1e-8)
    assert min(history) == history[-1]  # the image with the lowest loss is returned: here the last one


def test_a_blend_follows_the_gradient_of_the_weighted_losses():
    model, content = small(), noise(1, 3, 16, 16)
    styles = [noise(1, 3, 16, 16, seed=1) ** 2, noise(1, 3, 18, 22, seed=2) ** 4]
    shares = [(0.75, styles[0]), (0.25, styles[1])]
    _, image = gatys_loop(model, content, shares, 0.1, 1e3)
    made = style_transfer(
        model, content, [fv.Style(styles[0], 3), styles[1]], style_weight=1e3, optimizer="adam", steps=10, **PLAIN,
        **papers_weights(model, content, shares, 0.1, OF_STYLE, OF_CONTENT),
    )  # fmt: skip
    torch.testing.assert_close(made.images, image.clamp(0, 1), rtol=0, atol=1e-6)


def test_vgg_19_in_float32_step_by_step():
    """The paper's network and layers: losses within 1e-4 of the loop's.

    Steps are small: Adam's first ones follow the signs of gradients, which rounding decides where they are near 0, so
    that with steps of 0.02 the loop in float32 is as far from itself in float64.
    """
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    model = described(make_layers(cfgs["E"])).eval()
    assert style_layers(model) == (["1", "6", "11", "20", "29"], ["22"])
    for layer in model:
        if isinstance(layer, nn.Conv2d):  # else the features fade from layer to layer
            layer.weight.data *= math.sqrt(6)
    content, style = noise(1, 3, 32, 32).float(), noise(1, 3, 32, 48, seed=1).float() ** 3
    layers = ("1", "6", "11", "20", "29"), "22"
    plain = copy.deepcopy(model)
    weights = papers_weights(plain, content, [(1.0, style)], 1e-3, *layers)
    made = style_transfer(
        model, content, style, style_weight=1.0, optimizer="adam", learning_rate=1e-3, steps=10, **PLAIN, **weights
    )
    wanted, _ = gatys_loop(plain, content, [(1.0, style)], 1e-3, 1.0, *layers, rate=1e-3)
    torch.testing.assert_close(made.history[:, 0].double(), torch.tensor(wanted, dtype=f64), rtol=1e-4, atol=0)


# ------------------------------------------------------------------------------------------------- what comes out


def styled(**options: object):
    """Two small pictures, a few steps."""
    given = {"steps": 4, "content": noise(2, 3, 16, 20), "style": noise(1, 3, 12, 12, seed=1)}
    return style_transfer(**{"model": options.get("model") or small(), **given, **options})


def test_all_images_at_once_are_each_as_if_alone():
    content, style = noise(2, 3, 16, 20), noise(2, 3, 12, 12, seed=1)
    both = styled(content=content, style=style, start="noise", seed=5)
    alone = styled(content=content[1:], style=style[1:], start="noise", seed=6)
    torch.testing.assert_close(both.pictures[1:], alone.pictures)
    torch.testing.assert_close(both.history[:, 1:], alone.history)
    torch.testing.assert_close(both.style_loss[1:], alone.style_loss)
    one_by_one = styled(content=content, style=style, start="noise", seed=5, batch_size=1)
    torch.testing.assert_close(one_by_one.content_loss, both.content_loss)
    torch.testing.assert_close(one_by_one.pictures, both.pictures)


def test_losses_are_those_of_the_returned_images():
    made = styled()
    again = styled(start=made.images, steps=0)
    torch.testing.assert_close(again.content_loss, made.content_loss)
    torch.testing.assert_close(again.style_loss, made.style_loss)
    assert bool((made.history[-1] < made.history[0]).all())
    assert made.reasons == ("steps", "steps")
    assert made.steps.tolist() == [4, 4]


def test_where_no_mask_is_only_the_content_counts():
    mask = torch.zeros(16, 20)
    mask[:, :8] = 1
    content, style = noise(1, 3, 16, 20), fv.Style(noise(1, 3, 12, 12, seed=1), mask=mask)
    made = styled(content=content, style=style, layers=["1", "3"], variation_weight=0, steps=1, canvas="pixels")
    change = (made.pictures - content).abs().amax((0, 1, 2))
    assert bool((change[:8] > 1e-4).all())
    # Two convolutions see a pixel each beyond the mask, and a first step follows their gradient.
    torch.testing.assert_close(change[10:], torch.zeros(10, dtype=f64))


def test_two_regions_get_a_style_each():
    """Half of the picture like a dark style, half like a bright one."""
    masks = torch.zeros(2, 16, 20)
    masks[0, :, :10], masks[1, :, 10:] = 1, 1
    dark, bright = (torch.full((1, 3, 8, 8), value, dtype=f64) for value in (0.1, 0.9))
    network = described(nn.Sequential(nn.Identity(), nn.Conv2d(3, 3, 1).double()))
    made = styled(
        model=network, content=noise(1, 3, 16, 20),
        style=[fv.Style(dark, mask=masks[0]), fv.Style(bright, mask=masks[1])],
        layers="0", content_layers={"0": 1e-9}, variation_weight=0, steps=30, canvas="pixels",
    )  # fmt: skip
    left, right = made.pictures.square().mean((0, 1, 2)).split(10)
    assert float(left.mean()) == pytest.approx(0.01, abs=1e-3)
    assert float(right.mean()) == pytest.approx(0.81, abs=1e-2)


def test_preserved_colours():
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=f64)
    content = 0.3 + 0.3 * noise(1, 3, 16, 20)
    made = styled(content=content, preserve_colours=True)
    before, after = (torch.einsum("yc,nchw->nyhw", yiq, each)[:, 1:] for each in (content, made.pictures))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)  # the coefficients have three digits
    assert float((made.pictures - content).abs().max()) > 0.01
    plain = styled(content=content)
    assert not torch.allclose(plain.pictures, made.pictures, atol=1e-2)


def test_a_style_of_one_colour_is_no_problem():
    flat = torch.full((1, 3, 12, 12), 0.4, dtype=f64)
    for options in ({}, {"preserve_colours": True}):
        made = styled(style=flat, **options)
        assert bool(made.pictures.isfinite().all())
    black = styled(style=0 * flat, model=described(nn.Sequential(nn.Identity(), nn.Conv2d(3, 3, 1).double())),
                   layers="0", content_layers="0")  # fmt: skip
    assert bool(black.style_loss.isfinite().all())


def test_levels_from_small_to_large():
    seen = []
    made = styled(
        content=noise(1, 3, 324, 330), levels=3, steps=1, preview_every=1,
        preview=lambda step, images: seen.append((step, tuple(images.shape))),
    )  # fmt: skip
    # A quarter would be 81 pixels high: too few.
    assert seen == [(1, (1, 3, 162, 165)), (1, (1, 3, 324, 330))]
    assert made.history.shape == (2, 1)
    assert made.steps.tolist() == [2]
    assert made.pictures.shape == (1, 3, 324, 330)


def test_starts():
    style = noise(1, 3, 12, 12, seed=1)
    frame = frame_of(small(), (16, 20))
    resized = F.interpolate(style, (16, 20), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(styled(steps=0, start="style", canvas="pixels").pictures, resized.expand(2, -1, -1, -1))
    torch.testing.assert_close(styled(steps=0, canvas="pixels").pictures, noise(2, 3, 16, 20))
    given = frame.image(noise(1, 3, 16, 20, seed=4))
    torch.testing.assert_close(styled(steps=0, start=given, canvas="pixels").images, given.expand(2, -1, -1, -1))
    first, second = styled(steps=0, start="noise", seed=1).pictures
    assert not torch.equal(first, second)
    torch.testing.assert_close(styled(steps=0, start="noise", seed=2).pictures[0], second)


@pytest.mark.parametrize(
    "options", [{"optimizer": "adam"}, {"optimizer": "ascent", "learning_rate": 0.005}, {"canvas": "pixels"}]
)
def test_other_optimisers_and_canvases(options):
    made = styled(**options)
    assert bool((made.history[-1] < made.history[0]).all())


def test_half_precision_comes_near():
    model = small().float()
    content, style = noise(1, 3, 16, 20).float(), noise(1, 3, 12, 12, seed=1).float()
    exact, rough = (
        styled(model=model, content=content, style=style, precision=each, optimizer="adam")
        for each in ("model", "bfloat16")
    )
    torch.testing.assert_close(rough.history, exact.history, rtol=0.05, atol=0)


def test_ctrl_c_returns_the_picture_so_far():
    def interrupt(step: int, images: Tensor) -> None:
        if step == 2:
            raise KeyboardInterrupt

    made = styled(content=noise(1, 3, 322, 330), levels=2, steps=5, preview=interrupt, preview_every=1)
    assert made.interrupted
    assert made.reasons == ("interrupted",)
    assert made.pictures.shape == (1, 3, 322, 330)
    assert made.history.shape == (2, 1)


def test_explosion_keeps_the_last_good_picture():
    with pytest.warns(RuntimeWarning, match="the last good one is returned"):
        made = styled(canvas=FREE, optimizer="ascent", learning_rate=1e7)
    assert bool(made.images.isfinite().all())
    assert "grew beyond" in made.reasons[0]


def test_the_model_is_left_as_it_was():
    model = small().train()
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    random = torch.get_rng_state()

    def fail(step: int, images: Tensor) -> None:
        raise ZeroDivisionError

    styled(model=model, start="noise")
    with pytest.raises(ZeroDivisionError):
        styled(model=model, preview=fail, preview_every=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(value.requires_grad and value.grad is None for value in model.parameters())


# ----------------------------------------------------------------------------------------------------- bad input

DRAWN = noise(1, 3, 12, 12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"content": noise(3, 16, 20)}, ValueError, r"content should have shape \[N, C, H, W\]"),
        ({"content": noise(1, 3, 1, 1)}, ValueError, "cannot be run on content and style of 1x1 pixels"),
        ({"style": noise(1, 3, 1, 1)}, ValueError, "cannot be run on content and style of 1x1 pixels"),
        ({"style": noise(1, 4, 12, 12)}, ValueError, r"style should have 3 channels and a pixel, got \[1, 4, 12, 12\]"),
        ({"style": noise(3, 3, 12, 12)}, ValueError, "style should have 1 or 2 images, as content has, got 3"),
        ({"style": noise(3, 12, 12)}, ValueError, r"style should have shape \[N, C, H, W\]"),
        ({"style": []}, ValueError, "style should be at least one image, got none"),
        ({"style": "brick"}, TypeError, "style should be a tensor, a Style or a list of them, got str"),
        ({"style": [noise(1, 3, 12, 12), 3]}, TypeError, "style should be a tensor, got int"),
        ({"style": fv.Style(DRAWN, 0)}, ValueError, "one style should have a weight above 0"),
        ({"style": fv.Style(DRAWN, -1)}, ValueError, "the weight of a style should be finite and at least 0, got -1"),
        ({"style": fv.Style(DRAWN, mask=torch.ones(2, 16, 20))}, ValueError, r"size of content, \[16, 20\], got \[2"),
        ({"style": fv.Style(DRAWN, mask=torch.zeros(16, 20))}, ValueError, "should have a value above 0"),
        ({"style": fv.Style(DRAWN, mask=2 * torch.ones(16, 20))}, ValueError, "should have values 0 to 1, got 2 to 2"),
        ({"style": fv.Style(DRAWN, mask=[1])}, TypeError, "the mask of a style should be a tensor, got list"),
        ({"style": [DRAWN, fv.Style(DRAWN, mask=torch.ones(16, 20))]}, ValueError, "should have a mask or none, got 1"),
        ({"layers": "7"}, ValueError, r"should give maps \[N, C, H, W\], layer '7' gives shape"),
        ({"layers": ["1", "no"]}, ValueError, "layer 'no' is not known"),
        ({"layers": []}, ValueError, "layers should have at least one layer, got none"),
        ({"layers": ["1", "1"]}, ValueError, "layers should have every layer once"),
        ({"layers": [1]}, TypeError, "layers should be a name or a list of them, got"),
        ({"layers": {"1": 0.0}}, ValueError, "layers should have a weight above 0"),
        ({"content_layers": {"1": "a"}}, TypeError, "the weight of '1' in content_layers should be a number, got 'a'"),
        ({"style_weight": math.inf}, ValueError, "style_weight should be finite and at least 0, got inf"),
        ({"variation_weight": -1}, ValueError, "variation_weight should be finite and at least 0, got -1"),
        ({"start": "black"}, ValueError, "start should be one of 'content', 'style', 'noise', got 'black'"),
        ({"start": noise(1, 3, 16, 16)}, ValueError, r"start should have shape \[N, 3, 16, 20\], got \[1, 3, 16, 16\]"),
        ({"start": noise(3, 3, 16, 20)}, ValueError, r"start should have shape \[1 or 2, 3, 16, 20\], got \[3"),
        ({"levels": 0}, ValueError, "levels should be at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps should be a whole number, got 1.5"),
        ({"canvas": "oil"}, ValueError, "canvas should be one of 'fourier', 'pixels', got 'oil'"),
        ({"optimizer": "sgd"}, ValueError, "optimizer should be one of"),
        ({"checkpoint": "a.pt"}, ValueError, "checkpoint should be None for pictures that are optimised in levels"),
        ({"optimization": {"canvas": "pixels"}}, TypeError, "optimization should be a fastviz.Optimization, got dict"),
    ],
)  # fmt: skip
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        styled(**options)


def test_colours_of_grey_images_cannot_be_preserved():
    network = described(nn.Sequential(nn.Conv2d(1, 4, 3).double(), nn.ReLU()), channels=1)
    with pytest.raises(ValueError, match="content should have three channels to preserve colours, got 1"):
        style_transfer(
            network, noise(1, 1, 9, 9), noise(1, 1, 9, 9), layers="1", content_layers="1", preserve_colours=True
        )


# -------------------------------------------------------------------------------------------------- real pictures


def test_a_photograph_takes_the_statistics_of_a_texture(shared):
    """SqueezeNet with real weights: the style's Gram matrices come much nearer."""
    model = fv.load_model("squeezenet1_0", weights=shared / "models" / "squeezenet1_0_imagenet.safetensors")
    x, _ = fv.load_images([shared / "images" / name for name in ("tabby.jpg", "zebra.jpg")], model=model, size=160)
    made = style_transfer(model, x[:1], x[1:], steps=15, levels=1)
    begun = style_transfer(model, x[:1], x[1:], steps=0)
    assert float(made.style_loss) < 0.3 * float(begun.style_loss)
