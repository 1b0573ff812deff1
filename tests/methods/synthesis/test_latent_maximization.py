"""Codes of a layer that a target likes, and the images that have them."""

from __future__ import annotations

import pytest
import torch

import fastviz as fv
from tests.methods.synthesis.common import network, scores


def test_codes_that_a_class_likes():
    """Codes rise for their targets, stay 0 or more behind a rectifier, and the decoded images have them."""
    model = network()
    made = fv.maximize_code(model, torch.tensor([1, 3]), "3", starts=2, steps=30, goal=None, decoding={"steps": 60})
    assert made.codes.shape == (4, 6, 4, 4)
    assert bool((made.codes >= 0).all())
    assert bool((made.history[-1] > made.history[0]).all())
    index = torch.tensor([1, 1, 3, 3])
    with torch.no_grad():
        values = model[4:](made.codes)[torch.arange(4), index]
    torch.testing.assert_close(made.code_values, values)
    torch.testing.assert_close(made.values, scores(model, made.decoded.images)[torch.arange(4), index])
    torch.testing.assert_close(made.probability, scores(model, made.decoded.images).softmax(1)[torch.arange(4), index])
    assert made.decoded.layer == "3"
    assert "<img" in made._repr_html_()
    with pytest.raises(ValueError, match="has no gradient for it"):
        fv.maximize_code(model, fv.channel("0", 1), "3", steps=1)
