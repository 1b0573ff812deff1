"""Targets: what each means in numbers, how they combine, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.targets.objectives import channel, class_probability, class_score, layer, neuron, resolve

f64 = torch.float64
SCORES = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 7.0]], dtype=f64)
MAPS = torch.arange(2 * 2 * 3 * 4, dtype=f64).reshape(2, 2, 3, 4)
FEATURES = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=f64)
ACTIVATIONS = {"maps": MAPS, "features": FEATURES, "numbers": FEATURES[:, 0]}


class Model(nn.Module):
    """Only its layer names matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.features, self.numbers = nn.Identity(), nn.Identity(), nn.Identity()


def values(target: targets.Target) -> list[object]:
    return resolve(target, Model()).values(SCORES, ACTIVATIONS).tolist()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [5, 7]),
        (2, [2, 7]),
        (np.int64(2), [2, 7]),
        (torch.tensor(2), [2, 7]),
        (torch.tensor([2, 1]), [2, 0]),
        (torch.tensor([2, 1], dtype=torch.int32), [2, 0]),
        (torch.tensor([[0, 2], [1, 0]]), [[1, 2], [0, 7]]),
        ([0], [[1], [7]]),
        ([0, None, torch.tensor([2, 1])], [[1, 5, 2], [7, 7, 0]]),
        ((class_score(1), neuron("features", 1)), [[5, -2], [0, 4]]),
        (class_score(0), [1, 7]),
        (class_score(torch.tensor([1, 2])), [5, 7]),
        (class_score(), [5, 7]),
        (neuron("features", 0), [1, 3]),
        (neuron("features", torch.tensor([1, 0])), [-2, 3]),
        (neuron("maps", 1, (2, 3)), [23, 47]),
        (neuron("maps", 1), [12 + 4 + 2, 24 + 12 + 4 + 2]),  # the centre is row 3 // 2, column 4 // 2
        (neuron("maps", torch.tensor([0, 1]), (0, torch.tensor([3, 0]))), [3, 36]),
        (channel("maps", 0), [66, 66 + 12 * 24]),
        (channel("maps", torch.tensor([1, 0])), [66 + 12 * 12, 66 + 12 * 24]),
        (channel("features", 1), [-2, 4]),
        (layer("features"), [2.5, 12.5]),
        (2 * class_score(0) - neuron("features", 1) * 0.5, [3, 12]),
        (-class_score(0) + class_score(1), [4, -7]),
        (sum([class_score(0), class_score(2)]), [3, 14]),
    ],
)
def test_values(target: targets.Target, expected: list[object]) -> None:
    assert values(target) == expected


def test_probability_is_the_softmax() -> None:
    found = resolve([class_probability(k) for k in range(3)], Model()).values(SCORES, {})
    torch.testing.assert_close(found, SCORES.softmax(1))
    best = resolve(class_probability(), Model()).values(SCORES, {})
    torch.testing.assert_close(best, SCORES.softmax(1).amax(1))


def test_predicted_class_is_the_first_of_equal_ones() -> None:
    assert targets.predicted(SCORES).tolist() == [1, 0]


def test_gradient_of_half_the_squares_is_the_activation() -> None:
    a = MAPS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer("maps").values(SCORES, {"maps": a}).sum(), a)
    assert torch.equal(gradient, MAPS)


def test_layers_are_listed_once_and_several_is_known() -> None:
    one = resolve(neuron("maps", 0) + channel("features", 0) - layer("maps"), Model())
    assert one.layers == ("maps", "features")
    assert (one.several, one.columns) == (False, None)
    assert resolve([0, layer("maps")], Model()).layers == ("maps",)
    assert (resolve([0, 1], Model()).several, resolve([0, 1], Model()).columns) == (True, 2)
    assert resolve(torch.zeros(4, 3, dtype=torch.int64), Model()).columns == 3
    assert resolve([0, 1], Model()).no_values(MAPS, (5, 6)).shape == (0, 2, 5, 6)
    assert resolve(0, Model()).no_values(MAPS.float(), (5,)).dtype == torch.float32


def test_settled_fixes_the_predicted_class() -> None:
    """Under a window another class may win: the target stays what it was for the clean image."""
    target = [None, class_probability() * 2.0, 0]
    selection = resolve(target, Model())
    assert selection.predicts
    settled = selection.settled(targets.predicted(SCORES))
    assert not settled.predicts
    swapped = SCORES.flip(1)
    expected = torch.stack([swapped[[0, 1], [1, 0]], 2 * swapped.softmax(1)[[0, 1], [1, 0]], swapped[:, 0]], dim=1)
    torch.testing.assert_close(settled.values(swapped, {}), expected)
    assert not resolve(3, Model()).predicts


@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([2, 1]),
        torch.tensor([[0, 2], [1, 0]]),
        [1, torch.tensor([0, 2])],
        neuron("maps", torch.tensor([0, 1]), (0, torch.tensor([3, 0]))),
        channel("maps", torch.tensor([1, 0])) * 3.0 + class_score(torch.tensor([0, 1])),
        layer("features"),
        None,
    ],
)
def test_taken_follows_the_samples_of_a_batch(target: targets.Target) -> None:
    samples = torch.tensor([1, 0, 1])
    selection = resolve(target, Model())
    expected = selection.values(SCORES, ACTIVATIONS)[samples]
    batch = {name: activation[samples] for name, activation in ACTIVATIONS.items()}
    assert torch.equal(selection.taken(samples, 2).values(SCORES[samples], batch), expected)


@pytest.mark.parametrize("of", [1, 3])
@pytest.mark.parametrize(
    ("target", "what"),
    [
        (torch.tensor([2, 1]), "target should have one class a sample"),
        (torch.tensor([[0], [1]]), "target should have one class a sample"),
        (neuron("maps", torch.tensor([0, 1])), "channel should have one channel a sample"),
        (neuron("maps", 0, (0, torch.tensor([3, 0]))), "position should have one position a sample"),
        (channel("maps", torch.tensor([1, 0])) * 3.0, "channel should have one channel a sample"),
    ],
)
def test_taken_refuses_targets_for_another_batch(target: targets.Target, what: str, of: int) -> None:
    with pytest.raises(ValueError, match=f"{what}, {of}, got 2"):
        resolve(target, Model()).taken(torch.tensor([0, 0]), of)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("cat", TypeError, r"target should be None, a class index, .*, got str"),
        (1.5, TypeError, r"target should be None, a class index, .*, got float"),
        (True, TypeError, "target should be a whole number, got True"),
        (np.zeros(3), TypeError, "target should be None, a class index, .*, got ndarray"),
        (-1, ValueError, "target should be at least 0, got -1"),
        ([], ValueError, "target should have at least one entry, got an empty list"),
        ([0, "cat"], TypeError, "got str"),
        (torch.tensor([0.0, 1.0]), TypeError, "target should be a tensor of whole numbers, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "target should be a tensor of whole numbers, got torch.bool"),
        (torch.zeros(1, 1, 1).long(), ValueError, r"target should have shape \[N\], .*, got \[1, 1, 1\]"),
        (torch.zeros(2, 0).long(), ValueError, r"target should have at least one class a sample, got shape \[2, 0\]"),
        (neuron("map", 0), ValueError, "layer 'map' is not known; nearest: maps"),
        ([0, layer("mapz")], ValueError, "layer 'mapz' is not known; nearest: maps"),
    ],
)
def test_resolve_refuses(target: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(target, Model())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: class_score(-1), ValueError, "k should be at least 0, got -1"),
        (lambda: class_probability(2.0), TypeError, "k should be a whole number, got 2.0"),
        (lambda: channel("maps", None), TypeError, "k should be a whole number or a tensor of them, got None"),
        (lambda: neuron("maps", "0"), TypeError, "channel should be a whole number, got '0'"),
        (lambda: neuron("maps", 0, (0, -1)), ValueError, "position should be at least 0, got -1"),
        (lambda: layer(3), TypeError, "layer should be a dotted module name, got int"),
        (lambda: class_score(1) + 1, TypeError, "unsupported operand"),
        (lambda: class_score(1) * class_score(1), TypeError, "unsupported operand"),
    ],
)
def test_objectives_refuse(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "target should be a class below 3, the number there is, got 3"),
        (torch.tensor([0, 3]), "target should be a class below 3, the number there is, got 3"),
        (torch.tensor([0, -2]), "target should be a class below 3, the number there is, got -2"),
        (torch.tensor([0, 1, 2]), "target should have one class a sample, 2, got 3"),
        (torch.zeros(3, 2).long(), "target should have one class a sample, 2, got 3"),
        (neuron("maps", 2), "channel should be a channel of layer 'maps' below 2, the number there is, got 2"),
        (channel("maps", 2), "channel should be a channel of layer 'maps' below 2, the number there is, got 2"),
        (neuron("maps", 0, (3, 0)), "position should be a position of layer 'maps' below 3, .*, got 3"),
        (neuron("maps", 0, (0,)), r"position should have 2 numbers for layer 'maps', .*\[2, 2, 3, 4\], got 1"),
        (neuron("features", 0, (0,)), r"position should have 0 numbers for layer 'features', .*, got 1"),
        (channel("numbers", 0), r"layer 'numbers' should have output \[N, C, ...\] to have channels, got \[2\]"),
    ],
)
def test_values_refuse_what_does_not_exist(target: targets.Target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        values(target)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ((SCORES, SCORES), TypeError, r"model should return one tensor of scores \[N, K\], got tuple"),
        ({"out": SCORES}, TypeError, r"model should return one tensor of scores \[N, K\], got dict"),
        (SCORES[:, 0], ValueError, r"model should return floating-point scores \[N, K\] .* of shape \[2\]"),
        (MAPS, ValueError, r"model should return floating-point scores \[N, K\] .* of shape \[2, 2, 3, 4\]"),
        (SCORES.long(), ValueError, r"floating-point scores \[N, K\] for a class target, got torch.int64"),
    ],
)
def test_class_targets_need_scores(output: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(0, Model()).values(output, {})


def test_units_do_not_care_what_the_model_returns() -> None:
    assert resolve(neuron("features", 0), Model()).values({"anything": 1}, ACTIVATIONS).tolist() == [1, 3]


def test_gradients_of_several_values_from_one_pass() -> None:
    a, b = torch.randn(3, 2, dtype=f64, requires_grad=True), torch.randn(3, 4, dtype=f64, requires_grad=True)
    product: Tensor = torch.stack([a.sum(1) * b.sum(1), 2 * a[:, 0] + b[:, 3]], dim=1)
    for_a, for_b = targets.gradients(product, {"a": a, "b": b})
    torch.testing.assert_close(for_a[:, 0], b.sum(1, keepdim=True).expand(3, 2).detach())
    assert for_a[:, 1].tolist() == [[2, 0]] * 3
    torch.testing.assert_close(for_b[:, 0], a.sum(1, keepdim=True).expand(3, 4).detach())
    assert for_b[:, 1].tolist() == [[0, 0, 0, 1]] * 3
    assert a.grad is None


def test_gradients_name_what_the_target_does_not_depend_on() -> None:
    a, b = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    with pytest.raises(ValueError, match="target should depend on the layer, but has no gradient for it"):
        targets.gradients(a.sum(1), {"x": a, "the layer": b})
    with pytest.raises(ValueError, match="target should depend on x"):
        targets.gradients(a.detach().sum(1), {"x": a})
