"""Scores of boxes, against values worked by hand and torchvision's detection networks."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

import fastviz as fv

FOUND = {
    "boxes": torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8], [2, 2, 8, 8]]),
    "scores": torch.tensor([0.9, 0.4, 0.3]),
    "labels": torch.tensor([1, 1, 2]),
}
NOTHING = {key: value[:0] for key, value in FOUND.items()}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (fv.box_score(torch.tensor([2, 2, 7, 8])), [0.4, 0.0]),  # the first of equal ones
        (fv.box_score(torch.tensor([2, 2, 7, 8]), 2), [0.3, 0.0]),
        (fv.box_score(torch.tensor([2, 2, 7, 8]), 3), [0.0, 0.0]),
        (fv.box_score(torch.tensor([0, 0, 4, 8])), [0.9, 0.0]),  # 16 of 32
        (fv.box_score(torch.tensor([0, 0, 4, 8]), overlap=0.51), [0.0, 0.0]),
        (fv.box_score(torch.tensor([0, 0, 4, 8]), 2, overlap=0.01), [0.3, 0.0]),
        (fv.box_score(torch.tensor([[0, 0, 4, 4], [2, 2, 8, 8]])), [0.9, 0.0]),
        (fv.box_score(torch.tensor([2, 2, 8, 8]), torch.tensor([2, 1])), [0.3, 0.0]),
        (fv.box_score(torch.tensor([2, 2, 8, 8])) * 2 + fv.box_score(torch.tensor([0, 0, 4, 4])), [1.7, 0.0]),
    ],
)
def test_values(target: fv.Objective, expected: list[float]) -> None:
    assert target.values([FOUND, NOTHING], {}).tolist() == pytest.approx(expected)
    gone = target.missing([FOUND, NOTHING])
    assert gone is not None
    assert gone[0].tolist() == [not value for value in expected]


def test_torchvision_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    with pytest.raises(ModuleNotFoundError, match=r'box_score needs torchvision: pip install "fastviz\[vision\]"'):
        fv.box_score(torch.tensor([2, 2, 7, 8])).values([FOUND], {})


def test_samples_keep_their_boxes() -> None:
    target = fv.box_score(torch.tensor([[0, 0, 4, 4], [2, 2, 8, 8]]), torch.tensor([1, 2]))
    picked = target.for_samples(torch.tensor([1, 0, 1]), 2)
    assert picked.values([FOUND] * 3, {}).tolist() == pytest.approx([0.3, 0.9, 0.3])


def _network(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    make = getattr(torchvision.models.detection, name)
    few = {"rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 20}
    low = {"box_score_thresh": 0.0, **few} if "rcnn" in name else {"score_thresh": 0.0}
    options = {"weights": None, "weights_backbone": None, "num_classes": 3, "min_size": 64, "max_size": 64}
    model: nn.Module = make(**options, **low).eval().double()
    for module in model.modules():  # random weights without statistics: values that neither vanish nor explode
        if type(module).__name__ == "FrozenBatchNorm2d":
            module.eps = 4.0
    return model


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_torchvision_detection(name: str) -> None:
    """Gradients, Grad-CAM and occlusion of the score of a box, against autograd and the plain loop."""
    model, x = _network(name), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    output = model(leaf)[0]
    box, score = output["boxes"][3].detach(), output["scores"][3]
    target = fv.box_score(box, int(output["labels"][3]), overlap=0.9)
    (expected,) = torch.autograd.grad(score, leaf)
    found = fv.input_gradient(model, x, target)
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    assert fv.grad_cam(model, x, target, layer="backbone.body.layer3").isfinite().all()
    swept = fv.occlusion(model, x, target, window=32, stride=32)
    torch.testing.assert_close(swept.baseline, score.detach()[None])
    covered = x.clone()
    covered[..., 32:, :32] = 0
    with torch.no_grad():
        torch.testing.assert_close(swept.scores[0, 1, 0], target.values(model(covered), {})[0])
    assert swept.stats["path"] == "dense"
    assert swept.stats["reason"]


def test_no_box_gives_a_zero_map_and_says_so() -> None:
    model, x = _network("retinanet_resnet50_fpn"), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    target = fv.box_score(torch.tensor([0.0, 0, 0.1, 0.1]), 1)
    words = "no box of that class overlaps the given one by 0.5 or more in 1 of 1 samples: their maps are zero"
    calls: list[Any] = [
        lambda: fv.saliency(model, x, target),
        lambda: fv.occlusion(model, x, target, window=64, stride=64).attribution,
    ]
    for call in calls:
        with pytest.warns(UserWarning, match=words):
            found = call()
        assert found.shape[-2:] == (64, 64)
        assert not found.any()


def test_detection_networks_take_pictures_of_0_to_1_as_they_are() -> None:
    """Prepared for ImageNet's networks, they were normalised twice, without a word."""
    model = _network("retinanet_resnet50_fpn")
    found = fv.models.preprocessing(model)
    assert (found.size, found.resize, found.mean, found.std) == (None, None, (0.0,) * 3, (1.0,) * 3)
    picture = torch.rand(1, 3, 20, 30)
    torch.testing.assert_close(fv.images.preprocess(picture, found), picture)


def test_lists_of_images_are_refused_with_the_way() -> None:
    """torchvision's detection networks take lists; maps of images of different sizes are no tensor."""
    model, target = _network("retinanet_resnet50_fpn"), fv.box_score(torch.tensor([0, 0, 9, 9]))
    given = [torch.rand(3, 64, 64).double(), torch.rand(3, 64, 48).double()]
    with pytest.raises(TypeError, match=r"got list of tensors of different sizes: call it for each .*, x\[i\]\[None\]"):
        fv.saliency(model, given, target)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got list of tensors: torch.stack\(x\) is a batch"):
        fv.occlusion(model, given[:1], target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fv.box_score([0, 0, 1, 1]), TypeError, "box should be a tensor, got list"),
        (
            lambda: fv.box_score(torch.zeros(3)),
            ValueError,
            r"left, top, right and bottom, \[4\] or \[N, 4\], got \[3\]",
        ),
        (lambda: fv.box_score(torch.tensor([4, 0, 1, 1])), ValueError, "right above left and bottom above top"),
        (lambda: fv.box_score(torch.tensor([0, 0, 1, 1]), -1), ValueError, "k should be at least 0, got -1"),
        (lambda: fv.box_score(torch.tensor([0, 0, 1, 1]), overlap=2), ValueError, "overlap should be"),
        (lambda: fv.box_score(torch.tensor([0, 0, 1, 1]), overlap=0), ValueError, "overlap should be above 0"),
    ],
)
def test_targets_refuse(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (torch.rand(2, 3), TypeError, r"a list of one dictionary per image .* got a tensor \[2, 3\]"),
        ({"boxes": 3}, TypeError, "got a dictionary of 'boxes'"),
        ([{"boxes": FOUND["boxes"], "scores": FOUND["scores"]}], TypeError, 'model should return "labels"'),
        ([FOUND] * 3, ValueError, "box and k should be one per sample, 3, got 1"),
    ],
)
def test_values_refuse(output: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fv.box_score(torch.tensor([[0, 0, 1, 1]]), 1).values(output, {})
