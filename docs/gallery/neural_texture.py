"""Texture with the statistics that the network's layers have of a sample: sample and result, twice."""

import torch

import fastviz as fv

model = fv.load_model("demo")
shown = []
for name in ("brick", "gravel"):
    sample = fv.images.read_image(f"textures/{name}.png")
    made = fv.neural_texture(model, fv.canvas.frame_of(model, 128).image(sample[None]), 128, steps=60)
    shown += [torch.nn.functional.pad(sample, (16, 16, 16, 16), value=1.0), made.pictures[0]]
fv.images.save_image(fv.images.grid(torch.stack(shown), columns=4, padding=8), "neural_texture.png")
