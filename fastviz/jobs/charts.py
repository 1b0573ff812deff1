"""Curves with bands, drawn by matplotlib as SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from fastviz._util.files import whole_file

__all__ = ["COLOURS", "check_installed", "curves", "intervals"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f00", "#5e3c99", "#000000")
"""Colours of the methods, in order: Okabe and Ito's palette, which is safe for colour-blind readers, and a few more."""

_CHANCE = "#8a8a94"
_DOTS_PER_INCH = 160

Line = tuple[str, Tensor, Tensor, Tensor, Tensor]
"""A curve: name, x positions, mean, lower and upper bound of the band; tensors are [S]."""


def check_installed() -> None:
    """Raise early if matplotlib is missing, before work whose result needs charts.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    if find_spec("matplotlib") is None:
        raise ImportError('charts need matplotlib: pip install "fastviz[evaluation]"')


def curves(
    stem: Path, lines: Sequence[Line], *, title: str, axes: tuple[str, str], colours: Mapping[str, str], chance: str
) -> None:
    """Write ``stem.svg`` and ``stem.png``: the mean curve of each method, with its band.

    Args:
        stem: path without a file extension.
        lines: the curves, see :data:`Line`.
        title: title above the chart.
        axes: labels of the x and y axes.
        colours: method → colour.
        chance: name of the random baseline, drawn dashed and grey.
    """
    figure, plot = _figure(6.4, 4.2)
    for name, places, mean, low, high in lines:
        colour = _CHANCE if name == chance else colours[name]
        at = places.tolist()
        plot.fill_between(at, low.tolist(), high.tolist(), color=colour, alpha=0.16, linewidth=0)
        style = "--" if name == chance else "-"
        plot.plot(at, mean.tolist(), style, color=colour, linewidth=1.8, label=name.replace("_", " "))
    plot.set_xlim(0, 1)
    plot.set_xlabel(axes[0])
    plot.set_ylabel(axes[1])
    plot.set_title(title, loc="left", fontsize=11)
    plot.legend(frameon=False, fontsize=9)
    _save(figure, stem)


def intervals(
    stem: Path, rows: Sequence[tuple[str, float, float, float]], *, title: str, axis: str, colours: Mapping[str, str]
) -> None:
    """Write ``stem.svg`` and ``stem.png``: one point with its band for each row (name, mean, low, high)."""
    figure, plot = _figure(6.4, 0.9 + 0.42 * len(rows))
    for place, (name, mean, low, high) in enumerate(rows):
        colour = colours.get(name, _CHANCE)
        plot.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
        plot.plot([mean], [place], "o", color=colour, markersize=8)
    plot.set_yticks(range(len(rows)), [name.replace("_", " ") for name, *_ in rows])
    plot.set_ylim(len(rows) - 0.4, -0.6)
    plot.set_xlabel(axis)
    plot.set_title(title, loc="left", fontsize=11)
    _save(figure, stem)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # pyplot is avoided because it keeps global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    plot = figure.add_subplot()
    plot.grid(color="#d9d9df", linewidth=0.6)
    plot.set_axisbelow(True)
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
    return figure, plot


def _save(figure: Any, stem: Path) -> None:
    for kind in ("svg", "png"):
        drawn = io.BytesIO()
        # A date in the file would make every run's output differ.
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(drawn, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata)
        with whole_file(stem.with_name(f"{stem.name}.{kind}")) as file:
            file.write(drawn.getbuffer())
