"""Filters: the weights that the first layer lays over a picture, each scaled on its own."""

import fastviz as fv

model = fv.load_model("demo")
found = fv.filters(model)  # [32, 3, 7, 7], 0 to 1
fv.images.save_image(fv.filter_grid(found, magnify=12), "filters.png")
