"""What the README says is so: its tables come from the committed results, its methods are those of the registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.readme import COMPARED, MEASURED, README, comparisons, figures, replaced, table
from fastviz.methods.registry import METHODS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "made", "head"),
    [
        (README, figures, "| function | case |"),
        (MEASURED, table, "| function | case |"),
        (COMPARED, comparisons, "| method |"),
    ],
    ids=["README", "measured", "evaluation"],
)
def test_measured_tables_are_made_from_the_results(page, made, head):
    text = page.read_text()
    assert replaced(text, made()) == text, "run `make readme`"
    assert head in text


def test_every_method_is_listed():
    listed = set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", README.read_text(), re.MULTILINE))
    names = {name for row in listed for name in re.findall(r"`(\w+)`", row)}
    assert names == set(METHODS)


def test_links_to_files_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (ROOT / link).exists(), link
