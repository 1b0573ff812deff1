"""Networks as an optimisation sees them, and objectives that give each image its own target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.engine.optimize import FeatureNetwork, target_objective
from tests.engine.optimize.common import network, noise, run


class Alarm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the pass should have ended before")


def test_the_pass_ends_at_the_last_layer():
    model = network()
    seen = []
    model[4].register_forward_hook(lambda *_: seen.append(1))
    with_hooks = FeatureNetwork(model, ["2", "0"], output=False)
    output, activations = with_hooks(noise(2))
    assert output is None
    torch.testing.assert_close(activations["2"], model[:3](noise(2)))
    # A model with hooks cannot be traced: the first pass counts; from the second on nothing more is run.
    assert len(seen) == 1
    with_hooks(noise(2))
    assert len(seen) == 1
    # Without hooks, the very first pass ends, too.
    traced = network()
    traced[4] = Alarm()
    with pytest.raises(AssertionError):
        traced(noise(1))
    assert FeatureNetwork(network(), ["2"], output=True)(noise(2))[0].shape == (2, 4)


def test_a_module_that_runs_twice_counts_with_its_last_output():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), relu, nn.Conv2d(3, 3, 1), relu, nn.Conv2d(3, 3, 1)).double()
    found = FeatureNetwork(model, ["1"], output=False)
    for _ in range(2):
        torch.testing.assert_close(found(noise(1))[1]["1"], model[:4](noise(1)))


def test_bfloat16_is_close_and_comes_in_the_dtype_of_the_images():
    model = network().float()
    x = noise(2).float()
    exact = FeatureNetwork(model, ["3"], output=True)(x)
    output, activations = FeatureNetwork(model, ["3"], output=True, precision="bfloat16")(x)
    assert output.dtype == activations["3"].dtype == torch.float32
    torch.testing.assert_close(output, exact[0], rtol=0.05, atol=0.01)
    assert not torch.equal(output, exact[0])
    with pytest.raises(ValueError, match="precision should be one of 'model', 'bfloat16'"):
        FeatureNetwork(model, ["3"], output=True, precision="half")


def test_sizes_that_a_model_cannot_take():
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 5)).double()
    with pytest.raises(ValueError, match="cannot be run on images of 6x6 pixels with 3 channels"):
        FeatureNetwork(model, ["1"], output=False)(noise(1))
    with pytest.raises(ValueError, match=r"layer '7' is not known"):
        FeatureNetwork(model, ["7"], output=False)


TARGETS = [
    (2, [2]),
    (torch.tensor([3, 0]), [3, 0]),
    ([3, 0, 3], [3, 0, 3]),
    (targets.class_probability(1), [1]),
    ([targets.class_score(torch.tensor([1, 2])), 0], [1, 2, 0]),
]


@pytest.mark.parametrize(
    ("target", "classes"),
    TARGETS,
    ids=["class", "classes", "list", "probability", "list of objectives"],
)
@pytest.mark.parametrize("repeats", [1, 2])
def test_target_objective_gives_each_image_its_own_target(target, classes, repeats):
    model = network()
    made = target_objective(model, target, repeats=repeats)
    assert made.targets == len(classes)
    n = len(classes) * repeats
    x = noise(n).requires_grad_()
    index = torch.tensor(classes).repeat_interleave(repeats)
    scores = model(x)
    wanted = (scores.softmax(1) if isinstance(target, targets.Objective) else scores)[torch.arange(n), index]
    values, measures = made(x, torch.arange(n))
    torch.testing.assert_close(values, wanted)
    torch.testing.assert_close(measures, scores.softmax(1)[torch.arange(n), index].detach())
    assert not measures.requires_grad
    (g,), (expected,) = (torch.autograd.grad(each.sum(), x, retain_graph=True) for each in (values, wanted))
    torch.testing.assert_close(g, expected)
    # Any rising subset of the images.
    some = torch.arange(n)[::2]
    torch.testing.assert_close(made(x[some], some)[0], wanted[some])


def test_target_objective_mixes_layers_and_classes():
    model = network()
    list_of = [targets.channel("2", torch.tensor([1, 4])), targets.neuron("0", 2, (1, 3)) * 2, 3, targets.layer("3")]
    x = noise(5)
    values, measures = target_objective(model, list_of)(x, torch.arange(5))
    a, b, c = model[:1](x), model[:3](x), model(x)
    expected = [b[0, 1].sum(), b[1, 4].sum(), 2 * a[2, 2, 1, 3], c[3, 3], model[:4](x)[4].square().sum() / 2]
    torch.testing.assert_close(values, torch.stack(expected))
    expected[3] = c.softmax(1)[3, 3]
    torch.testing.assert_close(measures, torch.stack(expected).detach())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "target should say which class"),
        ([], "at least one entry"),
        (torch.tensor([], dtype=torch.int64), "at least one class, got an empty tensor"),
        (torch.tensor([[1, 2]]), r"one class per image, \[T\], got shape \[1, 2\]"),
        (targets.channel("nothing", 0), "layer 'nothing' is not known"),
    ],
)
def test_target_objective_refuses(target, words):
    with pytest.raises(ValueError, match=words):
        target_objective(network(), target)


def test_classes_that_do_not_exist_are_refused():
    model = network()
    with pytest.raises(ValueError, match="target should be a class from 0 to 3"):
        run(target_objective(model, 9), noise(1), model=model)


def test_frozen_parameters_do_not_matter():
    model = network().requires_grad_(False)
    made = run(target_objective(model, 1), noise(1), model=model)
    torch.testing.assert_close(
        made.parameters, run(target_objective(network(), 1), noise(1), model=network()).parameters
    )


def test_inside_inference_mode():
    model = network()
    with torch.inference_mode():
        made = run(target_objective(model, 1), noise(1), model=model)
    torch.testing.assert_close(made.parameters, run(target_objective(model, 1), noise(1), model=model).parameters)
    with torch.inference_mode():
        inside = network()
    with pytest.raises(ValueError, match=r"parameters made under torch\.inference_mode"):
        target_objective(inside, 1)
