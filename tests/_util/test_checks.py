"""Checks that have rules of their own; their words are tested with the functions that use them."""

from __future__ import annotations

import pytest
import torch

from fastviz._util import checks


def test_device() -> None:
    assert checks.device("cpu") == checks.device(torch.device("cpu")) == torch.device("cpu")
    assert checks.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tpu", "place should be auto, cpu, cuda or cuda:INDEX, and one that torch can use here, got 'tpu'"),
        ("cuda:99", "one that torch can use here, got 'cuda:99'"),
        ("meta", "place should be on a device of type cpu or cuda, got 'meta'"),
    ],
)
def test_devices_that_are_refused(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.device(value, "place")


class _Named(torch.Tensor):
    """A tensor as torch 2.10 has it, where dimensions may have names; later versions have none."""

    names = ("N", None)
    asked = False

    def has_names(self) -> bool:
        _Named.asked = True
        return True


def test_named_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"x should have no named dimensions, got .*: give \.rename"):
        checks.tensor(_Named(torch.ones(1, 1)), "x", dims=(2,), layout="[N, K]")
    # torch.compile and torch.export of those versions stop at the question
    _Named.asked = False
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    checks.tensor(_Named(torch.ones(1, 1)), "x", dims=(2,), layout="[N, K]")
    assert not _Named.asked
