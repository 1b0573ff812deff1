"""Inversion: pictures that a layer cannot tell from a photograph, from an early layer to a late one."""

import torch

import fastviz as fv

model = fv.load_model("demo")
x, names = fv.load_images("photos/", model=model)
found = fv.invert_all(model, x[2:], ["relu1", "relu3_2", "relu4_2", "fc6"], steps=100)  # layer by layer
strip = torch.cat([fv.images.restore(x[2:], model), *(made.pictures for made in found.values())])
strip = torch.nn.functional.interpolate(strip, scale_factor=3, mode="bicubic").clamp(0, 1)
fv.images.save_image(fv.images.grid(strip, columns=5), "invert.png")
