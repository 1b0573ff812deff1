"""CAM: the last maps, weighted by a class's weights. The built-in network first gets the end that this needs."""

import torch
from torch import nn

import fastviz as fv
from fastviz.images.drawing import draw

demo = fv.load_model("demo")
x, names = fv.load_images("photos/", model=demo)
photos, _ = fv.load_images("photos/", size=256)

# As Zhou et al. did with VGG: average pooling and one linear layer, which learns the network's own scores of parts.
parts = photos.unfold(2, 64, 16).unfold(3, 64, 16).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
parts = torch.cat([x, fv.canvas.frame_of(demo, 64).image(parts)])  # [510, 3, 64, 64]
convolutions = list(demo.children())[:20]  # up to relu5_1
trunk = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())
head = nn.Linear(160, 20, bias=False)
with torch.no_grad():
    head.weight.copy_(torch.linalg.lstsq(trunk(parts), demo(parts)).solution.T)

maps = fv.cam(nn.Sequential(*trunk, head).eval(), x)
pictures = [draw("signed", each, photo) for each, photo in zip(maps, photos, strict=True)]
fv.images.save_image(fv.images.grid(torch.stack(pictures), columns=3), "cam.png")
