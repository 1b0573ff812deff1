"""The proof on graphs, beside that on real calls: it calls no model apart that the other sees mix."""

from __future__ import annotations

import pytest
import torch

from fastviz.engine.incremental import sweep
from tests.execution.batch_cases import APART, MIXED, Model

BOXES = torch.tensor([[0, 0, 3, 3], [4, 4, 8, 8], [2, 5, 4, 7]])


# Their outputs do not count the images in dimension 0, or they take four images only.
NO_SWEEP = {"scalar", "channels first", "memory written to"}


def alone(model: Model, image: torch.Tensor) -> torch.Tensor:
    outputs = []
    for top, left, bottom, right in BOXES.tolist():
        covered = image.clone()
        covered[:, :, top:bottom, left:right] = 0
        outputs.append(model(covered))
    return torch.cat(outputs)


@pytest.mark.parametrize("name", [name for name in MIXED if name not in NO_SWEEP])
def test_what_mixes_on_real_calls_has_no_proof_on_a_graph(name: str) -> None:
    function, *parts = MIXED[name]
    found = sweep(Model(function, *parts).eval(), torch.rand(1, 3, 8, 8), BOXES, trace="always")
    assert found.stats["path"] == "dense"


@pytest.mark.parametrize("name", [name for name in APART if name not in ("dictionary", "attention, tokens first")])
def test_what_has_a_proof_gives_what_each_image_gets_alone(name: str) -> None:
    torch.manual_seed(0)
    function, *parts = APART[name]
    model, images = Model(function, *parts).eval(), torch.rand(1, 3, 8, 8)
    found = sweep(model, images, BOXES, trace="always")
    with torch.no_grad():
        torch.testing.assert_close(found.values, alone(model, images), rtol=1e-4, atol=1e-5)
