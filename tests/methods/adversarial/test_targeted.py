"""Fooling images: steps worked by hand for linear networks, targets of every kind, promises of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from tests.methods.adversarial.common import described, linear, others, pictures, small


@pytest.mark.parametrize(("method", "each"), [("sign", 0.04), ("gradient", 0.04)])
def test_steps_of_a_linear_network(method, each):
    """Its gradient is the same everywhere, so both kinds of steps move every value by 0.01: four of them are needed."""
    found = fv.fool(linear(), torch.full((1, 3, 4, 4), 0.5).double(), 1, method=method, goal=0.9, step=0.01)
    assert (found.images - 0.5 - each).abs().max() < 1e-12
    assert found.steps.tolist() == [4]


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_radius_is_kept_and_failure_is_reported(norm):
    radius = 0.02 if norm == "inf" else 0.02 * math.sqrt(48)
    x = torch.full((1, 3, 4, 4), 0.5).double()
    found = fv.fool(linear(), x, 1, method="sign", goal=0.9, step=0.013, norm=norm, radius=radius, steps=8)
    assert not found.success.item()
    assert (found.images - 0.52).abs().max() < 1e-12
    assert found.steps.item() == 8


@pytest.mark.parametrize("method", ["lbfgs", "sign", "gradient"])
def test_every_image_is_a_problem_of_its_own(method):
    model, x = small(), pictures(4)
    target = others(model, x)
    together = fv.fool(model, x, target, method=method, batch_size=3)
    assert together.success.all()
    assert together.target.tolist() == target.tolist()
    assert len(set(together.steps.tolist())) > 1
    for row in range(4):
        alone = fv.fool(model, x[row : row + 1], int(target[row]), method=method)
        torch.testing.assert_close(alone.images[0], together.images[row])
        assert alone.steps[0] == together.steps[row]
    output = model(together.images)
    assert torch.equal(output.argmax(1), target)
    torch.testing.assert_close(output.softmax(1).gather(1, target[:, None])[:, 0], together.probability)


def test_lbfgs_changes_less_than_sign_steps():
    model, x = small(), pictures(6)
    target = others(model, x)
    least, sign, gradient = (fv.fool(model, x, target, method=m) for m in ("lbfgs", "sign", "gradient"))
    assert (least.l2 < sign.l2).all()
    assert (least.l2 < gradient.l2).all()


def test_model_is_left_as_it_was():
    model, x = small().train(), pictures(2)
    x.requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        found = fv.fool(model, x, others(small(), x))
        fv.fool_from_noise(model, 1, steps=2)
        fv.evolve(model, 1, generations=2, population=2)
    assert not found.images.requires_grad
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model[4].training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_no_images_give_no_images():
    for method in ("lbfgs", "sign"):
        found = fv.fool(small(), torch.zeros(0, 3, 12, 12).double(), 1, method=method, quantize=True)
        assert found.images.shape == (0, 3, 12, 12)
        assert found.success.shape == found.l2.shape == (0,)


def test_scores_that_are_not_finite_are_refused():
    model, x = small(), pictures(3)
    with torch.no_grad():
        target = others(model, x)
    model.register_forward_hook(lambda module, inputs, output: output * torch.tensor([[1.0], [math.nan], [1.0]]))
    with pytest.raises(ValueError, match="scores for x, got probabilities that are not finite for image 1"):
        fv.fool(model, x, target)


@pytest.mark.parametrize("method", ["lbfgs", "sign"])
def test_out_of_memory_says_what_would_fit(method):
    model, x = small(), pictures(4)
    target = others(model, x)

    def narrow(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > 2 and inputs[0].requires_grad:
            torch.empty(1 << 60)  # more than any machine has: the allocator's own error

    model.register_forward_pre_hook(narrow)
    with pytest.raises(MemoryError, match="4 images of 12x12 pixels at once do not fit on cpu, 2 would: batch_size=2"):
        fv.fool(model, x, target, method=method)
    assert fv.fool(model, x, target, method=method, batch_size=2).success.all()


def test_ctrl_c_returns_what_there_is():
    model, x = small(), pictures(2)
    target = others(model, x)
    calls = []

    def stop(module: nn.Module, inputs: object) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop)
    found = fv.fool(model, x, target, goal=0.9999)
    handle.remove()
    assert found.interrupted
    assert found.images.shape == x.shape
    assert not found.success.all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "same"}, r"target should not be the class that the model sees already, got class \d for image 1$"),
        ({"target": 5}, "target should be a class from 0 to 4, got 5"),
        ({"target": -1}, "target should be a class from 0 to 4, got -1"),
        ({"target": torch.tensor([1, 2])}, "target should be one class or one for each of 3 images, got 2"),
        ({"target": torch.tensor([[1, 2]])}, "target should be one class or a list of them"),
        ({"radius": 0.0, "method": "sign"}, "radius should be finite and above 0, got 0.0"),
        ({"radius": -1.0, "method": "sign"}, "radius should be finite and above 0, got -1.0"),
        ({"radius": 0.1}, "radius is for the methods"),
        ({"radius": 0.001, "method": "sign", "quantize": True}, "radius should be at least 1/255"),
        ({"goal": 1.0}, "goal should be a probability below 1, got 1.0"),
        ({"goal": 0}, "goal should be finite and above 0, got 0"),
        ({"method": "magic"}, "method should be one of 'lbfgs', 'sign', 'gradient', got 'magic'"),
        ({"norm": "1"}, "norm should be one of"),
        ({"steps": 0}, "steps should be at least 1, got 0"),
        ({"x": pictures(3) + 0.5}, "x should be pictures from 0 to 1 after normalization"),
        ({"x": pictures(3)[:, :1]}, "x should have the 3 channels of the model.s preprocessing, got 1"),
    ],
)
def test_errors_say_what_is_wrong(options, words):
    model, x = small(), pictures(3)
    target = others(model, x)
    if isinstance(options.get("target"), str):
        target[1] = model(x).argmax(1)[1]
        options = {}
    with pytest.raises(ValueError, match=words):
        fv.fool(model, **{"x": x, "target": target} | options)


def test_without_a_target_the_error_says_what_to_pass():
    with pytest.raises(
        ValueError, match="target should say what is to be seen: a class, one for each image, or an obj"
    ):
        fv.fool(small(), pictures(1), None)


def test_objectives_of_classes_are_classes():
    """A score or a probability of a class is that class: the same images, to the bit."""
    model, x = small(), pictures(3)
    target = others(model, x)
    plain = fv.fool(model, x, target)
    for objective in (
        fv.class_score(target), fv.class_probability(target), [fv.class_score(int(k)) for k in target],
    ):  # fmt: skip
        assert torch.equal(fv.fool(model, x, objective).images, plain.images)
    mixed = [int(target[0]), fv.class_score(int(target[1])), fv.class_probability(int(target[2]))]
    assert torch.equal(fv.fool(model, x, mixed).images, plain.images)
    assert torch.equal(fv.fool(model, x, target.tolist()).images, plain.images)
    with pytest.raises(ValueError, match="target should not be the class that the model sees already, got class"):
        fv.fool(model, x, fv.class_score())
    with pytest.raises(ValueError, match="target should be a class from 0 to 4, got 9"):
        fv.fool(model, x, fv.class_score(9))


def test_several_targets_of_one_image_are_several_images():
    model, x = small(), pictures(1)
    classes = [k for k in range(5) if k != int(model.eval()(x).argmax())]
    found = fv.fool(model, x, classes)
    assert found.target.tolist() == classes
    assert found.success.all()
    for row, k in enumerate(classes):
        torch.testing.assert_close(fv.fool(model, x, k).images[0], found.images[row])
    both = fv.fool(model, x, fv.channel("2", torch.tensor([0, 3])), method="sign", steps=3)
    assert both.images.shape == (2, 3, 12, 12)
    one = fv.fool(model, x, fv.channel("2", 3), method="sign", steps=3)
    torch.testing.assert_close(both.images[1:], one.images)


def test_less_of_the_predicted_class():
    """Steps of the sign method against the class that each image has, by hand."""
    model, x = small(), pictures(2)
    found = fv.fool(model, x, -fv.class_score(), method="sign", step=0.01, steps=3)
    predicted = model.eval()(x).argmax(1)
    expected = x
    for _ in range(3):
        leaf = expected.clone().requires_grad_()
        (g,) = torch.autograd.grad(-model(leaf).gather(1, predicted[:, None]).sum(), leaf)
        expected = (expected + 0.01 * g.sign()).clamp(0, 1)
    torch.testing.assert_close(found.values, -model(found.images).gather(1, predicted[:, None])[:, 0].detach())
    assert (found.values >= -model(expected).gather(1, predicted[:, None])[:, 0].detach() - 1e-9).all()
    assert found.success.all()
    assert torch.equal(found.original, predicted)
    assert found.target.tolist() == [-1, -1]
    assert found.probability.isnan().all()
    assert (found.original_probability < found.original_probability_before).all()


def test_objectives_of_networks_without_classes():
    """A network whose output is a map has no class to lose, and the target needs none."""
    torch.manual_seed(0)
    model = described(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double())
    found = fv.fool(model, pictures(2), fv.channel("2", 1), method="gradient", steps=4, batch_size=1)
    assert (found.values > found.values_before).all()
    assert found.original.tolist() == [-1, -1]
    assert found.original_probability.isnan().all()
    with pytest.raises(ValueError, match=r"floating-point scores \[N, K\] for a class target"):
        fv.fool(model, pictures(2), 1)


def test_errors_say_what_objectives_need():
    model, x = small(), pictures(2)
    unit = fv.channel("2", 1)
    with pytest.raises(ValueError, match='goal should be the value at which an image is done, for "lbfgs"'):
        fv.fool(model, x, unit)
    with pytest.raises(ValueError, match=r"target should be classes or other objectives, .* got both"):
        fv.fool(model, x, [0, unit], method="sign")
    with pytest.raises(ValueError, match="target should be one or one for each of 2 images, got 3"):
        fv.fool(model, x, [unit] * 3, method="sign")
    with pytest.raises(ValueError, match="layer 'x' is not known"):
        fv.fool(model, x, fv.channel("x", 1), method="sign")
    with pytest.raises(TypeError, match="goal should be a number, got 'much'"):
        fv.fool(model, x, unit, method="sign", goal="much")


def test_results_show_themselves():
    model, x = small(), pictures(1)
    found = fv.fool(model, x, int(others(model, x)))
    assert repr(found).startswith("Fooled(images=float64 [1, 3, 12, 12], pictures=float64 [1, 3, 12, 12]")
    assert found._repr_html_().count("<img") == 1
    torch.testing.assert_close(found.pictures, found.images)
    evolved = fv.evolve(model, 1, generations=2, population=2)
    assert f"class 1, probability {float(evolved.probability):.3g}" in evolved._repr_html_()


@pytest.mark.parametrize("target", ["koala", 1.0, True])
def test_targets_that_are_no_classes(target):
    with pytest.raises(TypeError, match="target should be"):
        fv.fool(small(), pictures(1), target)


def test_noise_for_several_classes():
    model = fv.load_model("demo")
    found = fv.fool_from_noise(model, [1, 4, 7, 11, 19], quantize=True, seed=1)
    assert found.success.all()
    assert torch.equal(model(found.images).argmax(1), found.target)
    alone = fv.fool_from_noise(model, 1, seed=1)
    assert alone.steps[0] == found.steps[0]
    # in float32 steps drift apart where rounding decides; another seed gives another image
    assert (alone.images[0] - found.images[0]).abs().mean() < 0.02
    assert (alone.images - fv.fool_from_noise(model, 1, seed=2).images).abs().mean() > 0.1


def test_noise_refuses_what_does_not_exist():
    with pytest.raises(ValueError, match="target should be a class from 0 to 4, got 9"):
        fv.fool_from_noise(small(), [1, 9])
    with pytest.raises(ValueError, match="target should be one class or a list of them"):
        fv.fool_from_noise(small(), [])


def test_reduced_precision_is_close():
    """Searched and told in bfloat16: the network in its own precision gives nearly the same."""
    model = small(dtype=torch.float32)
    x = pictures(2, torch.float32)
    target = others(model, x)
    found = fv.fool(model, x, target, precision="bfloat16", goal=0.9)
    assert found.success.all()
    assert found.images.dtype == torch.float32
    exact = model(found.images).softmax(1).gather(1, target[:, None])[:, 0].detach()
    torch.testing.assert_close(found.probability, exact, rtol=0, atol=0.1)
    assert not torch.equal(found.probability, exact)
    unit = fv.channel("2", 1)
    rough, whole = (fv.fool(model, x, unit, method="sign", steps=2, precision=each) for each in ("bfloat16", "model"))
    torch.testing.assert_close(rough.values, whole.values, rtol=0.05, atol=0.05)
    for call in (fv.fool_from_noise, fv.evolve):
        with pytest.raises(ValueError, match="precision should be one of 'model', 'bfloat16', got 'half'"):
            call(model, 1, precision="half")


def test_lists_of_objectives_are_one_an_image():
    """Also those about the predicted class: each entry is about the image at its place."""
    model, x = small(), pictures(2)
    unit = fv.channel("2", 1)
    mixed = fv.fool(model, x, [-fv.class_score(), unit], method="sign", steps=2)
    for row, target in enumerate((-fv.class_score(), unit)):
        alone = fv.fool(model, x[row : row + 1], target, method="sign", steps=2)
        torch.testing.assert_close(mixed.images[row : row + 1], alone.images)
    two = fv.fool(model, x[:1], [-fv.class_score(), unit], method="sign", steps=2)
    torch.testing.assert_close(two.images[0], mixed.images[0])


@pytest.mark.parametrize("target", [1, fv.class_score(1), fv.channel("2", 1), -fv.class_score()])
def test_no_images_give_no_images_for_any_target(target):
    found = fv.fool(small(), torch.zeros(0, 3, 12, 12).double(), target, method="sign", quantize=True)
    assert found.images.shape == found.pictures.shape == (0, 3, 12, 12)
    assert found.values.shape == found.probability.shape == (0,)
    assert found._repr_html_().count("<img") == 0
