"""Targets that are checked: one or several, for the samples of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastviz import targets
from fastviz.targets.objectives import channel, class_probability, class_score, layer, neuron
from fastviz.targets.selection import resolve
from tests.targets.common import ACTIVATIONS, MAPS, SCORES, Model


def test_layers_are_listed_once_and_several_is_known() -> None:
    one = resolve(neuron("maps", 0) + channel("features", 0) - layer("maps"), Model())
    assert one.layers == ("maps", "features")
    assert (one.several, one.columns) == (False, None)
    assert resolve([0, layer("maps")], Model()).layers == ("maps",)
    assert (resolve([0, 1], Model()).several, resolve([0, 1], Model()).columns) == (True, 2)
    assert resolve(torch.zeros(4, 3, dtype=torch.int64), Model()).columns == 3
    assert resolve([0, 1], Model()).no_values(MAPS, (5, 6)).shape == (0, 2, 5, 6)
    assert resolve(0, Model()).no_values(MAPS.float(), (5,)).dtype == torch.float32
    assert resolve(0, Model()).no_values(MAPS.bfloat16(), (5,)).dtype == torch.float32


def test_with_predicted_fixes_the_predicted_class() -> None:
    """Under a window another class may win: the target stays what it was for the clean image."""
    target = [None, class_probability() * 2.0, 0]
    selection = resolve(target, Model())
    assert selection.predicts
    settled = selection.with_predicted(targets.predicted(SCORES))
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
def test_for_samples_follows_the_samples_of_a_batch(target: targets.Target) -> None:
    samples = torch.tensor([1, 0, 1])
    selection = resolve(target, Model())
    expected = selection.values(SCORES, ACTIVATIONS)[samples]
    batch = {name: activation[samples] for name, activation in ACTIVATIONS.items()}
    assert torch.equal(selection.for_samples(samples, 2).values(SCORES[samples], batch), expected)


@pytest.mark.parametrize("of", [1, 3])
@pytest.mark.parametrize(
    ("target", "what"),
    [
        (torch.tensor([2, 1]), "target should have one class per sample"),
        (torch.tensor([[0], [1]]), "target should have one class per sample"),
        (neuron("maps", torch.tensor([0, 1])), "channel should have one channel per sample"),
        (neuron("maps", 0, (0, torch.tensor([3, 0]))), "position should have one position per sample"),
        (channel("maps", torch.tensor([1, 0])) * 3.0, "channel should have one channel per sample"),
    ],
)
def test_for_samples_refuses_targets_for_another_batch(target: targets.Target, what: str, of: int) -> None:
    with pytest.raises(ValueError, match=f"{what}, {of}, got 2"):
        resolve(target, Model()).for_samples(torch.tensor([0, 0]), of)


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
        (torch.zeros(2, 0).long(), ValueError, r"target should have at least one class per sample, got shape \[2, 0\]"),
        (neuron("map", 0), ValueError, "layer 'map' is not known; nearest: maps"),
        ([0, layer("mapz")], ValueError, "layer 'mapz' is not known; nearest: maps"),
    ],
)
def test_resolve_refuses(target: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(target, Model())  # type: ignore[arg-type]
