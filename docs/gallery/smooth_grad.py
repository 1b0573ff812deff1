"""SmoothGrad: the mean gradient over noisy copies of the photograph."""

import torch

import fastviz as fv
from fastviz.images.drawing import draw

model = fv.load_model("demo")
x, names = fv.load_images("photos/", model=model)
photos, _ = fv.load_images("photos/", size=256)  # the same photographs, larger

maps = fv.smooth_grad(model, x, samples=50, noise=0.15)
pictures = [draw("gradient", each, photo) for each, photo in zip(maps, photos, strict=True)]
fv.images.save_image(fv.images.grid(torch.stack(pictures), columns=3), "smooth_grad.png")
