"""Models that take more than images: all but the images fixed, in one way for all methods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.models import Preprocessing, preprocessing


class Two(nn.Module):
    """Images and facts about them [N, 4]; a flag and a list of scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.facts = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 5)

    def forward(
        self, x: Tensor, facts: Tensor, *, negative: bool = False, scales: list[Tensor] | None = None
    ) -> Tensor:
        maps = torch.relu(self.first(x) + self.facts(facts)[:, :, None, None])
        for scale in scales or []:
            maps = maps * scale
        return self.head(nn.functional.dropout(maps, 0.5, self.training).mean((2, 3)) * (-1 if negative else 1))


class Around(nn.Module):
    """The same by hand."""

    def __init__(self, model: Two, facts: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.model, self.fixed, self.scale = model, facts, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, self.fixed.expand(len(x), -1), negative=True, scales=[self.scale])


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model, facts, scale = Two(), torch.randn(1, 4), torch.rand(6, 1, 1)
    return fv.fix_inputs(model, facts, negative=True, scales=[scale]), Around(model, facts, scale)


METHODS: dict[str, Callable[[nn.Module], Tensor]] = {
    "saliency": lambda model: fv.saliency(model, X),
    "guided_backprop": lambda model: fv.guided_backprop(model, X, 1),
    "grad_cam": lambda model: fv.grad_cam(model, X, 1),
    "occlusion": lambda model: fv.occlusion(model, X, window=4, stride=4, trace="always").scores,
    "dense": lambda model: fv.occlusion(model, X, window=4, stride=4, trace="never").scores,
    "maximize": lambda model: fv.maximize(model, 1, size=16, steps=2).pictures,
    "embedding": lambda model: fv.embedding(model, X).vectors,
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_give_what_they_give_for_a_module_around_it(pair: tuple[nn.Module, nn.Module], method: str) -> None:
    fixed, around = pair
    torch.testing.assert_close(METHODS[method](fixed), METHODS[method](around))
    assert fixed.training  # as before


def test_sweeps_stay_incremental_and_layers_keep_their_names(pair: tuple[nn.Module, nn.Module]) -> None:
    fixed, _ = pair
    assert fv.occlusion(fixed, X, 1, window=4, stride=4, trace="always").stats["path"] == "incremental"
    assert {layer.name for layer in fv.layers(fixed, (16, 16))} == {"first", "facts", "head"}
    assert fv.grad_cam(fixed, X, 1, layer="first").shape == (2, 16, 16)


def test_images_by_name_or_at_another_place() -> None:
    class Other(Two):
        def forward(self, facts: Tensor, picture: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(picture, facts)

    model, facts = Other().eval(), torch.randn(1, 4)
    expected = model(facts.expand(2, -1), X)
    torch.testing.assert_close(fv.fix_inputs(model, facts, image=1)(X), expected)
    torch.testing.assert_close(fv.fix_inputs(model, image="picture", facts=facts)(X), expected)
    script = torch.jit.trace(model, (facts.expand(2, -1), X))
    torch.testing.assert_close(fv.saliency(fv.fix_inputs(script, facts, image=1), X, 1),
                               fv.saliency(fv.fix_inputs(model, facts, image=1), X, 1))  # fmt: skip


def test_the_description_and_the_weights_are_those_of_the_model() -> None:
    model = Two()
    told = Preprocessing((16, 16), None, (0.5,) * 3, (0.5,) * 3)
    fv.describe(model, preprocessing=told, class_names=list("abcde"))
    fixed = fv.fix_inputs(model, torch.zeros(1, 4))
    assert preprocessing(fixed) == told
    assert fv.class_names(fixed) == list("abcde")
    assert fixed.get_parameter("head.bias") is model.head.bias


def test_without_it_there_is_one_sentence() -> None:
    for call in (fv.saliency, fv.grad_cam, fv.occlusion, fv.guided_backprop):
        with pytest.raises(TypeError, match=r"model should take images alone, and needs x, facts: fastviz.fix_inputs"):
            call(Two(), X, 1)


def test_bad_inputs(pair: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(ValueError, match="image should be at most 1"):
        fv.fix_inputs(Two(), torch.zeros(1, 4), image=2)
    with pytest.raises(ValueError, match="image should not be among the fixed inputs, which have 'x'"):
        fv.fix_inputs(Two(), image="x", x=X)
    with pytest.raises(ValueError, match="should give a row for each of 1 images, and gives 3"):
        fv.saliency(fv.fix_inputs(Two(), torch.zeros(3, 4)), X[:1], 1)
