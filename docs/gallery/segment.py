"""Segmentation: the object that GrabCut finds from the saliency."""

import torch

import fastviz as fv
from fastviz.images.drawing import draw

model = fv.load_model("demo")
x, names = fv.load_images("photos/", model=model)
photos, _ = fv.load_images("photos/", size=256)  # the same photographs, larger

maps = fv.segment(model, x, images=photos).mask.float()
pictures = [draw("mask", each, photo) for each, photo in zip(maps, photos, strict=True)]
fv.images.save_image(fv.images.grid(torch.stack(pictures), columns=3), "segment.png")
