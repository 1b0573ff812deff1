"""``fastviz demo``: every method on the network and the photographs inside the package, and a page of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastviz.cli.common import app

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastviz.jobs.report import Scene, Section

__all__ = ["demo"]

_DEMO_PHOTOS = Path(__file__).parents[1] / "models" / "data" / "photos"

_PAGE = "index.html"

# A quarter of these small pictures covers a part of an object; the default of a seventh covers a detail.
_OPTIONS = {"occlusion": {"window": 16, "stride": 4}}


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page; a page of an earlier demo is replaced.")] = Path(
        "fastviz-demo"
    ),
) -> None:
    """Run every method on three photographs with the built-in network, and write a page of pictures."""
    import time

    from fastviz import models
    from fastviz._util.output_folder import locked
    from fastviz.jobs import report

    start = time.perf_counter()
    _check_page(out)
    with locked(out):
        network = models.load_model("demo")
        scenes, unfit = _scenes(network)
        sections = _sections(network)
        facts = _demo_facts(time.perf_counter() - start)
        page = report.demo_page(out, scenes, unfit=unfit, sections=sections, facts=facts)
    print(f"open {page.resolve()}")


def _check_page(out: Path) -> None:
    """Raise a ValueError if there is a page in ``out`` that is no demo's."""
    with suppress(FileNotFoundError):
        if b"<title>fastviz demo</title>" not in (out / _PAGE).read_bytes()[:4000]:
            raise ValueError(f"out: {out} has {_PAGE} that fastviz did not make; give another folder")


def _scenes(network: nn.Module) -> tuple[list[Scene], dict[str, str]]:
    """The photographs with the most probable classes and every method's picture, and the methods without, with the
    reason."""
    import torch

    from fastviz import images, models
    from fastviz.jobs import report
    from fastviz.jobs.explainer import enlarged

    classes, seen = models.class_names(network), models.preprocessing(network)
    paths = sorted(images.find_images([_DEMO_PHOTOS]), key=lambda path: path.name)
    views = [images.read_views(path, [seen, enlarged(seen)]) for path in paths]
    x, photos = torch.stack([view[0] for view in views]), [view[1] for view in views]
    overlays, unfit = _overlays(network, x, photos)
    with torch.no_grad():
        best = network(x).softmax(1).topk(3)
    scenes = []
    for at, path in enumerate(paths):
        guesses = [(classes[k], p) for k, p in zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True)]
        pictures = {name: each[at] for name, each in overlays.items()}
        scenes.append(report.Scene(path.name, photos[at], pictures, guesses))
    return scenes, unfit


def _overlays(network: nn.Module, x: Tensor, photos: Sequence[Tensor]) -> tuple[dict[str, list[bytes]], dict[str, str]]:
    """Method → its map of each picture of ``x``, drawn over the photograph, as JPEG; method → why there is none."""
    from fastviz import images
    from fastviz._util.progress import bar
    from fastviz.images import drawing, tensors
    from fastviz.images.pillow import encoded
    from fastviz.methods.registry import EXPLAINERS

    drawn, unfit = {}, {}
    with bar(True, len(EXPLAINERS), unit="methods") as advance:
        for name, method in EXPLAINERS.items():
            advance(0, name)
            try:
                found = method.function(network, x, **{**method.defaults, **_OPTIONS.get(name, {})})
            except ValueError as error:
                unfit[name] = f"Not for this network: {error}"
            except ImportError as error:
                unfit[name] = f"Not here: {error}"
            else:
                maps = getattr(found, "attribution", found)
                coarse = maps.shape[-2:] != x.shape[-2:]
                pictures = [
                    tensors.eight_bits(drawing.draw(method.draws, each, photo, coarse=coarse))
                    for each, photo in zip(maps, photos, strict=True)
                ]
                drawn[name] = [encoded(images.picture_of(each), "JPEG", quality=88) for each in pictures]
            advance(1)
    return drawn, unfit


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

    threads = torch.get_num_threads()
    return {
        "Time": f"{seconds:.1f} s",
        "Device": f"cpu, {threads} thread{'s' if threads > 1 else ''}",
        "torch": torch.__version__,
    }
