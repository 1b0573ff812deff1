"""Targets in words: the same as in Python, and what is possible where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fastviz as fv
from fastviz import images
from fastviz.targets import is_expression, parse_target

NAMES = ["tabby cat", "lion", "crane", "crane", "dog (pug)"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a mask as a picture and as an array, a vector and a module of one's own."""
    mask = torch.zeros(3, 6, 8)
    mask[:, 2:4, 1:5] = 1
    images.save_image(mask, tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", mask[0].numpy())
    np.save(tmp_path / "cat.npy", np.arange(1.0, 5))
    (tmp_path / "heads_of_mine.py").write_text("def margin(output):\n    return output[:, 1] - output[:, 0]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_words_mean_what_python_means() -> None:
    mask = torch.zeros(6, 8)
    mask[2:4, 1:5] = 1
    pairs = {
        "class_score(3)": fv.class_score(3),
        'class_score("Lion")': fv.class_score(1),
        "class_probability(k=2)": fv.class_probability(2),
        "class_score()": fv.class_score(),
        'neuron("features.3", 5)': fv.neuron("features.3", 5),
        "neuron('features.3', 5, (2, 4))": fv.neuron("features.3", 5, (2, 4)),
        "neuron(layer4.conv, channel=5, position=[2, 4])": fv.neuron("layer4.conv", 5, (2, 4)),
        'channel("layer3.0", 7)': fv.channel("layer3.0", 7),
        "layer(layer3)": fv.layer("layer3"),
        "region_score(1, 'mask.png')": fv.region_score(1, mask.bool()),
        "region_score('lion', 'mask.npy')": fv.region_score(1, mask),
        "pixel(1, 2, 3)": fv.pixel(1, 2, 3),
        "box_score([1, 2, 30, 40.5], 3, overlap=0.25)": fv.box_score(torch.tensor([1, 2, 30, 40.5]), 3, overlap=0.25),
        "similarity('cat.npy', \"fc\")": fv.similarity(torch.arange(1.0, 5), "fc"),
        "2 * class_score(1) - class_score(0)": 2 * fv.class_score(1) - fv.class_score(0),
        "-class_score(1) + pixel(1, 2, 3) * -0.5": -fv.class_score(1) + fv.pixel(1, 2, 3) * -0.5,
    }
    for words, expected in pairs.items():
        assert is_expression(words)
        assert repr(parse_target(words, NAMES)) == repr(expected), words
    margin = parse_target("output('heads_of_mine:margin')")
    assert isinstance(margin, fv.Objective)
    assert margin.values(torch.tensor([[1.0, 3.0]]), {}).tolist() == [2.0]


def test_classes() -> None:
    assert parse_target("predicted", NAMES) is None
    assert parse_target("predicted") is None
    assert parse_target("Tabby Cat", NAMES) == 0
    assert parse_target("3", NAMES) == 3
    assert parse_target("3") == 3
    assert parse_target("dog (pug)", NAMES) == 4  # a name that looks like a call


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("leon", "target 'leon' is not known; nearest: lion"),
        ("crane", "is the name of 2 classes"),
        ("5", "target should be a class from 0 to 4 for this model, got 5"),
        ("class_score(leon)", r"target 'class_score\(leon\)': target 'leon' is not known; nearest: lion"),
        (
            "clas_score(1)",
            r"clas_score\(\) is not known; there are 'predicted', a class index or name, ",
        ),
        ("class_score(1", r"is no expression: names of layers and files stand in quotes; there are .*region_score"),
        ("neuron(features.3, 1)", "names of layers and files stand in quotes"),
        ("class_score(foo=1)", r"class_score\(k\) is what it takes"),
        ("class_score(-1)", "k should be"),
        ("class_score(*[1])", "should have its arguments one by one"),
        ("class_score(1) / 2", r"cannot be read at 'class_score\(1\) / 2'"),
        ("class_score(1) * class_score(2)", "cannot be read"),
        ("3 - class_score(2)", "cannot be read at '3'"),
        ("__import__('os').system('touch seen')", "cannot be read at"),
        ("class_score(open('mask.png'))", "cannot be read at"),
        ("region_score(1, 'no.png')", "'no.png': there is no such file"),
        ("region_score(1, 'heads_of_mine.py')", "heads_of_mine.py"),
        ("region_score(1, 3)", "mask should be the name of a file in quotes, got 3"),
        ("box_score([4, 4, 2, 2])", "box should have right above left"),
        ("box_score('abc')", r"box should be \[left, top, right, bottom\], got 'abc'"),
        ("output('margin')", "function should be named as 'package.module:function'"),
        ("similarity('mask.npy')", r"vector should have|\[D\] or \[N, D\]|finite and not zero"),
    ],
)
def test_errors_say_what_is_wrong(words: str, said: str, here: Path) -> None:
    with pytest.raises(ValueError, match=said):
        parse_target(words, NAMES)
    assert not (here / "seen").exists()


def test_without_names_of_classes() -> None:
    with pytest.raises(ValueError, match="the names of this model are not known: 'lion'"):
        parse_target("class_score('lion')")
    with pytest.raises(ValueError, match=r"target 'lion' is not known: there are 'predicted', a class index, "):
        parse_target("lion")
    with pytest.raises(ImportError, match="there is no module 'nowhere_at_all'"):
        parse_target("output('nowhere_at_all:thing')")
