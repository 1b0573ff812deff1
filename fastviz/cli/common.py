"""What all commands share: the program, one-line errors, tables, and the options that name a network.

An error is one line on standard error, ``fastviz: error: …``, and exit status 2; status 1 means that only a part
failed, and 130 that Ctrl-C stopped it. If the environment variable ``FASTVIZ_TRACEBACK`` is set, errors come with a
traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from fastviz._util.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fastviz.targets import Objective

__all__ = [
    "NETWORK",
    "TARGET",
    "Device",
    "ModelName",
    "NetworkArgument",
    "Stopped",
    "Weights",
    "app",
    "check_weights",
    "class_names",
    "failure_line",
    "layer_names",
    "load_network",
    "main",
    "new_console",
    "new_table",
    "numbers",
    "target_of",
]

# A pipe has no width; rich would take 80 and cut the tables.
_WIDTH_OF_A_PIPE = 180


class Stopped(Exception):  # noqa: N818 - it is no error
    """Raised for Ctrl-C; the message says what is left of the work."""


NETWORK = "The network: a name of `fastviz models`, timm/NAME, package.module:function, or a .pt2 file."
ModelName = Annotated[str, typer.Option("--model", help=NETWORK)]
NetworkArgument = Annotated[str, typer.Argument(help=NETWORK)]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="A file of weights or a checkpoint, or DEFAULT for torchvision's or timm's own."),
]

TARGET = (
    '"predicted", a class index or name, or what one writes in Python: region_score(1, "mask.png"), pixel(1, 8, 8), '
    'class_score(3) - class_score(5), neuron("LAYER", 7), ... (docs/targets.md)'
)

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:INDEX.")]


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
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a file name may hold bytes that no encoding has
                stream.reconfigure(errors="backslashreplace")
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
            except Stopped as stopped:
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
    keep_freed_memory()
    app(prog_name="fastviz")


def _in_words(error: Exception) -> tuple[str, int]:
    """What went wrong in one line, and the exit status."""
    import torch

    from fastviz._util.memory import is_out_of_memory

    if hasattr(error, "format_message"):  # typer's own errors about arguments
        return " ".join(error.format_message().split()), 2
    # A MemoryError with a message is our own and says what would fit.
    if is_out_of_memory(error) and not (isinstance(error, MemoryError) and str(error).startswith("out of memory")):
        place = "the GPU is " if isinstance(error, torch.OutOfMemoryError) else ""
        return f"{place}out of memory; try a smaller --batch-size", 2
    if isinstance(error, OSError) and error.strerror:
        said = ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
        return said + ("; what is done is kept" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""), 2
    # torch raises RuntimeError for what a model or a device cannot do.
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


def new_console() -> Console:
    """Standard output for tables; wide where it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_A_PIPE
    return console


def new_table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """A table with these columns; those named in ``numbers`` stand to the right."""
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


def check_weights(model: str, weights: str | None) -> None:
    """Refuse a network with random weights, whose results would be meaningless."""
    from fastviz.models.loading import has_own_weights

    if weights is None and not has_own_weights(model):
        raise ValueError(
            f"--weights is needed for {model}: a .safetensors or .pth file, or DEFAULT for its published ones "
            "(downloaded once)"
        )


def failure_line(name: str, reason: str) -> str:
    """One line that names a file and says why it was left out."""
    from fastviz._util.output_folder import printable

    line, shown = printable(" ".join(reason.split())), printable(name)
    named = shown in line or repr(name)[1:-1] in line
    return f"fastviz: failed: {line if named else f'{shown}: {line}'}"


def load_network(model: str, weights: str | None, device: str = "auto") -> tuple[nn.Module, torch.device]:
    """The network that ``--model`` and ``--weights`` name, on the device that ``--device`` names."""
    from fastviz import models
    from fastviz._util import checks

    check_weights(model, weights)
    place = checks.device(device)
    return models.load_model(model, weights).to(place), place


def class_names(network: nn.Module) -> list[str]:
    """What its classes are called; none where that is not known."""
    from fastviz import models

    try:
        return models.class_names(network)
    except ValueError:
        return []


def target_of(words: str, network: nn.Module) -> int | Objective | None:
    """What ``--target`` means for ``network``; None is the predicted class."""
    from fastviz.targets import parse_target

    return parse_target(words, class_names(network))


def layer_names(words: str | None) -> list[str] | None:
    """``"conv1, conv2"`` as names; None stays None."""
    return None if words is None else [name.strip() for name in words.split(",") if name.strip()]


def numbers(words: str, argument: str) -> list[int]:
    """``"3,7,16-18"`` as [3, 7, 16, 17, 18]; ``argument`` is what an error calls it."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in words.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(f"{argument} should be numbers and ranges such as 3,7,16-31, got {words!r}")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise ValueError(f"{argument} should be numbers and ranges such as 3,7,16-31, got {words!r}")
    return found
