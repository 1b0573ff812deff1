"""What the arguments of a job mean."""

from __future__ import annotations

import pytest

from fastviz import jobs


def test_target_index():
    names = ["tabby cat", "crane", "espresso", "crane"]
    assert jobs.target_index("predicted", names) is None
    assert jobs.target_index("3", names) == 3
    assert jobs.target_index(" Espresso", names) == 2
    with pytest.raises(ValueError, match="'crane' is the name of 2 classes, give its index: 1 or 3"):
        jobs.target_index("crane", names)
    with pytest.raises(ValueError, match="nearest: espresso"):
        jobs.target_index("expresso", names)


def test_choose_methods_takes_each_once_in_order():
    assert [method.name for method in jobs.choose_methods(["grad_cam", "saliency", "grad_cam"])] == [
        "grad_cam",
        "saliency",
    ]
