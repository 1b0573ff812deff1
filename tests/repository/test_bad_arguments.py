"""What public functions say of wrong arguments: which argument, what is needed, what came; never torch's own words.

A row of the table: a function, what is wrong, the start of the message. What takes images is tried with every kind of
tensor that is none, and every function with numbers, words and sizes out of range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import canvas, priors, transforms
from fastviz.execution.inputs import UnusableInputError

NAN = float("nan")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def large() -> nn.Module:
    """A network that takes no image of 4 pixels a side."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    ).eval()  # fmt: skip


def photos(channels: int = 3, side: int = 16, count: int = 2) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------------------------------- images

# function → its call with images that are wrong, and what it calls them
TAKES: dict[str, tuple[Callable[[nn.Module, Tensor], object], str]] = {
    "saliency": (lambda m, x: fv.saliency(m, x, 1), "x"),
    "input_gradient": (lambda m, x: fv.input_gradient(m, x, 1), "x"),
    "gradient_times_input": (lambda m, x: fv.gradient_times_input(m, x, 1), "x"),
    "guided_backprop": (lambda m, x: fv.guided_backprop(m, x, 1), "x"),
    "deconvnet": (lambda m, x: fv.deconvnet(m, x, 1), "x"),
    "smooth_grad": (lambda m, x: fv.smooth_grad(m, x, 1, samples=2), "x"),
    "occlusion": (lambda m, x: fv.occlusion(m, x, 1, window=8, stride=8), "x"),
    "grad_cam": (lambda m, x: fv.grad_cam(m, x, 1, layer="2"), "x"),
    "grad_cam without a layer": (lambda m, x: fv.grad_cam(m, x, 1), "x"),
    "guided_grad_cam": (lambda m, x: fv.guided_grad_cam(m, x, 1, layer="2"), "x"),
    "cam": (lambda m, x: fv.cam(m, x, 1), "x"),
    "cams": (lambda m, x: fv.cams(m, x, 1, methods=["layer_cam", "eigen_cam"]), "x"),
    "full_grad": (lambda m, x: fv.full_grad(m, x, 1), "x"),
    "ablation_cam": (lambda m, x: fv.ablation_cam(m, x, 1, layer="2"), "x"),
    "recipro_cam": (lambda m, x: fv.recipro_cam(m, x, 1, layer="2"), "x"),
    "score_cam": (lambda m, x: fv.score_cam(m, x, 1, layer="2"), "x"),
    "augmented": (lambda m, x: fv.augmented(fv.layer_cam, m, x, 1, layer="2"), "x"),
    "activations": (lambda m, x: fv.activations(m, x, "2"), "x"),
    "segment": (lambda m, x: fv.segment(m, x, 1), "x"),
    "invert": (lambda m, x: fv.invert(m, x, "0", steps=1), "x"),
    "invert_all": (lambda m, x: fv.invert_all(m, x, ["0"], steps=1), "x"),
    "deep_dream": (lambda m, x: fv.deep_dream(m, x, layer="0", octaves=1, steps=1), "x"),
    "fool": (lambda m, x: fv.fool(m, x, 3, steps=1), "x"),
    "style_transfer": (lambda m, x: fv.style_transfer(m, x, x, steps=1), "content"),
    "neural_texture": (lambda m, x: fv.neural_texture(m, x, steps=1), "sample"),
}
takes = pytest.mark.parametrize("name", TAKES)

WRONG: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "no tensor": (lambda x: x.numpy(), "should be a tensor, got ndarray"),
    "integers": (lambda x: (x * 255).to(torch.uint8), "should be a floating-point tensor, got torch.uint8"),
    "complex": (lambda x: x.to(torch.complex64), "should be a floating-point tensor, got torch.complex64"),
    "sparse": (lambda x: x.to_sparse(), "should be a dense tensor, got one of layout torch.sparse_coo: give .to_dense"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        "should be an ordinary tensor, got quantised torch.quint8: give .dequantize",
    ),
    "nested": (lambda x: torch.nested.nested_tensor([*x]), "should be one plain tensor, got a nested tensor"),
    "one image": (lambda x: x[0], r"should have shape \[N, C, H, W\], got \[3, 16, 16\]; .*\[None\] is a batch of one"),
    "no pixels": (lambda x: x[:, :, :0], "should have at least one channel and one pixel, got"),
    "float64": (lambda x: x.double(), "should have the dtype of the model, torch.float32, got torch.float64: give "),
    "float16": (lambda x: x.half(), "should have the dtype of the model, torch.float32, got torch.float16: give "),
}


@takes
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore")  # of torch, about nested and quantised tensors
def test_what_is_no_batch_of_images(model: nn.Module, name: str, kind: str) -> None:
    make, words = WRONG[kind]
    call, argument = TAKES[name]
    with pytest.raises((TypeError, ValueError), match=f"^{argument} {words}"):
        call(model, make(photos()))  # type: ignore[arg-type]


@takes
def test_channels_that_the_model_does_not_take(model: nn.Module, name: str) -> None:
    call, argument = TAKES[name]
    words = f"^the model cannot be run on .*{argument}.* of 16x16 pixels with 5 channels in torch.float32 .*"
    with pytest.raises(ValueError, match=words + r"; it can be run on \[N, 3, 16, 16\]"):
        call(model, photos(5))


@pytest.mark.parametrize(
    "call",
    [
        lambda m: fv.saliency(m, photos(side=4), 1),
        lambda m: fv.occlusion(m, photos(side=4), 1, window=2),
        lambda m: fv.activations(m, photos(side=4), "3"),
        lambda m: fv.maximize(m, 1, size=4, steps=1),
        lambda m: fv.invert(m, photos(side=4), "3", steps=1),
        lambda m: fv.deep_dream(m, photos(side=4), layer="3", octaves=1, steps=1),
        lambda m: fv.style_transfer(m, photos(side=4), photos(side=4), layers="3", content_layers="3", steps=1),
        lambda m: fv.neural_texture(m, photos(side=4), layers="3", steps=1),
        lambda m: fv.fool(m, photos(side=4), 1, steps=1),
        lambda m: fv.fool_from_noise(m, 1, size=4, steps=1),
        lambda m: fv.evolve(m, 1, size=4, generations=1),
    ],
)
def test_images_too_small_for_the_network(large: nn.Module, call: Callable[[nn.Module], object]) -> None:
    cure = r"it can be run on \[N, 3, 224, 224\]$"
    words = rf"^(size should be one .*: )?the model cannot be run on .* of 4x4 pixels with 3 channels .*; {cure}"
    with pytest.raises(ValueError, match=words):
        call(large)


def test_layers_of_images_too_small_for_the_network(large: nn.Module) -> None:
    words = r"^input_size and channels should be those of images that the model takes, got \(4, 4\) and 3: .*\(4 x 4\)"
    with pytest.raises(ValueError, match=words):
        fv.layers(large, (4, 4))


class Casting(nn.Module):
    """A model that brings its input to its own dtype, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4)).double()
        self.inner(torch.zeros(1, 3, 16, 16, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.double()).to(x.dtype)


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).cumsum(1)[:, ::97]


@pytest.mark.parametrize("made", [Casting, Pixels])
def test_a_model_that_takes_another_dtype_gets_it(made: type[nn.Module]) -> None:
    model, x = made().eval(), photos()
    assert fv.saliency(model, x, 1).dtype == torch.float32
    assert fv.occlusion(model, x, 1, window=8, stride=8).scores.shape == (2, 2, 2)


def test_memory_that_runs_out_and_what_fails_elsewhere_is_not_explained() -> None:
    class Refusing(nn.Module):
        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(self.words)

    words = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
    with pytest.raises(RuntimeError, match="you tried to allocate") as caught:
        fv.saliency(Refusing(words), photos(), 1)
    assert not isinstance(caught.value, UnusableInputError)
    with pytest.raises(RuntimeError, match="a fault of its own"):  # a RuntimeError still, for who waits for one
        fv.saliency(Refusing("a fault of its own"), photos(), 1)


@pytest.mark.parametrize("channels", [1, 5])
def test_networks_of_other_channels_before_they_are_described(channels: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    x = photos(channels)
    other = (model(x).argmax(1) + 1) % 4
    assert fv.maximize(model, 3, size=16, steps=2).images.shape == (1, channels, 16, 16)
    assert fv.invert(model, x, "0", steps=2).images.shape == x.shape
    assert fv.deep_dream(model, x, layer="0", octaves=1, steps=1).images.shape == x.shape
    assert fv.fool(model, x, other, steps=2).images.shape == x.shape
    assert fv.fool_from_noise(model, 3, size=16, steps=2).images.shape == (1, channels, 16, 16)
    assert fv.evolve(model, [3], size=16, generations=1, population=4).images.shape == (1, channels, 16, 16)


def test_no_images_at_all(model: nn.Module) -> None:
    """Inversion and style transfer of none ended in the words of a Fourier transform."""
    x = photos()[:0]
    assert fv.invert(model, x, "0", steps=1).images.shape == x.shape
    assert fv.style_transfer(model, x, photos(count=1), layers="0", content_layers="2", steps=1).images.shape == x.shape
    assert fv.deep_dream(model, x, layer="0", steps=1).images.shape == x.shape
    assert fv.fool(model, x, 1).images.shape == x.shape
    assert fv.saliency(model, x, 1).shape == (0, 16, 16)


# -------------------------------------------------------------------------------------------------- other arguments

LOOP = {"start", "canvas", "optimizer", "learning_rate", "preview", "preview_every", "checkpoint"}


def loop(options: dict[str, Any]) -> dict[str, Any]:
    """Those of :class:`fastviz.Optimization` as one."""
    of_loop = {name: options[name] for name in LOOP & options.keys()}
    rest = {name: value for name, value in options.items() if name not in LOOP}
    return {**rest, "optimization": fv.Optimization(**of_loop)} if of_loop else rest


OPTIONS: list[tuple[str, Callable[..., object], list[tuple[str, list[object]]]]] = [
    ("saliency", lambda m, **k: fv.saliency(m, photos(), **{"target": 1} | k), [
        ("target", [-1, 99, "cat", 1.5, NAN, [], torch.tensor([1, 2, 3]), torch.ones(2), True]),
        ("batch_size", [0, -1, 1.5, "a", NAN]), ("precision", ["half", 3]),
    ]),
    ("smooth_grad", lambda m, **k: fv.smooth_grad(m, photos(), 1, **{"samples": 2} | k), [
        ("samples", [0, -1, 1.5, NAN]), ("noise", [NAN, -1.0, "a"]), ("seed", [-1, 1.5, "a"]),
    ]),
    ("occlusion", lambda m, **k: fv.occlusion(m, photos(), 1, **{"window": 8, "stride": 8} | k), [
        ("window", [0, -1, 1.5, "a", (1,), NAN, 99]), ("stride", [0, -1, 1.5, NAN]), ("fill", ["a", None]),
        ("growth_cap", [0, -1, 2, NAN, "a"]), ("drill_down", [-1, 2, NAN, "a"]), ("memory", [0, 1.5]),
        ("batch_size", [0, 1.5]),
    ]),
    ("grad_cam", lambda m, **k: fv.grad_cam(m, photos(), 1, **{"layer": "2"} | k), [
        ("layer", ["nope", 3, [], ["2"]]), ("size", [(0, 4), (1, 2, 3), "a", -3]), ("batch_size", [0, 1.5]),
    ]),
    ("cams", lambda m, **k: fv.cams(m, photos(), 1, **{"methods": ["layer_cam"]} | k), [
        ("methods", ["nope", 3, [], [3]]), ("layers", [3, [], [3]]), ("size", [(0, 4), "a"]),
        ("batch_size", [0, 1.5]), ("precision", ["half"]),
    ]),
    ("layer_cam", lambda m, **k: fv.layer_cam(m, photos(), 1, **k), [("layer", ["nope", 3, ["2"]])]),
    ("ablation_cam", lambda m, **k: fv.ablation_cam(m, photos(), 1, **k), [
        ("layer", ["nope", 3, ["2"]]), ("size", [(0, 4), "a"]), ("batch_size", [0, 1.5]),
    ]),
    ("recipro_cam", lambda m, **k: fv.recipro_cam(m, photos(), 1, **k), [
        ("layer", ["nope", 3]), ("gaussian", [3, "a"]), ("batch_size", [0]),
    ]),
    ("score_cam", lambda m, **k: fv.score_cam(m, photos(), 1, **k), [
        ("layer", ["nope", 3]), ("size", [(0, 4)]), ("batch_size", [0]),
    ]),
    ("full_grad", lambda m, **k: fv.full_grad(m, photos(), 1, **k), [("batch_size", [0]), ("precision", ["half"])]),
    ("fuse_maps", lambda m, **k: fv.fuse_maps(**{"maps": [torch.rand(2, 3, 3)]} | k), [
        ("maps", [[], [3], [torch.ones(2, 2)], [torch.ones(1, 2, 2), torch.ones(2, 2, 2)]]), ("how", ["min", 3]),
    ]),
    ("guided_grad_cam", lambda m, **k: fv.guided_grad_cam(m, photos(), 1, **k), [("layer", ["nope", 3, ["2"]])]),
    ("activations", lambda m, **k: fv.activations(m, photos(), **k), [
        ("layer", [3, ["2"]]), ("layers", [3, [3], [], "2"]), ("batch_size", [0, "a"]), ("device", ["nope", 3]),
    ]),
    ("activation_grid", lambda m, **k: fv.activation_grid(torch.rand(4, 5, 5), **k), [
        ("image", [torch.ones(2, 3, 4), 3]), ("scale", ["a", 3]), ("columns", [0, -1, 1.5, "a"]),
    ]),
    ("segment", lambda m, **k: fv.segment(m, photos(), 1, **k), [
        ("foreground", [NAN, -1.0, 1.5, "a"]), ("background", [NAN, 2]), ("smoothing", [NAN, -1.0, "a"]),
        ("iterations", [-1, 1.5]), ("batch_size", [0]),
    ]),
    ("maximize", lambda m, **k: fv.maximize(m, **{"target": 1, "steps": 1, "size": 16} | loop(k)), [
        ("target", [-1, 99, "cat", 1.5, NAN, []]), ("size", [0, -3, (0, 4), (1, 2, 3), "a", NAN, 4.5]),
        ("start", ["nope", 3, torch.ones(1, 3, 4, 4)]), ("starts", [0, -1, 1.5]), ("canvas", ["nope", 3]),
        ("priors", [3, [3]]), ("transforms", [3, [3]]), ("optimizer", ["nope", 3]),
        ("learning_rate", [NAN, -1.0, "a"]), ("steps", [-1, 1.5]), ("goal", [NAN, "a"]), ("seed", [-1, 1.5]),
        ("batch_size", [0, "a"]), ("preview", [3]), ("preview_every", [0]), ("checkpoint", [3]),
    ]),
    ("invert", lambda m, **k: fv.invert(m, photos(), **{"layer": "0", "steps": 1} | k), [
        ("layer", ["nope", 3]), ("starts", [0]), ("priors", [3, [3]]), ("goal", [NAN, "a"]),
        ("steps", [-1, 1.5]), ("seed", [-1]),
    ]),
    ("deep_dream", lambda m, **k: fv.deep_dream(m, photos(), **{"layer": "0", "octaves": 1, "steps": 1} | k), [
        ("octaves", [0, 1.5]), ("octave_scale", [NAN, 1.0, "a"]), ("steps", [-1]), ("strength", [NAN, 0, "a"]),
        ("jitter", [-1, 1.5]), ("canvas", ["nope", 3]), ("tile", [0, "a"]), ("guide", [3, torch.ones(2, 3)]),
    ]),
    ("style_transfer", lambda m, **k: fv.style_transfer(
        m, photos(), **{"style": photos(count=1), "layers": "0", "content_layers": "2", "steps": 1} | k
    ), [
        ("style", [3, [], photos(5), *(fv.Style(photos(count=1), weight) for weight in (NAN, -1, "a", [1]))]),
        ("style", [fv.Style(photos(count=1), mask=mask) for mask in (torch.ones(3), 3)]),
        ("layers", [3, []]), ("content_layers", [3]), ("levels", [0, 1.5]),
    ]),
    ("fool", lambda m, **k: fv.fool(m, photos(), **{"target": (m(photos()).argmax(1) + 1) % 4, "steps": 1} | k), [
        ("method", ["nope", 3]), ("norm", ["1"]), ("goal", [NAN, 1, "a"]), ("step", [NAN, -1.0]), ("steps", [0, 1.5]),
        ("batch_size", [0, -1, 1.5, "a", NAN]),
    ]),
    ("fool_from_noise", lambda m, **k: fv.fool_from_noise(m, **{"target": 1, "steps": 1, "size": 16} | k), [
        ("target", [-1, 99, "cat", [], True]), ("batch_size", [0, -1, 1.5]), ("size", [0, "a", (1, 2, 3)]),
    ]),
    ("evolve", lambda m, **k: fv.evolve(m, **{"target": 1, "generations": 1, "population": 2, "size": 16} | k), [
        ("encoding", ["nope", 3]), ("population", [0, 1.5]), ("generations", [0]), ("batch_size", [0, -1, 1.5]),
    ]),
    ("maximize_code", lambda m, **k: fv.maximize_code(
        m, **{"target": 1, "layer": "2", "steps": 1, "size": 16, "decoding": {"steps": 1}} | k
    ), [
        ("seed", [-1, 1.5, "a"]), ("goal", [NAN, "a"]), ("decoding", [3, {"nope": 1}]),
    ]),
    ("layers", lambda m, **k: fv.layers(m, **{"input_size": (16, 16)} | k), [
        ("input_size", [(0, 4), 3, "a", (1.5, 2), (2, 2, 2)]), ("channels", [0, -1, 1.5]),
    ]),
    ("image_map", lambda m, **k: fv.image_map(
        **{"pictures": torch.rand(4, 3, 8, 8), "coordinates": torch.rand(4, 2)} | k
    ), [
        ("pictures", [3, torch.rand(4, 1, 8, 8), torch.rand(4, 3, 8, 8) * NAN, torch.rand(4, 3, 8, 8) + 1]),
        ("coordinates", [3, torch.rand(3, 2), torch.rand(4, 3)]), ("background", [NAN, "a", 2]), ("tile", [0]),
    ]),
    ("neighbours", lambda m, **k: fv.neighbours(**k), [("found", [3])]),
    ("neighbour_sheet", lambda m, **k: fv.neighbour_sheet(near=None, **k), [("found", [3])]),
    ("patch_sheet", lambda m, **k: fv.patch_sheet(**k), [("shown", [3])]),
    ("patches", lambda m, **k: fv.patches(m, photos(), **k), [
        ("layer", [3, ["2"]]), ("layers", [3, [], "2"]), ("k", [0, 1.5]), ("precision", ["half", 3]),
    ]),
    ("load_embedding", lambda m, **k: fv.load_embedding(**k), [("file", [3])]),
    ("load_images", lambda m, **k: fv.load_images(**k), [("paths", [3, []])]),
    ("neuron", lambda m, **k: fv.neuron("0", **{"channel": 1} | k), [("position", [3]), ("channel", [-1, "a", None])]),
    ("natural_image", lambda m, **k: priors.natural_image(canvas.frame_of(m, 16), **k), [
        ("range_weight", [-1, NAN, "a"]), ("variation_weight", [-1, NAN, "a"]),
    ]),
    ("Fourier", lambda m, **k: canvas.Fourier(**k), [("decay", [NAN, "a"])]),
    ("Generator", lambda m, **k: canvas.Generator(m, **{"code": (3,)} | k), [
        ("code", [3, "a", (0,)]), ("decay", [NAN, -1, "a"]), ("limits", [3, (1, 0), (0, NAN)]),
    ]),
    ("Scale", lambda m, **k: transforms.Scale(**k), [("low", [NAN, "a", 9]), ("high", [NAN, "a"])]),
]  # fmt: skip
ROWS = [(name, call, argument, value) for name, call, kinds in OPTIONS for argument, some in kinds for value in some]


def shown(value: object) -> str:
    """A name for a value that is the same in every process."""
    return f"tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r:.20}"


@pytest.mark.parametrize(
    ("call", "argument", "value"), [row[1:] for row in ROWS], ids=[f"{row[0]}-{row[2]}-{shown(row[3])}" for row in ROWS]
)
def test_options_out_of_range(model: nn.Module, call: Callable[..., object], argument: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"{argument}.* (should|is not known)"):
        call(model, **{argument: value})


def test_features_that_are_not_finite(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="x should have finite features in layer '0', got NaN or infinity"):
        fv.invert(model, photos() * NAN, "0", steps=1)


def test_a_name_without_a_near_one_is_answered_with_all_names(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"layer 'conv' is not known; there are: 0, 1, 2, 3, 4, 5, 6$"):
        fv.activations(model, photos(), "conv")


@pytest.mark.parametrize("name", ["saliency", "gradient_times_input", "occlusion", "activations", "fool", "invert"])
def test_images_with_a_graph_of_their_own(model: nn.Module, name: str) -> None:
    """A leaf, and what was computed from one: results hang on no graph, and no gradient is left behind."""
    leaf = photos().requires_grad_()
    for x in (leaf, leaf * 1.0):
        found = TAKES[name][0](model, x)
        tensors = [part for part in parts_of(found) if isinstance(part, Tensor)]
        assert tensors
        assert not any(tensor.requires_grad for tensor in tensors)
    assert leaf.grad is None


def parts_of(found: object) -> list[object]:
    if isinstance(found, Tensor):
        return [found]
    return list(found.values()) if isinstance(found, dict) else list(vars(found).values())
