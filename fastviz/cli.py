"""The command line: ``fastviz explain``, ``demo``, ``methods``, ``models``, ``layers`` and ``info``.

An error is one line on standard error, ``fastviz: error: …``, and exit status 2; status 1 means that the rest was done;
130 that Ctrl-C stopped it. With the environment variable ``FASTVIZ_TRACEBACK`` set, errors show where they arose.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from torch import nn

    from fastviz.jobs import Settings, Summary
    from fastviz.report import Scene

__all__ = ["app", "main"]

_DEMO_PHOTOS = Path(__file__).parent / "data" / "photos"
# A pipe has no width; rich would take 80 and cut the tables.
_WIDTH_OF_A_PIPE = 160


class _Stopped(Exception):  # noqa: N818 - it is no error
    """Ctrl-C, and what is left of the work in words."""


class _Commands(TyperGroup):
    """The commands, with errors as one line instead of a frame or a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and end in ``SystemExit`` unless ``standalone_mode`` is off."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                status = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
                if status == 130:  # typer's word for Ctrl-C; that of its older versions is Abort
                    raise typer.Abort
            except typer.Abort:
                status = 130
                print("fastviz: stopped", file=sys.stderr)
            except _Stopped as stopped:
                status = 130
                print(f"fastviz: stopped; {stopped}", file=sys.stderr)
            except Exception as error:
                if os.environ.get("FASTVIZ_TRACEBACK"):
                    raise
                message, status = _in_words(error)
                print(f"fastviz: error: {message}", file=sys.stderr)
        sys.exit(status or 0)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="See inside convolutional networks: what they look at, and why.",
)


def main() -> None:
    """Run the command line with the arguments of the process; ends in ``SystemExit``."""
    app(prog_name="fastviz")


def _in_words(error: Exception) -> tuple[str, int]:
    """What went wrong in one line, and the exit status."""
    import torch

    if hasattr(error, "format_message"):  # what typer says of arguments
        return " ".join(error.format_message().split()), 2
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU is out of memory; try a smaller --batch-size", 2
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None), 2
    # RuntimeError is how torch refuses what a model or a device cannot do.
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)) and str(error):
        return " ".join(str(error).split()).removeprefix("fastviz: "), 2
    name = type(error).__name__
    return f"unexpected {name}: {' '.join(str(error).split())} (set FASTVIZ_TRACEBACK=1 to see where)", 1


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line, as errors are."""
    print(f"fastviz: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_A_PIPE
    return console


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def _print_version(wanted: bool) -> None:
    if wanted:
        import fastviz

        print(f"fastviz {fastviz.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


# ------------------------------------------------------------------------------------------------------ explain


@app.command()
def explain(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders or globs.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; a second run goes on where the first stopped.")],
    model: Annotated[str, typer.Option(help="The network: see `fastviz models`.")] = "demo",
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .pth file, or DEFAULT for torchvision's own.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Names with commas between: see `fastviz methods`.")
    ] = "saliency,guided_backprop,grad_cam,occlusion",
    target: Annotated[str, typer.Option(help='"predicted", a class index or a class name.')] = "predicted",
    layer: Annotated[str | None, typer.Option(help="Layer for Grad-CAM: see `fastviz layers`.")] = None,
    window: Annotated[int | None, typer.Option(help="Occlusion's window, in pixels of the network's input.")] = None,
    stride: Annotated[int | None, typer.Option(help="Step between occlusion's windows, in pixels.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:INDEX.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures the network sees at once: bounds the memory.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Explain only the first so many photographs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False,
) -> None:
    """Explain what a network sees in each photograph: overlays, raw arrays, contact sheets and an HTML report."""
    from fastviz import jobs

    if model != "demo" and weights is None:
        raise ValueError(
            f"--weights is needed for {model}: a .safetensors or .pth file, or DEFAULT for torchvision's own "
            "(downloaded once)"
        )
    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    settings = jobs.Settings(model, weights, names, target, layer, window, stride)
    try:
        summary = jobs.explain(
            photos,
            out,
            settings,
            device=device,
            batch_size=batch_size,
            limit=limit,
            overwrite=overwrite,
            progress=True,
        )
        written = _report(out, settings, summary) if summary.done or summary.skipped else []
    except KeyboardInterrupt:
        done = _photographs(sum(1 for _ in jobs.read_results(out)))
        raise _Stopped(f"{done} done in {out}, the same command goes on from there") from None
    _print_summary(summary)
    if written:
        print(f"pictures: {' and '.join(map(str, written))}")
    for name, reason in summary.failures:
        print(f"fastviz: failed: {_reason(name, reason)}", file=sys.stderr)
    if summary.failures:
        raise typer.Exit(1)


def _report(out: Path, settings: Settings, summary: Summary) -> list[Path]:
    """Write the contact sheets and pages of a job; the first of each."""
    from fastviz import report

    facts = {
        "Network": settings.model,
        "Weights": settings.weights or "built-in",
        "Target": settings.target,
        "Layer": settings.layer,
        "Window": settings.window,
        "Stride": settings.stride,
    }
    sheets = report.contact_sheets(out)
    pages = report.pages(
        out,
        title=f"What {settings.model} looks at",
        facts={name: str(value) for name, value in facts.items() if value is not None},
        failures=summary.failures,
    )
    return [pages[0], *sheets[:1]]


def _photographs(number: int) -> str:
    return f"{number} photograph{'' if number == 1 else 's'}"


def _reason(name: str, reason: str) -> str:
    """A failure in one line that names the file once."""
    line = " ".join(reason.split())
    return line if name in line else f"{name}: {line}"


def _print_summary(summary: Summary) -> None:
    if summary.done:
        table = _table("method", "seconds", "a photograph", numbers=("seconds", "a photograph"))
        for name, seconds in summary.seconds.items():
            table.add_row(name, f"{seconds:.1f}", f"{1000 * seconds / summary.done:.0f} ms")
        _console().print(table)
    words = [f"{_photographs(summary.done)} explained in {summary.total_seconds:.1f} s"]
    if summary.skipped:
        words.append(f"{summary.skipped} done before")
    if summary.failures:
        words.append(f"{len(summary.failures)} failed")
    print(", ".join(words))


# --------------------------------------------------------------------------------------------------------- demo


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the page and its pictures; replaced when it is a demo's.")
    ] = Path("fastviz-demo"),
) -> None:
    """Run every method on three photographs with the network inside the package, and write a page of pictures."""
    import time

    from fastviz import images, jobs, models, report

    start = time.perf_counter()
    network = models.load_model("demo")
    photos = sorted(images.find_images([_DEMO_PHOTOS]), key=lambda path: path.name)
    batch, _ = images.load_images(photos, model=network)
    names, unfit = _methods_for(network, batch[:1])
    # A quarter of these small pictures covers a part of an object; the default of a seventh covers a detail.
    settings = jobs.Settings("demo", methods=names, window=16, stride=4)
    jobs.explain(photos, out, settings, model=network, overwrite=True, progress=True)
    page = report.demo_page(
        out,
        _scenes(network, out),
        unfit=unfit,
        filters=_first_filters(network),
        facts=_demo_facts(time.perf_counter() - start),
    )
    print(f"open {page.resolve()}")


def _methods_for(network: nn.Module, x: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of the methods that suit ``network``, and of the others with the reason, tried on one picture ``x``."""
    from fastviz.methods import METHODS

    fit, unfit = [], {}
    for name, method in METHODS.items():
        try:
            # A method of many passes is tried with as few as possible; whether it suits the network is the same.
            windows = "window" in inspect.signature(method.function).parameters
            method.function(network, x, **({"window": min(x.shape[-2:])} if windows else {}))
            fit.append(name)
        except ValueError as error:
            unfit[name] = str(error)
    return tuple(fit), unfit


def _scenes(network: nn.Module, out: Path) -> list[Scene]:
    """The photographs of the demo with the three classes that the network thinks of first."""
    import torch

    from fastviz import images, jobs, models, report

    classes = models.class_names(network)
    scenes = []
    for results in jobs.read_results(out):
        x = images.preprocess(images.read_image(results[0].source), models.preprocessing(network))
        with torch.no_grad():
            probabilities, indices = network(x[None])[0].softmax(0).topk(min(3, len(classes)))
        guesses = [(classes[i], p) for i, p in zip(indices.tolist(), probabilities.tolist(), strict=True)]
        scenes.append(report.Scene(results, guesses))
    return scenes


def _first_filters(network: nn.Module) -> Any:
    """A picture [3, H, W] of the first convolution's filters, each scaled on its own; None if it takes no colours."""
    from torch import nn
    from torch.nn import functional

    from fastviz import pictures

    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        return None
    filters = pictures.normalise(first.weight.detach(), symmetric=True, dims=3)
    larger = functional.interpolate(filters, scale_factor=8, mode="nearest")
    return pictures.grid(larger, columns=16, padding=4)


def _demo_facts(seconds: float) -> dict[str, str]:
    import torch

    from fastviz import jobs

    threads = torch.get_num_threads()
    return {
        "Time": f"{seconds:.1f} s",
        "Device": f"{jobs.choose_device()}, {threads} thread{'s' if threads > 1 else ''}",
        "torch": torch.__version__,
    }


# --------------------------------------------------------------------------------------------------------- lists


@app.command()
def methods() -> None:
    """List the methods, with their papers."""
    from fastviz.methods import METHODS

    table = _table("method", "shows", "paper")
    for method in METHODS.values():
        table.add_row(method.name, method.summary, method.paper)
    _console().print(table)


@app.command()
def models() -> None:
    """List the networks that can be loaded by name."""
    from fastviz.models import model_names

    for name in model_names():
        print(name)


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="The network: see `fastviz models`.")],
    weights: Annotated[str | None, typer.Option(help="Only needed where they change the shapes.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the input, in pixels.")] = None,
) -> None:
    """List a network's layers: output for one picture, parameters and receptive field."""
    from fastviz import checks, graph
    from fastviz.models import load_model

    if size is not None:
        checks.whole_number(size, "size", minimum=1)
    found = graph.layers(load_model(model, weights), None if size is None else (size, size))
    table = _table(
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
    _console().print(table)


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

    table = _table("", "")
    table.add_row("fastviz", fastviz.__version__)
    for package in ("torch", "torchvision"):
        table.add_row(package, installed(package))
    table.add_row("Python", f"{platform.python_version()} on {platform.platform()}")
    for name, where in ops.libraries().items():
        table.add_row(f"{name} library", where)
    table.add_row(
        "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads ({torch.backends.cpu.get_cpu_capability()})"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            memory, capability = device.total_memory / 2**30, f"{device.major}.{device.minor}"
            table.add_row(f"cuda:{index}", f"{device.name}, {memory:.0f} GiB, compute capability {capability}")
    table.add_row("CUDA", _about_cuda(ops.libraries().get("cuda", "")))
    table.show_header = False
    _console().print(table)


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
            reason = " ".join(str(error).split())
        return f"not used: {reason} (torch is built for CUDA {torch.version.cuda})"
    if library.startswith("not loaded"):
        return f"used by torch, not by fastviz's operators: library {library}"
    return f"used (CUDA {torch.version.cuda})"
