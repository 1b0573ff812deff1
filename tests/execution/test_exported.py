"""Modules that torch.export made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastviz as fv

MODEL = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def exported(batch: int | None) -> nn.Module:
    """The model, for so many images or for any number."""
    sizes = None if batch else ({0: torch.export.Dim("n", min=1)},)
    return torch.export.export(MODEL.eval(), (torch.rand(batch or 3, 3, 16, 16),), dynamic_shapes=sizes).module()


@pytest.mark.parametrize("batch", [2, None])
def test_they_give_what_the_model_gives(batch: int | None) -> None:
    """For a fixed batch, occlusion ended in "Guard failed"."""
    images, model = torch.rand(2, 3, 16, 16), exported(batch)
    torch.testing.assert_close(fv.saliency(model, images, 1), fv.saliency(MODEL, images, 1))
    found, expected = (fv.occlusion(each, images, 1, window=4, stride=4) for each in (model, MODEL))
    torch.testing.assert_close(found.scores, expected.scores)


@pytest.mark.parametrize("batch", [2, None])
def test_their_layers_cannot_be_seen(batch: int | None) -> None:
    with pytest.raises(ValueError, match="model should not be exported, whose layers cannot be seen: give the module"):
        fv.grad_cam(exported(batch), torch.rand(2, 3, 16, 16), 1)


def test_another_number_of_images_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="x should have 2 images, the number that the model was exported for, got 3"):
        fv.saliency(exported(2), torch.rand(3, 3, 16, 16), 1)
