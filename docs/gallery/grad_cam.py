"""Grad-CAM: a layer's maps, weighted by their mean gradient."""

import torch

import fastviz as fv
from fastviz.images.drawing import draw

model = fv.load_model("demo")
x, names = fv.load_images("photos/", model=model)
photos, _ = fv.load_images("photos/", size=256)  # the same photographs, larger

maps = fv.grad_cam(model, x, layer="relu4_2")
pictures = [draw("heat", each, photo, coarse=True) for each, photo in zip(maps, photos, strict=True)]
fv.images.save_image(fv.images.grid(torch.stack(pictures), columns=3), "grad_cam.png")
