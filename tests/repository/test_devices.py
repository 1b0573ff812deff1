"""Devices that fastviz does not compute on (``meta`` stands for mps and xpu, rarely there), and lesser processors."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.engine.incremental import sweep

ROOT = Path(__file__).parents[2]

CALLS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "activations": lambda model, x: fv.activations(model, x, layers=["0"]),
    "cam": lambda model, x: fv.cam(model, x),
    "deep_dream": lambda model, x: fv.deep_dream(model, x, "0"),
    "embedding": lambda model, x: fv.embedding(model, x, layer="0"),
    "evolve": lambda model, x: fv.evolve(model, 0),
    "filters": lambda model, x: fv.filters(model),
    "fool": lambda model, x: fv.fool(model, x, 1),
    "grad_cam": lambda model, x: fv.grad_cam(model, x, layer="0"),
    "guided_backprop": lambda model, x: fv.guided_backprop(model, x),
    "invert": lambda model, x: fv.invert(model, x, layer="0"),
    "maximize": lambda model, x: fv.maximize(model, 0),
    "neural_texture": lambda model, x: fv.neural_texture(model, x[:1]),
    "occlusion": lambda model, x: fv.occlusion(model, x, 1),
    "patches": lambda model, x: fv.patches(model, x, layers=["0"]),
    "saliency": lambda model, x: fv.saliency(model, x, 1),
    "segment": lambda model, x: fv.segment(model, x),
    "style_transfer": lambda model, x: fv.style_transfer(model, x, x),
    "sweep": lambda model, x: sweep(model, x[:1], torch.tensor([[0, 0, 2, 2]])),
}


@pytest.mark.parametrize("x_too", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_model_elsewhere_is_refused_by_every_method(name: str, x_too: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to("meta")
    x = torch.rand(2, 3, 16, 16, device="meta" if x_too else "cpu")
    with pytest.raises(ValueError, match=r"(model|x) should be on a device of type cpu or cuda, got 'meta'"):
        CALLS[name](model, x)


def test_images_elsewhere_are_refused() -> None:
    x = torch.rand(2, 3, 16, 16, device="meta")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    without_weights = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refused = "should be on a device of type cpu or cuda, got 'meta'"
    with pytest.raises(ValueError, match="x should be on the device of the model, cpu, got meta"):
        fv.occlusion(model, x, 1)
    for call, argument in (
        (lambda: fv.saliency(without_weights, x, 1), "x"),
        (lambda: fv.batches(x), "source"),
        (lambda: fv.batches(x.to(torch.uint8)), "source"),
        (lambda: fv.batches(torch.rand(2, 3, 8, 8), device="meta"), "device"),
        (lambda: fv.activations(model, torch.rand(1, 3, 8, 8), "0", device="meta"), "device"),
        (lambda: fv.maximize(model, 0, size=16, optimization=fv.Optimization(start=x[:1])), "start"),
        (lambda: fv.synthesize_texture(x[0], 16), "sample"),
        (lambda: fv.fill_hole(x[0], torch.ones(16, 16, dtype=torch.bool)), "image"),
    ):
        with pytest.raises(ValueError, match=f"{argument} {refused}"):
            call()


# ------------------------------------------------------------------------------------------------- processors


def fastviz_info(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastviz", "info"], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | environment,
    )  # fmt: skip


def test_the_operators_use_what_the_processor_has_unless_fastviz_cpu_says_less() -> None:
    used, best = fv.ops.instructions()
    assert used == os.environ.get("FASTVIZ_CPU", best)
    shown = fastviz_info(FASTVIZ_CPU="baseline").stdout
    assert "baseline" in shown
    assert best == "baseline" or f"this processor has {best}" in shown
    wrong = fastviz_info(FASTVIZ_CPU="sse9")
    assert wrong.returncode != 0
    assert "FASTVIZ_CPU should be one of baseline, avx2, avx512, got 'sse9'" in wrong.stderr
    if best != "avx512":
        more = fastviz_info(FASTVIZ_CPU="avx512")
        assert more.returncode != 0
        assert f"FASTVIZ_CPU should be at most {best}, which this processor has, got avx512" in more.stderr


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_sweeps_in_16_bits_on_any_processor(kind: torch.dtype) -> None:
    """oneDNN packs bfloat16 weights on processors with AVX-512 only: sweeps ended in its error on all others."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.GELU(),
        nn.Conv2d(64, 64, 3, stride=2, groups=64, bias=False), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 5),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 32, 32)
    boxes = torch.tensor([[0, 0, 8, 8], [8, 16, 16, 24], [24, 24, 32, 32]])
    low = copy.deepcopy(model).to(kind)
    expected = sweep(model.double(), x.double(), boxes).values
    spread = float(expected.std())
    found = sweep(low, x.to(kind), boxes)
    assert found.stats["path"] == "incremental"
    assert found.values.dtype == kind
    assert float((found.values.double() - expected).abs().max()) < 0.05 * spread


def test_a_sweep_computed_in_bfloat16_on_any_processor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, boxes = torch.randn(1, 3, 32, 32), torch.tensor([[0, 0, 8, 8], [8, 16, 16, 24]])
    exact = sweep(model, x, boxes).values
    found = sweep(model, x, boxes, precision="bfloat16")
    assert found.stats["path"] == "incremental"
    assert 0 < float((found.values - exact).abs().max()) < 0.02 * float(exact.abs().max())
    assert found.stats["error"]["largest"] > 0
