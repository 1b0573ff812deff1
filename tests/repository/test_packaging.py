"""What stands in several files of the packaging is the same in all of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_is_one():
    version = PROJECT["version"]
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert set(re.findall(r"fastviz-(\d+\.\d+\.\d+)", (ROOT / "docs" / "install.md").read_text())) == {version}


def test_docs_list_every_extra_with_its_packages():
    rows = dict(
        re.findall(
            r"^\| ((?:`[\w-]+`(?:, )?)+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "docs" / "install.md").read_text(), re.M
        )
    )
    listed = {name: packages for names, packages in rows.items() for name in re.findall(r"`([\w-]+)`", names)}
    extras = PROJECT["optional-dependencies"]
    assert set(listed) >= set(extras)
    for name, requirements in extras.items():
        packages = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
        assert packages == set(listed[name].split(", ")) or listed[name] == "the tool", name


def test_classifiers_are_the_pythons_that_were_tried():
    row = re.search(r"^\| Python \| .+ \| (.+) \|$", (ROOT / "docs/reference/supported.md").read_text(), re.M)
    claimed = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert set(re.findall(r"\b3\.\d+\b", row[1])) == set(claimed)


def test_messages_and_docs_name_extras_that_exist():
    """Whoever lacks a package is told which extra brings it, by a line that a shell takes as it stands."""
    code = {path: path.read_text().replace('\\"', '"') for path in (ROOT / "fastviz").rglob("*.py")}
    pages = {path: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
    asked = [line for text in code.values() for line in re.findall(r"pip install ([^`\n]+)", text)]
    assert len(asked) > 15
    for line in asked:
        assert re.match(r'"fastviz\[[\w,-]+\]"|--force-reinstall --no-deps', line), line
    named = re.findall(r"fastviz\[([\w,-]+)\]", "\n".join([*code.values(), *pages.values()]))
    assert {name for names in named for name in names.split(",")} <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".pre-commit-config.yaml"])
def test_every_target_that_is_called_is_there(path: str):
    """The files for other people's machines are thin: they call `make`, whose targets may move."""
    called = set(re.findall(r"\bmake ([a-z0-9-]+)", re.sub(r"(?m)^ *#.*$", "", (ROOT / path).read_text())))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert called
    assert called <= targets
