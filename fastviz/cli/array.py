"""``fastviz array``: what a network looks at in a signal or a volume that a NumPy file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import TARGET, Device, ModelName, Weights, app, load_network, target_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["array"]

_METHODS = (
    *("saliency", "input_gradient", "gradient_times_input", "smooth_grad", "deconvnet", "guided_backprop"),
    *("cam", "grad_cam", "guided_grad_cam", "occlusion"),
)


@app.command()
def array(
    file: Annotated[Path, typer.Argument(help="A .npy file: [L], [C, L], [D, H, W] or [C, D, H, W].")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    model: ModelName,
    weights: Weights = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(_METHODS)}.")] = "grad_cam",
    target: Annotated[str, typer.Option(help=TARGET)] = "predicted",
    layer: Annotated[str | None, typer.Option(help="Layer for Grad-CAM.")] = None,
    slices: Annotated[int, typer.Option(help="For a volume: maximum number of slices.")] = 16,
    map_file: Annotated[Path | None, typer.Option("--map", help="Write the map itself, too: .npy.")] = None,
    device: Device = "auto",
) -> None:
    """Draw what a network looks at in a signal (curves on a coloured band) or a volume (a sheet of slices)."""
    import numpy as np

    from fastviz import images, methods
    from fastviz._util import checks
    from fastviz._util.files import whole_file

    images.picture_path(out, "--out")
    checks.whole_number(slices, "--slices", minimum=1)
    entry = methods.METHODS[checks.nearest(method, "--method", _METHODS)]
    if layer is not None and "grad_cam" not in method:
        raise ValueError(f"--layer is for grad_cam and guided_grad_cam, got --method {method}")
    if map_file is not None and map_file.suffix != ".npy":
        raise ValueError(f"--map should end in .npy, got {map_file}")
    values = _read(file)
    network, place = load_network(model, weights, device)
    options: dict[str, Any] = {} if layer is None else {"layer": layer}
    made = entry.function(network, values[None].to(place), target_of(target, network), **options)
    found: Tensor = getattr(made, "attribution", made)[0].float().cpu()
    if found.dim() == values.dim():  # a value for each channel
        found = found.mean(0)
    draws: Any = "heat" if entry.draws == "heat" else "signed"
    if values.dim() == 2:
        picture = images.draw_signal(values, found, draws)
    else:
        picture = images.draw_volume(values, found, draws, slices=slices)
    images.save_image(picture, out)
    if map_file is not None:
        with whole_file(map_file) as opened:
            np.save(opened, found.numpy())
        print(f"map: {map_file}, {list(found.shape)}")
    what = "signal" if values.dim() == 2 else "volume"
    print(f"{what} of {values.shape[0]} channels and {'x'.join(map(str, values.shape[1:]))} values")
    print(f"picture: {out}")


def _read(file: Path) -> Tensor:
    """The signal [C, L] or volume [C, D, H, W] in a NumPy file, float32."""
    import torch

    from fastviz import images

    values = images.read_array(file)
    if values.dim() not in (1, 2, 3, 4) or values.dtype == torch.bool:
        raise ValueError(f"{file} should hold numbers [L], [C, L], [D, H, W] or [C, D, H, W], got {list(values.shape)}")
    return (values[None] if values.dim() in (1, 3) else values).float()
