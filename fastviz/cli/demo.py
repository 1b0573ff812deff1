"""``fastviz demo``: every method on the network and the photographs inside the package, and a page of pictures."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastviz.cli.common import app

if TYPE_CHECKING:
    from torch import nn

    from fastviz.jobs.report import Scene, Section

__all__ = ["demo"]

_DEMO_PHOTOS = Path(__file__).parents[1] / "models" / "data" / "photos"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page and its tables; replaces an earlier demo.")] = Path(
        "fastviz-demo"
    ),
) -> None:
    """Run every method on three photographs with the built-in network, and write a page of pictures."""
    import time

    from fastviz import images, jobs, models
    from fastviz.jobs import report

    start = time.perf_counter()
    network = models.load_model("demo")
    photos = sorted(images.find_images([_DEMO_PHOTOS]), key=lambda path: path.name)
    batch, _ = images.load_images(photos, model=network)
    names, unfit = _methods_for(network, batch[:1])
    # A quarter of these small pictures covers a part of an object; the default of a seventh covers a detail.
    chosen = [{name: {"window": 16, "stride": 4}} if name == "occlusion" else name for name in names]
    jobs.run(photos, out, model=network, methods=chosen, maps="none", overlays=True, overwrite=True, progress=True)
    page = report.demo_page(
        out,
        _scenes(network, out),
        unfit=unfit,
        sections=_sections(network),
        facts=_demo_facts(time.perf_counter() - start),
    )
    print(f"open {page.resolve()}")


def _methods_for(network: nn.Module, x: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """The methods that work for ``network``, and the others with the reason, found by trying each on one picture
    ``x``."""
    from fastviz.methods.registry import EXPLAINERS

    fit, unfit = [], {}
    for name, method in EXPLAINERS.items():
        try:
            # Methods with many passes are tried with as few as possible: whether they work does not depend on it.
            windows = "window" in inspect.signature(method.function).parameters
            method.function(network, x, **({"window": min(x.shape[-2:])} if windows else {}))
            fit.append(name)
        except (ValueError, ImportError) as error:
            unfit[name] = str(error)
    return tuple(fit), unfit


def _scenes(network: nn.Module, out: Path) -> list[Scene]:
    """The photographs of the demo with the three most probable classes."""
    import torch

    from fastviz import images, jobs, models
    from fastviz.jobs import report
    from fastviz.jobs.explainer import enlarged

    classes = models.class_names(network)
    scenes = []
    seen = models.preprocessing(network)
    for rows in jobs.open(out).images(["method", "overlay", "error"]):
        name = rows[0]["id"]
        x, photo = images.read_views(_DEMO_PHOTOS / name, [seen, enlarged(seen)])
        with torch.no_grad():
            probabilities, indices = network(x[None])[0].softmax(0).topk(min(3, len(classes)))
        guesses = [(classes[i], p) for i, p in zip(indices.tolist(), probabilities.tolist(), strict=True)]
        scenes.append(report.Scene(name, photo, {row["method"]: row["overlay"] for row in rows}, guesses))
    return scenes


def _sections(network: nn.Module) -> list[Section]:
    """The page's sections below the photographs, one function for each family of methods."""
    from fastviz.cli import dream, fool, invert, maximize, patches, reading, style, texture

    return [
        *reading.demo_sections(network, _DEMO_PHOTOS),
        patches.demo_section(network, [_DEMO_PHOTOS]),
        maximize.demo_section(network),
        invert.demo_section(network, _DEMO_PHOTOS),
        dream.demo_section(network, _DEMO_PHOTOS / "tabby_cat.jpg"),
        fool.demo_section(network, _DEMO_PHOTOS / "rocket.jpg"),
        texture.demo_section(),
        texture.neural_section(network),
        style.demo_section(network, _DEMO_PHOTOS / "espresso.jpg"),
    ]


def _demo_facts(seconds: float) -> dict[str, str]:
    import torch

    from fastviz._util import checks

    threads = torch.get_num_threads()
    return {
        "Time": f"{seconds:.1f} s",
        "Device": f"{checks.device('auto')}, {threads} thread{'s' if threads > 1 else ''}",
        "torch": torch.__version__,
    }
