"""`grow_texture`: torch is told the truth about it. What it gives is tested where textures are synthesized."""

from __future__ import annotations

import torch


def test_opcheck_of_grow_texture():
    canvas = (torch.zeros(2, 8, 9), torch.eye(8, 9) > 0, torch.full((8, 9), -1))
    places, chances = torch.tensor([11, 12, 47]), torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    arguments = (*canvas, places, chances, torch.rand(2, 6, 7), torch.ones(4, 5) > 0, torch.ones(3, 3), 0.1, 1.0)
    torch.library.opcheck(torch.ops.fastviz._grow_texture.default, arguments)
