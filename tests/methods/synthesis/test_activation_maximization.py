"""Images of classes and units: the engine as the method uses it, starts, crops, generators, codes, the real network."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz import models
from fastviz.engine.optimize import Ascent
from fastviz.engine.optimize.canvas import Fourier, Generator, Pixels, frame_of
from fastviz.methods.synthesis.activation_maximization import CLASS_PRIORS
from tests.methods.synthesis.common import network, scores

f64 = torch.float64


def test_simonyan_by_hand():
    """Plain ascent on S − λ‖I‖² from the mean colour."""
    model = network()
    made = fv.maximize(
        model,
        2,
        priors=[fv.priors.L2(0.01)],
        transforms=(),
        steps=3,
        optimization=fv.Optimization(canvas=Pixels(clip=False), optimizer=Ascent(0.1, "none")),
    )
    x = torch.zeros(1, 3, 16, 16, dtype=f64)
    for _ in range(3):
        leaf = x.requires_grad_()
        (g,) = torch.autograd.grad(model(leaf)[0, 2] - 0.01 * leaf.square().sum(), leaf)
        x = (leaf + 0.1 * g).detach()
    torch.testing.assert_close(made.images, x)
    torch.testing.assert_close(made.values, scores(model, x)[:, 2])
    torch.testing.assert_close(made.probability, scores(model, x).softmax(1)[:, 2])
    torch.testing.assert_close(made.pictures, frame_of(model).picture(x).clamp(0, 1))
    assert made.box is None
    assert made.history.shape == (3, 1)


def test_targets_and_starts_make_a_batch():
    model = network()
    made = fv.maximize(model, torch.tensor([1, 3]), starts=2, steps=4, optimization=fv.Optimization(start="noise"))
    assert made.images.shape == (4, 3, 16, 16)
    index = torch.tensor([1, 1, 3, 3])
    torch.testing.assert_close(made.values, scores(model, made.images)[torch.arange(4), index])
    assert not torch.allclose(made.images[0], made.images[1])
    # Each is as it is alone: start number s has seed + s.
    alone = fv.maximize(model, 3, steps=4, seed=1, optimization=fv.Optimization(start="noise"))
    torch.testing.assert_close(made.images[3:], alone.images)


def test_starts():
    model = network()
    frame = frame_of(model)
    for canvas in ("pixels", "fourier"):
        zeros, grey = (
            fv.maximize(model, 0, steps=0, optimization=fv.Optimization(start=start, canvas=canvas)).images
            for start in ("zeros", "grey")
        )
        torch.testing.assert_close(zeros, torch.zeros(1, 3, 16, 16, dtype=f64), rtol=0, atol=1e-6)
        torch.testing.assert_close(frame.picture(grey), torch.full((1, 3, 16, 16), 0.5, dtype=f64))
    mine = 0.1 * torch.randn(2, 3, 16, 16, dtype=f64)
    torch.testing.assert_close(
        fv.maximize(model, [0, 1], steps=0, optimization=fv.Optimization(start=mine, canvas="pixels")).images, mine
    )
    one = fv.maximize(model, [0, 1], steps=0, optimization=fv.Optimization(start=mine[:1], canvas="pixels")).images
    torch.testing.assert_close(one, mine[:1].expand(2, -1, -1, -1))


@pytest.mark.parametrize("canvas", ["pixels", "fourier"])
def test_models_of_16_bits(canvas):
    """Images are made in float32; the model sees them in its own dtype."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    options = {
        "size": 12, "steps": 20, "transforms": (), "optimization": fv.Optimization(canvas=canvas, start="noise"),
    }  # fmt: skip
    exact = fv.maximize(model, [0, 2], **options)
    found = fv.maximize(copy.deepcopy(model).bfloat16(), [0, 2], **options)
    assert found.images.dtype == torch.float32
    torch.testing.assert_close(found.values, exact.values, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, f64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, f64])
def test_generators_of_another_dtype_than_the_network(dtype, kind):
    """Codes had the dtype of the network, and a float32 generator for a bfloat16 network ended in an error of torch."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 3 * 12 * 12), nn.Sigmoid(), nn.Unflatten(1, (3, 12, 12))).to(dtype)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(kind)
    options = fv.Optimization(canvas=Generator(generator, (4,)))
    found = fv.maximize(model, [0, 2], size=12, steps=20, transforms=(), optimization=options)
    assert found.pictures.dtype == torch.promote_types(kind, torch.float32)
    assert (found.history[-1] > found.history[0]).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("canvas", [Fourier(), Pixels(decorrelate=True)], ids=["waves", "pixels"])
def test_other_channels_than_three_colours(canvas, channels):
    """lucid #175: waves and decorrelated colours were for three channels alone. Others have no axes of colours."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1))
    model.append(nn.Flatten())
    fv.describe(model, preprocessing=models.Preprocessing((16, 16), 16, (0.5,) * channels, (0.25,) * channels))
    found = [
        fv.maximize(
            model, [1, fv.channel("2", 3)], steps=steps, optimization=fv.Optimization(canvas=each, start="noise")
        )
        for each, steps in ((canvas, 0), (canvas, 20), (replace(canvas, decorrelate=False), 20))
    ]
    assert found[1].images.shape == found[1].pictures.shape == (2, channels, 16, 16)
    assert (found[1].values > found[0].values).all()
    if isinstance(canvas, Fourier):
        torch.testing.assert_close(found[2].images, found[1].images)


def test_defaults_by_kind_of_target():
    """Classes have penalties, units have none, L-BFGS has no transforms, small images neither."""
    model = network()
    assert len(CLASS_PRIORS) == 2
    plain = fv.maximize(model, 1, priors=(), steps=3)
    assert not torch.allclose(fv.maximize(model, 1, steps=3).images, plain.images)
    torch.testing.assert_close(
        fv.maximize(model, fv.channel("2", 1), steps=3).images,
        fv.maximize(model, fv.channel("2", 1), priors=(), steps=3).images,
    )
    still = fv.maximize(model, fv.channel("2", 1), transforms=(), steps=3)
    assert not torch.allclose(fv.maximize(model, fv.channel("2", 1), steps=3).images, still.images)
    fv.maximize(model, fv.channel("2", 1), steps=3, optimization=fv.Optimization(optimizer="lbfgs"))
    torch.testing.assert_close(
        fv.maximize(model, fv.channel("2", 1), size=15, steps=3).images,
        fv.maximize(model, fv.channel("2", 1), size=15, transforms=(), steps=3).images,
    )


def test_single_units_are_made_on_what_they_see():
    """The image is the receptive field alone, and its unit has the value that the whole image gives it."""
    model = network(24)
    targets = fv.neuron("2", torch.tensor([0, 3, 5]), (4, 6))
    made = fv.maximize(model, targets, transforms=(), steps=5, optimization=fv.Optimization(canvas="pixels"))
    top, left, bottom, right = made.box
    assert (bottom - top, right - left) == made.images.shape[2:] == (9, 9)
    whole = torch.zeros(3, 3, 24, 24, dtype=f64)
    whole[:, :, top:bottom, left:right] = made.images
    values = model[:3](whole)[torch.arange(3), torch.tensor([0, 3, 5]), 4, 6]
    torch.testing.assert_close(made.values, values.detach())
    # Uncropped, the same pixels change by the same amounts.
    full = fv.maximize(
        model,
        targets,
        transforms=(),
        crop=False,
        steps=5,
        optimization=fv.Optimization(canvas=Pixels(), optimizer=Ascent(0.02, "none")),
    )
    part = fv.maximize(
        model,
        targets,
        transforms=(),
        steps=5,
        optimization=fv.Optimization(canvas=Pixels(), optimizer=Ascent(0.02, "none")),
    )
    torch.testing.assert_close(full.images[:, :, top:bottom, left:right], part.images)
    assert full.box is None
    assert full.images.shape[2:] == (24, 24)


def test_units_without_a_common_crop_are_made_whole():
    model = network(24)
    corner = fv.maximize(model, [fv.neuron("2", 1, (0, 0)), fv.neuron("2", 1, (3, 3))], steps=1)
    assert corner.box is not None  # no padding in this network: all fields are alike
    mixed = fv.maximize(model, [fv.neuron("2", 1), fv.neuron("0", 1)], steps=1)
    assert mixed.box is None
    assert mixed.images.shape[2:] == (24, 24)
    sums = fv.maximize(model, fv.neuron("2", 1) + fv.neuron("2", 2), steps=1)
    assert sums.images.shape[2:] == (24, 24)
    with pytest.raises(ValueError, match="channel should be a channel of layer '2' from 0 to 5"):
        fv.maximize(model, fv.neuron("2", 6), steps=1)


def test_goals():
    model = network()
    with torch.no_grad():
        model[6].weight *= 20  # so that the image decides, not the bias
    made = fv.maximize(
        model,
        torch.tensor([0, 1, 3]),
        goal=0.9,
        steps=200,
        transforms=(),
        priors=(),
        optimization=fv.Optimization(canvas="pixels"),
    )
    assert made.reasons == ("goal",) * 3
    assert bool((made.probability >= 0.9).all())
    assert bool((scores(model, made.images).softmax(1)[[0, 1, 2], [0, 1, 3]] >= 0.9).all())


def test_sizes():
    model = network()
    assert fv.maximize(model, fv.channel("2", 1), size=(20, 12), steps=1).images.shape == (1, 3, 20, 12)
    with pytest.raises(ValueError, match="cannot be run on images of 6x6 pixels"):
        fv.maximize(model, fv.channel("2", 1), size=6, steps=1)


def test_images_smaller_than_what_a_unit_sees():
    """A unit whose receptive field, 13 pixels, does not fit: padding takes the place of what is missing."""
    torch.manual_seed(1)
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), nn.ReLU()) for _ in range(3)]).double()
    models.describe(model, preprocessing=models.Preprocessing((32, 32), 32, (0.5,) * 3, (0.25,) * 3))
    large = fv.maximize(model, fv.neuron("2", 1), steps=2)
    assert large.images.shape == (1, 3, 13, 13)
    small = fv.maximize(model, fv.neuron("2", 1), size=7, steps=2)
    assert small.images.shape == (1, 3, 7, 7)
    assert small.box is None
    torch.testing.assert_close(small.values, scores(model, small.images)[:, 1, 3, 3])
    with pytest.raises(ValueError, match=r"position should be .* from 0 to 6"):
        fv.maximize(model, fv.neuron("2", 1, (0, 9)), size=7, steps=2)


def test_units_that_do_not_fit_into_the_image():
    with pytest.raises(ValueError, match="the model cannot be run on images of 8x8 pixels"):
        fv.maximize(network(), fv.neuron("2", 1), size=8, steps=1)


class Breaking(nn.Module):
    """A scale of 1, and of ``then`` after so many calls for the first of two samples."""

    def __init__(self, after: int, then: float) -> None:
        super().__init__()
        self.calls, self.after, self.then = 0, after, then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        scale = torch.ones(len(x), 1, dtype=x.dtype)
        scale[0] = self.then if self.calls > self.after and len(x) == 2 else 1.0
        return x * scale


@pytest.mark.parametrize("then", [float("nan"), float("inf")])
def test_a_network_that_breaks_on_the_way(then):
    """The image stops with the step and the cause, and the last good one comes back; its neighbour goes on."""
    model = nn.Sequential(*network(), Breaking(3, then))
    models.describe(model, preprocessing=models.preprocessing(network()))
    with torch.no_grad():
        model[6].bias[:] = 1.0
    options = {"optimization": fv.Optimization(canvas="pixels"), "transforms": (), "priors": ()}
    with pytest.warns(RuntimeWarning, match=r"image 0 stopped, the last good one is returned: .* at step 3"):
        made = fv.maximize(model, [0, 1], steps=6, **options)
    assert made.reasons[0].endswith("at step 3")
    assert made.reasons[1] == "steps"
    whole = network()
    with torch.no_grad():
        whole[6].bias[:] = 1.0
    torch.testing.assert_close(made.images[:1], fv.maximize(whole, 0, steps=2, **options).images)


def test_an_image_that_explodes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
    with pytest.warns(RuntimeWarning, match=r"image 0 stopped.*the parameters grew beyond 1e\+06 at step \d"):
        made = fv.maximize(
            model,
            fv.layer("0"),
            size=8,
            transforms=(),
            steps=30,
            optimization=fv.Optimization(start="noise", canvas=Pixels(clip=False), optimizer=Ascent(50, "none")),
        )
    assert made.steps < 30
    assert bool(made.images.isfinite().all())
    assert float(made.images.abs().max()) <= 1e6


def test_out_of_memory_says_what_would_fit():
    def small(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 2:
            torch.empty(1 << 60)  # more than any machine has: the allocator's own error

    model = network()
    model.register_forward_pre_hook(small)
    with pytest.raises(MemoryError, match="5 images of 16x16 pixels at once do not fit on cpu, 2 would: batch_size=2"):
        fv.maximize(model, torch.tensor([0, 1, 2, 3, 3]), steps=1, batch_size=5)
    assert fv.maximize(model, [0, 1, 2], steps=1, batch_size=2).images.shape[0] == 3


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (fv.channel("3.1", 0), "layer '3.1' is not known"),
        (fv.neuron("nothing", 0), "layer 'nothing' is not known"),
        (4, "target should be a class from 0 to 3"),
        (fv.channel("2", 6), "channel should be a channel of layer '2' from 0 to 5"),
        (None, "target should say which class"),
    ],
)
def test_targets_that_do_not_exist(target, words):
    with pytest.raises(ValueError, match=words):
        fv.maximize(network(), target, steps=1)


def test_interrupted():
    def stop(step: int, images: torch.Tensor) -> None:
        raise KeyboardInterrupt

    made = fv.maximize(network(), [0, 1], steps=50, optimization=fv.Optimization(preview=stop, preview_every=3))
    assert made.interrupted
    assert made.reasons == ("interrupted",) * 2
    assert made.history.shape[0] == 3


def test_checkpoint(tmp_path):
    model, path = network(), tmp_path / "run.pt"
    fv.maximize(model, [0, 1], steps=2, optimization=fv.Optimization(checkpoint=path))
    made = fv.maximize(model, [0, 1], steps=5, optimization=fv.Optimization(checkpoint=path))
    torch.testing.assert_close(made.images, fv.maximize(model, [0, 1], steps=5).images, rtol=0, atol=0)
    with pytest.raises(ValueError, match="belongs to other settings"):
        fv.maximize(model, [0, 2], steps=5, optimization=fv.Optimization(checkpoint=path))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"optimization": {"start": "black"}},
            ValueError,
            "start should be one of 'zeros', 'grey', 'noise', got 'black'",
        ),
        (
            {"optimization": {"start": torch.zeros(3, 3, 16, 16)}},
            ValueError,
            r"start should have shape \[1 or 2, 3, 16, 16\], got \[3, 3",
        ),
        (
            {"optimization": {"start": torch.zeros(2, 3, 8, 8)}},
            ValueError,
            r"start should have shape \[1 or 2, 3, 16, 16\], got \[2, 3, 8",
        ),
        ({"optimization": {"start": 3}}, TypeError, "start should be a word or a tensor of images, got int"),
        ({"starts": 0}, ValueError, "starts should be at least 1"),
        ({"seed": -1}, ValueError, "seed should be at least 0"),
        ({"optimization": {"canvas": "waves"}}, ValueError, "canvas should be one of 'fourier', 'pixels', got 'waves'"),
        ({"optimization": {"canvas": 3}}, TypeError, "canvas should be a name or a Canvas, got int"),
        ({"optimization": {"optimizer": "sgd"}}, ValueError, "optimizer should be one of"),
        ({"optimization": {"learning_rate": 0}}, ValueError, "learning_rate should be finite and above 0, got 0"),
        ({"optimization": {"preview_every": 0}}, ValueError, "preview_every should be at least 1, got 0"),
        (
            {"optimization": {"optimizer": Ascent(0.1), "learning_rate": 0.2}},
            ValueError,
            "learning_rate should be None for an optimizer that has its own",
        ),
        ({"precision": "half"}, ValueError, "precision should be one of"),
    ],
)
def test_arguments_are_checked(options, error, words):
    def call(*, optimization: dict[str, object] | None = None, **rest: object) -> None:
        loop = None if optimization is None else fv.Optimization(**optimization)
        fv.maximize(network(), [0, 1], steps=1, optimization=loop, **rest)

    with pytest.raises(error, match=words):
        call(**options)


def test_an_optimization_is_no_dict():
    with pytest.raises(TypeError, match=r"optimization should be a fastviz\.Optimization, got dict"):
        fv.maximize(network(), 0, steps=1, optimization={"canvas": "pixels"})


def test_a_result_shows_its_shapes_and_its_pictures():
    made = fv.maximize(network(), [0, 1], steps=1)
    assert repr(made).startswith("Maximized(images=float64 [2, 3, 16, 16], pictures=float64 [2, 3, 16, 16], values=")
    shown = made._repr_html_()
    assert shown.count('<img src="data:image/png;base64,') == 2
    assert f"value {float(made.values[1]):.3g}, probability {float(made.probability[1]):.3g}" in shown


# ------------------------------------------------------------------------------------------------------- generators


class Decoder(nn.Module):
    """Codes [N, 5] → pictures [N, 3, side, side], with a part that behaves otherwise in training mode."""

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(5, 3 * side * side).double()
        self.dropout = nn.Dropout(0.5)
        self.side = side

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(z)).sigmoid().view(-1, 3, self.side, self.side)


class Pair(Decoder):
    """Returns more than pictures."""

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(z), z


def test_latent_images_through_a_generator():
    model, decoder = network(), Decoder()
    canvas = Generator(decoder, (5,), decay=1e-4)
    made = fv.maximize(model, [0, 3], steps=40, optimization=fv.Optimization(canvas=canvas, learning_rate=0.1))
    begin = fv.maximize(model, [0, 3], steps=0, optimization=fv.Optimization(canvas=canvas))
    assert bool((made.values > begin.values).all())
    assert decoder.training
    assert all(parameter.grad is None for parameter in decoder.parameters())
    # The images are those of some code: the generator's alone.
    flat = frame_of(model).picture(made.images).flatten(1).logit() - decoder.linear.bias
    residual = flat.T - decoder.linear.weight @ torch.linalg.lstsq(decoder.linear.weight, flat.T).solution
    assert float(residual.detach().abs().max()) < 1e-8


def test_generators_that_do_not_fit():
    model = network()
    with pytest.raises(ValueError, match=r"pictures of shape \[1, 3, 16, 16\].*got \[1, 3, 12, 12\]"):
        fv.maximize(model, 0, steps=1, optimization=fv.Optimization(canvas=Generator(Decoder(12), (5,))))
    with pytest.raises(TypeError, match="the generator should return a floating-point tensor of pictures, got tuple"):
        fv.maximize(model, 0, steps=1, optimization=fv.Optimization(canvas=Generator(Pair(), (5,))))
    with pytest.raises(ValueError, match=r"start should have shape \[1, 5\], got \[1, 3, 16, 16\]"):
        fv.maximize(
            model,
            0,
            steps=1,
            optimization=fv.Optimization(canvas=Generator(Decoder(), (5,)), start=torch.zeros(1, 3, 16, 16)),
        )
    with pytest.raises(ValueError, match="cannot be set to an image: start from noise"):
        fv.maximize(model, 0, steps=1, optimization=fv.Optimization(canvas=Generator(Decoder(), (5,)), start="grey"))


# -------------------------------------------------------------------------------------------------- the real network


def test_the_built_in_network_sees_its_classes():
    """From the mean colour to 99 % for every class, in one batch."""
    made = fv.maximize(
        fv.load_model("demo"),
        torch.arange(20),
        goal=0.99,
        transforms=(),
        priors=(),
        optimization=fv.Optimization(canvas="pixels"),
    )
    assert made.reasons == ("goal",) * 20
    assert bool((made.probability >= 0.99).all())


def test_imagenet_classes_from_a_zero_image(shared):
    """Two of the twenty that the benchmark makes; the first is switched off at the start."""
    model = fv.load_model("squeezenet1_0", weights=shared / "models" / "squeezenet1_0_imagenet.safetensors")
    made = fv.maximize(
        model,
        torch.tensor([130, 9]),
        goal=0.99,
        transforms=(),
        priors=(),
        steps=60,
        optimization=fv.Optimization(canvas="pixels"),
    )
    assert made.reasons == ("goal", "goal")
    assert bool((scores(model, made.images).softmax(1)[[0, 1], [130, 9]] >= 0.99).all())
