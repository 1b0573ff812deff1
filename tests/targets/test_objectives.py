"""Objectives against values worked by hand, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastviz import targets
from fastviz.targets.objectives import channel, class_probability, class_score, layer, neuron
from fastviz.targets.selection import resolve
from tests.targets.common import ACTIVATIONS, MAPS, SCORES, Model, values


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
        (3, "target should be a class from 0 to 2, got 3"),
        (torch.tensor([0, 3]), "target should be a class from 0 to 2, got 3"),
        (torch.tensor([0, -2]), "target should be a class from 0 to 2, got -2"),
        (torch.tensor([0, 1, 2]), "target should have one class per sample, 2, got 3"),
        (torch.zeros(3, 2).long(), "target should have one class per sample, 2, got 3"),
        (neuron("maps", 2), "channel should be a channel of layer 'maps' from 0 to 1, got 2"),
        (channel("maps", 2), "channel should be a channel of layer 'maps' from 0 to 1, got 2"),
        (neuron("maps", 0, (3, 0)), "position should be a position of layer 'maps' from 0 to 2, got 3"),
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
        ((MAPS, MAPS), TypeError, r"model should return scores \[N, K\] for a class target, got a tuple of 2"),
        ({"a": SCORES, "b": SCORES}, TypeError, r"model should return scores \[N, K\] .* got a dictionary of 'a', 'b'"),
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
