"""``fastviz filters``, ``activations``, ``embed``, ``neighbours``: from the arguments to files and exit status."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fastviz as fv
from fastviz import cli, models
from fastviz.models.demo_network import DemoNetwork


@pytest.fixture(autouse=True)
def _built_in(weights, monkeypatch):
    monkeypatch.setattr(models.loading, "_DEMO_WEIGHTS", weights)
    for name in ("filters", "activations"):  # smaller pictures
        monkeypatch.setattr(sys.modules[f"fastviz.methods.inspection.{name}"], "_SIDE", 200)


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_photos(tmp_path / "photos", 6)


def make_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(*args: object, status: int = 0):
    """Run the command line; an error must be one line."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    if status == 2:
        assert re.fullmatch(r"fastviz: error: .*\n", result.stderr), result.stderr
    return result


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def picture(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255


# ------------------------------------------------------------------------------------------------------- filters


def test_filters(tmp_path):
    result = run("filters", "demo", "--out", tmp_path / "filters.png")
    assert result.stdout == f"32 filters of 3x7x7; grey is a weight of zero\npicture: {tmp_path / 'filters.png'}\n"
    expected = fv.filter_grid(fv.filters(fv.load_model("demo")))
    torch.testing.assert_close(picture(tmp_path / "filters.png"), expected, rtol=0, atol=0.51 / 255)


def test_filters_passes_its_options_on(tmp_path):
    options = ["--layer", "conv2_1", "--scale", "together", "--unit-norm", "--limit", 5]
    run("filters", "demo", *options, "--out", tmp_path / "filters.png")
    filters = fv.filters(fv.load_model("demo"), "conv2_1", scale="together", unit_norm=True)
    expected = fv.filter_grid(filters[:5, :5])
    torch.testing.assert_close(picture(tmp_path / "filters.png"), expected, rtol=0, atol=0.51 / 255)


# --------------------------------------------------------------------------------------------------- activations


def test_activations(photos, tmp_path):
    result = run("activations", photos / "0.png", "--layers", "relu1, conv5_1", "--out", tmp_path / "new" / "maps")
    assert result.stdout.splitlines() == [
        "relu1: 32 maps of 64x64",
        "conv5_1: 160 maps of 4x4",
        f"pictures: {tmp_path / 'new' / 'maps'}",
    ]
    model = fv.load_model("demo")
    x, _ = fv.load_images(photos / "0.png", model=model)
    shown = fv.images.restore(x[0], models.preprocessing(model))
    for name, maps in fv.activations(model, x, layers=["relu1", "conv5_1"]).items():
        expected = fv.activation_grid(maps[0], image=shown)
        found = picture(tmp_path / "new" / "maps" / f"{name}.png")
        torch.testing.assert_close(found, expected, rtol=0, atol=0.51 / 255)


def test_activations_of_every_convolution(photos, tmp_path):
    run("activations", photos / "0.png", "--out", tmp_path / "maps", "--scale", "together", "--colours", "inferno")
    names = {f"{name}.png" for name, module in DemoNetwork().named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == names


# ---------------------------------------------------------------------------------------------------------- embed


def test_embed(photos, tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "out"
    result = run("embed", photos, "--out", out, "--perplexity", 2, "--seed", 3, "--tile", 20)
    assert f"6 vectors of 144 numbers, input of fc8: {out / 'embedding.safetensors'}\n" in result.stdout
    assert result.stdout.endswith(f"open {out / 'index.html'}\n")
    found = fv.load_embedding(out / "embedding.safetensors")
    xy, axes = fv.tsne(found.vectors, perplexity=2, seed=3), fv.pca(found.vectors).coordinates
    for row, name, coordinates, components in zip(
        rows(out / "coordinates.csv"), found.names, xy.tolist(), axes.tolist(), strict=True
    ):
        assert row["name"] == name
        assert [float(row["tsne_x"]), float(row["tsne_y"])] == pytest.approx(coordinates, rel=1e-4, abs=1e-4)
        assert [float(row["pca_x"]), float(row["pca_y"])] == pytest.approx(components, rel=1e-4, abs=1e-4)
    for layout in ("scatter", "grid"):
        expected = fv.image_map(found.pictures, xy, layout=layout, tile=20).picture / 255
        torch.testing.assert_close(picture(out / f"{layout}.png"), expected, rtol=0, atol=0)
    page = (out / "index.html").read_text()
    assert "scatter.png" not in page  # asked for by name when the page is open
    for name in found.names:
        assert f'"{name}"' in page


def test_embed_goes_on_and_refuses_other_vectors(photos, tmp_path):
    out = tmp_path / "out"
    options = ["--out", out, "--projection", "pca"]
    run("embed", photos / "0.png", photos / "1.png", *options)
    assert "6 vectors of 144 numbers, input of fc8, 2 of them from before" in run("embed", photos, *options).stdout
    assert "6 of them from before" in run("neighbours", photos, "--out", out, "--k", 2).stdout
    refused = run("embed", photos, *options, "--layer", "conv5_1", status=2)
    assert "vectors made with another layer; give another file, or overwrite it" in refused.stderr
    result = run("embed", photos, *options, "--layer", "conv5_1", "--pool", "flatten", "--overwrite")
    assert "6 vectors of 2560 numbers, conv5_1: " in result.stdout


def test_embed_names_the_photographs_that_failed(photos, tmp_path):
    (photos / "3.png").write_bytes(b"no picture")
    result = run("embed", photos, "--out", tmp_path / "out", "--projection", "pca", status=1)
    assert re.fullmatch(r"fastviz: failed: image '.*3\.png': is not an image that can be read\n", result.stderr)
    assert [row["name"] for row in rows(tmp_path / "out/coordinates.csv")] == [f"{n}.png" for n in (0, 1, 2, 4, 5)]


def test_embed_of_200_with_50_missing(tmp_path):
    """FiftyOne #3497, #2130: vectors were not kept, and images that were not there became zeros."""
    photos, out = make_photos(tmp_path / "photos", 200), tmp_path / "out"
    for number in range(0, 200, 4):
        path = photos / f"{number}.png"
        path.unlink()
        path.symlink_to("nowhere.png") if number % 8 else path.write_bytes(b"")
    there = sorted(f"{number}.png" for number in range(200) if number % 4)
    options = ["--out", out, "--projection", "pca", "--tile", 8]
    first = run("embed", photos, *options, status=1)
    assert len(first.stderr.splitlines()) == 50
    found = fv.load_embedding(out / "embedding.safetensors")
    assert found.vectors.shape == (150, 144)
    assert found.vectors.any(1).all()
    assert sorted(found.names) == there
    assert [row["name"] for row in rows(out / "coordinates.csv")] == found.names
    page = (out / "index.html").read_text()
    assert all(f'"{name}"' in page for name in found.names)
    assert '"0.png"' not in page
    # a second run computes nothing
    assert (
        "150 vectors of 144 numbers, input of fc8, 150 of them from before"
        in run("embed", photos, *options, status=1).stdout
    )


def test_embed_of_vectors_with_one_number(photos, tmp_path, monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 9), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    model(torch.zeros(1, 3, 64, 64))
    models.describe(model, preprocessing=models.preprocessing(DemoNetwork()))
    monkeypatch.setattr(models, "load_model", lambda name, weights: model)
    run("embed", photos, "--out", tmp_path / "out", "--layer", "0", "--projection", "pca")
    assert {row["pca_y"] for row in rows(tmp_path / "out/coordinates.csv")} == {"0.0"}


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (1, ["--projection", "pca"], "photos should be at least 2 that can be read for pca, got 1"),
        (3, [], "photos should be at least 4 that can be read for tsne, got 3; --projection pca takes 2"),
        (6, ["--perplexity", 6], "perplexity should be at least 1 and below the number of vectors, 6, got 6"),
    ],
)
def test_embed_of_few_photographs(tmp_path, count, options, words):
    photos = make_photos(tmp_path / "photos", count)
    assert words in run("embed", photos, "--out", tmp_path / "out", *options, status=2).stderr
    assert not (tmp_path / "out" / "scatter.png").exists()


def test_photographs_that_are_all_the_same(tmp_path):
    photos = make_photos(tmp_path / "photos", 1)
    for number in range(1, 6):
        (photos / f"{number}.png").write_bytes((photos / "0.png").read_bytes())
    error = run("embed", photos, "--out", tmp_path / "out", status=2).stderr
    assert "vectors should not all be the same for t-SNE, and these 6 are" in error
    run("embed", photos, "--out", tmp_path / "out", "--projection", "pca")
    assert {row["pca_x"] for row in rows(tmp_path / "out/coordinates.csv")} == {"0.0"}


# ----------------------------------------------------------------------------------------------------- neighbours


def test_neighbours(photos, tmp_path):
    out = tmp_path / "out"
    result = run("neighbours", photos, "--out", out, "--k", 3, "--show", 2)
    assert f"sheet: {out / 'neighbours.png'}, all neighbours: {out / 'neighbours.csv'}\n" in result.stdout
    found = fv.load_embedding(out / "embedding.safetensors")
    near = fv.neighbours(found, 3)
    lines = rows(out / "neighbours.csv")
    assert len(lines) == 6 * 2 * 3
    for kind, indices in (("features", near.features), ("pixels", near.pixels)):
        mine = [line["neighbour"] for line in lines if line["name"] == "4.png" and line["by"] == kind]
        assert mine == [found.names[row] for row in indices[4].tolist()]
    expected = fv.neighbour_sheet(found, fv.neighbours(found, 3, queries=[0, 3]))
    torch.testing.assert_close(picture(out / "neighbours.png"), expected, rtol=0, atol=0.51 / 255)


def test_neighbours_of_some(photos, tmp_path):
    run("neighbours", photos, "--out", tmp_path / "out", "--k", 1, "--queries", "2.png", "--queries", "0.png")
    lines = rows(tmp_path / "out/neighbours.csv")
    assert [(line["name"], line["by"]) for line in lines] == [
        (name, kind) for name in ("2.png", "0.png") for kind in ("features", "pixels")
    ]


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["filters", "demo", "--out", "{tmp}/a.gif"], "--out should end in .png"),
        (["filters", "demo", "--out", "{tmp}/none/a.png"], "none/a.png: No such file or directory"),
        (["filters", "demo", "--out", "{tmp}/a.png", "--layer", "fc7"], "layer 'fc7' should be a 2-d convolution"),
        (["filters", "demo", "--out", "{tmp}/a.png", "--limit", "0"], "limit should be at least 1, got 0"),
        (["filters", "demo", "--out", "{tmp}/a.png", "--scale", "all"], "Invalid value for '--scale'"),
        (["filters", "resnet18", "--out", "{tmp}/a.png"], "--weights is needed for resnet18"),
        (["activations", "{tmp}/none.png", "--out", "{tmp}/out"], "there is no such file"),
        (["activations", "{photo}", "--out", "{tmp}/out", "--layers", "fc7"], "layer 'fc7' should have maps"),
        (
            ["activations", "{photo}", "--out", "{tmp}/out", "--layers", "conv9"],
            "layer 'conv9' is not known; nearest: ",
        ),
        (["activations", "{photo}", "--out", "{tmp}/out", "--layers", ","], "layers should hold at least one name"),
        (["activations", "{photo}", "--out", "{tmp}/out", "--colours", "blue"], "--colours should be one of"),
        (["embed", "{tmp}/none", "--out", "{tmp}/out"], "paths should exist, got"),
        (["embed", "{photo}", "--out", "{tmp}/out", "--tile", "0"], "tile should be at least 1, got 0"),
        (["embed", "{photo}", "--out", "{tmp}/out", "--perplexity", "0"], "perplexity should be finite and above 0"),
        (["embed", "{photo}", "--out", "{tmp}/out", "--seed", "-1"], "seed should be at least 0, got -1"),
        (["neighbours", "{photo}", "--out", "{tmp}/out", "--k", "0"], "k should be at least 1, got 0"),
        (["neighbours", "{photo}", "--out", "{tmp}/out", "--show", "0"], "show should be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(photos, tmp_path, arguments, words):
    given = [word.replace("{tmp}", str(tmp_path)).replace("{photo}", str(photos / "0.png")) for word in arguments]
    result = run(*given, status=2)
    assert words in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.png"))


def test_fewer_photographs_than_neighbours(photos, tmp_path):
    error = run("neighbours", photos, "--out", tmp_path / "out", "--k", 6, status=2).stderr
    assert "k should be at most 5, one less than the number of images, got 6" in error
    run("neighbours", photos, "--out", tmp_path / "out")  # as many as there are
    for command, words in (
        ("neighbours", "at least 2 that can be read for neighbours"),
        ("embed", "at least 4 that can"),
    ):
        one = sorted(photos.iterdir())[0]
        error = run(command, one, "--out", tmp_path / command, status=2).stderr
        assert f"photos should be {words}" in error
        assert "got 1" in error


def test_a_folder_with_a_file_of_that_name(photos, tmp_path):
    (tmp_path / "embedding.safetensors").write_text("hello")
    error = run("embed", photos, "--out", tmp_path, status=2).stderr
    assert re.search(r"file '.*embedding\.safetensors' is no embedding", error)
    assert (tmp_path / "embedding.safetensors").read_text() == "hello"


@pytest.mark.parametrize("seen", [0, 3])
def test_ctrl_c_keeps_what_is_done(photos, tmp_path, monkeypatch, seen):
    model, given = DemoNetwork().eval(), 0
    forward = model.forward

    def interrupted(x):
        nonlocal given
        given += 1
        if given > 1 + seen:  # the first time is to find the layer
            raise KeyboardInterrupt
        return forward(x)

    model.forward = interrupted
    monkeypatch.setattr(models, "load_model", lambda name, weights: model)
    arguments = ["embed", photos, "--out", tmp_path / "out", "--batch-size", 1, "--projection", "pca"]
    error = run(*arguments, status=130).stderr
    file = tmp_path / "out" / "embedding.safetensors"
    if not seen:
        assert error == "fastviz: stopped; nothing kept\n"
        return
    assert error == f"fastviz: stopped; {file} keeps what was done, and the same command continues from there\n"
    model.forward = forward
    assert "6 vectors of 144 numbers, input of fc8, 3 of them from before" in run(*arguments).stdout
