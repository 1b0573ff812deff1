"""Texture grown from a sample, pixel by pixel: sample and what grew from it, twice."""

import torch

import fastviz as fv

shown = []
for name, window in (("brick", 15), ("grass", 11)):
    sample = fv.images.read_image(f"textures/{name}.png")[:1, :64, :64]
    grown = fv.synthesize_texture(sample, 128, window=window)
    shown += [torch.nn.functional.pad(sample, (32, 32, 32, 32), value=1.0), grown]
fv.images.save_image(fv.images.grid(torch.stack(shown), columns=4, padding=8), "synthesize_texture.png")
