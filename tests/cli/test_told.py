"""``--mean``, ``--std``, ``--size`` and ``--labels``: what options tell of a network reaches it in every command."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import fastviz as fv
from fastviz import cli, models
from fastviz.models.preparation import Preprocessing

NAMES = [f"thing {number}" for number in range(20)]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.effect_noise((80, 72), 60).convert("RGB").save(tmp_path / "noise.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path / "noise.png"


def test_they_reach_the_network(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], models.load_model

    def noted(*arguments: object) -> object:
        loaded.append(load(*arguments))  # type: ignore[arg-type]
        return loaded[-1]

    monkeypatch.setattr(models, "load_model", noted)
    words = ["occlusion", photo, "--out", photo.with_name("map.png"), "--window", 16, "--stride", 16]
    told = ["--mean", "0.5,0.4,0.3", "--std", "0.25", "--size", "64x64", "--labels", photo.with_name("names.txt")]
    result = CliRunner().invoke(cli.app, [str(word) for word in [*words, *told, "--target", "thing 7"]])
    assert result.exit_code == 0, result.output
    assert models.preprocessing(loaded[0]) == Preprocessing((64, 64), 64, (0.5, 0.4, 0.3), (0.25,) * 3)
    assert fv.class_names(loaded[0]) == NAMES
    assert photo.with_name("map.png").is_file()
    assert fv.class_names(load("demo")) != NAMES  # only in that command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mean", "a,b"], "--mean should be numbers separated by commas, got 'a,b'"),
        (["--std", "0,1,1"], "std should be above 0"),
        (["--size", "64x64x64"], "--size should be such as 224 or 160x224"),
        (["--size", "0"], "--size should be such as 224 or 160x224"),
        (["--labels", "none.txt"], "labels 'none.txt' cannot be read"),
        (["--mean", "0.5,0.5"], "mean and std should each have one number per channel, got 2 and 3"),
    ],
)
def test_what_they_cannot_say(photo: Path, options: list[str], words: str) -> None:
    result = CliRunner().invoke(cli.app, ["occlusion", str(photo), "--out", str(photo.with_name("map.png")), *options])
    assert result.exit_code == 2
    assert words in result.output
    assert not photo.with_name("map.png").exists()


def test_the_real_network_of_timm(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    weights = shared / "models" / "efficientnet_lite0_imagenet.safetensors"
    words = [
        "occlusion",
        shared / "images" / "macaw.jpg",
        "--out",
        tmp_path / "map.png",
        "--window",
        112,
        "--stride",
        112,
    ]
    told = ["--model", "timm/tf_efficientnet_lite0", "--weights", weights, "--target", "macaw"]
    result = CliRunner().invoke(cli.app, [str(word) for word in [*words, *told]])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "map.png").is_file()


def test_a_job_goes_on_only_with_the_same_preparation(photo: Path) -> None:
    pytest.importorskip("pyarrow")
    words = [
        "run",
        photo,
        "--out",
        photo.with_name("job"),
        "--methods",
        "saliency",
        "--workers",
        0,
        "--mean",
        "0.5,0.4,0.3",
    ]
    assert CliRunner().invoke(cli.app, [str(word) for word in words]).exit_code == 0
    again = CliRunner().invoke(cli.app, [str(word) for word in [*words[:-1], "0.1,0.1,0.1"]])
    assert again.exit_code == 2
    assert "made with other settings: preprocessing.mean" in again.output
