"""Parameter randomisation: against copies made by hand, the model and the random state as they were."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.evaluation import parameter_randomisation, randomisable_layers, rank_correlation, ssim
from fastviz.methods import occlusion


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def reset(model: nn.Module, names: list[list[str]]) -> nn.Module:
    """A copy of the model whose layers were randomised step by step, with seeds 0, 1, …"""
    changed = copy.deepcopy(model)
    for seed, group in enumerate(names):
        if group:
            torch.manual_seed(seed)
        for name in group:
            changed.get_submodule(name).reset_parameters()
    return changed


def test_the_layers_from_the_last_to_the_first(model, x):
    assert randomisable_layers(model, x) == ["7", "3", "0"]


@pytest.mark.parametrize("method", [fv.saliency, fv.grad_cam, occlusion])
def test_cascading_and_independent_by_hand(model, x, method):
    predicted = model.eval()(x).argmax(1)
    state = torch.get_rng_state()
    down = parameter_randomisation(model, x, method, batch_size=2)
    alone = parameter_randomisation(model, x, method, order="independent", similarities=("rank_absolute",))
    assert torch.equal(torch.get_rng_state(), state)
    assert down.layers == (("7",), ("3",), ("0",))

    def by_hand(network: nn.Module) -> Tensor:
        found = method(network, x, predicted)
        return found if isinstance(found, Tensor) else found.attribution

    clean = by_hand(model)
    torch.testing.assert_close(down.maps[0], clean)
    steps = [["7"], ["3"], ["0"]]
    for at in range(3):
        expected = by_hand(reset(model, steps[: at + 1]))
        torch.testing.assert_close(down.maps[at + 1], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            down.similarity["rank"][at], rank_correlation(clean, down.maps[at + 1]), equal_nan=True
        )
        torch.testing.assert_close(down.similarity["ssim"][at], ssim(clean, down.maps[at + 1]))
        only = [group if number == at else [] for number, group in enumerate(steps)]
        torch.testing.assert_close(alone.maps[at + 1], by_hand(reset(model, only)), rtol=1e-4, atol=1e-6)
    assert set(alone.similarity) == {"rank_absolute"}


def test_the_model_is_as_it_was(model, x):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[nn.Module] = []

    def explain(network: nn.Module, images: Tensor, target: object) -> Tensor:
        seen.append(network)
        return fv.saliency(network, images, target)

    parameter_randomisation(model, x, explain, initial="permutation", layers=["0", "1"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert seen[0] is model
    assert {id(network) for network in seen[1:]} == {id(seen[1])} != {id(model)}  # one copy


def test_a_map_of_the_image_never_changes_and_edges_fail_the_check(model, x):
    edges = parameter_randomisation(model, x, lambda m, i, t: i.abs().amax(1))
    torch.testing.assert_close(edges.similarity["rank"], torch.ones(3, 3))
    torch.testing.assert_close(edges.similarity["ssim"], torch.ones(3, 3))


def test_initial_distributions(model, x):
    """Normal ones have the moments of the trained ones, a permutation the same values."""
    with torch.no_grad():
        model[3].weight.copy_(torch.randn_like(model[3].weight) * 3 + 7)
    weights: dict[str, Tensor] = {}

    def explain(network: nn.Module, images: Tensor, target: object) -> Tensor:
        weights["last"] = network[3].weight.detach().clone()
        return images

    for initial in ("normal", "permutation", "reset"):
        parameter_randomisation(model, x, explain, 0, layers=["3"], initial=initial)
        if initial == "reset":
            assert float(weights["last"].abs().max()) <= 1 / 54**0.5 + 1e-6
            continue
        assert not torch.equal(weights["last"], model[3].weight)
        assert float(weights["last"].mean()) == pytest.approx(7, abs=1)
        assert float(weights["last"].std()) == pytest.approx(3, abs=0.7)
        same = torch.equal(weights["last"].flatten().sort().values, model[3].weight.flatten().sort().values)
        assert same == (initial == "permutation")


def test_steps_of_several_layers(model, x):
    found = parameter_randomisation(model, x, fv.saliency, steps=2)
    assert found.layers == (("7", "3"), ("0",))
    given = parameter_randomisation(model, x, fv.saliency, layers=[["7", "3"], "0"])
    torch.testing.assert_close(found.maps, given.maps)
    small = parameter_randomisation(model, x, fv.saliency, steps=2, size=(8, 8))
    assert not torch.equal(small.similarity["ssim"], found.similarity["ssim"])


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.weight


def test_what_is_refused(model, x):
    with pytest.raises(ValueError, match=r"layer '0' \(Bare\) has no reset_parameters; choose initial=\"normal\""):
        parameter_randomisation(nn.Sequential(Bare()), x, fv.saliency)
    parameter_randomisation(nn.Sequential(Bare()), x, fv.saliency, initial="normal")
    with pytest.raises(ValueError, match="layers should have parameters, got '2', which has none"):
        parameter_randomisation(model, x, fv.saliency, layers=["2"])
    with pytest.raises(ValueError, match="layer '9' is not known"):
        parameter_randomisation(model, x, fv.saliency, layers=["9"])
    with pytest.raises(ValueError, match="order should be one of 'cascading', 'independent'"):
        parameter_randomisation(model, x, fv.saliency, order="random")
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"copy.deepcopy can copy, and is not: .*lock"):
        parameter_randomisation(model, x, fv.saliency)
