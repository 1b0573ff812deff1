"""The Winograd transforms: torch is told the truth about them. Their values are tested with the convolution."""

from __future__ import annotations

import torch


def test_opcheck_of_the_transforms():
    maps = torch.rand(2, 3, 7, 6).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.fastviz._winograd_tiles.default, (maps, 1, 1, 2, 2, 1, 4))
    arguments = (maps, torch.rand(36, 3, 3), torch.rand(3), maps.clone(), True, 1)
    torch.library.opcheck(torch.ops.fastviz._winograd_maps.default, arguments)
