"""Neighbours: the parts of photographs nearest to some by features, beside those nearest by pixels."""

import fastviz as fv

model = fv.load_model("demo")
photos, names = fv.load_images("photos/", size=128)
parts = photos.unfold(2, 64, 16).unfold(3, 64, 16).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # [75, 3, 64, 64]
found = fv.embedding(model, fv.canvas.frame_of(model).image(parts))
near = fv.neighbours(found, 4, queries=[12, 37, 62])  # the middle of each photograph
fv.images.save_image(fv.neighbour_sheet(found, near, tile=64), "neighbours.png")
