"""What is kept by model goes with the model, or when it is forgotten."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz._util import by_model
from fastviz._util.by_model import ByModel, forget
from fastviz.engine.gradients import cam_layers, unit_gradients
from fastviz.engine.incremental import network, work
from fastviz.execution import cuda_graphs, evaluation_mode, preparedness
from fastviz.execution.fast_conv import memory_format
from fastviz.graph import fingerprint
from fastviz.graph.layers import _layers
from fastviz.models import descriptions
from fastviz.targets import part


class Kept:
    """Something that can be watched."""


class Views(nn.Module):
    """It has maps, units and windows, and a view that fails in channels_last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3))
        self.head = nn.Linear(8 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).relu().view(len(x), -1))


# What is kept → where; modules held in evaluation mode are in use, and so not among them.
EVERYWHERE = {
    "models that need contiguous memory": memory_format._contiguous_only,
    "layers": _layers._entries,
    "default layers of class activation maps": cam_layers._found_before,
    "traces of units": unit_gradients._studies._entries,
    "networks with packed weights": network._networks._entries,
    "work of sweeps": work._known,
    "descriptions": descriptions._descriptions,
    "warnings of unprepared batches": preparedness._said,
}


def used() -> nn.Module:
    """A model of which something is kept in each place."""
    model = Views()
    x = torch.rand(2, 3, 16, 16)
    fv.describe(model, class_names=list("abcde"))
    fv.layers(model, (16, 16))
    fv.saliency(model, x)
    fv.saliency(model, x, fv.neuron("features.3", 1))
    fv.grad_cam(model, x)
    fv.occlusion(model, x, window=4, stride=4, trace="always")
    fv.occlusion(model, x, window=4, stride=4)
    fv.patches(model, x, k=1)
    fv.activations(model, x)
    with warnings.catch_warnings(action="ignore"):
        fv.saliency(model, (200 * x + 50).round())
    return model


def values(model: nn.Module) -> dict[str, object]:
    return {name: kept.get(model) for name, kept in EVERYWHERE.items()}


def test_something_is_kept_in_each_place() -> None:
    missing = [name for name, value in values(used()).items() if value is None]
    assert not missing


def test_a_model_that_goes_takes_all_of_it_along() -> None:
    before = {name: len(kept) for name, kept in EVERYWHERE.items()}
    model = used()
    parts = [weakref.ref(model), weakref.ref(model.head.weight)]
    made = network._networks._entries.get(model)
    assert made is not None
    parts += [weakref.ref(step) for step in made[0].made.steps]  # type: ignore[attr-defined]
    del model, made
    for _ in range(2):  # what was kept refers to itself, and is let go by the collection that frees the model
        gc.collect()
    assert [part() for part in parts] == [None] * len(parts)
    assert all(len(kept) <= before[name] for name, kept in EVERYWHERE.items())


def test_forget_frees_everything_and_changes_no_number() -> None:
    model, x = used(), torch.rand(1, 3, 16, 16)
    made = network._networks._entries.get(model)
    assert made is not None
    steps = [weakref.ref(step) for step in made[0].made.steps]  # type: ignore[attr-defined]
    before = fv.occlusion(model, x, 1, window=4, stride=4, trace="always").scores
    del made
    forget(model)
    gc.collect()
    assert [step() for step in steps] == [None] * len(steps)
    assert all(value is None for value in values(model).values())
    assert not any(model in kept for kept in list(by_model._forgettable))
    torch.testing.assert_close(fv.occlusion(model, x, 1, window=4, stride=4, trace="always").scores, before)


def places() -> Iterator[ByModel[object]]:
    """Everything by model that a module of fastviz holds."""
    for name, module in list(sys.modules.items()):
        for value in list(vars(module).values()) if name.startswith("fastviz") else []:
            inside = vars(value).values() if isinstance(value, fingerprint.StructureCache) else [value]
            yield from (each for each in inside if isinstance(each, ByModel))


def test_every_place_is_known_here() -> None:
    """A new place has to be added above, so that the tests see it."""
    locks = [each._making for each in (_layers, unit_gradients._studies, network._networks)]
    # parts of outputs are of models that give more than scores
    known = [*EVERYWHERE.values(), *locks, evaluation_mode._holders, part._made]
    assert {id(each) for each in places()} == {id(each) for each in known}


def test_a_description_is_forgotten_too() -> None:
    model = fv.load_model("demo")
    assert fv.models.model_info(model).weights == "built-in"
    fv.forget(model)
    with pytest.raises(ValueError, match="class names"):
        fv.class_names(nn.Linear(1, 1))
    assert model not in descriptions._descriptions


def test_what_is_inside_of_a_compiled_model_is_forgotten() -> None:
    kept, inner = ByModel[str](), nn.ReLU()
    outer = torch.compile(inner)
    kept[inner], kept[outer] = "inner", "outer"
    forget(outer)
    assert len(kept) == 0


def test_only_models_can_be_forgotten() -> None:
    forget(nn.ReLU())
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got str"):
        forget("resnet50")  # type: ignore[arg-type]


def test_copies_and_parts_keep_theirs() -> None:
    kept, part = ByModel[str](), nn.ReLU()
    whole = nn.Sequential(part)
    kept[part], kept[whole] = "part", "whole"
    forget(whole)
    assert kept.get(part) == "part"
    assert kept.get(whole) is None


def test_models_are_told_apart_by_identity() -> None:
    class Equal(nn.Module):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    kept, one, other = ByModel[int](), Equal(), Equal()
    kept[one] = 1
    assert other not in kept
    kept[other] = 2
    assert (kept.get(one), kept.get(other), len(kept)) == (1, 2, 2)
    del one
    gc.collect()
    assert kept.values() == [2]


def test_values_go_at_once() -> None:
    kept, model, value = ByModel[Kept](), nn.ReLU(), Kept()
    kept[model] = Kept()
    kept[model] = value
    gone = weakref.ref(value)
    del value
    assert kept.get(model) is gone()
    del model
    assert gone() is None
    assert len(kept) == 0


def test_threads_share_what_is_made() -> None:
    kept, model, found = ByModel[Kept](), nn.ReLU(), []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait(60)
        found.append(kept.setdefault(model, Kept))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(map(id, found))) == 1


def test_a_model_in_use_stays_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Dropout())
    with evaluation_mode.frozen_model(model):
        forget(model)
        assert not model[0].training
    assert model[0].training
    assert not evaluation_mode._holders


def test_recorded_passes_go_with_their_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[object]] = []

    class Recording:
        def __init__(self, *given: object) -> None:
            made.append(weakref.ref(self))

        def __call__(self, x: Tensor) -> tuple[Tensor]:
            return (x,)

    monkeypatch.setattr(cuda_graphs, "_CapturedPass", Recording)
    with fv.cuda_graphs():
        recordings = cuda_graphs.recordings()
        assert recordings is not None
        for end in ("forgotten", "freed"):
            model = nn.ReLU()
            recordings.proved.setdefault(model, set).add("shape")
            for _ in range(4):
                recordings.replayed("key", lambda x: (x,), torch.ones(1), model=model)
            assert made[-1]() is not None
            if end == "forgotten":
                forget(model)
                assert len(recordings.proved) == 0
            del model
            assert made[-1]() is None
    assert len(made) == 2
