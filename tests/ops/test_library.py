"""The native libraries are found, and no older than their sources."""

from __future__ import annotations

import re

import pytest

from fastviz.ops import _library


def test_import_stops_where_the_library_is_stale(monkeypatch):
    """A library that is older than its sources is not used."""
    if not (_library._FOLDER.parents[1] / "csrc").is_dir():
        pytest.skip("an installed package has no sources beside it")
    monkeypatch.setattr(_library, "_status", {})
    monkeypatch.setattr(_library, "source_hash", lambda folder, cuda: "another")
    with pytest.raises(ImportError, match=r"older than its sources.*make build"):
        _library.load()


def test_import_stops_where_the_library_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "_status", {})
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    with pytest.raises(ImportError, match=r"_cpu.so is missing; run `make build`"):
        _library.load()


def test_every_tensor_of_an_operator_must_be_on_one_device():
    """A pointer of the host, handed to a kernel of the device, ends the process. Read in the source, without a GPU."""
    folder = _library._FOLDER.parents[1] / "csrc" / "ops"
    if not folder.is_dir():
        pytest.skip("an installed package has no sources beside it")
    named = {
        "occlude.cpp": ["boxes", "fill", "order", "offsets"],
        "splice.cpp": ["dirty", "origin"],
        "guided_relu.cpp": ["mask"],
        "total_variation.cpp": ["grad"],
        "gram.cpp": ["target"],
        "patch_search.cpp": ["neighbourhood", "mask", "weights"],
        "tensors.h": ["image_index"],
    }
    for file, arguments in named.items():
        for argument in arguments:
            assert re.search(rf"check_same_device\(\*?{argument}, ", (folder / file).read_text()), (file, argument)
