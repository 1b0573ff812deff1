"""``package.module:function``: what it makes, and what is said where it cannot be found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz import models
from fastviz.models.descriptions import ModelInfo

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def eval(self):
        super().eval()

class Makers:
    make = staticmethod(Net)

ready = nn.Linear(2, 2)
number = 3

def word():
    return "no module"

def needs(classes):
    return Net()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ownnets").mkdir()
    (tmp_path / "ownnets" / "small.py").write_text(CODE)
    (tmp_path / "ownnets" / "broken.py").write_text("import no_such_library\n")
    (tmp_path / "ownnets" / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_functions_classes_and_modules_of_the_current_folder(here: Path) -> None:
    model = fv.load_model("ownnets.small:Net")
    assert not model.training
    assert models.model_info(model) == ModelInfo("ownnets.small:Net", None)
    assert len(models.preprocessing(model).mean) == 1
    assert type(fv.load_model("ownnets.small:Makers.make")).__name__ == "Net"
    assert isinstance(fv.load_model("ownnets.small:ready"), nn.Linear)


def test_weights_in_a_file(here: Path) -> None:
    model = fv.load_model("ownnets.small:Net")
    state = {f"model.{key}": value + 1 for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4.0"}, here / "last.ckpt")
    found = fv.load_model("ownnets.small:Net", "last.ckpt")
    assert torch.equal(found.get_parameter("4.bias"), model.get_parameter("4.bias") + 1)
    assert models.model_info(found).weights == "last.ckpt"
    state["model.4.bias"] = torch.zeros(9)
    del state["model.0.bias"]
    torch.save(state, here / "bad.pth")
    with pytest.raises(ValueError, match=r"do not fit ownnets.small:Net: missing 0.bias; 4.bias is float32 \[9\] inst"):
        fv.load_model("ownnets.small:Net", "bad.pth")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("nowhere.at_all:make", ModuleNotFoundError, r"there is no module 'nowhere'; looked in .*site-packages"),
        ("ownnets.smal:Net", ModuleNotFoundError, r"there is no module 'ownnets.smal'; looked in"),
        ("ownnets.small:net", ImportError, r"in ownnets.small \(.*small.py\) the name 'net' is not known; nearest"),
        ("ownnets.small:number", ImportError, r"number in .* should be a function, got int"),
        ("ownnets.broken:Net", ImportError, r"importing ownnets.broken failed: No module named 'no_such_library'"),
        ("ownnets.wrong:Net", ImportError, r"importing ownnets.wrong failed: ZeroDivisionError"),
        ("ownnets.small:word", TypeError, r"should give a torch.nn.Module, got str"),
        ("ownnets.small:needs", ValueError, r"called without arguments; it failed with TypeError: needs\(\) missing"),
    ],
)
def test_what_cannot_be_found_or_made(here: Path, name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        fv.load_model(name)
