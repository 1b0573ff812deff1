"""The native libraries are found, and no older than their sources."""

from __future__ import annotations

import re

import pytest
import torch

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


@pytest.mark.parametrize(
    ("built_for", "of_torch", "reason"),
    [
        ("13.0", "12.8", r"built for CUDA 13.0, and torch \S+ for CUDA 12.8; build fastviz from its sources"),
        ("13.0", None, "built without CUDA"),
        (None, "13.0", "it was not built: FASTVIZ_CUDA=0"),
        ("13.0", "13.2", "_cuda.so"),
    ],
)
def test_the_cuda_library_is_for_torchs_cuda(monkeypatch, tmp_path, built_for, of_torch, reason):
    """Also where the machine has the other version's runtime, so that the library could be loaded."""
    (tmp_path / "_cuda.so").write_bytes(b"not_a_library")
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", of_torch)
    found = _library._load_cuda(built_for, "FASTVIZ_CUDA=0")
    assert found.startswith("not loaded: ")
    assert re.search(reason, found)


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
