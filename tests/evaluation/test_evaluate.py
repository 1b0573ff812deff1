"""Tables of methods against measures: the rows are what the functions give, whatever the batches; standings; bands."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import evaluation
from fastviz.evaluation import MEASURES, bootstrap, evaluate, rows, standings
from fastviz.methods import grad_cam, gradient_times_input, occlusion, saliency

BOXES = torch.tensor([[2, 2, 10, 10], [0, 0, 8, 12], [4, 4, 16, 16], [1, 1, 5, 5], [8, 0, 16, 8]])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(6)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def column(found: list[dict], method: str, measure: str) -> Tensor:
    values = [row["value"] for row in found if (row["method"], row["measure"]) == (method, measure)]
    return torch.tensor(values, dtype=torch.float64)


def test_the_rows_are_what_the_functions_give(model, x):
    classes = model(x).argmax(1)
    options = {
        "occlusion": {"window": 4, "stride": 4},
        "road": {"removed": [20, 60]},
        "max_sensitivity": {"samples": 2},
    }
    names = [name for name in MEASURES if name != "parameter_randomisation"]
    found = list(rows(model, x, ["saliency", "occlusion"], names, objects=BOXES, options=options, batch_size=2))
    assert len(found) == 5 * 2 * len(names)
    maps = occlusion(model, x, classes, window=4, stride=4).attribution
    seeds = range(5)
    common = (model, x, maps, classes)
    expected = {
        "deletion": evaluation.deletion(*common).area,
        "insertion": evaluation.insertion(*common).area,
        "morf": evaluation.region_perturbation(*common, value="probability", seed=seeds).aopc,
        "lerf": evaluation.region_perturbation(*common, value="probability", order="lerf").aopc,
        "road": evaluation.road(*common, removed=[20, 60]).combined,
        "pointing_game": evaluation.pointing_game(maps, BOXES).hits.double(),
        "energy_inside": evaluation.energy_inside(maps, BOXES),
        "intersection_over_union": evaluation.intersection_over_union(maps, BOXES),
        "average_drop": evaluation.confidence_change(*common).drop,
        "increase_in_confidence": evaluation.confidence_change(*common).increased.double(),
        "infidelity": evaluation.infidelity(*common, indicator=True, scaled=True, value="probability"),
        "sparseness": evaluation.sparseness(maps),
        "complexity": evaluation.complexity(maps),
        "agreement": evaluation.rank_correlation(maps, saliency(model, x, classes)),
    }
    for name, values in expected.items():
        torch.testing.assert_close(column(found, "occlusion", name), values.double(), rtol=1e-4, atol=1e-6, msg=name)
    row = found[0]
    assert {row["image"], row["index"], row["method"]} == {"0", 0, "saliency"}
    assert row["target"] == int(classes[0])
    assert row["probability"] == pytest.approx(float(model(x).softmax(1).detach().amax(1)[0]), rel=1e-5)
    deletion = next(row for row in found if row["measure"] == "deletion")
    assert len(deletion["curve"]) == len(deletion["places"]) == 17
    assert next(row for row in found if row["measure"] == "sparseness")["curve"] is None


def test_batches_change_nothing(model, x):
    names = ["deletion", "road", "morf", "infidelity", "max_sensitivity", "parameter_randomisation"]
    methods = {"mine": lambda m, i, t: i.mean(1), "cam": "grad_cam", "random": "random"}
    runs = [list(rows(model, x, methods, names, batch_size=size, seed=3)) for size in (5, 2)]
    for method in methods:
        for name in names:
            first, second = (column(found, method, name) for found in runs)
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5, equal_nan=True, msg=f"{method} {name}")
    random = column(runs[0], "random", "parameter_randomisation")
    assert random.isnan().all()  # there is no network in it


def test_targets_by_position_by_name_and_as_objective(model, x):
    classes = torch.tensor([4, 0, 1, 2, 3])
    expected = evaluation.deletion(model, x, grad_cam(model, x, classes), classes).area.double()
    names = {str(index): int(k) for index, k in enumerate(classes)}
    for target in (classes, names):
        found = list(rows(model, x, ["grad_cam"], ["deletion"], target=target, batch_size=2))
        torch.testing.assert_close(column(found, "grad_cam", "deletion"), expected, rtol=1e-4, atol=1e-6)
        assert [row["target"] for row in found] == classes.tolist()
    fixed = list(rows(model, x, ["grad_cam"], ["deletion"], target=fv.class_score(2)))
    assert {row["target"] for row in fixed} == {2}
    with pytest.raises(ValueError, match="target should have a class for each image, got none for '4'"):
        list(rows(model, x, ["grad_cam"], ["deletion"], target={str(index): 0 for index in range(4)}))


def test_images_from_a_dataset_and_a_list(model, x):
    expected = column(list(rows(model, x, ["saliency"], ["sparseness"])), "saliency", "sparseness")

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(x)

    for source in (list(x), torch.utils.data.TensorDataset(x), Endless()):
        found = list(rows(model, source, ["saliency"], ["sparseness"], batch_size=2))
        torch.testing.assert_close(column(found, "saliency", "sparseness"), expected, rtol=1e-4, atol=1e-6)


def test_channels_of_a_gradient(model, x):
    classes = model(x).argmax(1)
    found = list(rows(model, x, ["gradient_times_input"], ["sparseness"]))
    expected = evaluation.sparseness(gradient_times_input(model, x, classes).sum(1)).double()
    torch.testing.assert_close(column(found, "gradient_times_input", "sparseness"), expected, rtol=1e-4, atol=1e-6)


def test_objects_as_masks_boxes_mapping_and_function(model, x):
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, BOXES.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    expected = column(list(rows(model, x, ["saliency"], ["energy_inside"], objects=BOXES)), "saliency", "energy_inside")
    by_name = {str(index): BOXES[index : index + 1] for index in range(5)}
    for objects in (masks, list(masks), by_name, by_name.get, [box[None] for box in BOXES]):
        found = list(rows(model, x, ["saliency"], ["energy_inside"], objects=objects, batch_size=2))
        torch.testing.assert_close(column(found, "saliency", "energy_inside"), expected)
    del by_name["2"]
    found = list(rows(model, x, ["saliency"], ["energy_inside", "pointing_game"], objects=by_name))
    assert [math.isnan(row["value"]) for row in found if row["image"] == "2"] == [True, True]


def test_a_map_that_is_not_finite_has_no_value(model, x):
    def broken(network: nn.Module, images: Tensor, target: object) -> Tensor:
        maps = images.mean(1)
        maps[0] = torch.nan
        return maps

    found = list(rows(model, x[:3], {"broken": broken}, ["deletion", "sparseness"]))
    assert [math.isnan(row["value"]) for row in found if row["measure"] == "deletion"] == [True, False, False]


def test_a_table(model, x):
    found = evaluate(model, x, ["saliency", "random"], ["deletion", "sparseness"], limit=3)
    assert len(found) == 12
    if importlib.util.find_spec("pyarrow") is None:
        assert isinstance(found, list)
    else:
        assert found.column_names[:5] == ["image", "index", "method", "measure", "value"]
        found = found.to_pylist()
    assert found[0]["method"] == "saliency"


def test_bootstrap_by_hand():
    """The mean of 100 coins is 0.5 with a band of about ±0.098; NaN are left out; each column has its own."""
    coins = (torch.arange(100) % 2).double()
    band = bootstrap(torch.stack([coins, coins * 2], 1))
    assert band.mean.tolist() == [0.5, 1.0]
    assert float(band.high[0] - band.low[0]) == pytest.approx(0.196, abs=0.03)
    assert float(band.high[1]) == pytest.approx(2 * float(band.high[0]))
    torch.testing.assert_close(bootstrap(coins, seed=1).low, bootstrap(coins, seed=1).low)
    gaps = torch.cat([coins, torch.full((50,), torch.nan, dtype=torch.float64)])
    assert float(bootstrap(gaps).mean) == 0.5
    one = bootstrap(torch.tensor([3.0]))
    assert (float(one.low), float(one.high)) == (3.0, 3.0)


def test_standings_by_hand():
    """A is better than B on every image, C is like A on average; the direction is the measure's."""

    def made(method: str, measure: str, values: list[float]) -> list[dict]:
        return [
            {"index": index, "method": method, "measure": measure, "value": value} for index, value in enumerate(values)
        ]

    found = made("a", "deletion", [0.1, 0.2, 0.3, 0.2]) + made("b", "deletion", [0.5, 0.6, 0.7, 0.6])
    found += made("c", "deletion", [0.3, 0.2, 0.1, 0.25]) + made("random", "deletion", [0.0] * 4)
    found += made("a", "insertion", [0.9] * 4) + made("b", "insertion", [0.1] * 4) + made("c", "insertion", [0.2] * 4)
    found += made("random", "insertion", [1.0] * 4) + made("a", "agreement", [0.0] * 4)
    result = standings(found)
    place = {(each.method, each.measure): (each.place, each.tied) for each in result.each}
    assert place["a", "deletion"] == (1, True)
    assert place["c", "deletion"] == (2, True)
    assert place["b", "deletion"] == (3, False)
    assert place["a", "insertion"] == (1, True)
    assert place["c", "insertion"] == (2, False)
    assert place["random", "deletion"] == (0, False)
    assert place["a", "agreement"] == (0, False)
    assert list(result.overall) == ["a", "c", "b"]
    assert result.overall["a"][0] == 1.0
    assert result.overall["b"][1:] == (3.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["salency"]}, "method 'salency' is not known; nearest: saliency"),
        ({"methods": []}, "methods should be one or more of"),
        ({"measures": []}, "measures should be one or more of"),
        ({"measures": ["deletions"]}, "measure 'deletions' is not known; nearest: deletion"),
        ({"measures": ["pointing_game"]}, "measure 'pointing_game' needs objects"),
        ({"options": {"occlusion": {}}}, "options for 'occlusion' is not known"),
        ({"options": {"saliency": {"windows": 3}}}, "option of saliency 'windows' is not known"),
        ({"target": torch.tensor([1])}, "target should have a class for each image, got 1 for image 4"),
    ],
)
def test_what_is_refused(model, x, arguments, words):
    with pytest.raises(ValueError, match=words):
        list(rows(model, x, **({"methods": ["saliency"], "measures": ["deletion"]} | arguments)))
    with pytest.raises(TypeError, match="methods should be a sequence of names"):
        rows(model, x, "saliency", ["deletion"])
