"""The substitutes of torch-cam's classes against its own, number for number, and their manners."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz
from fastviz.compat import torchcam as ours
from fastviz.engine.incremental import whole

theirs = pytest.importorskip("torchcam.methods")

CLASSES: dict[str, dict[str, Any]] = {
    "ScoreCAM": {},
    "SSCAM": {"num_samples": 3, "std": 0.1},
    "ISCAM": {"num_samples": 3},
}
classes = pytest.mark.parametrize("name", CLASSES)


def cnn(*, dead: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(True), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(32, 5)),
    ).eval()
    if dead:
        with torch.no_grad():
            model[4].bias[2:5] = -1e3
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 14, 18, generator=torch.Generator().manual_seed(1))


def run(library: Any, name: str, x: Tensor, class_idx: Any = None, **options: Any) -> list[Tensor]:
    model = cnn().to(x.dtype)
    own = CLASSES[name] | options.pop("own", {})
    with getattr(library, name)(model, ["2", "5"], input_shape=(3, 14, 18), **own) as cam:
        with torch.no_grad():
            scores = model(x)
        torch.manual_seed(2)
        found: list[Tensor] = cam(class_idx, scores, **options)
    return found


@classes
@pytest.mark.parametrize("class_idx", [3, [4, 0]], ids=str)
def test_classes(x: Tensor, name: str, class_idx: Any) -> None:
    for options in ({}, {"normalized": False}, {"own": {"batch_size": 5}}):
        expected = run(theirs, name, x.double(), class_idx, **options)
        torch.testing.assert_close(run(ours, name, x.double(), class_idx, **options), expected)
    torch.testing.assert_close(run(ours, name, x, 1), run(theirs, name, x, 1), rtol=1e-4, atol=1e-4)


@classes
def test_by_the_steps_of_a_trace(monkeypatch: pytest.MonkeyPatch, x: Tensor, name: str) -> None:
    monkeypatch.setattr(whole, "_LEAST_WORK", 0.0)
    made = []
    init = whole.WholeImages.__init__

    def noting(self: whole.WholeImages, *arguments: Any) -> None:
        init(self, *arguments)
        made.append(self.stepwise)

    monkeypatch.setattr(whole.WholeImages, "__init__", noting)
    torch.testing.assert_close(run(ours, name, x, 3), run(theirs, name, x, 3), rtol=1e-3, atol=1e-3)
    assert made == [True]


@classes
def test_targets_are_callables(x: Tensor, name: str) -> None:
    def difference(scores: Tensor) -> Tensor:
        return scores[1] - scores[2]

    expected = run(theirs, name, x.double(), targets=[difference, difference])
    torch.testing.assert_close(run(ours, name, x.double(), targets=difference), expected)


def test_black_images_run_once(x: Tensor) -> None:
    """Three channels of eight are dead in both images: the images are run, a black one, and those that are not."""
    model = cnn()
    seen: list[int] = []
    with ours.ScoreCAM(model, "5", input_shape=(3, 14, 18), batch_size=100) as cam:
        model(x)
        handle = model[4].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        cam(1)
        handle.remove()
    assert sum(seen) <= 2 + 1 + 1 + 2 * 5
    assert 10 >= max(seen) > 2


def test_hooks_stay_where_they_were(x: Tensor) -> None:
    model = cnn().train()
    calls: list[str] = []
    model[5].register_forward_hook(lambda module, inputs, output: calls.append("mine"))
    cam = ours.ScoreCAM(model, model[5], input_shape=(3, 14, 18))
    before = [list(module._forward_hooks.items()) for module in model.modules()]
    for _ in range(2):
        model(x)
        first = cam([1, 2])
        assert [list(module._forward_hooks.items()) for module in model.modules()] == before
        assert all(module.training for module in model.modules())
    with pytest.raises(ValueError, match="Incorrect `class_idx`"):
        cam(-1)
    assert isinstance(cam, theirs.ScoreCAM)
    assert cam.fuse_cams(first).shape == (2, 5, 7)
    cam.remove_hooks()
    assert len(model[5]._forward_hooks) == 1


def test_the_others_are_torch_cams() -> None:
    assert ours.GradCAM is theirs.GradCAM
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        ours.Nothing  # noqa: B018


def test_accelerate() -> None:
    import torchcam.methods

    with fastviz.accelerate("torchcam", quiet=True):
        from torchcam.methods import ScoreCAM

        assert ScoreCAM is ours.ScoreCAM
    assert torchcam.methods.ScoreCAM is not ours.ScoreCAM


def test_without_torch_cam() -> None:
    script = (
        "import sys\nsys.modules['torchcam'] = None\nfrom fastviz.compat import torchcam\n"
        "try:\n    torchcam.ScoreCAM(None)\nexcept ImportError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert 'pip install "fastviz[torchcam]"' in result.stdout, result.stderr
