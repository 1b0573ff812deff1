"""The data of a report's charts: the network's confidence, the time of each method, and why images failed."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from fastviz._util.output_folder import printable
from fastviz.jobs.report.lines import Line

__all__ = ["Distributions"]

_BINS = 20
_CLASSES, _REASONS = 20, 20

# Bins for times from 10 microseconds to 10,000 seconds, five per factor of ten.
_FIRST_DECADE, _DECADES, _PER_DECADE = -5, 9, 5

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"")


class Distributions:
    """Histograms of the lines seen so far, in bounded memory.

    Args:
        methods: the job's methods, in order.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self.lines = self.failed = 0
        self._methods = list(methods)
        self._classes: Counter[str] = Counter()
        self._probabilities: dict[str, list[int]] = {}
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._seconds = {method: [0] * (_DECADES * _PER_DECADE) for method in methods}
        self._reasons: Counter[str] = Counter()

    def add(self, lines: Iterable[Line]) -> None:
        """Add these lines to the counts."""
        for line in lines:
            self.lines += 1
            if line.error is not None:
                self.failed += 1
                self._reasons[_without_names(line)] += 1
            if line.target is not None and line.probability is not None:
                self._classes[line.target] += 1
                self._sums[line.target] += line.probability
                bins = self._probabilities.setdefault(line.target, [0] * _BINS)
                bins[min(_BINS - 1, int(line.probability * _BINS))] += 1
            for method, seconds in line.seconds.items():
                place = (math.log10(max(seconds, 1e-9)) - _FIRST_DECADE) * _PER_DECADE
                self._seconds[method][min(_DECADES * _PER_DECADE - 1, max(0, int(place)))] += 1

    def values(self) -> dict[str, Any]:
        """JSON values for the page: the most frequent classes and reasons, all methods."""
        every = [sum(each) for each in zip(*self._probabilities.values(), strict=True)]
        return {
            "lines": self.lines,
            "failed": self.failed,
            "probability": every,
            "classes": [
                {
                    "name": printable(name),
                    "count": count,
                    "mean": round(self._sums[name] / count, 4),
                    "bins": self._probabilities[name],
                }
                for name, count in self._classes.most_common(_CLASSES)
            ],
            "more_classes": max(0, len(self._classes) - _CLASSES),
            "seconds": [
                {"method": method, "bins": bins, "median": _median(bins)} for method, bins in self._seconds.items()
            ],
            "least_second": 10.0**_FIRST_DECADE,
            "bins_per_decade": _PER_DECADE,
            "reasons": [[printable(words), count] for words, count in self._reasons.most_common(_REASONS)],
        }


def _median(bins: Sequence[int]) -> float | None:
    """The centre of the bin that contains the median, in seconds; None if all bins are empty."""
    every = list(accumulate(bins))
    if not every[-1]:
        return None
    place = next(place for place, count in enumerate(every) if 2 * count >= every[-1])
    return float(f"{10 ** (_FIRST_DECADE + (place + 0.5) / _PER_DECADE):.2g}")


def _without_names(line: Line) -> str:
    """Why a line failed, with names replaced by "…", so that equal reasons are counted together."""
    words = (line.error or "").replace(line.id, "…").replace(printable(line.id), "…")
    return _QUOTED.sub("…", words)
