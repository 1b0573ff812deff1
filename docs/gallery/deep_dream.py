"""DeepDream: a photograph, changed until a layer sees more of what it sees in it."""

import torch

import fastviz as fv

model = fv.load_model("demo")
photos, names = fv.load_images("photos/", size=256)
x = fv.canvas.frame_of(model, 256).image(photos)
dreams = [fv.deep_dream(model, x[2:], layer=layer, octaves=3).pictures for layer in ("relu3_2", "relu4_2")]
fv.images.save_image(fv.images.grid(torch.cat([photos[2:], *dreams]), columns=3), "deep_dream.png")
