"""Writes the result tables into docs/measured.md, five rows into README.md, and the rankings of ``fastviz compare``
into docs/evaluation.md: ``python -m benchmarks.readme``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

README = Path(__file__).parents[1] / "README.md"
MEASURED = README.parent / "docs" / "measured.md"
COMPARED = README.parent / "docs" / "evaluation.md"
BEGIN, END = "<!-- results: begin (made by `make readme`) -->", "<!-- results: end -->"


def _where(machine: dict[str, Any]) -> str:
    """The GPU, or the processor with its threads; torch's version and the date."""
    device = machine.get("card") or f"{machine['processor']}, {machine['threads']} threads"
    return f"{device}; torch {machine['torch']}; {machine['date']}"


def lines_of(result: dict[str, Any]) -> list[str]:
    """A heading with the machine and versions, and a table row for each measurement and alternative."""
    lines = [
        f"{_where(result['machine'])}; median of interleaved rounds.",
        "",
        "| function | case | fastviz | compared with | speed-up | target |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    for row in result["rows"]:
        mine = f"{row['times']['fastviz']['median_ms']:.2f} ms"
        for rival, ratio in row["ratios"].items():
            target = row["targets"].get(rival)
            wanted = "" if target is None else f"{target:g}x" + ("" if ratio >= target else " (missed)")
            lines.append(f"| {row['name']} | {row['case']} | {mine} | {rival} | {ratio:.2f}x | {wanted} |")
    return [*lines, ""]


def approximate_lines_of(result: dict[str, Any]) -> list[str]:
    """The same for approximate modes: speed, and error of the maps."""
    lines = [
        f"Approximate occlusion maps, windows of 16 with stride 4; {_where(result['machine'])}. "
        "Quality compared with the exact map, mean over photographs; networks without it have random weights.",
        "",
        "| network | setting | seconds per map | over exact | over captum | SSIM | largest error | rank correlation |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        quality = " | | | |"
        if "ssim" in row:
            quality = f" {row['ssim']:.3f} | {row['largest_error']:.3f} | {row['rank_correlation']:.3f} |"
        lines.append(
            f"| {row['network']} | {row['setting']} | {row['seconds_an_image']:.1f} | {row['gain_over_exact']:.1f}x "
            f"| {row['gain_over_captum']:.1f}x |{quality}"
        )
    return [*lines, ""]


def first_call_lines_of(result: dict[str, Any]) -> list[str]:
    """First and later calls of occlusion compared with a plain loop; slower cases are marked."""
    lines = [
        f"Occlusion with 36 windows, first and later calls; {_where(result['machine'])}.",
        "",
        "| network | pixels | plain loop | first call | later calls | later calls, traced |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        gains = " | ".join(
            f"{row[name]:.2f}x" + ("" if row[name] >= 0.97 else " (missed)") for name in ("first", "later", "traced")
        )
        lines.append(f"| {row['network']} | {row['size']} | {row['plain_ms']:.0f} ms | {gains} |")
    return [*lines, ""]


def table() -> str:
    """The tables of all result files, sorted by name."""
    lines = [""]
    for path in sorted(RESULTS.glob("*.json")):
        made = first_call_lines_of if path.name.startswith("first-call") else lines_of
        lines += made(json.loads(path.read_text()))
    for path in sorted((RESULTS / "approximate").glob("*.json")):
        lines += approximate_lines_of(json.loads(path.read_text()))
    return "\n".join(lines)


FIGURES = [
    ("occlusion-cpu.json", "occlusion", "vgg16, 196 windows", "tuned captum"),
    ("occlusion-cpu.json", "occlusion", "resnet50, 196 windows", "tuned captum"),
    ("compat-cpu.json", "pytorch-grad-cam GradCAM", "squeezenet1_0, batch of 8", "as it is"),
    ("gradients-cpu.json", "saliency of a folder", "resnet50, 64 JPEG files", "captum, picture by picture"),
    ("texture-cpu.json", "synthesize_texture", "3x64x64 to 96x96, window 11", "OpenCV, a pixel at a time"),
]
"""File, name, case and alternative of the rows in the README."""


def figures() -> str:
    """The README's short table: five rows, and the worst and best of all occlusion sweeps."""
    results = {name: json.loads((RESULTS / name).read_text()) for name, *_ in FIGURES}
    lines = ["", "| function | case | compared with | speed-up |", "| --- | --- | --- | ---: |"]
    for file, name, case, rival in FIGURES:
        row = next(each for each in results[file]["rows"] if (each["name"], each["case"]) == (name, case))
        lines.append(f"| {name} | {case} | {rival} | {row['ratios'][rival]:.1f} |")
    gains = sorted(
        (row["ratios"]["tuned captum"], row["case"].partition(",")[0]) for row in results["occlusion-cpu.json"]["rows"]
    )
    (least, worst), (most, best) = gains[0], gains[-1]
    lines += [
        "",
        f"Occlusion of {len(gains)} networks: speed-ups from {least:.2f} ({worst}) to {most:.2f} ({best}). "
        f"{_where(results[FIGURES[0][0]]['machine'])}.",
        "",
    ]
    return "\n".join(lines)


def comparisons() -> str:
    """A table for each ranking of ``fastviz compare``: methods by mean rank, with the measured values."""
    lines = [""]
    for path in sorted((RESULTS / "comparisons").glob("*.csv")):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        measures = list(dict.fromkeys(row["measure"] for row in rows if row["place"]))
        places = {
            name: [int(row["place"]) for row in rows if row["method"] == name and row["place"]]
            for name in dict.fromkeys(row["method"] for row in rows)
        }
        lines += [
            f"{path.stem}, {rows[0]['images']} photographs, predicted class; the 95 % band is in brackets:",
            "",
            f"| method | mean rank | {' | '.join(name.replace('_', ' ') for name in measures)} |",
            f"| --- | ---: |{' ---: |' * len(measures)}",
        ]
        for name in sorted(places, key=lambda name: sum(places[name]) / len(places[name]) if places[name] else 99):
            mean = f"{sum(places[name]) / len(places[name]):.1f}" if places[name] else ""
            found = {row["measure"]: row for row in rows if row["method"] == name}
            lines.append(f"| {name} | {mean} | {' | '.join(_cell(found[each]) for each in measures)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: dict[str, str]) -> str:
    """Mean and band; bold if the method is the best or not significantly worse."""
    mean, low, high = (float(row[key]) for key in ("mean", "low", "high"))
    if mean != mean:
        return ""
    best = row["tied_with_best"] == "True"
    return f"{'**' * best}{mean:.3f}{'**' * best} ({low:.3f} to {high:.3f})"


def replaced(text: str, made: str) -> str:
    """A page's text with ``made`` between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main() -> None:
    for page, made in ((README, figures()), (MEASURED, table()), (COMPARED, comparisons())):
        page.write_text(replaced(page.read_text(), made))


if __name__ == "__main__":
    main()
