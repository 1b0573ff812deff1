"""Noise that the network is sure of: a king penguin, a koala, a lion."""

import torch

import fastviz as fv

model = fv.load_model("demo")
names = fv.class_names(model)
classes = torch.tensor([names.index(name) for name in ("king penguin", "koala", "lion")])
made = fv.fool_from_noise(model, classes, quantize=True)  # .probability
shown = made.pictures.repeat_interleave(4, 2).repeat_interleave(4, 3)
fv.images.save_image(fv.images.grid(shown, columns=3), "fool_from_noise.png")
