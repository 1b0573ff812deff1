"""The output of a comparison: tables, charts, strips of maps, and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from fastviz import images
from fastviz._util.files import whole_file
from fastviz.evaluation import MEASURES, Row, parameter_randomisation, statistics
from fastviz.evaluation._maps import own_maps
from fastviz.evaluation.evaluate import chosen_methods, table
from fastviz.evaluation.measures import RANDOM
from fastviz.evaluation.statistics import Standings
from fastviz.images import captions, drawing
from fastviz.images.streams import Stream
from fastviz.jobs import charts
from fastviz.jobs.report import render
from fastviz.methods.registry import EXPLAINERS

__all__ = ["Output", "number"]

_MOST_DISAGREED = 8
"""Number of photographs on the page: those on which the methods disagree most."""
_STRIPS = 2
"""Number of photographs whose maps are shown while the network's weights are randomised."""
_CELL, _GAP, _HEADER, _NAMES = 168, 6, 30, 170
"""Sizes in the sheet of these maps, in pixels: a map, the gap, the header row, and the column of names."""


@dataclass
class Output:
    """Writes the files of a comparison."""

    folder: Path
    network: nn.Module
    stream: Stream
    methods: list[str]
    measures: list[str]
    options: Mapping[str, Mapping[str, Any]]
    rows: list[Row]
    classes: list[str]
    standings: Standings
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ranked = [name for name in self.methods if name != RANDOM]
        self.colours = {name: charts.COLOURS[at % len(charts.COLOURS)] for at, name in enumerate(ranked)}
        self.values = {(row["index"], row["method"], row["measure"]): row for row in self.rows}
        self.images = {row["index"]: row for row in self.rows}

    def write(self, facts: Mapping[str, str], seconds: float) -> None:
        """Write all files, the page last."""
        for part in ("charts", "pictures"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
            for old in (self.folder / part).iterdir():
                old.unlink()
        self._tables()
        drawn = self._charts()
        disagreements = self._disagreements()
        strips = self._strips()
        page = self.folder / "comparison.html"
        render(
            page,
            "comparison.html",
            title=f"Which method for {facts['Network']}?",
            facts={**facts, "Time": _duration(seconds)},
            measures=[MEASURES[name] for name in self.measures],
            methods=[*self.standings.overall, *([RANDOM] if RANDOM in self.methods else [])],
            overall=self.standings.overall,
            verdict=_verdict(self.standings),
            best={name: self._best(name) for name in self.measures},
            each={(one.method, one.measure): one for one in self.standings.each},
            charts=drawn,
            disagreements=disagreements,
            strips=strips,
            failures=self.stream.failures,
            notes=self.notes,
            colours=self.colours,
            number=number,
            random=RANDOM,
        )
        self.files.append(page)

    # ------------------------------------------------------------------------------------------------- tables

    def _tables(self) -> None:
        columns = ("image", "index", "method", "measure", "value", "target", "class", "probability")
        lines = [{**{key: row.get(key) for key in columns}, "class": self._class(row["target"])} for row in self.rows]
        self._csv("table.csv", columns, lines)
        standing = [
            {
                "measure": one.measure,
                "method": one.method,
                "mean": one.mean,
                "low": one.low,
                "high": one.high,
                "images": one.images,
                "place": one.place or "",
                "tied_with_best": one.tied if one.place else "",
            }
            for one in self.standings.each
        ]
        self._csv("ranking.csv", list(standing[0]), standing)
        if find_spec("pyarrow") is None:
            self.notes.append('table.parquet was not written: it needs pyarrow (pip install "fastviz[evaluation]")')
            (self.folder / "table.parquet").unlink(missing_ok=True)
            return
        from pyarrow import parquet

        path = self.folder / "table.parquet"
        with whole_file(path) as file:
            parquet.write_table(table(self.rows), file)
        self.files.append(path)

    def _csv(self, name: str, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        with whole_file(self.folder / name) as file:
            file.write(text.getvalue().encode())
        self.files.append(self.folder / name)

    def _class(self, index: int | None) -> str:
        return "" if index is None else self.classes[index]

    def _best(self, measure: str) -> list[str]:
        """The best method by a measure, then the methods that are not significantly worse."""
        of = [one for one in self.standings.each if one.measure == measure and (one.place == 1 or one.tied)]
        return [one.method for one in sorted(of, key=lambda one: one.place)]

    # ------------------------------------------------------------------------------------------------- charts

    def _charts(self) -> list[tuple[str, str]]:
        """Write the charts; returns (name, path without extension) for each."""
        drawn = []
        overall = [(name, *band) for name, band in self.standings.overall.items()]
        if overall:
            charts.intervals(
                self.folder / "charts/overall",
                overall,
                title="Mean rank over the measures, with 95 % bands",
                axis="rank (1 is best)",
                colours=self.colours,
            )
            drawn.append(("overall", "charts/overall"))
        for name in self.measures:
            measure = MEASURES[name]
            lines = [line for method in self.methods if (line := self._line(method, name)) is not None]
            if not measure.axes or not lines:
                continue
            better = {"lower": "lower is better", "higher": "higher is better", None: ""}[_curve_better(name)]
            title = f"{name.replace('_', ' ')}: {better}" if better else name.replace("_", " ")
            stem = self.folder / "charts" / name
            axes = (measure.axes[0], measure.axes[1])
            charts.curves(stem, lines, title=title, axes=axes, colours=self.colours, chance=RANDOM)
            drawn.append((name, f"charts/{name}"))
        self.files += [self.folder / f"{path}.{kind}" for _, path in drawn for kind in ("svg", "png")]
        return drawn

    def _line(self, method: str, measure: str) -> charts.Line | None:
        """The mean curve over the photographs, with its band. Curves with another number of points than the first are
        left out."""
        of = [self.values.get((index, method, measure)) for index in self.images]
        whole = [row for row in of if row is not None and row["curve"] is not None]
        whole = [row for row in whole if len(row["curve"]) == len(whole[0]["curve"])]
        if not whole:
            return None
        band = statistics.bootstrap(torch.tensor([row["curve"] for row in whole], dtype=torch.float64))
        places = torch.tensor([row["places"] for row in whole], dtype=torch.float64).mean(0)
        return method, places, band.mean, band.low, band.high

    # ----------------------------------------------------------------------------------------------- pictures

    def _disagreements(self) -> list[dict[str, Any]]:
        """The photographs on which the methods disagree most, each with every method's map and values."""
        methods = [name for name in self.methods if name != RANDOM]
        agreed = {}
        for index in self.images:
            of = [self.values[index, name, "agreement"]["value"] for name in methods]
            known = torch.tensor(of, dtype=torch.float64)
            agreed[index] = float(known.nanmean()) if len(methods) > 1 else 0.0
        order = sorted(agreed, key=lambda index: (agreed[index] != agreed[index], agreed[index]))[:_MOST_DISAGREED]
        return [self._drawn(index, agreed[index], methods) for index in order]

    def _drawn(self, index: int, agreed: float, methods: Sequence[str]) -> dict[str, Any]:
        first = self.images[index]
        photo = self.stream.picture(index)
        name = f"pictures/{index:05d}"
        images.save_image(photo, self.folder / f"{name}.png")
        maps = []
        for method in methods:
            picture = self._picture(method, self._map(method, index), photo)
            images.save_image(picture, self.folder / f"{name}_{method}.png")
            figures = []
            for measure in self.measures:
                row = self.values[index, method, measure]
                if MEASURES[measure].better is not None and row["value"] == row["value"]:
                    figures.append((measure.replace("_", " "), number(row["value"])))
            maps.append({"method": method, "picture": f"{name}_{method}.png", "figures": figures})
            self.files.append(self.folder / f"{name}_{method}.png")
        self.files.append(self.folder / f"{name}.png")
        return {
            "index": index,
            "file": first["image"],
            "class": self._class(first["target"]),
            "probability": first["probability"],
            "agreement": agreed,
            "photo": f"{name}.png",
            "maps": maps,
        }

    def _map(self, method: str, index: int) -> Tensor:
        """The method's map of one photograph."""
        (explain, _), target = chosen_methods([method], self.options)[method], self.images[index]["target"]
        found = explain(self.network, self.stream.image(index)[None], target)
        found = found if isinstance(found, Tensor) else found.attribution
        maps: Tensor = found[0].detach().float().cpu()
        return maps

    def _picture(self, method: str, found: Tensor, photo: Tensor) -> Tensor:
        draws = EXPLAINERS[method].draws
        if draws == "gradient":
            # Next to heat maps, signed gradients would be hard to compare, so their magnitude is shown.
            draws, found = "heat", own_maps(found[None], 1)[0]
        coarse = found.shape[-2:] != photo.shape[-2:]
        return drawing.draw(draws, found, photo, coarse=coarse)

    # ------------------------------------------------------------------------------------------------- strips

    def _strips(self) -> list[dict[str, Any]]:
        """For some photographs, a picture of each method's maps while the network's layers are randomised."""
        if "parameter_randomisation" not in self.measures:
            return []
        # Maps are clearest where the network is most confident.
        order = sorted(self.images, key=lambda index: -self.images[index]["probability"])
        strips = []
        for index in order[:_STRIPS]:
            photo = self.stream.picture(index)
            lines, words = [], []
            for method in (name for name in self.methods if name != RANDOM):
                (explain, _) = chosen_methods([method], self.options)[method]
                settings = {"steps": 8} | dict(self.options.get("parameter_randomisation", {}))
                found = parameter_randomisation(
                    *(self.network, self.stream.image(index)[None], explain, self.images[index]["target"]),
                    **settings,
                )
                pictures = [self._picture(method, each[0].float().cpu(), photo) for each in found.maps]
                words = ["as trained", *(f"… {group[-1]}" for group in found.layers)]
                lines.append((method.replace("_", " "), pictures))
            name = f"pictures/randomised_{index:05d}.png"
            images.save_image(_strip(lines, words), self.folder / name)
            self.files.append(self.folder / name)
            strips.append({"file": self.images[index]["image"], "picture": name})
        return strips


def _strip(lines: Sequence[tuple[str, Sequence[Tensor]]], words: Sequence[str]) -> Tensor:
    """A sheet, [3, H, W] in 0 to 1: a row for each method, with its name and then its map after each step."""
    step, row = _CELL + _GAP, _CELL + _GAP
    size = (_NAMES + step * len(words), _HEADER + row * len(lines) + _GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for column, word in enumerate(words):
        captions.write(pen, (_NAMES + step * column, _HEADER // 2), word, _CELL)
    for line, (name, pictures) in enumerate(lines):
        top = _HEADER + row * line
        captions.write(pen, (_GAP, top + _CELL // 2), name, _NAMES - 2 * _GAP)
        for column, picture in enumerate(pictures):
            pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            fitted = Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (_NAMES + step * column, top))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()


def _verdict(standings: Standings) -> list[str]:
    """The ranking in sentences."""
    order = list(standings.overall.items())
    if len(order) < 2:
        return []
    (first, (mean, low, high)), rest = order[0], order[1:]
    rank = f"a mean rank of {mean:.1f} (95 % band {low:.1f} to {high:.1f})"
    said = f"Over all measures, {first.replace('_', ' ')} ranks first, with {rank}."
    near = [name.replace("_", " ") for name, band in rest if band[1] <= high]
    if near:
        return [said, f"Its band overlaps with that of {_listed(near)}: these photographs do not tell them apart."]
    return [said, f"Its band does not overlap with any other; {rest[0][0].replace('_', ' ')} is next."]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _curve_better(measure: str) -> str | None:
    """Whether a lower or a higher curve is better. For MoRF a large area over the curve means a low curve."""
    return {"morf": "lower", "lerf": "higher"}.get(measure, MEASURES[measure].better)


def number(value: float) -> str:
    """A value as text with three digits.

    >>> number(0.12345), number(12.5), number(0.00012)
    ('0.123', '12.5', '0.00012')
    """
    if value != value:
        return "–"
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
