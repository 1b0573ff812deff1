"""Grad-CAM, Guided Grad-CAM and, where they share it, CAM: hand-worked values, definitions, layers, bad input."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz.methods.attribution.cam import cam
from fastviz.methods.attribution.grad_cam import grad_cam, guided_grad_cam
from fastviz.methods.attribution.gradients import guided_backprop, saliency
from fastviz.targets.objectives import channel, class_probability, neuron
from tests.methods.attribution.common import Net, f64, images, network


@pytest.fixture
def model() -> Net:
    return network()


@pytest.fixture
def x() -> Tensor:
    return images()


def by_definition(model: Net, x: Tensor, k: int) -> dict[str, Tensor]:
    """Grad-CAM written out, at the layers conv1, block and relu (its last call)."""
    model.eval()
    maps = {"conv1": model.conv1(x).requires_grad_()}
    maps["block"] = model.block(F.max_pool2d(F.relu(maps["conv1"]), 2))
    maps["relu"] = F.relu(maps["block"])
    score = model.fc(maps["relu"].mean((2, 3)))[:, k].sum()
    found = {}
    for name, gradient in zip(maps, torch.autograd.grad(score, list(maps.values())), strict=True):
        total = torch.zeros_like(maps[name][:, 0])
        for c in range(gradient.shape[1]):
            total += gradient[:, c].mean((1, 2))[:, None, None] * maps[name][:, c]
        found[name] = total.clamp(min=0).detach()
    model.train()
    return found


def test_grad_cam_worked_by_hand() -> None:
    """Two maps A1 = x, A2 = 10 - x; S = mean(A1) - mean(A2)/2 over 4 places: α = (1/4, -1/8)."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False))
    model = model.to(f64)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 10.0]))
        model[3].weight.copy_(torch.tensor([[1.0, -0.5]]))
    # (2x - (10 - x)) / 16 · 2 = x·3/8 - 10/8, where positive
    x = torch.tensor([[[[0.0, 2.0], [4.0, 10.0]]]], dtype=f64)
    assert grad_cam(model, x, 0).tolist() == [[[0, 0], [4 * 3 / 8 - 10 / 8, 10 * 3 / 8 - 10 / 8]]]
    # CAM: 1·x - 0.5·(10 - x), with its sign; its mean is the score
    assert cam(model, x, 0).tolist() == [[[-5, -2], [1, 10]]]


@pytest.mark.parametrize("name", ["conv1", "block", "relu"])
def test_grad_cam_is_its_definition(model: Net, x: Tensor, name: str) -> None:
    """conv1 is overwritten by the rectifier behind it; relu is called twice, and its last call counts."""
    expected = by_definition(model, x, 2)[name]
    assert expected.abs().sum() > 0
    torch.testing.assert_close(grad_cam(model, x, 2, layer=name), expected, rtol=1e-12, atol=1e-14)


def test_several_layers_from_one_forward_pass(model: Net, x: Tensor) -> None:
    calls: list[int] = []
    handle = model.fc.register_forward_hook(lambda *_: calls.append(1))
    found = grad_cam(model, x, 2, layers=["conv1", "relu", "block"])
    handle.remove()
    assert len(calls) == 1
    assert list(found) == ["conv1", "relu", "block"]
    for name, expected in by_definition(model, x, 2).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-14)


def test_several_targets_per_sample(model: Net, x: Tensor) -> None:
    columns: list[Any] = [1, None, torch.tensor([4, 0, 2]), class_probability(1), channel("block", 5)]
    together = grad_cam(model, x, columns, layer="conv1")
    for number, target in enumerate(columns):
        expected = grad_cam(model, x, target, layer="conv1")
        torch.testing.assert_close(together[:, number], expected, rtol=1e-12, atol=1e-14)
    assert together.shape == (3, 5, 7, 9)
    assert torch.equal(cam(model, x, [1, 3])[:, 1], cam(model, x, 3))


def test_size_resizes_bilinearly(model: Net, x: Tensor) -> None:
    small = grad_cam(model, x, [1, 2], layer="block")
    expected = F.interpolate(small, size=(9, 11), mode="bilinear", align_corners=False)
    torch.testing.assert_close(grad_cam(model, x, [1, 2], layer="block", size=(9, 11)), expected)
    small = cam(model, x, 1)
    expected = F.interpolate(small[:, None], size=(9, 11), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(cam(model, x, 1, size=(9, 11)), expected)


def test_guided_grad_cam_is_the_product(model: Net, x: Tensor) -> None:
    expected = guided_backprop(model, x, 2) * grad_cam(model, x, 2, layer="block", size=(9, 11))[:, None]
    assert torch.equal(guided_grad_cam(model, x, 2, layer="block"), expected)
    assert guided_grad_cam(model, x, [2, 0]).shape == (3, 2, 2, 9, 11)
    assert torch.equal(guided_grad_cam(model, x, [2, 0], layer="block")[:, 0], expected)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        # Pooling, and what hands its result on, is passed over.
        (
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(36, 2)),
            "1",
        ),
        (
            nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(36, 2)),
            "0.0",
        ),  # The outermost module with these maps.
        (nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), nn.Flatten(), nn.Linear(189, 2)), "0"),
        # Maps of 1x1 have no places.
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten()), "0"),
    ],
)
def test_default_layer_is_the_last_with_maps(model: nn.Module, layer: str, x: Tensor) -> None:
    model = model.to(f64)
    assert torch.equal(grad_cam(model, x, 1), grad_cam(model, x, 1, layer=layer))
    assert not any(module._forward_hooks for module in model.modules())


def test_the_network_in_front_of_the_layer_has_no_graph(model: Net, x: Tensor) -> None:
    had_graph: list[bool] = []
    handle = model.conv1.register_forward_hook(lambda module, inputs, output: had_graph.append(output.requires_grad))
    grad_cam(model, x, 2, layer="block")
    handle.remove()
    assert had_graph == [False]


@pytest.mark.cuda
def test_cuda_gives_the_numbers_of_the_cpu(model: Net, x: Tensor) -> None:
    columns = [None, torch.tensor([4, 0, 2])]
    expected = [method(model, x, columns) for method in (grad_cam, guided_grad_cam, cam)]
    model.cuda()
    for method, value in zip((grad_cam, guided_grad_cam, cam), expected, strict=True):
        found = method(model, x.cuda(), columns)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_model_is_left_alone_and_gradients_may_be_off(model: Net, x: Tensor, around: Any) -> None:
    methods = (grad_cam, guided_grad_cam, cam)
    expected = [method(model, x) for method in methods]
    model.requires_grad_(False)
    with around():
        inside = x.clone()
        for method, value in zip(methods, expected, strict=True):
            assert torch.equal(method(model, inside), value)
            assert not value.requires_grad
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", [grad_cam, guided_grad_cam, cam])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_after_an_error(model: Net, x: Tensor, method: Any, error: type[BaseException]) -> None:
    def fail(*_: object) -> None:
        raise error

    handle = model.fc.register_forward_hook(fail)
    with pytest.raises(error):
        method(model, x)
    handle.remove()
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_two_threads_at_different_layers(model: Net, x: Tensor) -> None:
    layers = ("conv1", "block", "relu")
    expected = {name: grad_cam(model, x, 2, layer=name) for name in layers}
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(10):
            if not torch.equal(grad_cam(model, x, 2, layer=name), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_empty_batch_has_the_shape_of_the_maps(model: Net, x: Tensor) -> None:
    assert grad_cam(model, x[:0]).shape == (0, 2, 3)
    assert grad_cam(model, x[:0], torch.zeros(0, 4).long(), layer="conv1").shape == (0, 4, 7, 9)
    assert grad_cam(model, x[:0], size=(5, 5)).shape == (0, 5, 5)
    assert cam(model, x[:0], [1, 2], size=(5, 5)).shape == (0, 2, 5, 5)
    assert cam(model, x[:0]).shape == (0, 2, 3)
    assert guided_grad_cam(model, x[:0]).shape == (0, 2, 9, 11)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "blok"}, ValueError, "layer 'blok' is not known; nearest: block"),
        ({"layers": ["block", "conv9"]}, ValueError, "layer 'conv9' is not known; nearest: conv1"),
        ({"layers": []}, ValueError, "layers should hold at least one name, got none"),
        ({"layer": [3]}, TypeError, "layer should be one name, got "),
        ({"layer": "fc"}, ValueError, r"layer 'fc' should have maps \[N, K, h, w\] as its output, got \[3, 5\]"),
        ({"size": 7}, TypeError, r"size should be \(height, width\) in pixels, got 7"),
        ({"size": (7, 0)}, ValueError, "size should be at least 1, got 0"),
        ({"layer": "block", "target": neuron("conv1", 0)}, ValueError, "target should depend on layer 'block'"),
        ({"target": 5}, ValueError, "target should be a class from 0 to 4, got 5"),
    ],
)
def test_grad_cam_refuses(model: Net, x: Tensor, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        grad_cam(model, x, **options)


def test_a_layer_that_is_not_called_is_refused(model: Net, x: Tensor) -> None:
    model.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="layer 'spare' was not called in the forward pass"):
        grad_cam(model, x, layer="spare")


def test_a_model_without_maps_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"model should have a layer with maps .* larger than 1x1, and has none"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(198, 2, dtype=f64)), x)


# ------------------------------------------------------------------------------------- other orders, and no maps at all


class ChannelsLast(nn.Module):
    """Ends in maps [N, h, w, K], by way of tokens [N, h · w, K]."""

    def __init__(self, *, tokens: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = tokens
        self.conv, self.norm, self.mlp = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8), nn.Linear(8, 8)
        self.last, self.linear = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).permute(0, 2, 3, 1)
        n, h, w, k = maps.shape
        rows = self.norm(maps).reshape(n, h * w, k) if self.tokens else self.norm(maps)
        rows = rows + self.mlp(rows).relu()
        maps = self.last(rows.view(n, h, w, k)) * torch.arange(1.0, w + 1, dtype=f64)[:, None]
        return self.linear(maps.mean((1, 2)) + maps[:, 1, 2])


@pytest.mark.parametrize("tokens", [False, True])
def test_maps_with_channels_last_are_read_so(tokens: bool) -> None:
    """They were read as [N, K, h, w] in silence: h as channels."""
    model = ChannelsLast(tokens=tokens).to(f64)
    x = torch.randn(2, 3, 6, 8, dtype=f64)
    given: list[Tensor] = []
    handle = model.last.register_forward_hook(lambda module, inputs, output: given.append(output))
    scores = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), given[0])
    expected = (gradient.mean((1, 2), keepdim=True) * given[0]).sum(-1).relu().detach()
    assert expected.shape == (2, 6, 8)
    for layer in (None, "last"):
        torch.testing.assert_close(grad_cam(model, x, 1, layer=layer), expected)
    several = grad_cam(model, x, [1, 2], layer="last")
    torch.testing.assert_close(several[:, 0], expected)
    assert grad_cam(model, x[:0], 1).shape == (0, 6, 8)


class Attends(nn.Module):
    """A small transformer: patches, a class token, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.heads, self.linear = nn.Identity(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        heads = self.heads(tokens.reshape(len(x), -1, 2, 4).transpose(1, 2))
        mixed = F.scaled_dot_product_attention(heads, heads, heads)
        return self.linear(mixed.transpose(1, 2).flatten(2)[:, 0])


def test_heads_are_no_maps() -> None:
    """Heads x tokens were drawn as rows x columns; tokens are laid on their grid, the class token left out."""
    model, x = Attends().to(f64), torch.randn(2, 3, 6, 8, dtype=f64)
    given: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda module, inputs, output: given.append(output))
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), given)
    handle.remove()
    maps, slopes = (rows[:, 1:].detach().reshape(2, 3, 4, 8) for rows in (given[0], gradient))
    expected = (slopes.mean((1, 2), keepdim=True) * maps).sum(-1).relu()
    torch.testing.assert_close(grad_cam(model, x, 1), expected)
    torch.testing.assert_close(grad_cam(model, x, 1, layer="norm"), expected)
    with pytest.raises(
        ValueError, match=r"layer 'heads' .* \[2, 2, 13, 4\] are rows and columns of the image cannot be"
    ):
        grad_cam(model, x, 1, layer="heads")
    with pytest.raises(ValueError, match="model should end in a global average"):
        cam(model, x, 1)
    assert grad_cam(model, x, 1, layer="patches").shape == (2, 3, 4)


def test_parts_of_samples_are_no_samples() -> None:
    """Maps of heads or windows in the place of samples were drawn one by one."""

    class Halves(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(2 * len(x), 2, *x.shape[2:])).view(len(x), -1)

    model = Halves(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1)).to(f64)
    x = torch.randn(2, 4, 6, 8, dtype=f64)
    with pytest.raises(
        ValueError, match=r"layer '0' should have maps of each sample .*\[2, K, h, w\], got \[4, 3, 4, 6\]"
    ):
        grad_cam(model, x, 1, layer="0")
    with pytest.raises(ValueError, match="model should have a layer with maps"):
        grad_cam(model, x, 1)


def test_a_gradient_of_zero_causes_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).to(f64)
    nn.init.zeros_(model[4].weight)
    with pytest.warns(UserWarning, match="gradient of zero everywhere at layer '1' for 2 of 2 samples"):
        found = grad_cam(model, torch.randn(2, 3, 8, 8, dtype=f64), 1)
    assert not found.any()


# ----------------------------------------------------------------------------------------------- compiled and scripted


def compiled(model: nn.Module, how: str) -> nn.Module:
    torch._dynamo.reset()
    if how == "model":
        return torch.compile(model, backend="eager")
    if how == "in place":
        model.compile(backend="eager")
    else:
        model[1] = torch.compile(model[1], backend="eager")
    return model


@pytest.mark.parametrize("how", ["model", "in place", "a part"])
def test_a_compiled_model_gives_the_maps_of_the_plain_one(how: str) -> None:
    """After other calls hooks are not called any more, and those of a first call may stay in the compiled code."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
        last = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU())
        return nn.Sequential(first, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).to(f64)

    plain, model, x = build(), compiled(build(), how), torch.randn(2, 3, 12, 12, dtype=f64)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x))
        for method in (grad_cam, cam, guided_grad_cam, guided_backprop, saliency):
            torch.testing.assert_close(method(model, x, 1), method(plain, x, 1))
        torch.testing.assert_close(grad_cam(model, x, 1, layer="0"), grad_cam(plain, x, 1, layer="0"))
        unit = neuron("1.0", 2, (3, 3))
        torch.testing.assert_close(saliency(model, x, unit), saliency(plain, x, unit))
    names = {"model": "_orig_mod.1.0", "in place": "1.0", "a part": "1._orig_mod.0"}
    torch.testing.assert_close(grad_cam(model, x, 1, layer=names[how]), grad_cam(plain, x, 1, layer="1.0"))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_models_are_refused_in_words(x: Tensor) -> None:
    model = torch.jit.script(nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(f64))
    for method in (grad_cam, cam, guided_grad_cam):
        with pytest.raises(ValueError, match="scripted"):
            method(model, x, 1)
    with pytest.raises(ValueError, match="layer '0' should not be inside a scripted module"):
        grad_cam(model, x, 1, layer="0")
