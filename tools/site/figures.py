"""The bar chart of the page about incremental occlusion, from the committed results."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BAR, LEFT, WIDTH = 22, 150, 480
"""Height of a bar, the start of the bars, and the length of the longest, in pixels."""


def gains() -> str:
    """An SVG with a bar for each network: the speed-up of a sweep over the fastest dense form."""
    rows = json.loads((RESULTS / "occlusion-cpu-avx512.json").read_text())["rows"]
    found = sorted(((row["ratios"]["strongest dense"], row["case"].partition(",")[0]) for row in rows), reverse=True)
    longest = found[0][0]
    height = BAR * len(found) + 40
    bars = []
    for number, (gain, name) in enumerate(found):
        y, length = 10 + BAR * number, WIDTH * gain / longest
        bars.append(
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{name}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 6}" fill="#1c5d99"/>'
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 14}">{gain:.1f}</text>'
        )
    one = LEFT + WIDTH / longest
    line = (
        f'<path d="M{one:.1f} 4 V{height - 26}" stroke="#d9480f" stroke-dasharray="4 3"/>'
        f'<text x="{one:.1f}" y="{height - 10}" text-anchor="middle" fill="#d9480f">as fast as the plain network</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {height}" '
        f'font-family="sans-serif" font-size="13" fill="#222">{"".join(bars)}{line}</svg>\n'
    )
