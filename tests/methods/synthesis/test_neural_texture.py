"""Neural textures: the Gram matrices of a sample, seeds, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.methods.synthesis.style_common import described, f64, neural_texture, noise, small


def test_a_texture_has_the_sample_s_gram_matrices():
    model, sample = small(), noise(1, 3, 16, 16) ** 2
    made = neural_texture(model, sample, (16, 24), layers=["1", "3"], steps=150, canvas="pixels")
    assert made.pictures.shape == (1, 3, 16, 24)
    assert float(made.history[-1]) < 1e-4 * float(made.history[0])
    for depth in (2, 4):
        wanted, found = (
            torch.einsum("nchw,ndhw->ncd", maps, maps) / maps[0, 0].numel()
            for maps in (model[:depth](sample).detach(), model[:depth](made.images).detach())
        )
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=1e-3)
    assert made.content_loss.tolist() == [0.0]


def test_a_texture_of_one_colour_is_that_colour():
    network = described(nn.Sequential(nn.Identity(), nn.Conv2d(3, 3, 1).double()))
    sample = torch.tensor([0.2, 0.5, 0.7], dtype=f64).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    made = neural_texture(network, sample, 12, layers="0", steps=60, start="grey", canvas="pixels")
    torch.testing.assert_close(made.pictures.mean((2, 3)), sample[:, :, 0, 0], rtol=0, atol=0.02)


def test_textures_depend_on_their_seed_only():
    model, samples = small(), noise(2, 3, 16, 16)
    both = neural_texture(model, samples, steps=3, seed=4)
    alone = neural_texture(model, samples[1:], steps=3, seed=5)
    torch.testing.assert_close(both.pictures[1:], alone.pictures)
    assert not torch.allclose(neural_texture(model, samples[1:], steps=3, seed=6).pictures, alone.pictures)


def test_a_texture_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match=r"layer '7' gives shape"):
        neural_texture(small(), noise(1, 3, 16, 16), layers="7")
    with pytest.raises(ValueError, match="start should be one of 'noise', 'zeros', 'grey', got 'content'"):
        neural_texture(small(), noise(1, 3, 16, 16), start="content")
    with pytest.raises(ValueError, match="size should be at least 1, got 0"):
        neural_texture(small(), noise(1, 3, 16, 16), 0)
