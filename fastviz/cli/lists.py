"""``fastviz methods``, ``models``, ``layers`` and ``info``: what is available."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fastviz._util.errors import one_line
from fastviz.cli.common import NetworkArgument, app, new_console, new_table

__all__ = ["info", "layers", "methods", "models"]


@app.command()
def methods() -> None:
    """List the methods, with their papers."""
    from fastviz.methods.registry import METHODS

    table = new_table("method", "command", "shows", "paper")
    for method in METHODS.values():
        table.add_row(method.name, method.verb, method.summary, method.paper)
    new_console().print(table)


@app.command()
def models(
    pattern: Annotated[
        str | None, typer.Argument(help='Only names such as "*resnet*"; those of timm too: "timm/*".')
    ] = None,
) -> None:
    """List the networks that can be loaded by name."""
    from fastviz.models.loading import model_names

    for name in model_names(pattern):
        print(name)


@app.command()
def layers(
    model: NetworkArgument,
    weights: Annotated[str | None, typer.Option(help="Only needed if they change the shapes.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the input, in pixels.")] = None,
) -> None:
    """List a network's layers: output for one picture, parameters and receptive field."""
    from fastviz import graph
    from fastviz._util import checks
    from fastviz.models.loading import load_model

    if size is not None:
        checks.whole_number(size, "size", minimum=1)
    found = graph.layers(load_model(model, weights), None if size is None else (size, size))
    table = new_table(
        "layer", "kind", "output", "parameters", "field", "stride", numbers=("parameters", "field", "stride")
    )
    for layer in found:
        field = layer.receptive_field
        table.add_row(
            layer.name,
            layer.kind,
            "×".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            "" if field is None else "×".join(map(str, field.size)),
            "" if field is None else "×".join(map(str, field.stride)),
        )
    new_console().print(table)


@app.command()
def info() -> None:
    """Print versions, native libraries and devices, and why CUDA is or is not used."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import fastviz
    from fastviz import ops

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    table = new_table("", "")
    table.add_row("fastviz", fastviz.__version__)
    for package in ("torch", "torchvision"):
        table.add_row(package, installed(package))
    table.add_row("Python", f"{platform.python_version()} on {platform.platform()}")
    for name, where in ops.libraries().items():
        table.add_row(f"{name} library", where)
    table.add_row(
        "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads ({torch.backends.cpu.get_cpu_capability()})"
    )
    used, best = ops.instructions()
    lesser = "" if used == best else f", by FASTVIZ_CPU; this processor has {best}"
    table.add_row("instructions", f"{used}{lesser}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            memory, capability = device.total_memory / 2**30, f"{device.major}.{device.minor}"
            table.add_row(f"cuda:{index}", f"{device.name}, {memory:.0f} GiB, compute capability {capability}")
    table.add_row("CUDA", _about_cuda(ops.libraries().get("cuda", "")))
    table.show_header = False
    new_console().print(table)


def _about_cuda(library: str) -> str:
    """Whether CUDA is used, and why not."""
    import torch

    if torch.version.cuda is None:
        return "not used: this torch is built without CUDA (https://pytorch.org/get-started/locally)"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
            reason = "torch finds no GPU"
        except (RuntimeError, AssertionError) as error:
            reason = one_line(error)
        return f"not used: {reason} (torch is built for CUDA {torch.version.cuda})"
    if library.startswith("not loaded"):
        return f"used by torch, not by fastviz's operators: library {library}"
    return f"used (CUDA {torch.version.cuda})"
