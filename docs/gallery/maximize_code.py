"""Class images by way of a layer's code, which is decoded into a picture."""

import torch

import fastviz as fv

model = fv.load_model("demo")
wanted = ["goldfish", "monarch", "school bus", "spider web"]
classes = torch.tensor([fv.class_names(model).index(name) for name in wanted])
made = fv.maximize_code(model, classes, "pool5")
pictures = torch.nn.functional.interpolate(made.decoded.pictures, scale_factor=3, mode="bicubic").clamp(0, 1)
fv.images.save_image(fv.images.grid(pictures, columns=4), "maximize_code.png")
