"""Quantised models: no gradient goes through integers, which is said; what needs none works."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv

quantization = pytest.importorskip("torch.ao.quantization")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    ).eval()  # fmt: skip


def dynamic() -> nn.Module:
    return quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def static() -> nn.Module:
    model = nn.Sequential(quantization.QuantStub(), *net(), quantization.DeQuantStub()).eval()
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(quantization.fuse_modules(model, [["1", "2"]]))
    prepared(X)
    return quantization.convert(prepared)


def loop(model: nn.Module, x: Tensor) -> Tensor:
    found = []
    for one in x:
        for top in range(0, 16, 8):
            for left in range(0, 16, 8):
                covered = one[None].clone()
                covered[:, :, top : top + 8, left : left + 8] = 0
                found.append(model(covered)[0, 1])
    return torch.stack(found).view(len(x), 2, 2)


@pytest.mark.parametrize("make", [dynamic, static, lambda: torch.jit.script(dynamic())])
def test_gradients_are_refused_and_occlusion_works(make) -> None:
    model = make()
    seen = () if isinstance(model, torch.jit.ScriptModule) else (fv.grad_cam, fv.guided_grad_cam)
    for method in (fv.saliency, fv.guided_backprop, fv.smooth_grad, *seen):
        with pytest.raises(
            ValueError, match=r"no gradient goes through the integers of '.*\): give the model as it was"
        ):
            method(model, X, 1)
    with pytest.raises(ValueError, match="no gradient goes through the integers"):
        fv.maximize(model, 1, size=16, steps=1)
    found = fv.occlusion(model, X, 1, window=8, stride=8)
    torch.testing.assert_close(found.scores, loop(model, X).detach())


def test_layers_of_a_quantised_model() -> None:
    names = [layer.name for layer in fv.layers(static(), (16, 16))]
    assert "5" in names
