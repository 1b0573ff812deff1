"""``make bench-quick`` compares every table of results, and tells what fell."""

from __future__ import annotations

import json
import shlex

import pytest

from benchmarks import quick
from benchmarks.common import RESULTS
from benchmarks.readme import by_kind


def result(ratio: float) -> dict[tuple[str, ...], float]:
    return quick.ratios({"rows": [{"name": "gram", "case": "C 512", "ratios": {"bmm": ratio}}]})


@pytest.mark.parametrize(("now", "falls"), [(1.0, 0), (0.91, 0), (0.89, 1), (2.0, 0)])
def test_a_fall_of_more_than_a_tenth_is_named(now: float, falls: int, capsys: pytest.CaptureFixture[str]) -> None:
    fallen = quick.compared("operators", result(now), result(1.0))
    assert len(fallen) == falls
    assert f"gram, C 512, bmm: 1.00x -> {now:.2f}x" in capsys.readouterr().out


def test_first_calls_are_compared_by_network_and_size() -> None:
    row = {"network": "resnet18", "size": 64, "first": 1.0, "later": 2.0, "traced": 3.0}
    assert quick.ratios({"rows": [row]})["resnet18", "64", "later"] == 2.0


def test_every_table_of_results_has_a_quick_row() -> None:
    tables = by_kind(sorted(RESULTS.glob("*-cpu-*.json")))
    assert tables.keys() <= quick.QUICK.keys()
    folder = RESULTS.parent
    for command in quick.QUICK.values():
        module, *options = shlex.split(command)
        text = (folder / f"{module.replace('.', '/')}.py").read_text()
        for option in options:
            assert not option.startswith("--") or f'"{option}"' in text, (module, option)


def test_results_say_on_what_they_were_measured() -> None:
    for path in sorted(RESULTS.glob("*-cpu-*.json")):
        assert path.stem.endswith(f"-cpu-{json.loads(path.read_text())['machine']['instructions'].lower()}")
