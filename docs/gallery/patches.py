"""Patches: the places that excite a channel most, with what guided backprop sees in them."""

import fastviz as fv

model = fv.load_model("demo")
found = fv.patches(model, "photos/", "relu3_2", one_per_image=False)
shown = fv.patch_pictures(model, found, "photos/", [5, 15, 39, 64])
fv.images.save_image(fv.patch_sheet(shown, columns=2), "patches.png")
