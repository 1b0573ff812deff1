"""Occlusion against windows placed and averaged one by one; batching, targets, what covers, what is refused."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.methods.attribution.occlusion import OcclusionMap, occlusion
from fastviz.targets.objectives import channel, class_probability, class_score

pytestmark = pytest.mark.usefixtures("traced")

f64 = torch.float64


class Net(nn.Module):
    """Two layers, dropout and batch norm; counts the images of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(3 * 5 * 7, 4)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.fc(self.drop(self.norm(self.conv(x)).relu_().flatten(1)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(5)
    return Net().to(f64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 7, 9, dtype=f64, generator=torch.Generator().manual_seed(6))


def by_definition(
    model: nn.Module, x: Tensor, k: int, window: tuple[int, int], stride: tuple[int, int], fill: Any = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Attribution, scores and baseline of class k: one window, one image and one pixel after another."""
    model.eval()
    (h, w), (H, W) = window, x.shape[2:]
    rows = math.ceil((H - h) / stride[0]) + 1
    columns = math.ceil((W - w) / stride[1]) + 1
    baseline = model(x)[:, k]
    scores = torch.zeros(len(x), rows, columns, dtype=x.dtype)
    total, count = torch.zeros(len(x), H, W, dtype=x.dtype), torch.zeros(H, W)
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride[0], column * stride[1]
            covered = x.clone()
            area = (slice(None), slice(None), slice(top, top + h), slice(left, left + w))
            covered[area] = fill.expand(x.shape)[area] if isinstance(fill, Tensor) else fill
            scores[:, row, column] = model(covered)[:, k]
            total[:, top : top + h, left : left + w] += (baseline - scores[:, row, column])[:, None, None]
            count[top : top + h, left : left + w] += 1
    model.train()
    return (total / count).detach(), scores.detach(), baseline.detach()


GRIDS = [
    ((3, 3), (1, 1)),
    ((3, 3), (2, 2)),
    ((4, 2), (3, 1)),
    ((4, 4), (3, 3)),  # the last row ends at the border, the last column is cut off
    ((2, 5), (2, 5)),
    ((7, 9), (1, 1)),  # one window covers everything
    ((7, 2), (9, 2)),  # a stride above the window is allowed where one window covers the side
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize(("window", "stride"), GRIDS)
def test_attribution_is_the_mean_over_the_windows(
    model: Net, x: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> None:
    attribution, scores, baseline = by_definition(model, x, 2, window, stride)
    found = occlusion(model, x, 2, window=window, stride=stride)
    torch.testing.assert_close(found.attribution, attribution, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.scores, scores, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.baseline, baseline, rtol=1e-12, atol=1e-13)


def test_occlusion_worked_by_hand() -> None:
    """S = Σ i·x_i over (1, 1, 1, 1): windows of 2 at 0, 2 take 0 + 1 and 2 + 3 away; at stride 1 they overlap."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).to(f64)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 1, 2, 3]]))
    x = torch.ones(1, 1, 1, 4, dtype=f64)
    apart = occlusion(model, x, 0, window=(1, 2))
    assert apart.baseline.tolist() == [6]
    assert occlusion(model, x, 0, window=(1, 2), stride=2).attribution.tolist() == [[[1, 1, 5, 5]]]
    overlapping = occlusion(model, x, 0, window=(1, 2), stride=1)
    assert overlapping.scores.tolist() == [[[5, 3, 1]]]
    assert overlapping.attribution.tolist() == [[[1, 2, 4, 5]]]
    cut = occlusion(model, x, 0, window=(1, 3), stride=2)
    assert cut.scores.tolist() == [[[3, 1]]]
    assert cut.attribution.tolist() == [[[3, 3, 4, 5]]]


def test_disjoint_windows_of_a_linear_model_add_up_to_its_score(x: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(126, 1, bias=False)).to(f64)
    found = occlusion(model, x, 0, window=(7, 3), stride=(1, 3))
    torch.testing.assert_close((found.baseline[:, None, None] - found.scores).sum((1, 2)), found.baseline)


def test_default_window_and_stride(model: Net, x: Tensor) -> None:
    """A seventh of the image, in steps of half a window, both at least 1."""
    assert torch.equal(
        occlusion(model, x, 1, window=(4, 9)).scores, occlusion(model, x, 1, window=(4, 9), stride=(2, 4)).scores
    )
    assert occlusion(model, x, 1, window=3).scores.shape == (3, 5, 7)
    image = torch.zeros(1, 1, 70, 35)
    assert occlusion(nn.Flatten(), image, 0).scores.shape == (1, 13, 16)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 17, 1000])
def test_batch_size_bounds_what_the_network_sees_and_changes_nothing(model: Net, x: Tensor, batch_size: int) -> None:
    expected = by_definition(model, x, 1, (3, 3), (2, 2))
    found = occlusion(model, x, 1, window=3, stride=2, batch_size=batch_size)
    torch.testing.assert_close(found.attribution, expected[0], rtol=1e-12, atol=1e-13)
    assert {key: found.stats[key] for key in ("windows", "evaluations")} == {"windows": 12, "evaluations": 39}
    assert found.stats["seconds"] > 0
    model.batches.clear()
    inside = occlusion(model, x, channel("conv", 1), window=3, stride=2, batch_size=batch_size)
    assert max(model.batches) == min(batch_size, 3 * 12)
    assert sum(model.batches) == 3 * 13
    assert inside.stats["path"] == "dense"
    assert inside.stats["reason"] == "the target is inside the network"
    torch.testing.assert_close(inside.scores, occlusion(model, x, channel("conv", 1), window=3, stride=2).scores)


@pytest.mark.parametrize("shape", ["number", "channels", "image", "images"])
def test_fill(model: Net, x: Tensor, shape: str) -> None:
    whole = torch.randn_like(x)
    fill, written_out = {
        "number": (0.7, 0.7),
        "channels": (torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.0], dtype=f64)[:, None, None]),
        "image": (whole[0], whole[0]),
        "images": (whole, whole),
    }[shape]
    expected = by_definition(model, x, 1, (3, 3), (2, 2), written_out)
    for index, name in enumerate(("attribution", "scores", "baseline")):
        found = getattr(occlusion(model, x, 1, window=3, stride=2, fill=fill), name)
        torch.testing.assert_close(found, expected[index], rtol=1e-12, atol=1e-13)


def test_fill_with_the_mean_and_with_the_image_blurred(model: Net, x: Tensor) -> None:
    means = x.mean((2, 3), keepdim=True).expand_as(x)
    expected = by_definition(model, x, 1, (3, 3), (2, 2), means)
    found = occlusion(model, x, 1, window=3, stride=2, fill="mean")
    torch.testing.assert_close(found.attribution, expected[0], rtol=1e-12, atol=1e-13)

    # the Gaussian in two dimensions, pixel by pixel, its border repeated outwards
    H, W = x.shape[2:]
    blurred = torch.zeros_like(x)
    offsets = range(-5, 6)  # three standard deviations of 1.5
    weight = {(i, j): math.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in offsets for j in offsets}
    for i, j in weight:
        rows, columns = (torch.arange(H) + i).clamp(0, H - 1), (torch.arange(W) + j).clamp(0, W - 1)
        blurred += weight[i, j] * x[:, :, rows][..., columns] / sum(weight.values())
    expected = by_definition(model, x, 1, (3, 3), (2, 2), blurred)
    found = occlusion(model, x, 1, window=3, stride=2, fill="blur")
    torch.testing.assert_close(found.attribution, expected[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("window", "stride"), [((3, 3), (1, 1)), ((4, 2), (2, 1)), ((7, 9), (3, 4))])
def test_windows_centred_on_pixels(model: Net, x: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> None:
    """Window by window: the one on pixel (i, j) covers i − ⌊h/2⌋ to i − ⌊h/2⌋ + h, as far as the image goes."""
    found = occlusion(model, x, 1, window=window, stride=stride, centred=True, fill=0.3)
    model.eval()
    rows, columns = range(0, 7, stride[0]), range(0, 9, stride[1])
    assert found.scores.shape == (3, len(rows), len(columns))
    total, count = torch.zeros(3, 7, 9, dtype=f64), torch.zeros(7, 9)
    for row, i in enumerate(rows):
        for column, j in enumerate(columns):
            top, left = i - window[0] // 2, j - window[1] // 2
            area = (..., slice(max(0, top), top + window[0]), slice(max(0, left), left + window[1]))
            covered = x.clone()
            covered[area] = 0.3
            score = model(covered)[:, 1].detach()
            torch.testing.assert_close(found.scores[:, row, column], score, rtol=1e-12, atol=1e-13)
            total[area] += (found.baseline - score)[:, None, None]
            count[area[1:]] += 1
    torch.testing.assert_close(found.attribution, total / count, rtol=1e-12, atol=1e-13)


def test_the_class_that_wins_under_each_window(model: Net, x: Tensor) -> None:
    expected = torch.stack([occlusion(model, x, k, window=3, stride=2, fill=5.0).scores for k in range(4)]).argmax(0)
    found = occlusion(model, x, 1, window=3, stride=2, fill=5.0, classes=True)
    assert len(expected.unique()) > 1
    assert torch.equal(found.classes, expected)
    inside = occlusion(model, x, channel("conv", 0), window=3, stride=2, fill=5.0, classes=True)
    assert torch.equal(inside.classes, expected)
    assert occlusion(model, x, 1, window=3).classes is None


def test_approximate_modes_say_how_far_off_they_are() -> None:
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.ReLU()) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(2, 4, 1), *layers, nn.Flatten(), nn.Linear(4 * 24 * 24, 4))
    x = torch.randn(2, 2, 24, 24)
    expected = occlusion(model, x, [1, None], window=4, stride=2)
    assert expected.stats["path"] == "incremental"
    span = float(expected.scores.max() - expected.scores.min())
    for options in ({"precision": "bfloat16"}, {"growth_cap": 0.3}, {"drill_down": 0.2}):
        found = occlusion(model, x, [1, None], window=4, stride=2, **options)  # type: ignore[arg-type]
        off = (found.scores - expected.scores).abs()
        assert 1e-5 < float(off.max()) < span, options
        error = found.stats["error"]
        assert error["windows"] == 16
        assert 0 < error["mean"] <= error["largest"] <= float(off.max()) + 1e-6, options
    assert "error" not in expected.stats


def test_drilling_down_is_exact_where_it_computes(model: Net, x: Tensor) -> None:
    expected = occlusion(model, x, [1, 2], window=3, stride=1)
    everywhere = occlusion(model, x, [1, 2], window=3, stride=1, drill_down=1.0)
    torch.testing.assert_close(everywhere.scores, expected.scores, rtol=1e-12, atol=1e-13)
    assert everywhere.stats["computed"] == 1
    coarse = occlusion(model, x, [1, 2], window=3, stride=1, drill_down=0.0)
    corners = (..., [0, 4], slice(0, 5, 4))  # rows 0, 4 of 5 and columns 0, 4, 6 of 7
    torch.testing.assert_close(coarse.scores[corners], expected.scores[corners], rtol=1e-12, atol=1e-13)
    assert coarse.stats["computed"] == pytest.approx(6 / 35)
    middle = expected.scores[:, :, [0, 4]][..., [0, 4]].mean((2, 3))
    torch.testing.assert_close(coarse.scores[:, :, 2, 2], middle, rtol=1e-12, atol=1e-13)


def test_only_the_scores_that_are_read_are_computed(model: Net, x: Tensor) -> None:
    """The last layer works on the classes asked for, in a target that reads scores; not in one that reads all."""
    assert targets.resolve([1, 2 * class_score(3) - class_score(0)], model).scores_read == {0, 1, 3}
    assert targets.resolve(torch.tensor([[1, 2], [2, 3]]), model).scores_read == {1, 2, 3}
    for target in (None, class_probability(1), [1, class_probability(2)], channel("conv", 1)):
        assert targets.resolve(target, model).scores_read is None
    # a last convolution with a channel for each class: one of them is enough
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 400, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wide = torch.randn(2, 2, 20, 20, dtype=f64)
    one, every = (occlusion(network.to(f64), wide, target, window=4) for target in ([1], [1, class_probability(2)]))
    torch.testing.assert_close(one.scores[:, 0], every.scores[:, 0], rtol=1e-12, atol=1e-13)
    assert one.stats["flops"] < every.stats["flops"]


def test_the_predicted_class_is_that_of_the_clean_image(model: Net, x: Tensor) -> None:
    model.eval()
    best = model(x).argmax(1)
    found = occlusion(model, x, window=4, stride=1, batch_size=2, fill=3.0)
    expected = occlusion(model, x, best, window=4, stride=1, fill=3.0)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-12, atol=1e-13)
    # close, not equal: batches of two round otherwise than one of three
    torch.testing.assert_close(found.baseline, model(x).amax(1).detach(), rtol=1e-12, atol=1e-13)


def test_several_targets_per_sample(model: Net, x: Tensor) -> None:
    columns: list[Any] = [1, None, torch.tensor([3, 0, 2]), class_probability(1), channel("conv", 2)]
    together = occlusion(model, x, columns, window=3, stride=2, batch_size=5)
    assert together.attribution.shape == (3, 5, 7, 9)
    assert together.scores.shape == (3, 5, 3, 4)
    assert together.baseline.shape == (3, 5)
    for number, target in enumerate(columns):
        single = occlusion(model, x, target, window=3, stride=2)
        for name in ("attribution", "scores", "baseline"):
            found = getattr(together, name)[:, number]
            torch.testing.assert_close(found, getattr(single, name), rtol=1e-12, atol=1e-13)


def test_empty_batch_gives_empty_maps(model: Net, x: Tensor) -> None:
    one = occlusion(model, x[:0], 1, window=3, stride=2)
    assert (one.attribution.shape, one.scores.shape, one.baseline.shape) == ((0, 7, 9), (0, 3, 4), (0,))
    two = occlusion(model, x[:0], [None, 1], window=3, stride=2)
    assert (two.attribution.shape, two.scores.shape, two.baseline.shape) == ((0, 2, 7, 9), (0, 2, 3, 4), (0, 2))
    assert two.stats["evaluations"] == 0


def test_channels_last_gives_the_same(model: Net, x: Tensor) -> None:
    expected = occlusion(model, x, 1, window=3)
    found = occlusion(model, x.to(memory_format=torch.channels_last), 1, window=3)
    torch.testing.assert_close(found.attribution, expected.attribution, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("trace", ["always", "never"])
def test_low_precision_gives_float32(model: Net, x: Tensor, trace: Any) -> None:
    found = occlusion(model.bfloat16(), x.bfloat16(), None, window=3, trace=trace)
    assert {found.attribution.dtype, found.scores.dtype, found.baseline.dtype} == {torch.float32}


@pytest.mark.cuda
def test_cuda_gives_the_numbers_of_the_cpu(model: Net, x: Tensor) -> None:
    columns: list[Any] = [None, torch.tensor([3, 0, 2]), channel("conv", 2)]
    options: dict[str, Any] = {"window": (4, 3), "stride": (3, 2), "batch_size": 7}
    expected = occlusion(model, x, columns, fill=x[0], **options)
    found = occlusion(model.cuda(), x.cuda(), columns, fill=x[0].cuda(), **options)
    for name in ("attribution", "scores", "baseline"):
        assert getattr(found, name).is_cuda
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------- nothing is touched


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_model_and_input_are_left_alone(model: Net, x: Tensor, around: Any) -> None:
    model.norm.eval()
    x.requires_grad_()
    flags = [module.training for module in model.modules()]
    statistics, values, random = model.norm.running_mean.clone(), x.detach().clone(), torch.get_rng_state()
    expected = occlusion(model, x, 1, window=3).attribution
    with around():
        found = occlusion(model, x.clone(), 1, window=3)
    assert torch.equal(found.attribution, expected)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(model.norm.running_mean, statistics)
    assert torch.equal(x, values)
    assert torch.equal(torch.get_rng_state(), random)
    assert x.grad is None
    assert not found.attribution.requires_grad
    assert not found.attribution.is_inference()
    assert not found.scores.is_inference()


def test_a_model_that_works_in_place_on_its_input(x: Tensor) -> None:
    class InPlace(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value.relu_().flatten(1)

    before = x.clone()
    occlusion(InPlace(), x, 0, window=3)
    assert torch.equal(x, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_after_an_interrupt_in_the_middle(
    model: Net, x: Tensor, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        if len(model.batches) == 3:
            raise error

    handle = model.fc.register_forward_hook(fail)
    with pytest.raises(error):
        occlusion(model, x, channel("conv", 1), window=3, batch_size=4, progress=True)
    handle.remove()
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_two_threads_on_one_model(model: Net, x: Tensor) -> None:
    expected = [occlusion(model, x, k, window=3).attribution for k in range(4)]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: occlusion(model, x, k, window=3).attribution}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[k], expected[k]) for k in range(4))
    assert all(module.training for module in model.modules())


def test_progress_shows_nothing_where_there_is_no_terminal(
    model: Net, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    occlusion(model, x, 1, window=3, progress=True)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_a_bar_on_a_terminal(
    model: Net, x: Tensor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    occlusion(model, x, 1, window=3, stride=2, progress=True)
    assert "36/36" in capsys.readouterr().err


def test_result_is_frozen(model: Net, x: Tensor) -> None:
    found = occlusion(model, x, 1, window=3)
    assert isinstance(found, OcclusionMap)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.scores = found.baseline  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window should be at least 1, got 0"),
        ({"window": 2.5}, TypeError, "window should be a whole number, got 2.5"),
        ({"window": (2, 3, 4)}, ValueError, r"window should be one number or \(height, width\), got 3 numbers"),
        ({"window": 8}, ValueError, "window should be at most the image, H = 7 pixels, got 8"),
        ({"window": (7, 10)}, ValueError, "window should be at most the image, W = 9 pixels, got 10"),
        ({"window": 3, "stride": 4}, ValueError, "stride should be at most the window, 3 pixels along H, got 4"),
        ({"window": 3, "stride": (1, 0)}, ValueError, "stride should be at least 1, got 0"),
        ({"window": 3, "stride": "2"}, TypeError, "stride should be a whole number, got '2'"),
        ({"batch_size": 0, "window": 3}, ValueError, "batch_size should be at least 1, got 0"),
        ({"fill": "grey", "window": 3}, ValueError, "fill should be one of 'mean', 'blur', got 'grey'"),
        ({"fill": [1], "window": 3}, TypeError, 'fill should be a number, a tensor, "mean" or "blur", got list'),
        ({"memory": 0, "window": 3}, ValueError, "memory should be at least 1, got 0"),
        ({"drill_down": 2.0, "window": 3}, ValueError, "drill_down should be finite and from 0 to 1, got 2.0"),
        ({"drill_down": 0.5, "classes": True, "window": 3}, ValueError, "classes needs every window, but drill_down"),
        ({"growth_cap": 0.0, "window": 3}, ValueError, "growth_cap should be"),
        ({"precision": "half", "window": 3}, ValueError, "precision should be one of 'model', 'bfloat16', got 'half'"),
        ({"centred": True, "window": 7, "stride": 8}, ValueError, "stride should be at most the window, 7 pixels"),
        (
            {"target": channel("conv", 0), "precision": "bfloat16", "window": 3},
            ValueError,
            "precision, growth_cap and drill_down need a target that is a score",
        ),
        (
            {"fill": torch.zeros(3), "window": 3},
            ValueError,
            r"fill should have shape \[2\], \[2, 7, 9\] or \[3, 2, 7, 9\] for this x, got \[3\]",
        ),
        ({"fill": torch.zeros(2, device="meta"), "window": 3}, ValueError, "fill should be on the device of x, cpu"),
        ({"target": 4, "window": 3}, ValueError, "target should be a class from 0 to 3, got 4"),
        ({"target": torch.tensor([1, 2]), "window": 3}, ValueError, "should have one class per sample, 3, got 2"),
        ({"target": torch.ones(4).long(), "window": 3}, ValueError, "should have one class per sample, 3, got 4"),
    ],
)
def test_bad_arguments_are_named(
    model: Net, x: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        occlusion(model, x, **options)


def test_bad_models_and_inputs_are_named(x: Tensor) -> None:
    class Pair(nn.Module):
        def forward(self, value: Tensor) -> dict[str, Tensor]:
            return {"out": value}

    with pytest.raises(
        TypeError, match=r"model should return scores \[N, K\] for a class target, got a dictionary of 'out'"
    ):
        occlusion(Pair(), x, window=3)
    with pytest.raises(TypeError, match=r"x should be a floating-point tensor, got torch.uint8"):
        occlusion(nn.Flatten(), x.byte(), window=3)
