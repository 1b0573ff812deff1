"""CAM as a program of ``torch.export``: the maps of eager calls, for inputs that the export has not seen."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fastviz as fv
from fastviz import targets


class Around(nn.Module):
    """A user's module that gives a map."""

    def __init__(self, model: nn.Module, target: Any = 1, **options: Any) -> None:
        super().__init__()
        self.model, self.target, self.options = model, target, options

    def forward(self, x: Tensor) -> Tensor:
        return fv.cam(self.model, x, self.target, **self.options)


class Net(nn.Module):
    """A rectifier that is used twice and writes in place, dropout, scores beside other things."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
        self.relu, self.drop, self.head = nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        maps = self.second(self.relu(self.first(x)))
        return {"logits": self.head(self.drop(self.relu(maps).mean((2, 3)))), "maps": maps}


def signals() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 8, 5), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None, num_classes=5)


def pictures(count: int, side: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def exported(around: nn.Module, x: Tensor) -> Any:
    shapes = ({0: torch.export.Dim("n", min=1)},) if len(x) > 1 else None
    return torch.export.export(around, (x,), dynamic_shapes=shapes)


NETWORKS = {
    "a network in training mode": Net,
    "resnet18": lambda: small("resnet18"),
    # the positive part of the last maps is averaged
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5),
}


@cache
def program_of(name: str) -> tuple[nn.Module, Any]:
    """A network and its program for any number of pictures; an export takes seconds."""
    model = NETWORKS[name]()
    return model, exported(Around(model), pictures(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_has_a_map_for_each_input(name: str, tmp_path: Path) -> None:
    """captum #1778: exported maps were those of the example."""
    model, program = program_of(name)
    torch.export.save(program, tmp_path / "cam.pt2")
    run = torch.export.load(tmp_path / "cam.pt2").module()
    found = [run(pictures(count, seed=seed)) for count, seed in ((1, 1), (3, 2))]
    for maps, (count, seed) in zip(found, ((1, 1), (3, 2)), strict=True):
        torch.testing.assert_close(maps, fv.cam(model, pictures(count, seed=seed), 1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1][:1])
    assert model.training


def test_the_network_runs_once() -> None:
    model, program = program_of("resnet18")
    calls = [node.target for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(calls) == sum(isinstance(module, nn.Conv2d) for module in model.modules())


TARGETS = {
    "predicted": None,
    "objective": targets.class_score(3),
    "several": [1, None, targets.class_score(4)],
    "one per sample": torch.tensor([4, 0]),
    "several per sample": torch.tensor([[4, 0], [1, 1]]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_and_sizes(name: str) -> None:
    model = Net().eval()
    # classes, one per sample, fix their number
    run = torch.export.export(Around(model, TARGETS[name], size=(20, 30)), (pictures(2, 12),)).module()
    for seed in (1, 2):
        x = pictures(2, 12, seed)
        found = run(x)
        assert found.shape[-2:] == (20, 30)
        torch.testing.assert_close(found, fv.cam(model, x, TARGETS[name], size=(20, 30)), rtol=1e-4, atol=1e-5)


def test_signals_and_16_bits() -> None:
    model, x = signals().eval(), torch.randn(2, 3, 30)
    found = exported(Around(model), torch.randn(2, 3, 30)).module()(x)
    torch.testing.assert_close(found, fv.cam(model, x, 1), rtol=1e-4, atol=1e-5)
    low, given = Net().eval().bfloat16(), pictures(2, 12).bfloat16()
    found = exported(Around(low), given).module()(given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fv.cam(low, given, 1), rtol=2e-2, atol=1e-2)


def test_what_cannot_be_exported() -> None:
    x, model = pictures(2, 12), Net()
    wrong = {
        "target should be None, or classes by number, where fastviz.cam is exported, got .*Unit": fv.neuron("first", 1),
        "target should be None, or classes by number, .* got str": "dog",
        "target should be a class from 0 to 4, got 7": 7,
    }
    for words, target in wrong.items():
        with pytest.raises((TypeError, ValueError), match=words):
            torch.export.export(Around(model, target), (x,))
    with pytest.raises(TypeError, match="classes by number"):
        torch.export.export(Around(model, fv.class_probability(1)), (x,))
    with pytest.raises(ValueError, match=r"precision should be 'model' where fastviz.cam is exported"):
        torch.export.export(Around(model, precision="bfloat16"), (x,))
    otherwise = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))
    with pytest.raises(ValueError, match=r"model should end in a global average of its last maps .* '3', do not give"):
        torch.export.export(Around(otherwise), (x,))


def test_a_program_fails_where_the_scores_are_made_otherwise() -> None:
    """Shapes alone do not tell a maximum from a mean; the eager call sees it, and the program looks, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(ValueError, match="model should end in a global average"):
        fv.cam(model, pictures(2, 12), 1)
    run = exported(Around(model), pictures(2, 12)).module()
    with pytest.raises(RuntimeError, match="model should end in a global average of its last maps"):
        run(pictures(2, 12))


def test_a_module_around_cam_is_a_model_itself() -> None:
    """Sweeps trace models: a map's sum under windows is that of whole passes, whichever way it is computed."""

    class Sum(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten(1).sum(1, keepdim=True)

    model, x = Sum(Net().eval()), pictures(1, 12)
    dense = fv.occlusion(model, x, 0, window=4, stride=4, trace="never")
    found = fv.occlusion(model, x, 0, window=4, stride=4, trace="always")
    torch.testing.assert_close(found.scores, dense.scores, rtol=1e-4, atol=1e-5)
