"""Embedding: parts of the photographs where the network puts them, brought to a plane by t-SNE."""

import fastviz as fv

model = fv.load_model("demo")
photos, names = fv.load_images("photos/", size=128)
parts = photos.unfold(2, 64, 16).unfold(3, 64, 16).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # [75, 3, 64, 64]
found = fv.embedding(model, fv.canvas.frame_of(model).image(parts))  # .vectors [75, 144]
places = fv.image_map(found.pictures, fv.tsne(found.vectors), tile=64)
fv.images.save_image(places.picture, "embedding.png")
