"""Style: a photograph with the style of a texture, its own colours kept."""

import torch

import fastviz as fv

model = fv.load_model("demo")
photo = fv.load_images("photos/espresso.jpg", size=256)[0]
frame = fv.canvas.frame_of(model, 256)
shown = [photo[0]]
for name in ("brick", "gravel"):
    style = fv.images.read_image(f"textures/{name}.png")[None]
    made = fv.style_transfer(
        model, frame.image(photo), frame.image(style), steps=30, style_weight=30.0, preserve_colours=True
    )
    shown.append(made.pictures[0])
fv.images.save_image(fv.images.grid(torch.stack(shown), columns=3), "style_transfer.png")
