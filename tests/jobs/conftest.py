"""A small network and five photographs for jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from fastviz import jobs
from tests.jobs.common import photograph, tiny


@pytest.fixture
def network() -> nn.Module:
    return tiny()


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch, request):
    """Pictures for people take time to write; where a test does not look at them they are small."""
    if "size_for_people" not in request.node.name:
        monkeypatch.setattr(jobs.explainer, "SHOWN_SIZE", 16)


@pytest.fixture
def photos(tmp_path) -> Path:
    for number in range(5):
        photograph(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"
