"""The substitutes of lucent's functions against its own, number for number, and their manners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fastviz
from fastviz.compat import lucent as ours
from fastviz.compat.lucent import objectives, param, render, transform

theirs = pytest.importorskip("lucent.optvis.render")
kornia = pytest.importorskip("kornia")
their_objectives, their_param, their_transform = theirs.objectives, theirs.param, theirs.transform

QUIET = {"progress": False, "show_image": False}
SHORT = QUIET | {"thresholds": (1, 4), "fixed_image_size": 40}


@pytest.fixture(autouse=True)
def names_of_old_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    """lucent 0.1.8 calls two functions of kornia by names that it had until 0.5."""
    for name in ("get_rotation_matrix2d", "warp_affine"):
        monkeypatch.setattr(kornia, name, getattr(kornia.geometry.transform, name), raising=False)


class Net(nn.Module):
    """Rectifiers that work in place, a branch, a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.ModuleDict({"left": nn.Conv2d(8, 6, 3, padding=1), "right": nn.Conv2d(8, 6, 1)})
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.body["left"](x)) + self.body["right"](x)
        x = self.act(self.shared(self.act(self.shared(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    network = Net().eval()
    with torch.no_grad():
        network.stem[0].weight *= 4
        network.stem[1].running_mean += 0.05
    return network


def seeded(call: Callable[[], Any], seed: int = 3) -> Any:
    torch.manual_seed(seed)
    np.random.seed(seed)
    return call()


def features(batch: int = 5) -> Callable[[str], Tensor]:
    drawn = torch.Generator().manual_seed(1)
    maps = {name: torch.randn(batch, 4, 6, 7, generator=drawn) for name in ("a", "b")}
    maps["input"] = torch.rand(batch, 3, 6, 7, generator=drawn)
    return lambda name: maps[name]


WEIGHT = torch.tensor([0.5, -1.0, 2.0, 0.1])
OBJECTIVES: dict[str, Callable[[Any], Any]] = {
    "neuron": lambda o: o.neuron("a", 2),
    "neuron at a place": lambda o: o.neuron("a", 2, x=1, y=4, batch=3),
    "channel": lambda o: o.channel("a", 1),
    "channel of one": lambda o: o.channel("b", n_channel=1, batch=2),
    "neuron_weight": lambda o: o.neuron_weight("a", WEIGHT, x=0, y=5, batch=0),
    "neuron_weight of all": lambda o: o.neuron_weight("a", None),
    "channel_weight": lambda o: o.channel_weight("a", WEIGHT),
    "localgroup_weight": lambda o: o.localgroup_weight("a", WEIGHT, x=1, y=2, wx=3, wy=2),
    "direction": lambda o: o.direction("a", WEIGHT),
    "direction_neuron": lambda o: o.direction_neuron("a", WEIGHT, x=3, batch=4),
    "blur": lambda o: -0.3 * o.blur_input_each_step(),
    "interpolate": lambda o: o.channel_interpolate("a", 0, "b", 3),
    "alignment": lambda o: o.alignment("b", decay_ratio=3),
    "diversity": lambda o: o.diversity("a"),
    "words": lambda o: o.as_objective(" a : 3"),
    "sum": lambda o: 2 * o.channel("a", 1) - o.neuron("b", 0) / 4 + 3.0,
    "minus": lambda o: -(1 + o.Objective.sum([o.channel("a", 1), o.channel("a", 2)])),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str) -> None:
    mine, other = (OBJECTIVES[name](each) for each in (objectives, their_objectives))
    torch.testing.assert_close(mine(features()), other(features()))
    assert (mine.name, mine.description) == (other.name, other.description)


def test_deepdream_is_the_mean_square() -> None:
    torch.testing.assert_close(objectives.deepdream("a")(features()), -(features()("a") ** 2).mean())


@pytest.mark.parametrize(
    ("bad", "words"), [("conv", "'layer:channel'"), ("conv:x", "got 'conv:x'")], ids=["no channel", "no number"]
)
def test_words_that_are_no_objective(bad: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        objectives.as_objective(bad)
    with pytest.raises(TypeError, match="got int"):
        objectives.as_objective(3)
    with pytest.raises(TypeError, match="Can only multiply"):
        objectives.channel("a", 1) * objectives.channel("a", 2)
    with pytest.raises(ValueError, match="at least 2 images"):
        objectives.channel_interpolate("a", 0, "b", 1)(features(1))


PARAMETRISATIONS: dict[str, Callable[[Any], Any]] = {
    "waves": lambda p: p.image(16),
    "an odd width": lambda p: p.image(15, h=10, batch=2, sd=0.3),
    "pixels": lambda p: p.image(9, fft=False, decorrelate=False, sd=0.5),
    "channels": lambda p: p.image(8, channels=5, sd=1.0),
    "steeper": lambda p: p.fft_image([1, 2, 6, 8], sd=1.0, decay_power=2),
    "cppn": lambda p: p.cppn(12, num_hidden_channels=5, num_layers=4, normalize=True),
}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_parametrisations(name: str) -> None:
    (mine, make), (other, theirs_make) = (seeded(lambda p=p: PARAMETRISATIONS[name](p)) for p in (param, their_param))
    for one, two in zip(list(mine), list(other), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    torch.testing.assert_close(make(), theirs_make().float())


def test_other_parametrisations_are_lucents() -> None:
    assert param.lowres_tensor is their_param.lowres_tensor
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = param.nothing_like_it


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "jitter": lambda t: t.jitter(9),
    "pad": lambda t: t.pad(3),
    "pad with a value": lambda t: t.pad(2, mode="constant", constant_value=0.7),
    "smaller": lambda t: t.random_scale([0.71]),
    "larger": lambda t: t.random_scale([1.0, 1.3]),
    "rotate": lambda t: t.random_rotate([-25, 10, 40]),
    "radians": lambda t: t.random_rotate([0.3], units="rads"),
    "normalize": lambda t: t.normalize(),
    "inception": lambda t: t.preprocess_inceptionv1(),
    "standard": lambda t: t.compose(t.standard_transforms),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    pictures = torch.rand(2, 3, 21, 30, generator=torch.Generator().manual_seed(2))
    for seed in range(4):
        mine, other = (seeded(lambda t=t: TRANSFORMS[name](t)(pictures), seed) for t in (transform, their_transform))
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


RENDERED: dict[str, dict[str, Any]] = {
    "a rectifier in place follows": {"objective_f": "stem_1:0"},
    "the layer before": {"objective_f": "stem_0:2"},
    "a layer that is called twice": {"objective_f": "shared:1"},
    "scores": {"objective_f": "labels:2"},
    "branches": {"objective_f": lambda T: -(T("body_left")[:, 1] - T("body_right")[:, 2] + T("input").mean()).mean()},
    "a batch": {
        "objective_f": objectives.channel("shared", 0) - 5 * objectives.diversity("stem_2"),
        "param_f": lambda: param.image(24, batch=3),
    },
    "pixels": {"objective_f": "act:0", "param_f": lambda: param.image(30, fft=False, sd=0.2)},
    "their own objects": {
        "objective_f": their_objectives.neuron("shared", 2),
        "param_f": lambda: their_param.image(24),
        "transforms": [their_transform.pad(4), their_transform.jitter(3)],
    },
    "another optimiser": {
        "objective_f": "act:0",
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=3000.0, momentum=0.5),
        "preprocess": False,
    },
    "one that asks again": {
        "objective_f": "act:1",
        "transforms": [],
        "optimizer": lambda parameters: torch.optim.LBFGS(parameters, lr=0.5, max_iter=3),
    },
    "a painting network": {"objective_f": "act:1", "param_f": lambda: param.cppn(16, num_layers=3), "transforms": []},
}


@pytest.mark.parametrize("name", RENDERED)
def test_render_vis(model: nn.Module, name: str) -> None:
    options = {"param_f": lambda: param.image(24)} | RENDERED[name] | SHORT
    mine, other = (seeded(lambda r=r: r.render_vis(model, **options)) for r in (render, theirs))
    assert len(mine) == 2
    for one, two in zip(mine, other, strict=True):
        # a step of Adam's is as long for a tiny gradient as for a large one
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, atol=2e-3)
    assert np.abs(mine[0] - mine[1]).max() > 1e-2


def test_the_pass_ends_behind_the_layer(model: nn.Module) -> None:
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append("head"))
    seeded(lambda: ours.render_vis(model, "stem_1:0", lambda: param.image(24), **SHORT | {"thresholds": (10,)}))
    assert len(calls) == 2  # one that learns the layers, one that learns when nothing changes them any more


def test_many_are_as_each_alone(model: nn.Module) -> None:
    asked: list[Any] = ["stem_1:0", "shared:1", "stem_1:5", lambda T: -T("labels")[:, 4].mean(), "shared:2"]

    def made(number: int) -> Callable[[], Any]:
        return lambda: seeded(lambda: param.image(24, batch=2), 100 + number)

    numbers = iter(range(len(asked)))
    options = {key: value for key, value in SHORT.items() if key != "show_image"}
    many = seeded(lambda: ours.render_vis_many(model, asked, lambda: made(next(numbers))(), batch_size=4, **options))
    # the parametrisations above leave the generators where the last one put them
    for number, (each, images) in enumerate(zip(asked, many, strict=True)):
        alone = seeded_alone(model, each, number, made, len(asked))
        assert [one.shape for one in images] == [(2, 24, 24, 3)] * 2
        for one, two in zip(images, alone, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-3)


def seeded_alone(
    model: nn.Module, objective: Any, number: int, made: Callable[[int], Callable[[], Any]], count: int
) -> Any:
    """One picture from its start, with the transforms' random numbers as they were for all."""

    def parametrised() -> Any:
        found = made(number)()
        made(count - 1)()
        return found

    return ours.render_vis(model, objective, parametrised, **SHORT)


def test_the_model_is_left_as_it_is(model: nn.Module) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seeded(lambda: ours.render_vis(model, "shared:1", lambda: param.image(24), **SHORT))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError):
        ours.render_vis(model, lambda T: T("stem").mean() * (1 / 0), **SHORT)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_words_and_files(model: nn.Module, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    options = SHORT | {"verbose": True, "show_image": True, "save_image": True, "image_name": str(tmp_path / "a.png")}
    seeded(lambda: ours.render_vis(model, "shared:1", lambda: param.image(24, batch=2), **options))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["Initial loss", "Loss at step 1", "Loss at step 4"]
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.size == shown[0].size == (48, 24)


def test_an_image_that_is_too_small_for_what_follows(model: nn.Module) -> None:
    deep = nn.Sequential(model.stem, nn.Conv2d(8, 4, 99)).eval()
    with pytest.warns(UserWarning, match="could not be computed"):
        found = ours.render_vis(deep, "0_0:1", lambda: param.image(24), **SHORT)
    assert len(found) == 2
    with pytest.warns(UserWarning, match="could not"), pytest.raises(AssertionError, match="was not"):
        ours.render_vis(deep, "1:1", lambda: param.image(24), **SHORT)


def test_layers(model: nn.Module) -> None:
    from lucent.modelzoo.util import get_model_layers

    assert ours.get_model_layers(model) == get_model_layers(model)
    assert ours.get_model_layers(model, True) == get_model_layers(model, True)
    with pytest.raises(AssertionError, match="nearest: shared"):
        ours.render_vis(model, "shard:1", **SHORT)
    with pytest.raises(ValueError, match="at least one"):
        ours.render_vis_many(model, [])


def test_ctrl_c_returns_what_there_is(model: nn.Module) -> None:
    calls: Iterator[int] = iter(range(100))

    def objective(layers: Callable[[str], Tensor]) -> Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return -layers("shared").mean()

    found = ours.render_vis(model, objective, lambda: param.image(24), **SHORT | {"thresholds": (2, 50)})
    assert len(found) == 2


def test_accelerate() -> None:
    with fastviz.accelerate("lucent", quiet=True) as accelerated:
        from lucent.optvis import render as bound

        assert bound.render_vis is ours.render_vis
        assert bound.transform.standard_transforms is ours.standard_transforms
        assert accelerated.replaced["lucent"]["render_vis"] >= 1
    assert bound.render_vis is not ours.render_vis
