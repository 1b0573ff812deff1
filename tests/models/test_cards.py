"""What a file beside the weights, or options, tell of a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import fastviz as fv
from fastviz import models
from fastviz.models import cards
from fastviz.models.cards import Card
from fastviz.models.demo_network import CLASS_NAMES, DemoNetwork
from fastviz.models.preparation import Preprocessing

NAMES = [f"thing {number}" for number in range(20)]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(DemoNetwork().state_dict(), tmp_path / "best.safetensors")
    return tmp_path / "best.safetensors"


TOML = """
mean = [0.5, 0.4, 0.3]
std = 0.25
size = [48, 64]
resize = 70
interpolation = "bicubic"
labels = "names.txt"
"""


def test_a_file_of_toml_beside_the_weights(weights: Path) -> None:
    weights.with_suffix(".toml").write_text(TOML)
    weights.with_name("names.txt").write_text("\n".join(NAMES) + "\n\n")
    model = fv.load_model("demo", weights)
    assert models.preprocessing(model) == Preprocessing((48, 64), 70, (0.5, 0.4, 0.3), (0.25,) * 3, "bicubic")
    assert fv.class_names(model) == NAMES


def test_a_file_of_json_and_what_it_does_not_tell(weights: Path) -> None:
    weights.with_suffix(".json").write_text(json.dumps({"labels": {str(i): ["n0", n] for i, n in enumerate(NAMES)}}))
    model = fv.load_model("demo", weights)
    assert fv.class_names(model) == NAMES
    assert models.preprocessing(model) == models.preprocessing(fv.load_model("demo"))
    weights.with_suffix(".json").write_text('{"size": 80}')
    assert models.preprocessing(fv.load_model("demo", weights)).resize == 80


def test_options_come_before_the_file(weights: Path) -> None:
    weights.with_suffix(".toml").write_text("mean = [0.5, 0.5, 0.5]\nsize = 64\nresize = 100\n")
    with cards.telling(Card(std=(0.1, 0.2, 0.3), size=(32, 32))):
        found = models.preprocessing(fv.load_model("demo", weights))
    assert found == Preprocessing((32, 32), 32, (0.5,) * 3, (0.1, 0.2, 0.3))
    assert models.preprocessing(fv.load_model("demo", weights)).resize == 100


def test_somebody_elses_file_is_left_alone(weights: Path) -> None:
    weights.with_suffix(".json").write_text('{"epoch": 3, "loss": 0.5}')
    assert fv.class_names(fv.load_model("demo", weights)) == list(CLASS_NAMES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size = 64\nmaen = [0.5]", r"best.toml: the word 'maen' is not known; nearest: mean"),
        ("size = 'large'", r"best.toml: size should be a list, got 'large'"),
        ("size = [1, 2, 3]", r"best.toml: size should be one number or \(height, width\)"),
        ("mean = ['a']", r"best.toml: mean should be a number, got 'a'"),
        ("labels = 'none.txt'", r"labels .*none.txt' cannot be read"),
        ("labels = ['a', 'b']", r"labels should have one name for each of the 20 classes, got 2"),
        ("interpolation = 'nearest'", r"interpolation should be one of 'bilinear', 'bicubic', got 'nearest'"),
        ("std = [0.0, 0.1, 0.1]", r"std should be above 0"),
        ("size = ", r"best.toml cannot be read"),
    ],
)
def test_what_a_file_cannot_say(weights: Path, text: str, words: str) -> None:
    weights.with_suffix(".toml").write_text(text)
    with pytest.raises(ValueError, match=words):
        fv.load_model("demo", weights)


@pytest.mark.parametrize("text", ['{"0": "a", "2": "b"}', "[]", '["a", 3]', "{}"])
def test_labels_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.json").write_text(text)
    with pytest.raises((ValueError, TypeError), match="labels should"):
        cards.read_labels(tmp_path / "names.json")
