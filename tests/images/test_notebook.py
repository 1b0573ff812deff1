"""How results show themselves: shapes in words, small pictures as HTML, text that cannot become markup."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastviz.images.notebook import NotebookResult, contact_sheet, signed, words


@dataclass(frozen=True, eq=False, repr=False)
class Made(NotebookResult):
    """A result as methods declare them."""

    pictures: Tensor
    steps: Tensor
    reasons: tuple[str, ...]
    layers: dict[str, Tensor]
    box: tuple[int, ...] | None


def made(count: int = 2) -> Made:
    return Made(
        torch.rand(count, 3, 8, 6), torch.zeros(count, dtype=torch.int64), ("steps",) * count,
        {"conv1": torch.zeros(count, 4)}, None,
    )  # fmt: skip


def images_in(shown: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def test_shapes_in_words():
    assert repr(made()) == (
        "Made(pictures=float32 [2, 3, 8, 6], steps=int64 [2], reasons=('steps', 'steps'), "
        "layers={'conv1': float32 [2, 4]}, box=None)"
    )
    assert "reasons=tuple of 100" in repr(made(100))


def test_pictures_are_the_pixels():
    result = made()
    first, second = images_in(result._repr_html_())
    assert (first.size, first.mode) == ((6, 8), "RGB")
    shown = torch.from_numpy(np.array(second)).permute(2, 0, 1)
    assert torch.equal(shown, (result.pictures[1] * 255).round().byte())


@pytest.mark.parametrize(("size", "shown"), [((640, 320), (80, 160)), ((8, 1600), (160, 1)), ((160, 160), (160, 160))])
def test_large_pictures_are_shrunk(size, shown):
    (picture,) = images_in(contact_sheet([("", torch.rand(3, *size))], ""))
    assert picture.size == shown


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_grey_pictures_of_any_dtype(dtype):
    (picture,) = images_in(contact_sheet([("", torch.full((1, 4, 4), 0.5, dtype=dtype))], ""))
    assert (np.array(picture) == 128).all()


def test_values_that_no_picture_has():
    odd = torch.tensor([float("nan"), float("inf"), -1.0]).view(3, 1, 1).expand(3, 4, 4)
    (picture,) = images_in(contact_sheet([("", odd)], ""))
    assert (np.array(picture) == [0, 255, 0]).all()


def test_text_is_escaped():
    shown = contact_sheet([('"><script>alert(1)</script>', torch.zeros(3, 2, 2))], "<b>")
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert shown.count(html.escape('"><script>alert(1)</script>')) == 2


def test_many_pictures_are_counted():
    shown = made(30)._repr_html_()
    assert len(images_in(shown)) == 24
    assert "<p>and 6 more</p>" in shown
    assert "more</p>" not in made(24)._repr_html_()
    assert images_in(contact_sheet([], "none")) == []


def test_captions_leave_out_what_is_not_known():
    assert words(value=1234.5, probability=float("nan")) == "value 1.23e+03"
    assert words(error=float("nan")) == ""


def test_results_of_every_kind_show_themselves():
    """Maps of both signs, masks, small pictures of 8 bits, and results without pictures."""
    import fastviz as fv

    model = fv.load_model("demo")
    x = torch.rand(2, 3, 64, 64)
    for found, count in (
        (fv.occlusion(model, x, 3, window=32, stride=32), 2),
        (fv.occlusion(model, x, [3, 5], window=32, stride=32), 4),
        (fv.segment(model, x, 3), 2),
        (fv.image_map(x, torch.rand(2, 2)), 1),
    ):
        shown = found._repr_html_()
        assert len(images_in(shown)) == count
        assert repr(found).startswith(type(found).__name__ + "(")
        assert "tensor(" not in repr(found)
    many = fv.embedding(model, torch.rand(4, 3, 64, 64))
    assert len(images_in(many._repr_html_())) == 4
    near = fv.neighbours(many, 2)
    assert images_in(near._repr_html_()) == []
    assert "features=int64 [4, 2]" in repr(near)
    places = fv.patches(model, x, "relu1", k=2)
    assert "values=float32 [32, 2]" in repr(places)
    pictures = fv.patch_pictures(model, places, x, [0, 3], guided=False)
    assert len(images_in(pictures._repr_html_())) == 4


def test_maps_of_both_signs_are_white_at_zero():
    shown = signed(torch.tensor([[-2.0, 0.0, 2.0]]))
    assert shown.shape == (3, 1, 3)
    assert float(shown[:, 0, 1].min()) > 0.95
    assert shown[2, 0, 0] > shown[0, 0, 0]
    assert shown[0, 0, 2] > shown[2, 0, 2]


def test_measures_and_components_show_themselves():
    import fastviz as fv
    from fastviz import evaluation

    model = fv.load_model("demo")
    x = torch.rand(2, 3, 64, 64)
    maps = torch.rand(2, 64, 64)
    curve = evaluation.deletion(model, x, maps, step=1024)
    assert repr(curve).startswith("Curve(values=float32 [2, 5], fractions=")
    assert [picture.size for picture in images_in(curve._repr_html_())] == [(160, 64)] * 2
    check = evaluation.parameter_randomisation(model, x, fv.input_gradient, steps=2, similarities=["rank"])
    shown = check._repr_html_()
    assert len(images_in(shown)) == 6
    assert shown.index("0: as it is") < shown.index(f"0: {', '.join(check.layers[0])}") < shown.index("1: as it is")
    for found in (
        evaluation.road(model, x, maps, removed=(20, 50)),
        evaluation.confidence_change(model, x, maps),
        evaluation.pointing_game(maps, torch.tensor([[4, 4, 8, 8]] * 2)),
        evaluation.agreement({"a": maps, "b": maps}, similarities=["rank"]),
        evaluation.bootstrap(torch.rand(3, 2)),
        fv.pca(torch.rand(5, 4)),
    ):
        assert repr(found).startswith(type(found).__name__ + "(")
        assert "tensor(" not in repr(found)
        assert images_in(found._repr_html_()) == []
