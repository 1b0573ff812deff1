"""Operators against the numbers of the libraries that people use today."""

from __future__ import annotations

import importlib

import pytest
import torch

from fastviz import ops


@pytest.fixture
def pystiche(monkeypatch):
    """pystiche 1.0 reads a table of addresses that torchvision no longer has; nothing here uses it."""
    pytest.importorskip("torchvision")
    for name, table in (("alexnet", {"alexnet": ""}), ("vgg", {})):
        # By import_module: torchvision.models also has functions of these names.
        module = importlib.import_module(f"torchvision.models.{name}")
        monkeypatch.setattr(module, "model_urls", table, raising=False)
    return pytest.importorskip("pystiche")


@pytest.fixture
def x():
    return torch.rand(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("theirs", "mine"), [("sum", "none"), ("mean", "pixel_mean")])
def test_total_variation_of_kornia(x, theirs, mine):
    """kornia gives one value per channel; so does fastviz where each channel is a picture of its own."""
    kornia = pytest.importorskip("kornia")
    expected = kornia.losses.total_variation(x, reduction=theirs)
    channels = ops.total_variation(x.flatten(0, 1)[:, None], norm="l1", border="zero", reduction=mine)
    torch.testing.assert_close(channels.view(x.shape[:2]), expected)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_total_variation_of_torchmetrics(x, reduction):
    image = pytest.importorskip("torchmetrics.functional.image")
    expected = image.total_variation(x, reduction=reduction)
    torch.testing.assert_close(ops.total_variation(x, norm="l1", border="zero", reduction=reduction), expected)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 2.5])
def test_total_variation_of_pystiche(x, pystiche, exponent):
    from pystiche.loss.functional import total_variation_loss

    expected = total_variation_loss(x, exponent=exponent, reduction="mean")
    torch.testing.assert_close(ops.total_variation(x, beta=exponent, reduction="pixel_mean").mean(), expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_gram_of_pystiche(x, pystiche, normalize):
    expected = pystiche.gram_matrix(x, normalize=normalize)
    torch.testing.assert_close(ops.gram(x, "hw" if normalize else "none"), expected)
