"""The graph of a model: its tensors, and what cannot be one."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from fastviz import graph
from fastviz.graph.model_graph import NotTraceable, trace


def test_two_outputs_are_not_traceable() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x

    with pytest.raises(NotTraceable, match="gives more than one tensor"):
        trace(Two(), (4, 4))


def test_the_trace_holds_the_models_own_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).eval()
    traced = trace(model, (8, 8))
    pointers = {value.data_ptr() for value in traced.constants.values()}
    assert model[0].weight.data_ptr() in pointers
    assert model[1].running_mean.data_ptr() in pointers  # type: ignore[union-attr]


def test_public_names() -> None:
    assert set(graph.__all__) >= {"layers", "receptive_field", "trace"}
