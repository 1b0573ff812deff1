"""`make gpu-check` keeps to its time and writes its files, whatever its stages do: tried with stand-ins for them."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    if not TOOL.is_file():
        pytest.skip("an installed package has no tools beside it")
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # where its dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


def test_all_limits_together_are_less_than_nine_minutes(tool: ModuleType, tmp_path: Path) -> None:
    groups = tool.stages(tmp_path, "9.0")
    assert sum(max(stage.limit for stage in group) for group in groups) <= tool.BUDGET < 9 * 60


def statuses(groups: list[list[object]]) -> list[str]:
    return [stage.status for group in groups for stage in group]  # type: ignore[attr-defined]


def test_a_stage_that_hangs_is_stopped_with_all_it_started(tool: ModuleType, tmp_path: Path) -> None:
    groups = [
        [tool.Stage("quick", ["true"], math.inf)],
        [tool.Stage("hangs", ["sh", "-c", "sleep 600 & wait"], 1)],
        [tool.Stage("later", ["true"], math.inf), tool.Stage("needs it", ["true"], math.inf, ("hangs",))],
    ]
    written = []

    def write() -> None:
        tool.write(tmp_path, {"card": "none"}, groups)
        written.append([stage["status"] for stage in json.loads((tmp_path / "gpu_check.json").read_text())["stages"]])

    tool.run(groups, {}, time.monotonic() + 1e6, write)
    assert written == [
        ["passed", "not run", "not run", "not run"],
        ["passed", "failed", "not run", "not run"],
        ["passed", "failed", "passed", "not run"],
    ]
    assert groups[1][0].detail == "not done after 1 s"
    assert groups[2][1].detail == "needs hangs"
    assert "hangs: failed" in (tmp_path / "gpu_check.log").read_text()


def test_what_the_budget_leaves_no_time_for_is_not_begun(tool: ModuleType) -> None:
    groups = [[tool.Stage("one", ["sleep", "600"], 600)], [tool.Stage("two", ["true"], 60)]]
    tool.run(groups, {}, time.monotonic() + 1, lambda: None)
    assert statuses(groups) == ["failed", "not run"]
    assert groups[0][0].detail.startswith("not done after")
    assert groups[1][0].detail == "no time was left"
