"""A hole in a picture, filled from the rest of it."""

import torch

import fastviz as fv

picture = fv.images.read_image("textures/brick.png")[:1]
hole = torch.zeros(picture.shape[1:], dtype=torch.bool)
hole[40:80, 40:90] = True
filled = fv.fill_hole(picture, hole, window=15)
shown = torch.stack([picture.masked_fill(hole, 1.0), filled]).repeat_interleave(2, 2).repeat_interleave(2, 3)
fv.images.save_image(fv.images.grid(shown, columns=2, padding=8), "fill_hole.png")
