"""Encodings of evolving images: a CPPN worked by hand, and what mutations change."""

from __future__ import annotations

import math

import torch

from fastviz.methods.adversarial.cppn import CPPN, Direct


def test_a_cppn_worked_by_hand():
    """One node, the Gaussian of the place across; the only output |sin(node)|, on a picture of 1x3 pixels."""
    kind = CPPN(nodes=1)
    weights = torch.zeros(1, 2, 5)
    weights[0, 0, 0] = 1.0
    weights[0, 1, 4] = 1.0
    genomes = {"weights": weights, "functions": torch.tensor([[1]])}
    # the shorter side is one pixel: places are −2, 0, 2
    painted = kind.pictures(genomes, (1, 1, 3), torch.zeros(1, dtype=torch.float64))
    expected = torch.tensor([math.exp(-4), 1.0, math.exp(-4)]).double().sin()
    torch.testing.assert_close(painted[0, 0, 0], expected)


def test_cppn_mutations_keep_the_order_of_nodes():
    kind, generator = CPPN(nodes=6), torch.Generator().manual_seed(0)
    genomes = kind.start(20, (3, 8, 8), generator)
    for _ in range(30):
        changed = kind.mutated(genomes, generator)
        assert not torch.equal(changed["weights"], genomes["weights"])
        genomes = changed
    for node in range(6):
        assert not genomes["weights"][:, node, 4 + node :].any()
    painted = kind.pictures(genomes, (3, 8, 8), torch.zeros(1))
    assert painted.isfinite().all()
    assert painted.min() >= 0
    assert painted.max() <= 1


def test_direct_mutations_move_about_a_tenth_by_a_little():
    kind, generator = Direct(), torch.Generator().manual_seed(0)
    genomes = {"levels": torch.full((4, 3, 50, 50), 128, dtype=torch.uint8)}
    moved = kind.mutated(genomes, generator)["levels"].float() - 128
    assert 0.08 < (moved != 0).float().mean() < 0.1
    assert abs(moved.mean()) < 0.2
    assert 5 < moved[moved != 0].abs().mean() < 25
