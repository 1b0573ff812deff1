"""Arguments that many functions share mean the same in all of them: their types, their defaults, and what they do."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn

import fastviz as fv
from fastviz.cli import app

FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{prefix}{name}": getattr(module, name)
    for prefix, module in (("", fv), ("evaluation.", fv.evaluation))
    for name in module.__all__
    if isinstance(getattr(module, name), FunctionType)
}


def taking(argument: str) -> dict[str, inspect.Parameter]:
    """Name of each public function that takes this argument → how it takes it."""
    found = {name: inspect.signature(function).parameters for name, function in FUNCTIONS.items()}
    return {name: parameters[argument] for name, parameters in found.items() if argument in parameters}


# ------------------------------------------------------------------------------------------------ types and defaults

SHARED: dict[str, tuple[set[str], object]] = {
    "batch_size": ({"int | None"}, None),
    "seed": ({"int", "Seed"}, 0),  # Seed: measures take a number for each image, too
    "progress": ({"bool"}, False),
    "precision": ({"Precision"}, "model"),
    "device": ({"torch.device | str | None"}, None),
    "optimization": ({"Optimization | None"}, None),
}
"""Argument → the types it may have, and its default; all are given by name only."""


@pytest.mark.parametrize("argument", SHARED)
def test_shared_arguments_have_one_type_and_one_default(argument: str) -> None:
    types, default = SHARED[argument]
    parameters = taking(argument)
    assert len(parameters) > 1
    for name, parameter in parameters.items():
        assert str(parameter.annotation) in types, name
        assert parameter.default == default, name
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name


def test_one_layer_is_a_name_and_several_are_a_list_of_them() -> None:
    assert {str(each.annotation) for each in taking("layer").values()} == {"str", "str | None"}
    assert all(each.default in (None, inspect.Parameter.empty) for each in taking("layer").values())
    weighted, groups = {"neural_texture", "style_transfer"}, {"evaluation.parameter_randomisation"}
    for name, parameter in taking("layers").items():
        usual = "Layers" if name in weighted else "Sequence[str | Sequence[str]] | None"
        expected = usual if name in weighted | groups else "Sequence[str] | None"
        assert (str(parameter.annotation), parameter.default) == (expected, None), name


def test_what_shares_a_name_shares_a_meaning() -> None:
    """Other words for the same things would be searched for in vain."""
    others = {"batch", "batchsize", "bs", "random_state", "rng", "generator", "verbose", "show_progress", "advance"}
    others |= {"n_samples", "layer_name", "layer_names", "targets", "class_index", "dtype", "internal_batch_size"}
    for name, function in FUNCTIONS.items():
        assert not others & set(inspect.signature(function).parameters), name


# ------------------------------------------------------------------------------------------------------------ targets


def network() -> nn.Sequential:
    """A small classifier of 16x16 pixels with six classes, which predicts different ones for :func:`photos`."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 6),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(20)
        model[-1].bias.zero_()
        model[-1].bias -= model(photos()).mean(0)
    fv.describe(model, preprocessing=fv.models.Preprocessing((16, 16), 16, (0.0,) * 3, (1.0,) * 3))
    return model


def photos() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def heat() -> Tensor:
    return torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1))


FEW: dict[str, dict[str, Any]] = {
    "cams": {"methods": ["grad_cam"]},
    "feature_ablation": {"segments": 4},
    "gradient_shap": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "kernel_shap": {"segments": 4, "samples": 12},
    "lime": {"segments": 4, "samples": 12},
    "occlusion": {"window": 8, "stride": 8},
    "rise": {"masks": 6},
    "segment": {"images": photos()},
    "shapley_sampling": {"segments": 4, "permutations": 2},
    "smooth_grad": {"samples": 2},
    "smooth_grad_squared": {"samples": 2},
    "var_grad": {"samples": 2},
    "evaluation.deletion": {"step": 64},
    "evaluation.infidelity": {"samples": 2},
    "evaluation.insertion": {"step": 64},
    "evaluation.max_sensitivity": {"samples": 2},
    "evaluation.parameter_randomisation": {"similarities": ["rank"]},
    "evaluation.region_perturbation": {"steps": 2},
    "evaluation.road": {"removed": [50]},
}
"""Options with which a method is quick."""

PREDICTED = [
    *("ablation_cam", "augmented", "cam", "cams", "deconvnet", "eigen_cam", "eigen_grad_cam", "element_wise_cam"),
    *("feature_ablation", "full_grad", "grad_cam", "grad_cam_plus_plus", "gradient_shap", "gradient_times_input"),
    *("guided_backprop", "guided_grad_cam", "hires_cam", "input_gradient", "integrated_gradients", "kernel_shap"),
    *("layer_cam", "lime", "noise_tunnel", "occlusion", "recipro_cam", "rise", "saliency", "score_cam", "segment"),
    *("shapley_sampling", "smooth_grad", "smooth_grad_squared", "var_grad", "xgrad_cam"),
    *("evaluate", "evaluation.confidence_change", "evaluation.deletion", "evaluation.evaluate"),
    *("evaluation.infidelity", "evaluation.insertion", "evaluation.max_sensitivity"),
    *("evaluation.parameter_randomisation", "evaluation.region_perturbation", "evaluation.road", "evaluation.rows"),
]
"""Functions that explain images: without a target, the predicted class of each."""

NEEDED = {
    "fool": "target should say what is to be seen: a class, one for each image, or an objective",
    "fool_from_noise": "target should be the class to be seen, an index or several, got NoneType",
    "maximize": "target should say which class, such as 3: there is no image yet",
    "maximize_code": "target should say which class, such as 3: there is no image yet",
}
"""Functions that need a target, and what they say without one."""

OWN = {"deep_dream": "layer", "dream_zoom": "layer", "evolve": "None for any"}
"""Functions for which no target means something else, and what."""


def call(name: str, model: nn.Module, target: object = None, **options: Any) -> Any:
    """The function called quickly, for two photographs."""
    function, x, given = FUNCTIONS[name], photos(), {**FEW.get(name, {}), **options}
    if name in ("evaluate", "evaluation.evaluate", "evaluation.rows"):
        found = function(model, x, ["saliency"], ["deletion"], target=target, **given)
        return list(found) if name == "evaluation.rows" else found
    if name == "noise_tunnel":
        return fv.noise_tunnel(fv.input_gradient, model, x, target, samples=2, **given)
    if name == "augmented":
        return fv.augmented(fv.saliency, model, x, target, **given)
    if name in ("evaluation.max_sensitivity", "evaluation.parameter_randomisation"):
        return function(model, x, fv.saliency, target, **given)
    if name.startswith("evaluation."):
        return function(model, x, heat(), target, **given)
    return function(model, x, target, **given)


def numbers(found: object) -> list[Any]:
    """What a result holds, in order."""
    if dataclasses.is_dataclass(found):
        return numbers([getattr(found, field.name) for field in dataclasses.fields(found) if field.name != "stats"])
    if isinstance(found, Mapping):
        return numbers(list(found.values()))
    if hasattr(found, "to_pylist"):
        return numbers(found.to_pylist())
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [each for part in found for each in numbers(part)]
    return [found]


def test_every_function_with_a_target_is_in_one_of_the_lists() -> None:
    assert set(taking("target")) == {*PREDICTED, *NEEDED, *OWN}


@pytest.mark.parametrize("name", PREDICTED)
def test_no_target_is_the_predicted_class(name: str) -> None:
    model, x = network(), photos()
    classes = model(x).argmax(1)
    assert classes[0] != classes[1]
    assert taking("target")[name].default is None
    without, given = numbers(call(name, model)), numbers(call(name, model, classes))
    assert len(without) == len(given) > 0
    for mine, expected in zip(without, given, strict=True):
        if isinstance(expected, (Tensor, float)):
            torch.testing.assert_close(mine, expected, equal_nan=True, msg=name)
        else:
            assert mine == expected


@pytest.mark.parametrize("name", NEEDED)
def test_where_no_class_can_be_predicted_the_error_says_what_to_pass(name: str) -> None:
    model = network()
    arguments: dict[str, tuple[Any, ...]] = {"fool": (photos(), None), "maximize_code": (None, "3")}
    assert taking("target")[name].default is inspect.Parameter.empty
    with pytest.raises((TypeError, ValueError), match=re.escape(NEEDED[name])):
        FUNCTIONS[name](model, *arguments.get(name, (None,)))


@pytest.mark.parametrize("name", OWN)
def test_another_meaning_of_no_target_is_explained(name: str) -> None:
    entry = re.search(r"\btarget[\w, ]*:(.*?)\n\s*\w[\w, ]*:", inspect.getdoc(FUNCTIONS[name]) or "", re.DOTALL)
    assert entry is not None
    assert OWN[name] in entry[1] or "see :func:`deep_dream`" in entry[1]


@pytest.mark.parametrize("name", ["saliency", "occlusion", "rise", "integrated_gradients", "evaluation.deletion"])
def test_networks_that_give_maps_say_which_targets_there_are(name: str) -> None:
    model = network()[:4]
    with pytest.raises(ValueError, match=r"give another target, such as fastviz.region_score\(k, mask\)"):
        call(name, model)


def test_commands_explain_the_predicted_class_or_say_what_to_pass() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: option for name, command in commands.items() for option in command.params if option.name == "target"
    }
    assert set(options) == {"array", "dream", "fool", "maximize", "occlusion", "run", "segment"}
    for name in ("dream", "maximize"):  # beside --layer and --class
        assert options[name].default is None
    for name in ("array", "occlusion", "segment"):
        assert options[name].default == "predicted"
    for name in ("array", "occlusion", "run", "segment"):
        assert '"predicted"' in options[name].help
    assert "--evolve without it takes any" in options["fool"].help


# ----------------------------------------------------------------------------------------------------------- progress

SLOW = [name for name in PREDICTED if name in taking("progress") and name not in ("evaluate", "evaluation.evaluate")]


def test_methods_that_run_the_network_many_times_take_progress() -> None:
    many = {"ablation_cam", "feature_ablation", "gradient_shap", "integrated_gradients", "kernel_shap", "lime"}
    many |= {"noise_tunnel", "occlusion", "recipro_cam", "rise", "score_cam", "shapley_sampling", "smooth_grad"}
    many |= {"smooth_grad_squared", "var_grad", "evaluation.deletion", "evaluation.infidelity", "evaluation.insertion"}
    many |= {"evaluation.max_sensitivity", "evaluation.parameter_randomisation", "evaluation.region_perturbation"}
    assert many | {"evaluation.road", "evaluation.rows"} == set(SLOW)


@pytest.mark.parametrize("name", SLOW)
def test_a_bar_on_a_terminal_and_nothing_elsewhere(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(name, network(), 1, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    call(name, network(), 1, progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"m(\d+)/\1\x1b", shown), shown  # between two codes for colours


@pytest.mark.parametrize("name", SLOW)
def test_ctrl_c_leaves_the_model_as_it_was(name: str) -> None:
    model = network().train()
    calls = []

    def interrupting(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = model[0].register_forward_hook(interrupting)
    one_by_one = {"trace": "never"} if name == "occlusion" else {}
    with pytest.raises(KeyboardInterrupt):
        call(name, model, 1, batch_size=1, progress=True, **one_by_one)
    handle.remove()
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    assert torch.is_grad_enabled()


# --------------------------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("name", [name for name in PREDICTED if name in taking("seed")])
def test_a_seed_repeats_a_call_and_leaves_torchs_generator_alone(name: str) -> None:
    model = network()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again = (numbers(call(name, model, 1, seed=3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for mine, expected in zip(first, again, strict=True):
        if isinstance(expected, (Tensor, float)):
            torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
