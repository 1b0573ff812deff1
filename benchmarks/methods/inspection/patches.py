"""Patches of all convolutions of VGG-16 at once, compared with the forward passes alone and with captum.

``python -m benchmarks.methods.inspection.patches`` takes ten minutes on two cores. The bare forward pass uses the same
images in the same batches, in inference mode, without recording anything. With captum's ``LayerActivation``, the top k
are taken from the maxima of each map, in the two usual ways: one pass over the images for each layer, and one pass that
keeps all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import fastviz as fv
from benchmarks.common import parse, parser, row, side_by_side, write

K = 9
ROUNDS = 5


def bare(model: nn.Module, images: Tensor, batch: int) -> None:
    """The forward passes alone."""
    with torch.inference_mode():
        for part in images.split(batch):
            model(part)


def captum_patches(
    model: nn.Module, images: Tensor, batch: int, layers: Sequence[str], *, together: bool
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Values, images and flat positions [C, K] of each layer."""
    from captum.attr import LayerActivation

    modules = {name: model.get_submodule(name) for name in layers}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def take(name: str, maps: Tensor) -> None:
        values, places = maps.flatten(2).max(2)
        seen[name].append((values, places))

    with torch.inference_mode():
        if together:
            method = LayerActivation(model, list(modules.values()))
            for part in images.split(batch):
                for name, maps in zip(layers, method.attribute(part), strict=True):
                    take(name, maps)
        else:
            for name, module in modules.items():
                method = LayerActivation(model, module)
                for part in images.split(batch):
                    take(name, method.attribute(part))
        found = {}
        for name, parts in seen.items():
            values, places = (torch.cat(each).T for each in zip(*parts, strict=True))
            best, image = values.topk(min(K, len(images)), dim=1)
            found[name] = (best, image, places.gather(1, image))
    return found


def check(model: nn.Module, images: Tensor, batch: int, layers: Sequence[str]) -> None:
    """Check that the alternatives find the same patches as fastviz."""
    mine = fv.patches(model, images, k=K, batch_size=batch)
    for together in (False, True):
        for name, (values, _, _) in captum_patches(model, images, batch, layers, together=together).items():
            torch.testing.assert_close(values, mine[name].values[:, : values.shape[1]])


def main() -> None:
    arguments = parser(__doc__, "patches")
    arguments.add_argument("--images", type=int, default=64, help="images of the comparison with one pass")
    arguments.add_argument("--few", type=int, default=16, help="images of the comparison with one pass per layer")
    arguments.add_argument("--batch", type=int, default=16, help="images in a forward pass")
    arguments.add_argument("--few-only", action="store_true", help="the row of several patches per image alone")
    options = parse(arguments, "patches")
    model = fv.load_model("vgg16").to(options.device)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    images = torch.randn(options.images, 3, 224, 224, device=options.device)
    few = images[: options.few]
    if not options.few_only:
        check(model, few, options.batch, layers)

    def mine(source: Tensor, one_per_image: bool = True) -> Callable[[], object]:
        return lambda: fv.patches(model, source, k=K, one_per_image=one_per_image, batch_size=options.batch)

    where = f"VGG-16, {len(layers)} layers, {{}} images, k {K}"
    note = "fastviz with the export of the model that gives the receptive fields, in every call"
    several = {"fastviz": mine(few, one_per_image=False), "bare forward pass": lambda: bare(model, few, options.batch)}
    times = side_by_side(several, options.device, rounds=ROUNDS, warm_up=1)
    rows = [row("patches, several an image", where.format(len(few)), times, {}, note)]
    if not options.few_only:
        together = {
            "fastviz": mine(images),
            "bare forward pass": lambda: bare(model, images, options.batch),
            "captum, one pass": lambda: captum_patches(model, images, options.batch, layers, together=True),
        }
        times = side_by_side(together, options.device, rounds=ROUNDS, warm_up=1)
        rows.append(row("patches", where.format(len(images)), times, {"bare forward pass": 0.9}, note))
        apart = {
            "fastviz": mine(few),
            "captum, a pass a layer": lambda: captum_patches(model, few, options.batch, layers, together=False),
        }
        times = side_by_side(apart, options.device, rounds=ROUNDS, warm_up=1)
        rows.append(row("patches", where.format(len(few)), times, {}, note))
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
