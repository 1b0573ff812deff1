"""Evolution of fooling images: no gradients, repeatable, what is best stays, what is refused."""

from __future__ import annotations

import pytest
import torch

import fastviz as fv
from fastviz import models
from tests.methods.adversarial.common import small


def test_evolution_needs_no_gradient_and_repeats_itself():
    model = fv.load_model("demo").requires_grad_(False)
    first, second = (fv.evolve(model, 10, population=16, generations=60, goal=0.9, seed=4) for _ in range(2))
    assert first.success.item()
    assert torch.equal(first.images, second.images)
    assert model(first.images).softmax(1)[0, 10] >= 0.9
    levels = fv.images.restore(first.images, models.preprocessing(model)) * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    other = fv.evolve(model, 10, population=16, generations=2, seed=5)
    assert not torch.equal(other.images, first.images)


def test_what_is_best_stays():
    """More generations never give a lower probability, and several targets each get an image of their own."""
    model = fv.load_model("demo")
    few, more = (fv.evolve(model, [0, 5], population=8, generations=g, goal=0.9999) for g in (1, 12))
    assert (more.probability >= few.probability - 1e-6).all()
    assert (more.probability > few.probability + 1e-3).any()
    assert (more.steps <= 12).all()
    assert not torch.equal(more.images[0], more.images[1])


def test_direct_encoding_climbs():
    few, more = (fv.evolve(small(), 1, encoding="direct", population=8, generations=g, goal=0.999) for g in (1, 40))
    assert more.probability > few.probability


def test_evolution_says_what_is_wrong():
    for options, words in (
        ({"encoding": "dna"}, "encoding should be one of 'cppn', 'direct'"),
        ({"target": 20}, "target should be a class from 0 to 19, got 20"),
        ({"population": 0}, "population should be at least 1"),
        ({"generations": 0}, "generations should be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            fv.evolve(fv.load_model("demo"), **options)
