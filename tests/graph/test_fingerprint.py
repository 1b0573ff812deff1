"""What is remembered of models: a changed model is seen, an unchanged one is not traced again, none is kept alive."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz import graph, models
from fastviz.engine.incremental import sweep
from fastviz.graph import tracing
from fastviz.graph.fingerprint import StructureCache, structure


@dataclass
class Settings:
    stride: int


class Net(nn.Module):
    """One that says what it does in every way that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.settings = Settings(1)
        self.sizes = {"pool": [2, 2]}
        self.act = functional.relu
        self.then = partial(functional.avg_pool2d, kernel_size=1)
        self.table = torch.zeros(3)
        self.register_buffer("shift", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[..., :: self.settings.stride, :]
        return self.then(functional.max_pool2d(self.act(self.second(x)), self.sizes["pool"])) + self.shift


CHANGES: dict[str, Callable[[Net], object]] = {
    "stride": lambda model: setattr(model.first, "stride", (2, 2)),
    "a submodule": lambda model: setattr(model, "second", nn.Conv2d(4, 4, 3, padding=1, dilation=2)),
    "a class": lambda model: setattr(model, "second", nn.Identity()),
    "a module more": lambda model: model.add_module("third", nn.ReLU()),
    "a dataclass": lambda model: setattr(model.settings, "stride", 2),
    "a list in a dict": lambda model: model.sizes["pool"].append(3),
    "a function": lambda model: setattr(model, "act", functional.gelu),
    "a partial": lambda model: setattr(model, "then", partial(functional.avg_pool2d, kernel_size=2)),
    "a tensor": lambda model: setattr(model, "table", torch.zeros(4)),
    "a buffer": lambda model: setattr(model, "shift", torch.zeros(1, 1, 1)),
    "a dtype": lambda model: model.double(),
    "a kernel": lambda model: setattr(model.first, "weight", nn.Parameter(torch.zeros(4, 3, 5, 5))),
    "forward": lambda model: setattr(model, "forward", lambda x: x),
    "no bias": lambda model: setattr(model.first, "bias", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_seen(change: Callable[[Net], object]) -> None:
    model = Net()
    before = structure(model)
    assert structure(model) == before
    change(model)
    assert structure(model) != before


def test_a_patched_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    before = structure(model)
    monkeypatch.setattr(Net, "forward", lambda self, x: x)
    assert structure(model) != before


def test_what_changes_no_course_is_not_seen() -> None:
    model = Net()
    before = structure(model)
    with torch.no_grad():
        model.first.weight.mul_(2)
    model.first.weight.grad = torch.zeros(4, 3, 3, 3)
    model.second.bias.requires_grad_(False)
    model.eval()
    model(torch.zeros(1, 3, 9, 9))
    assert structure(model) == before


def test_kept_results() -> None:
    model, other, made = Net(), Net(), []

    def ask(key: str, state: object = 1, of: nn.Module = model) -> str:
        def make() -> str:
            made.append(key)
            return f"{key}{len(made)}"

        return kept.get(of, key, state, make)

    kept = StructureCache[str](2)
    assert [ask("a"), ask("a"), ask("b"), ask("a")] == ["a1", "a1", "b2", "a1"]
    assert ask("a", of=other) == "a3"
    assert ask("c") == "c4"  # takes the place of b, asked for longest ago
    assert [ask("a"), ask("b")] == ["a1", "b5"]
    assert ask("b", 2) == "b6"
    assert ask("a", 1) == "a7"  # what was made in state 1 before has gone

    def fail() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        kept.get(model, "d", 1, fail)
    assert ask("d") == "d8"


def test_models_are_not_kept_alive() -> None:
    model = Net()
    graph.layers(model, (20, 20))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --------------------------------------------------------------------------------------------------- the layers


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The sizes for which models were traced since."""
    calls: list[object] = []
    original = graph.model_graph.traced

    def watched(model: nn.Module, *arguments: Any) -> tuple[graph.Trace, tracing.Recording]:
        calls.append(arguments)
        return original(model, *arguments)

    monkeypatch.setattr(graph.model_graph, "traced", watched)
    return calls


def test_layers_are_traced_once(traced: list[object]) -> None:
    model = Net()
    found = graph.layers(model, (20, 20))
    found.clear()  # the caller's own list
    field = graph.receptive_field(model, "second", (20, 20))
    assert field == graph.layers(model.train(), (20, 20), 3)[1].receptive_field
    assert len(traced) == 1
    assert graph.layers(model, (30, 30))[1].shape == (4, 28, 28)
    assert len(traced) == 2
    assert [layer.shape for layer in graph.layers(model, (20, 20))] == [(4, 18, 18), (4, 18, 18)]
    assert len(traced) == 2


def test_changed_models_are_traced_again(traced: list[object]) -> None:
    model = Net()
    assert graph.receptive_field(model, "second", (20, 20)).size == (5, 5)
    model.first.stride = (2, 2)
    changed = graph.receptive_field(model, "second", (20, 20))
    assert (changed.size, changed.stride) == ((7, 7), (2, 2))
    model.second = nn.Conv2d(4, 4, 1)
    assert graph.receptive_field(model, "second", (20, 20)).size == (3, 3)
    model.settings.stride = 2
    assert graph.receptive_field(model, "second", (20, 20)).stride == (4, 2)
    assert len(traced) == 4


def test_the_usual_size_may_change(traced: list[object]) -> None:
    model = Net()
    for side in (20, 24, 20):
        models.describe(model, preprocessing=models.Preprocessing((side, side), side, (0.0,) * 3, (1.0,) * 3))
        assert graph.layers(model)[0].shape == (4, side - 2, side - 2)
    assert len(traced) == 2


def test_threads_share_one_trace(traced: list[object]) -> None:
    model, found = Net(), []
    threads = [threading.Thread(target=lambda: found.append(graph.layers(model, (20, 20)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert len(traced) == 1


# ----------------------------------------------------------------------------------------------------- the sweep


def test_sweeps_see_attributes_that_modules_do_not_print() -> None:
    """A model that printed itself as before was taken for the same: the factor of the first sweep came out again."""

    class Scaled(nn.Conv2d):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    model = nn.Sequential(Scaled(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    images = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 4, 4], [3, 5, 7, 9], [8, 8, 12, 12]])
    before = sweep(model, images, boxes).values
    model[0].factor = 3.0
    torch.testing.assert_close(sweep(model, images, boxes).values, 3 * before)
