"""The recorder and what it proves: every construct runs incrementally with the dense numbers, or mixes, in words."""

from __future__ import annotations

import functools
import gc
import math
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastviz import ops
from fastviz.engine.incremental import sweep
from fastviz.execution.fast_conv.winograd import Winograd
from fastviz.graph import tracing
from fastviz.graph.calls import call_name
from fastviz.graph.layers import layers, receptive_field
from fastviz.graph.model_graph import trace
from fastviz.graph.tracing import NotTraceable

pytestmark = pytest.mark.usefixtures("traced")

f64 = torch.float64
BOXES = torch.tensor([[r, c, r + 8, c + 8] for r in (0, 8, 24) for c in (0, 16, 24)])
IMAGES = torch.randn(1, 3, 32, 32, dtype=f64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolution, the construct, convolution, mean, linear."""

    def __init__(self, construct: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        # wide enough that windows of its maps are worth it, whatever comes behind
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1))
        self.construct = construct
        self.second = nn.LazyConv2d(8, 3, 2, 1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.second(self.construct(F.relu(self.first(x)))))
        out: Tensor = self.linear(maps.mean((2, 3)))
        return out


def net(construct: Callable[[Tensor], Tensor]) -> nn.Module:
    model = Net(construct).double().eval()
    with torch.no_grad():
        model(IMAGES)
    return model.double()


class Eca(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x.mean((2, 3))[:, None])).view(len(x), -1, 1, 1)


class Cbam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, True), x.max(1, True)[0]], 1)))


class Grn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        share = norm / (norm.mean(1, keepdim=True) + 1e-6)
        return torch.addcmul(self.bias.view(1, -1, 1, 1), self.gain.view(1, -1, 1, 1), x * share)


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return self.encoder(tokens)[:, 1:].transpose(1, 2).reshape(x.shape)


class SequenceFirst(nn.Module):
    """Attention over [tokens, N, C]; inside, rows of [tokens * N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)
        return self.attention(tokens, tokens, tokens)[0].permute(1, 2, 0).reshape(x.shape)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lstm(x.mean(2).transpose(1, 2))[0].transpose(1, 2)[:, :, None]


def windows(x: Tensor) -> Tensor:
    """Attention in windows of 4x4, as transformers do that."""
    n, c, h, w = x.shape
    parts = x.permute(0, 2, 3, 1).view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    parts = torch.softmax(parts @ parts.transpose(1, 2), -1) @ parts
    return parts.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c).permute(0, 3, 1, 2)


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0
    y[:, 1:3] *= 2
    y[y < 0.1] = 0.5
    return y


def best(x: Tensor) -> Tensor:
    value, index = x.topk(4, 1)
    return torch.zeros_like(x).scatter(1, index, value)


def line(size: int = 32) -> Tensor:
    return torch.linspace(0, 1, size, dtype=f64)


APART: dict[str, Callable[[], Callable[[Tensor], Tensor]] | Callable[[Tensor], Tensor]] = {
    "ECA": Eca,
    "CBAM": Cbam,
    "GRN": Grn,
    "class token": ClassToken,
    "sequence first": SequenceFirst,
    "LSTM": Recurrent,
    "GLU": lambda: nn.GLU(1),
    "local response norm": lambda: nn.LocalResponseNorm(5),
    "pixel unshuffle": lambda: nn.PixelUnshuffle(2),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8),
    "softmax": lambda: nn.Softmax2d(),
    "windows": lambda: windows,
    "casts": lambda: lambda x: x.float().double(),
    "whole numbers": lambda: lambda x: (x * 100).int().double() / 100,
    "einsum": lambda: lambda x: torch.einsum("nchw,ck->nkhw", x, torch.eye(8, dtype=f64)),
    "einsum with an ellipsis": lambda: lambda x: torch.einsum("...chw,kc->...khw", x, torch.eye(8, dtype=f64)),
    "where": lambda: lambda x: torch.where(x > 0.2, x, x * 0.1),
    "masks": lambda: lambda x: x * ((x > 0.5) | (x < 0.1)),
    "coordinates": lambda: lambda x: torch.cat([x, line().view(1, 1, 32, 1).expand(len(x), 1, 32, 32)], 1),
    "a row added": lambda: lambda x: x + line(),
    "a mask of places": lambda: lambda x: x * (torch.arange(32) > 5),
    "rot90": lambda: lambda x: torch.rot90(x, 1, (2, 3)),
    "flip": lambda: lambda x: x.flip(3),
    "roll": lambda: lambda x: x.roll(2, 2),
    "transpose": lambda: lambda x: x.transpose(2, 3),
    "border of -inf": lambda: lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 2),
    "hard swish": lambda: lambda x: x * F.relu6(x + 3) / 6,
    "cumsum over channels": lambda: lambda x: x.cumsum(1),
    "cumsum over rows": lambda: lambda x: x.cumsum(2),
    "top k": lambda: best,
    "one hot": lambda: lambda x: F.one_hot(x.argmax(1), 8).permute(0, 3, 1, 2) * x,
    "gather": lambda: lambda x: x.gather(1, x.argsort(1)),
    "unfold": lambda: lambda x: F.fold(F.unfold(x, 3, padding=1), (32, 32), 3, padding=1),
    "grid sample": lambda: (
        lambda x: F.grid_sample(
            x, F.affine_grid(torch.eye(2, 3, dtype=f64)[None].expand(len(x), 2, 3), list(x.shape)), align_corners=False
        )
    ),
    "interpolation": lambda: lambda x: F.interpolate(x, (16, 16), mode="bilinear"),
    "normalize": lambda: lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda: lambda x: x - x.logsumexp(1, True),
    "variance and mean": lambda: lambda x: x / (torch.var_mean(x, 1, keepdim=True)[0] + 1),
    "in place, through views": lambda: in_place,
    "fft": lambda: lambda x: torch.fft.irfft2(torch.fft.rfft2(x)),
    "all images": lambda: lambda x: x[: len(x)] + x[:, :, :, :].data,
    "minimum and maximum": lambda: lambda x: (x - x.amin((1, 2, 3), True)) / (x.amax((1, 2, 3), True) + 1),
    "tensordot": lambda: lambda x: torch.tensordot(x, torch.eye(8, dtype=f64), ([1], [0])).permute(0, 3, 1, 2),
    "maxout": lambda: lambda x: x.view(len(x), 4, 2, 32, 32).max(2)[0],
}


@pytest.mark.parametrize("name", APART)
def test_what_keeps_images_apart_is_incremental(name: str) -> None:
    model = net(APART[name]())  # type: ignore[call-arg, arg-type]
    result = sweep(model, IMAGES, BOXES)
    with torch.no_grad():
        expected = torch.cat([model(ops.occlude(IMAGES, box[None], fill=0.0)) for box in BOXES])
        clean = model(IMAGES)
    change = float((expected - clean).abs().max())
    assert change > 0
    torch.testing.assert_close(result.values, expected, rtol=0, atol=1e-9 * change + 1e-13)
    assert (result.stats["path"], result.stats["reason"]) == ("incremental", "")


@pytest.mark.parametrize(
    "construct",
    [
        lambda x: torch.cat([x, torch.linspace(0, 1, 32).view(1, 1, 32, 1).expand(len(x), 1, 32, 32).to(x)], 1),
        lambda x: x.double().to(torch.float32),
        lambda x: x + torch.linspace(0, 1, 32),
        lambda x: (x * 100).int().float() / 100,
    ],
    ids=["coordinates", "casts", "a row added", "whole numbers"],
)
def test_constants_and_casts_follow_the_precision(construct: Callable[[Tensor], Tensor]) -> None:
    model, images = Net(construct).eval(), IMAGES.float()
    with torch.no_grad():
        model(images)
    exact, found = sweep(model, images, BOXES), sweep(model, images, BOXES, precision="bfloat16")
    assert found.stats["path"] == "incremental"
    torch.testing.assert_close(found.values, exact.values, rtol=0, atol=5e-2 * float(exact.values.abs().max()))


def test_casts_before_a_linear_layer_follow_the_precision() -> None:
    class Late(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(
                self.second(self.first(x)).mean((2, 3)).double().float() + torch.linspace(0, 1, 8)
            )
            return out

    model, images = Late(lambda x: x).eval(), IMAGES.float()
    with torch.no_grad():
        model(images)
    exact, found = sweep(model, images, BOXES), sweep(model, images, BOXES, precision="bfloat16")
    assert found.stats["path"] == "incremental"
    torch.testing.assert_close(found.values, exact.values, rtol=0, atol=5e-2 * float(exact.values.abs().max()))


MIXING: dict[str, tuple[Callable[[], Any], str]] = {
    "batch statistics": (lambda: nn.BatchNorm2d(8, track_running_stats=False), "batch_norm in 'construct' may mix"),
    "largest of all": (lambda: lambda x: x / x.abs().max(), "max in 'the model' may mix"),
    "quantized": (lambda: lambda x: (x / x.abs().amax() * 127).round(), "amax in 'the model' may mix"),
    "mean of all": (lambda: lambda x: x - x.mean(), "mean in 'the model' may mix"),
    "mean over images": (lambda: lambda x: x - x.mean(0), "mean in 'the model' may mix"),
    "sorted images": (lambda: lambda x: x.sort(0)[0], "sort in 'the model' may mix"),
    "the first image": (lambda: lambda x: x + x[:1], "slice in 'the model' may mix"),
    "the next image": (lambda: lambda x: x.roll(1, 0), "roll in 'the model' may mix"),
    "softmax over images": (lambda: lambda x: x.softmax(0), "softmax in 'the model' may mix"),
    "channels first": (lambda: lambda x: x.transpose(0, 1).reshape(x.shape), "reshape in 'the model' may mix"),
    "rows of all images": (lambda: lambda x: x.reshape(8, -1).softmax(1).reshape(x.shape), "reshape in 'the model'"),
    "divided by their number": (lambda: lambda x: x / len(x), "code that looks at the number of images"),
    "one image is special": (lambda: lambda x: x * 2 if len(x) == 1 else x, "code that looks at the number of images"),
    "numbered": (lambda: lambda x: x * torch.arange(len(x)).view(-1, 1, 1, 1), "code that looks at the number"),
    "a number made of it": (lambda: lambda x: x * torch.tensor(float(len(x))), "code that looks at the number"),
    "chance": (lambda: lambda x: x + torch.rand_like(x), "rand_like in 'the model' draws random numbers"),
    "dropout": (lambda: lambda x: F.dropout(x, 0.5, True), "dropout in 'the model' draws random numbers"),
    "attention between images": (
        lambda: lambda x: ((x.flatten(1) @ x.flatten(1).T).softmax(1) @ x.flatten(1)).view(x.shape),
        "matmul in 'the model' may mix",
    ),
    "written to the first": (
        lambda: lambda x: x.scatter(1, torch.zeros(1, 1, 32, 32, dtype=torch.int64), 1.0),
        "scatter in 'the model' may mix",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_images_is_named(name: str) -> None:
    make, words = MIXING[name]
    model = net(make())
    assert trace(model, (32, 32)).mixes.startswith(words)
    result = sweep(model, IMAGES, BOXES[:1])
    assert result.stats["path"] == "dense"
    assert result.stats["reason"].startswith(words)


def test_networks_that_keep_images_apart_say_nothing() -> None:
    assert trace(net(Eca()), (32, 32)).mixes == ""


def test_classes_as_many_as_images_are_no_images() -> None:
    """Weights with as many rows as the recorded batch has images were taken for something made for the batch."""
    model = nn.Sequential(nn.Conv2d(3, 23, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(23, 23)).double()
    weight = nn.Parameter(torch.randn(23, 23, dtype=f64))
    model.append(type("Times", (nn.Module,), {"forward": lambda self, x: x @ weight.t()})())
    assert sweep(model.eval(), IMAGES, BOXES).stats["path"] == "incremental"


def test_inner_autocast_is_followed() -> None:
    class Half(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    model, images = Half(lambda x: x), IMAGES.float()
    model(images)
    assert trace(model.eval(), (32, 32)).mixes == ""
    result = sweep(model, images, BOXES)
    with torch.no_grad():
        expected = torch.cat([model(ops.occlude(images, box[None], fill=0.0)) for box in BOXES])
    torch.testing.assert_close(result.values, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))


# --------------------------------------------------------------------------------------------------- the model itself


class Keeps(Net):
    """Holds what cannot be copied, and keeps what it computes."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)
        self.lock, self.file = threading.Lock(), open(__file__)  # noqa: SIM115
        self.trainer = types.SimpleNamespace(lock=threading.RLock())
        self.seen: dict[str, Tensor] = {}
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.seen["maps"] = self.first(x)
        self.calls += 1
        return super().forward(x)


def test_what_cannot_be_copied_is_no_obstacle_and_nothing_is_left_behind() -> None:
    model = Keeps()
    model(IMAGES.float())
    model.double().train()
    last, seen, calls = model.last, model.seen["maps"], model.calls
    assert layers(model, (32, 32))[0].shape == (8, 32, 32)
    assert sweep(model, IMAGES, BOXES[:1]).stats["path"] == "incremental"
    layers(model, (24, 24))
    model.file.close()
    assert all(module.training for module in model.modules())
    assert trace(model, (20, 20)).mixes == ""
    fresh = Keeps()
    fresh(IMAGES.float())
    fresh.file.close()
    last, calls = fresh.last, fresh.calls
    trace(fresh, (20, 20))
    assert fresh.last is last
    assert fresh.seen["maps"] is last
    assert fresh.calls == calls
    assert seen is not last


def test_own_functions_of_instances_run_on_the_copy() -> None:
    """Methods and partials that hold a module are bound to its copy: the model's own hooks are not called."""
    model = Net(lambda x: x)
    model(IMAGES.float())
    model.construct = functools.partial(nn.functional.relu)
    model.run = model.forward  # type: ignore[assignment]
    model.forward = types.MethodType(lambda self, x: self.run(x) * 2, model)  # type: ignore[method-assign]
    called: list[object] = []
    model.first.register_forward_hook(lambda *args: called.append(args))
    assert trace(model, (16, 16)).mixes == ""
    assert called == []


def test_weights_that_torchs_hooks_compute_are_followed() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    assert sweep(model.eval(), IMAGES, BOXES).stats["path"] == "incremental"


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """torch printed its graph on the terminal for models that it could not export."""

    class Looks(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2 if x.mean() > 0.1 else x)

    model = Looks(lambda x: x)
    model(IMAGES.float())
    with pytest.raises(NotTraceable, match="the model looks at values: local_scalar_dense decides what is computed"):
        trace(model, (32, 32))
    assert capfd.readouterr() == ("", "")


def test_traces_do_not_keep_models_alive() -> None:
    model = net(Eca())
    traced = trace(model, (32, 32))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert traced.mixes == ""


def test_other_threads_compute_as_usual_while_models_are_traced() -> None:
    """torch.export switched oneDNN off for all threads while it ran: the last bits of others' numbers changed."""
    model = Net(Eca())
    images = torch.randn(2, 3, 32, 32)
    model(images)
    torch.set_grad_enabled(True)
    expected = model(images).detach()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for size in (24, 28, 32):
                trace(model, (size, size))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert torch.equal(model(images), expected)
        assert torch.backends.mkldnn.flags is not None
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit")
def test_scripts_and_exported_modules() -> None:
    model = Net(nn.Tanh()).eval()
    images = torch.randn(2, 3, 32, 32)
    model(images)
    index = torch.tensor([0, 1, 1])
    with torch.no_grad():
        expected = torch.cat([model(ops.occlude(images, BOXES[:3], index, 0.0)[at : at + 1]) for at in range(3)])
    script = torch.jit.trace(model, images)
    fixed = torch.export.export(model, (images,)).module()
    free = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for other in (script, torch.jit.freeze(script), fixed, free):
        found = sweep(other, images, BOXES[:3], index)  # type: ignore[arg-type]
        torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)
        assert found.stats["path"] == ("incremental" if other is free else "dense")
    with pytest.raises(ValueError, match="model should not be a script"):
        layers(script, (32, 32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x should have 2 images, the number that the model was exported for, got 1"):
        tracing_of_one_image(fixed, images)
    with pytest.raises(ValueError, match="model should not be exported for a fixed batch"):
        layers(fixed, (32, 32))


def tracing_of_one_image(model: nn.Module, images: Tensor) -> None:
    from fastviz.execution.inputs import input_batch

    input_batch(model, images[:1])


def test_channels_of_the_first_convolution() -> None:
    """A grey network that is not described was run on three channels, and torch's own error came."""
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Conv2d(4, 6, 3))
    assert [layer.shape for layer in layers(model, (28, 28))] == [(4, 24, 24), (4, 24, 24), (6, 22, 22)]
    assert receptive_field(model, "2", (28, 28)).size == (7, 7)
    assert receptive_field(model, "2", (28, 28), channels=1).size == (7, 7)
    with pytest.raises(ValueError, match="input_size and channels should be those of images that the model takes"):
        layers(model, (28, 28), 2)


def test_the_outputs_of_modules_are_noted_for_every_call() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu)
    found = tracing.record(model, torch.zeros(2, 3, 8, 8))
    assert [len(found.outputs[name]) for name in ("0", "1", "3")] == [1, 2, 2]
    assert found.outputs[""][0].node is found.result


def test_modes_of_the_caller_are_not_recorded():
    """Inside faster convolutions a model could not be traced, and was remembered as one that cannot be."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    with Winograd(keep=True), torch.no_grad():
        found = trace(model, (16, 16), 3)
    assert [call_name(node) for node in found.graph.nodes if node.op == "call_function"] == ["conv2d", "relu", "conv2d"]
