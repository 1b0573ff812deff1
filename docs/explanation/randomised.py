"""Adebayo's strip: maps of a network whose layers are randomised one by one, from the last one on."""

from functools import partial

import torch

import fastviz as fv
from fastviz import evaluation
from fastviz.images.drawing import draw

model = fv.load_model("demo")
x, names = fv.load_images("photos/tabby_cat.jpg", model=model)
photo = torch.nn.functional.avg_pool2d(fv.load_images("photos/tabby_cat.jpg", size=256)[0], 2)[0]  # 128x128
rows = [
    (fv.saliency, "heat", {}),
    (fv.guided_backprop, "gradient", {}),
    (fv.grad_cam, "heat", {"layer": "relu4_2"}),
    (fv.occlusion, "signed", {"window": 16, "stride": 8}),
]
pictures = []
for method, kind, options in rows:
    check = evaluation.parameter_randomisation(model, x, partial(method, **options), steps=6)
    maps = [each[0] for each in check.maps]  # of the network as it is, then of each step
    pictures += [draw(kind, each, photo, coarse=method is fv.grad_cam) for each in maps]
fv.images.save_image(fv.images.grid(torch.stack(pictures), columns=7, padding=4), "randomised.png")
