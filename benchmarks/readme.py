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


def where(result: dict[str, Any]) -> str:
    """The GPU, or the processor with its threads; torch's version and the date."""
    machine = result["machine"]
    kind = machine.get("card") or f"{machine['processor']} ({machine['instructions']}), {machine['threads']} threads"
    return f"{kind}; torch {machine['torch']}; {machine['date']}"


def by_kind(paths: list[Path]) -> dict[str, dict[str, dict[str, Any]]]:
    """Results by table and kind of machine: ``operators-cpu-avx2.json`` is table ``operators``, kind ``AVX2``."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in paths:
        name, _, kind = path.stem.replace("-cpu-", "|").replace("-cuda", "|CUDA").partition("|")
        found.setdefault(name, {})[kind.upper()] = json.loads(path.read_text())
    return found


def lines_of(results: dict[str, dict[str, Any]]) -> list[str]:
    """Headings with the machines and versions; a row for each measurement and alternative, columns for each kind of
    machine."""
    lines = [f"{where(result)}; median of interleaved rounds.\n" for result in results.values()]
    kinds = " | ".join(f"fastviz, {kind} | speed-up, {kind}" for kind in results)
    lines.append(f"| function | case | compared with | target | {kinds} |")
    lines.append(f"| --- | --- | --- | ---: |{' ---: | ---: |' * len(results)}")
    wanted: dict[tuple[str, str, str], Any] = {}
    for result in results.values():
        for row in result["rows"]:
            for rival in row["ratios"]:
                wanted.setdefault((row["name"], row["case"], rival), row["targets"].get(rival))
    for (name, case, rival), target in wanted.items():
        cells = []
        for result in results.values():
            row = next((each for each in result["rows"] if (each["name"], each["case"]) == (name, case)), None)
            ratio = row and row["ratios"].get(rival)
            if row is None or ratio is None:
                cells.append("| | ")
                continue
            missed = " (missed)" if target is not None and ratio < target else ""
            cells.append(f"| {row['times']['fastviz']['median_ms']:.2f} ms | {ratio:.2f}x{missed} ")
        reach = "" if target is None else f"{target:g}x"
        lines.append(f"| {name} | {case} | {rival} | {reach} {''.join(cells)}|")
    return [*lines, ""]


def approximate_lines_of(result: dict[str, Any]) -> list[str]:
    """The same for approximate modes: speed, and error of the maps."""
    lines = [
        f"Approximate occlusion maps, windows of 1/14 of the side, stride a quarter of that; {where(result)}. "
        "Quality compared with the exact map: mean over photographs (and the worst), trained weights.",
        "",
        "| network | setting | seconds per map | over exact | over captum | SSIM | largest error | rank correlation |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['network']} | {row['setting']} | {row['seconds_an_image']:.1f} | {row['gain_over_exact']:.1f}x "
            f"| {row['gain_over_captum']:.1f}x | {row['ssim']:.3f} ({row['worst_ssim']:.3f}) | "
            f"{row['largest_error']:.3f} | {row['rank_correlation']:.3f} ({row['worst_rank_correlation']:.3f}) |"
        )
    return [*lines, ""]


def first_call_lines_of(result: dict[str, Any]) -> list[str]:
    """First and later calls of occlusion compared with a plain loop; slower cases are marked."""
    lines = [
        f"Occlusion with 36 windows, first and later calls; {where(result)}.",
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
    for name, results in by_kind(sorted(RESULTS.glob("*.json"))).items():
        if name == "first-call":
            for result in results.values():
                lines += first_call_lines_of(result)
        else:
            lines += lines_of(results)
    for path in sorted((RESULTS / "approximate").glob("*.json")):
        lines += approximate_lines_of(json.loads(path.read_text()))
    return "\n".join(lines)


FIGURES = [
    ("occlusion", "occlusion", "vgg16, 196 windows", "tuned captum"),
    ("occlusion", "occlusion", "resnet50, 196 windows", "tuned captum"),
    ("compat", "pytorch-grad-cam GradCAM", "squeezenet1_0, batch of 8", "as it is"),
    ("gradients", "saliency of a folder", "resnet50, 64 JPEG files", "captum, picture by picture"),
    ("texture", "synthesize_texture", "3x64x64 to 96x96, window 11", "OpenCV, a pixel at a time"),
]
"""Table, name, case and alternative of the rows in the README."""


def figures() -> str:
    """The README's short table: five rows, and the worst and the best of all occlusion sweeps."""
    tables = by_kind(sorted(RESULTS.glob("*-cpu-*.json")))
    kinds = [kind for kind in ("AVX512", "AVX2") if any(kind in tables[name] for name, *_ in FIGURES)]
    lines = [
        "",
        f"| function | case | compared with | {' | '.join(f'speed-up, {kind}' for kind in kinds)} |",
        f"| --- | --- | --- |{' ---: |' * len(kinds)}",
    ]
    for table_of, name, case, rival in FIGURES:
        cells = []
        for kind in kinds:
            rows = tables[table_of].get(kind, {"rows": []})["rows"]
            found = [each["ratios"][rival] for each in rows if (each["name"], each["case"]) == (name, case)]
            cells.append(f"{found[0]:.1f}" if found else "")
        lines.append(f"| {name} | {case} | {rival} | {' | '.join(cells)} |")
    lines.append("")
    for kind in kinds:
        if result := tables["occlusion"].get(kind):
            gains = sorted((row["ratios"]["tuned captum"], row["case"].partition(",")[0]) for row in result["rows"])
            (least, worst), (most, best) = gains[0], gains[-1]
            lines.append(
                f"Occlusion of {len(gains)} networks: speed-ups from {least:.2f} ({worst}) to {most:.2f} ({best}). "
                f"{where(result)}."
            )
            lines.append("")
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
