"""Methods that draw samples, or walk along lines, hold a batch of pictures and not all of them.

captum #1350 (2,000 samples were stacked) and #245 (one image, out of memory with the defaults).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastviz as fv

SIDE = 64
PICTURE = 3 * SIDE * SIDE * 4
"""Bytes."""

FEW, MANY = 32, 500
"""With 32 samples, batches are full; what is kept of each further one adds up."""


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside have held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._note(each)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.most = max(self.most, self.now)


class Counting(nn.Module):
    """A small network that notes how many pictures each pass has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 3)
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.rows.append(len(x))
        return self.head(self.conv(x).relu().mean((2, 3)))


def image() -> Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def parts(side: int) -> Tensor:
    """Squares of this side, numbered."""
    rows = torch.arange(SIDE) // side
    return rows[:, None] * (SIDE // side) + rows


DRAWS: dict[str, Callable[[nn.Module, Tensor, int], object]] = {
    "smooth_grad": lambda model, x, n: fv.smooth_grad(model, x, 1, samples=n),
    "smooth_grad_squared": lambda model, x, n: fv.smooth_grad_squared(model, x, 1, samples=n),
    "var_grad": lambda model, x, n: fv.var_grad(model, x, 1, samples=n),
    "integrated_gradients": lambda model, x, n: fv.integrated_gradients(model, x, 1, steps=n, method="riemann_middle"),
    "gradient_shap": lambda model, x, n: fv.gradient_shap(model, x, 1, samples=n, noise=0.1),
    "rise": lambda model, x, n: fv.rise(model, x, 1, masks=n),
    "shapley_sampling": lambda model, x, n: fv.shapley_sampling(model, x, 1, segments=parts(32), permutations=n),
    "kernel_shap": lambda model, x, n: fv.kernel_shap(model, x, 1, segments=parts(16), samples=n),
    "lime": lambda model, x, n: fv.lime(model, x, 1, segments=parts(16), samples=n),
    "infidelity": lambda model, x, n: fv.evaluation.infidelity(model, x, x, 1, samples=n),
    "max_sensitivity": lambda model, x, n: fv.evaluation.max_sensitivity(model, x, fv.saliency, 1, samples=n),
}


@pytest.mark.parametrize("name", DRAWS)
def test_memory_does_not_grow_with_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 pictures of 64x64 would be 25 MB; what is kept of each may be a few numbers.

    For captum's own case, 2,000 samples of SmoothGrad, all of them are drawn.
    """
    many = 2000 if name == "smooth_grad" else MANY
    # whole passes, which take more: tracing would also be counted
    monkeypatch.setattr("fastviz.engine.incremental.worth.refusal", lambda *known, **more: "not here")
    if name == "lime":
        pytest.importorskip("sklearn")
    model, x = Counting().eval(), image()
    DRAWS[name](model, x, 2)
    most, rows = [], []
    for samples in (FEW, many):
        model.rows.clear()
        with Peak() as peak:
            DRAWS[name](model, x, samples)
        most.append(peak.most)
        rows.append(max(model.rows))
    assert rows[1] <= 32
    assert most[1] < most[0] + 1000 * many, [each / PICTURE for each in most]


DEFAULTS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "integrated_gradients": fv.integrated_gradients,
    "gradient_shap": fv.gradient_shap,
    "rise": fv.rise,
    "shapley_sampling": fv.shapley_sampling,
    "kernel_shap": fv.kernel_shap,
    "smooth_grad": fv.smooth_grad,
    "score_cam": fv.score_cam,
    "occlusion": fv.occlusion,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image, nothing but the model and the image given."""
    monkeypatch.setattr("fastviz.engine.incremental.worth.refusal", lambda *known, **more: "not here")
    if name in ("shapley_sampling", "kernel_shap"):
        pytest.importorskip("skimage")  # the default cuts superpixels
    model, x = Counting().eval(), image()
    with Peak() as peak:
        DEFAULTS[name](model, x)
    assert max(model.rows) <= 32
    assert peak.most < 256 * PICTURE
