"""timm's architectures with random weights: every method against its plain definition.

A sample of small ones; ``python -m tools.timm_table`` tries all of them and writes the table in docs/timm.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("timm")

from tests.models.timm_architectures import ARCHITECTURES, SAMPLE
from tests.models.timm_checks import check, problems

_BY_NAME = {name: (family, name, size, options) for family, name, size, options in reversed(ARCHITECTURES)}


@pytest.mark.parametrize("name", SAMPLE)
def test_methods_equal_their_definitions(name: str) -> None:
    family, name, size, options = _BY_NAME[name]
    row = check(name, family, size, options)
    assert not problems(row), row
    assert row.path == "incremental" or row.reason


def test_all_families_are_there_and_known_to_timm() -> None:
    import timm

    assert len({(name, size, str(options)) for _, name, size, options in ARCHITECTURES}) == len(ARCHITECTURES) >= 150
    assert len({family for family, *_ in ARCHITECTURES}) >= 70
    assert all(timm.is_model(name) for _, name, _, _ in ARCHITECTURES)


def test_the_table_in_the_docs_has_all_of_them() -> None:
    table = (Path(__file__).parents[2] / "docs" / "timm.md").read_text()
    missing = [name for _, name, _, _ in ARCHITECTURES if f"`{name}" not in table]
    assert not missing
