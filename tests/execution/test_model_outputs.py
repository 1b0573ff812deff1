"""Scores in tensors, tuples, lists, dictionaries, dataclasses and objects: every method reads them alike."""

from __future__ import annotations

import types
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.execution.model_outputs import map_tensors, scores_in, split_tensors


@dataclass(frozen=True)
class Given:
    logits: Tensor
    features: Any = None


@dataclass
class Named:
    features: Tensor
    score: Tensor


Pair = namedtuple("Pair", "features logits")

KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda scores, maps: (scores, maps),
    "list of one": lambda scores, maps: [scores],
    "maps first": lambda scores, maps: (maps, scores),
    "named tuple": lambda scores, maps: Pair(maps.mean((2, 3)), scores),
    "logits": lambda scores, maps: {"features": maps.mean((2, 3)), "logits": scores},
    "out and aux": lambda scores, maps: {"aux": 2 * scores, "out": scores},
    "frozen dataclass": Given,
    "dataclass": lambda scores, maps: Named(maps, scores),
    "object": lambda scores, maps: types.SimpleNamespace(hidden=maps, logits=scores),
    "nested": lambda scores, maps: {"head": [scores]},
}


class Net(nn.Module):
    def __init__(self, kind: Callable[[Tensor, Tensor], Any] = lambda scores, maps: scores) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        maps = self.body(x)
        return self.kind(self.head(maps.mean((2, 3))), maps)


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

METHODS: dict[str, Callable[[nn.Module], Tensor]] = {
    "saliency": lambda model: fv.saliency(model, X),
    "smooth_grad": lambda model: fv.smooth_grad(model, X, 1, samples=2),
    "guided_backprop": lambda model: fv.guided_backprop(model, X, [1, 3]),
    "grad_cam": lambda model: fv.grad_cam(model, X),
    "cam": lambda model: fv.cam(model, X),
    "occlusion": lambda model: fv.occlusion(model, X, window=4, stride=4, trace="always", classes=True).scores,
    "probability": lambda model: fv.occlusion(model, X, fv.class_probability(), window=4, stride=4).scores,
    "maximize": lambda model: fv.maximize(model, [1, 2], size=16, steps=2).pictures,
    "invert": lambda model: fv.invert(model, X[:1], "body.0", steps=2).pictures,
    "evolve": lambda model: fv.evolve(model, [3], size=16, generations=2, population=4).images,
    "fool_from_noise": lambda model: fv.fool_from_noise(model, 3, size=16, steps=2).images,
    "embedding": lambda model: fv.embedding(model, X).vectors,
    "unit": lambda model: fv.saliency(model, X, fv.neuron("body.2", 1)),
    "layers": lambda model: torch.tensor([layer.shape[0] for layer in fv.layers(model, (16, 16))]),
}


def net(kind: Callable[[Tensor, Tensor], Any] | None = None) -> Net:
    torch.manual_seed(0)
    return (Net() if kind is None else Net(kind)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_reads_the_scores(kind: str) -> None:
    model, plain = net(KINDS[kind]), net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, method in METHODS.items():
            torch.testing.assert_close(method(model), method(plain), msg=lambda words, name=name: f"{name}: {words}")


def test_several_of_one_shape_cause_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"several tensors of the shape of scores \(0, 1 of its tuple\); 0 is taken"):
        found = fv.saliency(net(lambda scores, maps: (scores, 2 * scores)), X, 1)
    torch.testing.assert_close(found, fv.saliency(net(), X, 1))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (lambda scores, maps: None, r"got a NoneType, in which they cannot be told: wrap it"),
        (lambda scores, maps: {"a": scores, "b": scores}, r"got a dictionary of 'a', 'b', in which"),
        (
            lambda scores, maps: [{"boxes": scores, "scores": scores[:, 0]}] * 2,
            r"got a list of 2, the first a dictionary",
        ),
        (lambda scores, maps: {"boxes": scores, "scores": scores[:, 0]}, r"got a dictionary of 'boxes', 'scores'"),
        (lambda scores, maps: (maps,), r"got a tuple of 1, the first a tensor \[2, 8, 8, 8\]"),
    ],
)
def test_an_output_without_scores_is_described(kind: Callable[[Tensor, Tensor], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        fv.saliency(net(kind), X, 1)


def test_tensors_in_outputs_are_mapped_and_split() -> None:
    scores, maps = torch.arange(6.0).view(3, 2), torch.zeros(3, 1, 2, 2)
    for kind in KINDS.values():
        whole = kind(scores, maps)
        doubled = map_tensors(lambda each: 2 * each, whole)
        assert type(doubled) is type(whole)
        found, before = scores_in(doubled), scores_in(whole)
        assert found is not None
        assert torch.equal(found, 2 * scores)
        assert before is scores
        parts = [scores_in(part) for part in split_tensors(whole, [1, 2])]
        assert torch.equal(torch.cat([part for part in parts if part is not None]), scores)
