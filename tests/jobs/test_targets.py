"""Jobs about other targets than classes: a region of what a segmentation network returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import images, jobs, models


class Segmenter(nn.Module):
    """Maps of three classes, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.body(x)}


@pytest.fixture
def segmenter() -> nn.Module:
    model = Segmenter().eval()
    models.describe(model, preprocessing=models.Preprocessing((16, 16), 16, (0.5,) * 3, (0.5,) * 3))
    return model


def test_a_region_in_a_job(segmenter: nn.Module, photos: Path, tmp_path: Path) -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:10, 5:12] = True
    target = fv.region_score(1, mask)
    methods: dict[str, dict[str, Any]] = {"saliency": {}, "occlusion": {"window": 4, "stride": 4}}
    out = tmp_path / "out"
    summary = jobs.run([photos], out, model=segmenter, methods=methods, target=target)
    assert summary.failed == 0
    x, names = images.load_images(photos, model=segmenter)
    expected = fv.saliency(segmenter, x, target)
    swept = fv.occlusion(segmenter, x, target, window=4, stride=4).attribution
    for at, name in enumerate(names):
        found = jobs.open(out).maps(name)
        np.testing.assert_allclose(found["saliency"], expected[at].numpy(), rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(found["occlusion"], swept[at].detach().numpy(), rtol=1e-4, atol=1e-6)
    # the same target in other words goes on, another one does not mix with it
    again = jobs.run([photos], out, model=segmenter, methods=methods, target=fv.region_score(1, mask.clone()))
    assert (again.done, again.skipped) == (0, summary.done)
    with pytest.raises(ValueError, match="target"):
        jobs.run([photos], out, model=segmenter, methods=methods, target=fv.region_score(1, ~mask))


def test_the_words_are_the_target(segmenter: nn.Module, photos: Path, tmp_path: Path) -> None:
    """As the objective itself; another content of the file of a mask is another target."""
    mask = torch.zeros(3, 16, 16)
    mask[:, 4:10, 5:12] = 1
    file, out = tmp_path / "mask.png", tmp_path / "out"
    images.save_image(mask, file)
    words = f"region_score(1, {str(file)!r})"
    summary = jobs.run([photos], out, model=segmenter, methods=["saliency"], target=words)
    assert summary.failed == 0
    x, names = images.load_images(photos, model=segmenter)
    expected = fv.saliency(segmenter, x, fv.region_score(1, mask[0].bool()))
    for at, name in enumerate(names):
        np.testing.assert_allclose(jobs.open(out).maps(name)["saliency"], expected[at].numpy(), rtol=1e-5, atol=1e-8)
    target = fv.region_score(1, mask[0].bool())
    again = jobs.run([photos], out, model=segmenter, methods=["saliency"], target=target)
    assert (again.done, again.skipped) == (0, summary.done)
    images.save_image(1 - mask, file)
    with pytest.raises(ValueError, match="target"):
        jobs.run([photos], out, model=segmenter, methods=["saliency"], target=words)
    with pytest.raises(ValueError, match="there are 'predicted', a class index"):
        jobs.run([photos], tmp_path / "other", model=segmenter, methods=["saliency"], target="regin_score(1)")
