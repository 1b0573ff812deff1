"""Fooling: a photograph, the same seen as a koala, and the change, ten times as strong."""

import torch

import fastviz as fv

model = fv.load_model("demo")
x, names = fv.load_images("photos/", model=model)
made = fv.fool(model, x[1:2], fv.class_names(model).index("koala"), quantize=True)
before = fv.images.restore(x[1:2], model)
shown = torch.cat([before, made.pictures, (0.5 + 10 * (made.pictures - before)).clamp(0, 1)])
shown = shown.repeat_interleave(4, 2).repeat_interleave(4, 3)
fv.images.save_image(fv.images.grid(shown, columns=3), "fool.png")
