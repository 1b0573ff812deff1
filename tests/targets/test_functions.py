"""Targets that are functions of the model's output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastviz as fv

f64 = torch.float64


class Heads(nn.Module):
    """Two scores per sample, in a dictionary, a tuple, and an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)
        self.double()

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        maps = self.conv(x).relu()
        scores = self.head(maps.mean((2, 3)))
        return {"scores": scores, "more": (maps, [scores.sum(1)])}


def test_gradient_is_that_of_the_function() -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(3, 1, 6, 6, dtype=f64)
    target = fv.output(lambda output: output["scores"][:, 1] ** 2 - output["more"][1][0])
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    (expected,) = torch.autograd.grad((output["scores"][:, 1] ** 2 - output["more"][1][0]).sum(), leaf)
    torch.testing.assert_close(fv.input_gradient(model, x, target), expected)
    both = fv.input_gradient(model, x, [target, 2 * target - target * 0.5])
    torch.testing.assert_close(both, torch.stack([expected, 1.5 * expected], dim=1))


@pytest.mark.usefixtures("traced")
def test_occlusion_is_incremental_and_exact() -> None:
    """The function is a part of the network that is traced."""
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 1, 24, 24, dtype=f64)
    target = fv.output(lambda output: output["scores"][:, 1].sigmoid() + output["more"][0][:, 0].amax((1, 2)))
    options = {"window": 4, "stride": 4}
    found = fv.occlusion(model, x, target, **options)
    dense = fv.occlusion(model, x, target, trace="never", **options)
    assert found.stats["path"] == "incremental"
    assert dense.stats["path"] == "dense"
    torch.testing.assert_close(found.scores, dense.scores)
    torch.testing.assert_close(found.attribution, dense.attribution)
    assert found.attribution.abs().max() > 0


def test_a_function_that_holds_its_model_does_not_keep_it_alive() -> None:
    from weakref import ref

    model = Heads()
    target = fv.output(lambda output, model=model: model.head(output["more"][0].mean((2, 3)))[:, 0])
    fv.occlusion(model, torch.rand(1, 1, 8, 8, dtype=f64), target, window=4, trace="always")
    gone = ref(model)
    del model, target
    import gc

    gc.collect()
    assert gone() is None


def test_maximize_takes_one() -> None:
    torch.manual_seed(0)
    model = Heads().float()
    target = fv.output(lambda output: output["scores"][:, 0])
    several = fv.maximize(model, [target, fv.output(lambda output: -output["scores"][:, 0])], size=8, steps=3, seed=1)
    alone = fv.maximize(model, target, size=8, steps=3, seed=1)
    assert len(several.images) == 2
    assert len(alone.images) == 1
    scores = model(several.images)["scores"][:, 0]
    assert scores[0] > scores[1]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda output: output.sum(), ValueError, r"one number per sample, \[2\], got \[\]"),
        (lambda output: output, ValueError, r"one number per sample, \[2\], got \[2, 3\]"),
        (lambda output: output[0], ValueError, r"one number per sample, \[2\], got \[3\]"),
        (lambda output: output.argmax(1), TypeError, r"floating-point tensor \[N\], got torch.int64"),
        (lambda output: 3.0, TypeError, r"a tensor \[N\], one number per sample, got float"),
    ],
)
def test_what_a_function_may_return(function: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fv.output(function).values(torch.rand(2, 3), {})  # type: ignore[arg-type]


def test_only_functions() -> None:
    with pytest.raises(TypeError, match="function should be a function of the model's output, got int"):
        fv.output(3)  # type: ignore[arg-type]
