"""Whether images of a batch meet: every kind of call that may mix them, and those of usual networks, which do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastviz as fv
from fastviz.execution.batches import Batches
from tests.execution.batch_cases import APART, MIXED, Model

torchvision = pytest.importorskip("torchvision")


def batches_of(forward: tuple[Any, ...], grad: bool) -> tuple[int, Batches]:
    function, *parts = forward
    batches = Batches(Model(function, *parts).eval())
    with torch.set_grad_enabled(grad):
        return len(batches(batches.run_model, torch.rand(4, 3, 8, 8))), batches


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", APART)
def test_what_keeps_images_apart_runs_on_batches(name: str, grad: bool) -> None:
    passes, batches = batches_of(APART[name], grad)
    assert (passes, batches.reason) == (1, "")


@pytest.mark.parametrize("name", MIXED)
def test_what_may_mix_images_gets_one_at_a_time(name: str) -> None:
    passes, batches = batches_of(MIXED[name], False)
    assert passes == 4
    assert batches.reason


@pytest.mark.parametrize(
    "name",
    ["vit_b_32", "swin_t", "swin_v2_t", "mobilenet_v3_small", "convnext_tiny", "shufflenet_v2_x0_5", "googlenet"],
)
def test_usual_networks_run_on_batches(name: str) -> None:
    quick = {"init_weights": False} if name == "googlenet" else {}
    batches = Batches(torchvision.models.get_model(name, weights=None, **quick).eval())
    side = 224 if name == "vit_b_32" else 64
    with torch.no_grad():
        assert len(batches(batches.run_model, torch.rand(2, 3, side, side))) == 1, batches.reason


def test_the_watched_pass_is_the_only_one() -> None:
    """Views of weights and of tensors that are written part by part (Swin's mask) need no second pass."""
    passes = []

    def forward(m: Model, x: Tensor) -> Tensor:
        passes.append(len(x))
        mask = x.new_zeros(8, 8)
        for row in range(2):
            mask[row * 4 : row * 4 + 4, 1:] = row + torch.tensor(2.0)
            mask[row, 0] = row
        bias = m.weight[0].clone()
        bias[2:4].zero_()  # through a view, as Swin v2 does with the bias of its keys
        return (x + mask).flatten(2) @ (m.weight + bias).t() + mask.view(1, -1)[:, :1]

    model = Model(forward)
    model.weight = nn.Parameter(torch.zeros(2, 64))
    with torch.no_grad():
        model.weight.normal_()  # its version is not 0, as that of initialised weights
    with torch.no_grad():
        batches = Batches(model.eval())
        batches(batches.run_model, torch.rand(4, 3, 8, 8))
    assert (passes, batches.reason) == ([4], "")


def test_a_scripted_part_is_not_trusted() -> None:
    batches = Batches(nn.Sequential(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8))))
    assert batches.reason == "'0' is scripted, so that its calls cannot be seen"
    assert batches.together(torch.rand(4, 3, 8, 8)) == 1


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.conv((x - x.min()) / (x.max() - x.min())))
        return self.fc(maps.mean((2, 3)))


METHODS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "saliency": lambda m, x: fv.saliency(m, x, 1),
    "saliency in pairs": lambda m, x: fv.saliency(m, x, 1, batch_size=2),
    "predicted": fv.saliency,
    "several": lambda m, x: fv.input_gradient(m, x, [0, 1]),
    "smooth_grad": lambda m, x: fv.smooth_grad(m, x, 1, samples=3, noise=0.0),
    "guided_backprop": lambda m, x: fv.guided_backprop(m, x, 1),
    "grad_cam": lambda m, x: fv.grad_cam(m, x, 1, layer="conv"),
    "occlusion": lambda m, x: fv.occlusion(m, x, 1, window=4).scores,
    "occlusion in batches": lambda m, x: fv.occlusion(m, x, 1, window=4, batch_size=5).attribution,
    "occlusion of a unit": lambda m, x: fv.occlusion(m, x, fv.channel("conv", 1), window=4).scores,
    "activations": lambda m, x: fv.activations(m, x, "conv"),
    "embedding": lambda m, x: fv.embedding(m, x).vectors,
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_give_each_image_what_it_gets_alone(name: str) -> None:
    torch.manual_seed(0)
    model, x = (
        Mixing().double().eval(),
        torch.rand(3, 3, 12, 12, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1),
    )
    found = METHODS[name](model, x)
    alone = torch.cat([METHODS[name](model, x[at : at + 1]) for at in range(3)])
    torch.testing.assert_close(found, alone)


def test_patches_of_a_model_that_mixes_are_those_of_each_image() -> None:
    torch.manual_seed(0)
    model, x = (
        Mixing().double().eval(),
        torch.rand(3, 3, 12, 12, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1),
    )
    together, alone = (fv.patches(model, x, "conv", k=3, batch_size=size) for size in (3, 1))
    torch.testing.assert_close(together.values, alone.values)


def test_compiled_models_are_watched_as_python_code(recwarn: pytest.WarningsRecorder) -> None:
    """Compiled code makes calls of its own, which no watch sees, and compiling inside a watch printed warnings."""

    class Scaled(nn.Module):
        def __init__(self, mixes: bool) -> None:
            super().__init__()
            self.conv, self.mixes = nn.Conv2d(3, 4, 3), mixes

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x / x.abs().max() if self.mixes else x).mean((2, 3))

    images = torch.rand(3, 3, 8, 8)
    for mixes in (False, True):
        batches = Batches(torch.compile(Scaled(mixes).eval(), backend="eager"))
        parts = batches(batches.run_model, images)
        assert len(parts) == (3 if mixes else 1)
        assert bool(batches.reason) == mixes
    assert not recwarn.list
