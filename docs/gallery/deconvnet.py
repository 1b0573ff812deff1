"""Deconvnet: rectifiers pass on what is positive, active or not."""

import torch

import fastviz as fv
from fastviz.images.drawing import draw

model = fv.load_model("demo")
x, names = fv.load_images("photos/", model=model)
photos, _ = fv.load_images("photos/", size=256)  # the same photographs, larger

maps = fv.deconvnet(model, x)
pictures = [draw("gradient", each, photo) for each, photo in zip(maps, photos, strict=True)]
fv.images.save_image(fv.images.grid(torch.stack(pictures), columns=3), "deconvnet.png")
