"""Class images: a grey picture, changed until the network sees as much of one class in it as it can."""

import torch

import fastviz as fv

model = fv.load_model("demo")
wanted = ["goldfish", "monarch", "school bus", "spider web"]
classes = torch.tensor([fv.class_names(model).index(name) for name in wanted])
made = fv.maximize(model, classes, steps=128)  # all at once
pictures = torch.nn.functional.interpolate(made.pictures, scale_factor=3, mode="bicubic").clamp(0, 1)
fv.images.save_image(fv.images.grid(pictures, columns=4), "maximize.png")
