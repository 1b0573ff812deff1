"""Writes the measured table between its marks in README.md from the result files: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: begin (made by `make readme`) -->", "<!-- results: end -->"


def lines_of(result: dict[str, Any]) -> list[str]:
    """A heading that says where the numbers come from, and a table row for each measurement and rival."""
    machine = result["machine"]
    where = machine.get("card") or f"{machine['processor']}, {machine['threads']} threads"
    lines = [
        f"{where}; torch {machine['torch']}; {machine['date']}; median of interleaved rounds.",
        "",
        "| what | case | fastviz | against | faster | to reach |",
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
    """The same for approximate modes: speed beside how far the maps are off."""
    machine = result["machine"]
    where = machine.get("card") or f"{machine['processor']}, {machine['threads']} threads"
    lines = [
        f"Approximate occlusion maps, windows of 16 at a step of 4; {where}; torch {machine['torch']}; "
        f"{machine['date']}. "
        "Quality against the exact map: mean over photographs; networks without it ran with random weights.",
        "",
        "| network | setting | seconds a map | over exact | over captum | SSIM | largest error | rank correlation |",
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
    """First and later calls of occlusion against a plain loop, losses marked."""
    machine = result["machine"]
    where = machine.get("card") or f"{machine['processor']}, {machine['threads']} threads"
    lines = [
        f"36 windows, the first call included; {where}; torch {machine['torch']}; {machine['date']}.",
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
    """The tables of all result files, in order of their names."""
    lines = [""]
    for path in sorted(RESULTS.glob("*.json")):
        made = first_call_lines_of if path.name.startswith("first-call") else lines_of
        lines += made(json.loads(path.read_text()))
    for path in sorted((RESULTS / "approximate").glob("*.json")):
        lines += approximate_lines_of(json.loads(path.read_text()))
    return "\n".join(lines)


def replaced(readme: str) -> str:
    """The README's text with the table in it."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    README.write_text(replaced(README.read_text()))


if __name__ == "__main__":
    main()
