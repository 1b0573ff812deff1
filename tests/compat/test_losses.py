"""The substitutes of kornia's, torchmetrics' and pystiche's functions against their own, number for number."""

from __future__ import annotations

import importlib
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int64]
# rounding of sums in each dtype, as a fraction of the value
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return values.to(dtype) if dtype.is_floating_point else (values * 200).to(dtype)


def same(mine: Callable[..., Any], other: Callable[..., Any], x: Tensor, *arguments: Any) -> None:
    """The same values, dtypes, shapes and gradients."""
    found, expected = mine(x, *arguments), other(x, *arguments)
    assert found.dtype == expected.dtype
    tolerance = ROUNDING.get(expected.dtype, 0.0)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    if not x.is_floating_point() or not x.numel():
        return
    gradients = []
    for function in (mine, other):
        leaf = x.clone().requires_grad_()
        values = function(leaf, *arguments)
        gradients.append(
            torch.autograd.grad((values * torch.arange(1, values.numel() + 1).view(values.shape)).sum(), leaf)[0]
        )
    scale = float(gradients[1].abs().max())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=tolerance * scale)


def raised(call: Callable[[], object]) -> type[BaseException]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what is asked
        call()
    return caught.type


# ----------------------------------------------------------------------------------------------------------- kornia


@pytest.fixture
def kornia() -> tuple[ModuleType, ModuleType]:
    return pytest.importorskip("kornia.losses"), importlib.import_module("fastviz.compat.kornia")


@pytest.mark.parametrize(
    "shape", [(5, 7), (3, 4, 5), (2, 3, 6, 7), (2, 1, 3, 4, 5), (3, 1, 6), (3, 6, 1), (0, 3, 4), (2, 0, 3)]
)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_kornia(kornia: tuple[ModuleType, ModuleType], shape: tuple[int, ...], reduction: str) -> None:
    theirs, ours = kornia
    same(ours.total_variation, theirs.total_variation, image(*shape), reduction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_kornia_dtypes(kornia: tuple[ModuleType, ModuleType], dtype: torch.dtype, reduction: str) -> None:
    theirs, ours = kornia
    same(ours.total_variation, theirs.total_variation, image(2, 3, 5, 6, dtype=dtype), reduction)


@pytest.mark.parametrize("layout", ["channels_last", "permuted", "sliced"])
def test_kornia_layouts(kornia: tuple[ModuleType, ModuleType], layout: str) -> None:
    theirs, ours = kornia
    x = image(2, 3, 6, 7)
    views = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "permuted": x.permute(0, 1, 3, 2),
        "sliced": x[:, ::2, 1:, ::2],
    }
    same(ours.total_variation, theirs.total_variation, views[layout])


@pytest.mark.parametrize(
    "arguments", [(1,), ([1, 2],), (torch.ones(3),), (torch.ones(3, 3), "none"), (torch.ones(()),)], ids=str
)
def test_kornia_errors(kornia: tuple[ModuleType, ModuleType], arguments: tuple[Any, ...]) -> None:
    theirs, ours = kornia
    assert raised(lambda: ours.total_variation(*arguments)) is raised(lambda: theirs.total_variation(*arguments))


def test_kornia_module(kornia: tuple[ModuleType, ModuleType]) -> None:
    theirs, ours = kornia
    x = image(2, 3, 5, 6)
    assert isinstance(ours.TotalVariation(), theirs.TotalVariation)
    torch.testing.assert_close(ours.TotalVariation()(x), theirs.TotalVariation()(x))
    assert (
        inspect.signature(ours.total_variation).parameters.keys()
        == inspect.signature(theirs.total_variation).parameters.keys()
    )


def test_kornia_inside_of_transforms(kornia: tuple[ModuleType, ModuleType]) -> None:
    theirs, ours = kornia
    x = image(3, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(ours.total_variation, (x.clone().requires_grad_(),))
    for wrapped in (torch.vmap, lambda f: torch.func.grad(lambda y: f(y).sum()), lambda f: torch.func.jacrev(f)):
        torch.testing.assert_close(wrapped(ours.total_variation)(x), wrapped(theirs.total_variation)(x))
    compiled = torch.compile(ours.total_variation, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), theirs.total_variation(x))


# ----------------------------------------------------------------------------------------------------- torchmetrics


@pytest.fixture
def torchmetrics() -> tuple[Callable[..., Any], Any, ModuleType]:
    functional = pytest.importorskip("torchmetrics.functional.image")
    return (
        functional.total_variation,
        importlib.import_module("torchmetrics.image").TotalVariation,
        importlib.import_module("fastviz.compat.torchmetrics"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none", None])
def test_torchmetrics(torchmetrics: Any, dtype: torch.dtype, reduction: str | None) -> None:
    theirs, _, ours = torchmetrics
    same(ours.total_variation, theirs, image(3, 2, 5, 6, dtype=dtype), reduction)


@pytest.mark.parametrize("shape", [(1, 3, 1, 5), (2, 1, 4, 1), (0, 3, 4, 4), (2, 0, 3, 3)])
@pytest.mark.parametrize("reduction", ["sum", "mean", None])
def test_torchmetrics_shapes(torchmetrics: Any, shape: tuple[int, ...], reduction: str | None) -> None:
    theirs, _, ours = torchmetrics
    found, expected = ours.total_variation(image(*shape), reduction), theirs(image(*shape), reduction)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_torchmetrics_errors(torchmetrics: Any) -> None:
    _, metric, ours = torchmetrics
    with pytest.raises(RuntimeError, match="Expected input `img` to be an 4D tensor"):
        ours.total_variation(torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="Expected argument `reduction` to either be"):
        ours.total_variation(torch.ones(1, 2, 3, 3), "diff")
    with pytest.raises(ValueError, match="Expected argument `reduction` to either be"):
        ours.TotalVariation(reduction="diff")
    assert issubclass(ours.TotalVariation, metric)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchmetrics_metric(torchmetrics: Any, reduction: Any, dtype: torch.dtype) -> None:
    """Over batches of different sizes; what forward gives for each, what compute gives in the end; pickled, reset."""
    _, metric, ours = torchmetrics
    mine, theirs = ours.TotalVariation(reduction=reduction), metric(reduction=reduction)
    for batch in image(5, 3, 6, 7, dtype=dtype).split(2):
        torch.testing.assert_close(mine(batch), theirs(batch))
    mine = pickle.loads(pickle.dumps(mine))
    torch.testing.assert_close(mine.compute(), theirs.compute())
    assert {name: type(value) for name, value in mine.metric_state.items()} == {
        name: type(value) for name, value in theirs.metric_state.items()
    }
    mine.reset()
    mine.update(image(1, 1, 3, 3))
    torch.testing.assert_close(mine.compute().sum(), ours.total_variation(image(1, 1, 3, 3)))


def test_torchmetrics_collections(torchmetrics: Any) -> None:
    from torchmetrics import MetricCollection

    _, metric, ours = torchmetrics
    both = MetricCollection({"ours": ours.TotalVariation(), "theirs": metric()})
    found = both(img=image(2, 3, 5, 5))
    torch.testing.assert_close(found["ours"], found["theirs"])


# --------------------------------------------------------------------------------------------------------- pystiche


@pytest.fixture
def pystiche(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """pystiche 1.0 reads a table of addresses that torchvision no longer has; nothing here uses it."""
    pytest.importorskip("torchvision")
    tables: tuple[tuple[str, dict[str, str]], ...] = (("alexnet", {"alexnet": ""}), ("vgg", {}))
    for name, table in tables:
        monkeypatch.setattr(importlib.import_module(f"torchvision.models.{name}"), "model_urls", table, raising=False)
    theirs = pytest.importorskip("pystiche")
    ours = importlib.reload(importlib.import_module("fastviz.compat.pystiche"))
    return theirs, importlib.import_module("pystiche.loss.functional"), ours


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 4), (1, 1, 1), (0, 3, 4), (2, 3, 0)])
@pytest.mark.parametrize("normalize", [False, True])
def test_pystiche_gram_matrix(pystiche: Any, shape: tuple[int, ...], normalize: bool) -> None:
    theirs, _, ours = pystiche
    x = image(*shape)
    torch.testing.assert_close(ours.gram_matrix(x, normalize), theirs.gram_matrix(x, normalize), equal_nan=True)
    if x.numel():
        same(ours.gram_matrix, theirs.gram_matrix, x, normalize)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_pystiche_gram_matrix_dtypes(pystiche: Any, dtype: torch.dtype) -> None:
    theirs, _, ours = pystiche
    same(ours.gram_matrix, theirs.gram_matrix, image(2, 3, 4, 5, dtype=dtype))


@pytest.mark.parametrize("exponent", [0.5, 1, 2.0, 2.5, -1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_pystiche_total_variation_loss(pystiche: Any, exponent: float, reduction: str) -> None:
    _, theirs, ours = pystiche
    x = image(2, 3, 5, 6)
    same(ours.total_variation_loss, theirs.total_variation_loss, x, exponent, reduction)
    same(ours.total_variation_loss, theirs.total_variation_loss, x.double(), exponent, reduction)


def test_pystiche_flat_images(pystiche: Any) -> None:
    """Where all neighbours are equal the gradient is zero with both, whatever the exponent."""
    _, theirs, ours = pystiche
    flat = torch.ones(1, 1, 4, 4)
    for exponent in (1.0, 2.0):
        same(ours.total_variation_loss, theirs.total_variation_loss, flat, exponent)
    thin = torch.ones(1, 1, 1, 4)
    for function in (ours.total_variation_loss, theirs.total_variation_loss):
        assert function(thin).isnan()


@pytest.mark.parametrize("arguments", [(torch.ones(3, 3),), (torch.ones(1, 1, 3, 3), 2.0, "middle")], ids=str)
def test_pystiche_errors(pystiche: Any, arguments: tuple[Any, ...]) -> None:
    theirs, functional, ours = pystiche
    mine, other = ours.total_variation_loss, functional.total_variation_loss
    assert raised(lambda: mine(*arguments)) is raised(lambda: other(*arguments))
    assert raised(lambda: ours.gram_matrix(torch.ones(3))) is raised(lambda: theirs.gram_matrix(torch.ones(3)))


# ------------------------------------------------------------------------------------------------ without the tools

ALONE = """
import sys
for name in ("kornia", "torchmetrics", "pystiche"):
    sys.modules[name] = None  # importing it fails
import torch
from fastviz.compat import kornia, pystiche, torchmetrics

x = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]])
assert kornia.TotalVariation()(x).tolist() == [[14.0]]
assert torchmetrics.total_variation(x) == 14
assert pystiche.total_variation_loss(x) == 25 and pystiche.gram_matrix(x).tolist() == [[[25.0]]]
for call in (lambda: kornia.total_variation(3), lambda: torchmetrics.total_variation(x[0]),
             lambda: torchmetrics.TotalVariation(), lambda: pystiche.gram_matrix(x.int())):
    try:
        call()
    except ImportError as error:
        print(error)
    else:
        raise SystemExit("there was no error")
"""


def test_without_the_tools() -> None:
    command = [sys.executable, "-c", ALONE]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        'this call needs kornia itself: pip install "fastviz[kornia]"',
        'this call needs torchmetrics itself: pip install "fastviz[torchmetrics]"',
        'a metric needs torchmetrics: pip install "fastviz[torchmetrics]"',
        "this call needs pystiche itself, which cannot be imported",
    ]
