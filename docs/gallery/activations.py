"""Activations: what the maps of a layer answer to a photograph."""

import fastviz as fv

model = fv.load_model("demo")
x, names = fv.load_images("photos/", model=model)
maps = fv.activations(model, x, "relu2_2")  # [3, 64, 32, 32]
sheet = fv.activation_grid(maps[1, :32], image=fv.images.restore(x, model)[1], columns=11)
fv.images.save_image(sheet.repeat_interleave(2, 1).repeat_interleave(2, 2), "activations.png")
