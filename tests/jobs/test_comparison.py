"""``fastviz compare``: the files it writes, what the page says, labels and objects, what is refused."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastviz import evaluation, images, models
from fastviz.cli import app
from fastviz.jobs import comparison
from fastviz.jobs.comparison import compare
from fastviz.jobs.comparison_journal import UNFINISHED
from fastviz.methods import grad_cam

PHOTOS = Path(comparison.__file__).parents[1] / "models/data/photos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two photographs, one with a name that HTML could take for its own."""
    place = tmp_path_factory.mktemp("photos")
    for name, source in (("a <b>&.jpg", "rocket.jpg"), ("cat.jpg", "tabby_cat.jpg")):
        (place / name).write_bytes((PHOTOS / source).read_bytes())
    return place


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "comparison"
    boxes = out.parent / "boxes.csv"
    boxes.write_text("file,left,top,right,bottom\ncat.jpg,40,40,160,160\n")
    return compare(
        [folder],
        out,
        methods=["grad_cam", "saliency"],
        measures=["deletion", "parameter_randomisation", "energy_inside"],
        objects=boxes,
        options={"deletion": {"step": 512}, "parameter_randomisation": {"steps": 2}},
    )


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_tables(made, folder):
    found = lines(made.page.parent / "table.csv")
    assert len(found) == 2 * 3 * 4  # photographs, methods with the random one, measures with agreement
    model = models.load_model("demo")
    x, names = images.load_images(folder, model=model)
    assert names == ["a <b>&.jpg", "cat.jpg"]
    classes = model(x).argmax(1)
    curve = evaluation.deletion(model, x, grad_cam(model, x, classes), classes, step=512)
    values = [row["value"] for row in found if (row["method"], row["measure"]) == ("grad_cam", "deletion")]
    assert [float(value) for value in values] == pytest.approx(curve.area.tolist(), abs=1e-5)
    assert found[-1]["class"] == models.class_names(model)[classes[1]]
    without_box = [row["value"] == "nan" for row in found if row["measure"] == "energy_inside"]
    assert without_box == [True, True, True, False, False, False]
    ranking = lines(made.page.parent / "ranking.csv")
    places = {row["method"]: row["place"] for row in ranking if row["measure"] == "deletion"}
    assert set(places.values()) == {"1", "2", ""}
    assert places["random"] == ""


def test_parquet_or_a_note(made):
    path = made.page.parent / "table.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        assert not path.exists()
        assert "needs pyarrow" in made.notes[0]
    else:
        from pyarrow import parquet

        assert len(parquet.read_table(path)) == 24


def test_the_page_names_everything_and_all_its_files_are_there(made):
    text = made.page.read_text(encoding="utf-8")
    assert "a &lt;b&gt;&amp;.jpg" in text
    assert "a <b>" not in text
    linked = re.findall(r'(?:src|href)="([^":]+)"', text)
    assert len(linked) > 10
    for link in linked:
        assert (made.page.parent / link).is_file(), link
    assert "ranks first" in text
    for path in made.files:
        assert path.is_file()
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) >= 64
        if path.suffix == ".svg":
            assert path.read_text().startswith("<?xml")
    # one line of maps per method, one column per step
    strip = next(path for path in made.files if path.name.startswith("randomised_"))
    with Image.open(strip) as picture:
        assert picture.size == (170 + 3 * 174, 30 + 2 * 174 + 6)


def test_a_second_run_needs_overwrite(made, folder):
    with pytest.raises(ValueError, match=r"holds table.csv and .*; give another folder, or --overwrite"):
        compare([folder], made.page.parent)


def stopped_after(monkeypatch, photographs: int) -> list[str]:
    """Make runs stop after so many photographs; the list gets the name of each that is measured."""
    evaluate = importlib.import_module("fastviz.evaluation.evaluate")
    whole, measured = evaluate._Work.batch, []

    def batch(self, images, advance):
        if len(measured) + len(images) > photographs:
            raise KeyboardInterrupt
        measured.extend(images.names)
        return whole(self, images, advance)

    monkeypatch.setattr(evaluate._Work, "batch", batch)
    return measured


def test_a_run_that_was_stopped_goes_on(folder, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for at in range(3):
        for path in folder.iterdir():
            (photos / f"{at} {path.name}").write_bytes(path.read_bytes())
    settings = {"methods": ["saliency"], "measures": ["sparseness", "deletion"], "batch_size": 2}
    settings["options"] = {"deletion": {"step": 1024}}
    once = compare([photos], tmp_path / "once", **settings)
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            compare([photos], tmp_path / "twice", **settings)
    journal = tmp_path / "twice" / UNFINISHED
    assert len(journal.read_text().splitlines()) == 2  # the settings and a batch
    with journal.open("a") as file:
        file.write('{"photos": [[2, "torn')
    with pytest.raises(ValueError, match="unfinished comparison with other measures; give another folder"):
        compare([photos], tmp_path / "twice", **{**settings, "measures": ["deletion"]})
    with monkeypatch.context() as patch:
        measured = stopped_after(patch, 100)
        twice = compare([photos], tmp_path / "twice", **settings)
    assert len(measured) == 4
    assert not journal.exists()
    for name in ("table.csv", "ranking.csv"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert [row["value"] for row in once.rows] == pytest.approx([row["value"] for row in twice.rows], nan_ok=True)


def test_a_photograph_that_changed_since_is_measured_again(folder, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for at in range(2):
        for path in folder.iterdir():
            (photos / f"{at} {path.name}").write_bytes(path.read_bytes())
    settings = {"methods": ["saliency"], "measures": ["sparseness"], "batch_size": 1}
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            compare([photos], tmp_path / "out", **settings)
    changed = sorted(photos.iterdir())[1]
    changed.write_bytes((folder / "a <b>&.jpg").read_bytes())
    with monkeypatch.context() as patch:
        measured = stopped_after(patch, 100)
        found = compare([photos], tmp_path / "out", **settings)
    assert len(measured) == 2
    assert changed.name in measured
    assert len({row["index"] for row in found.rows}) == 4


def test_the_command(folder, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("file,class\na <b>&.jpg,missile\ncat.jpg,tabby cat\n")
    options = ("--methods", "grad_cam,saliency", "--measures", "sparseness", "--labels", str(labels), "--no-control")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "cat.jpg").write_bytes((folder / "cat.jpg").read_bytes())
    (broken / "no.jpg").write_bytes(b"no picture")
    result = CliRunner().invoke(app, ["compare", str(folder), "--out", str(tmp_path / "one"), *options])
    assert result.exit_code == 0, result.output
    assert "grad_cam" in result.stdout
    assert "page: " in result.stdout
    assert {row["class"] for row in lines(tmp_path / "one/table.csv")} == {"missile", "tabby cat"}
    assert {row["method"] for row in lines(tmp_path / "one/table.csv")} == {"grad_cam", "saliency"}
    failing = ("--methods", "grad_cam", "--measures", "sparseness")
    result = CliRunner().invoke(app, ["compare", str(broken), "--out", str(tmp_path / "two"), *failing])
    assert result.exit_code == 1
    assert "no.jpg" in result.stderr
    listed = CliRunner().invoke(app, ["measures"])
    assert all(name in listed.stdout for name in evaluation.MEASURES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "gradcam"), "method 'gradcam' is not known"),
        (("--measures", "delete"), "measure 'delete' is not known"),
        (("--measures", "pointing_game"), "needs objects"),
        (("--labels", "folders"), "labels of"),
        (("--model", "squeezenet1_0"), "--weights is needed"),
        (("--methods", "cam", "--model", "demo", "--measures", "max_sensitivity", "--limit", "0"), "limit should be"),
    ],
)
def test_what_is_refused(folder, tmp_path, options, words):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["compare", str(folder), "--out", str(out), *options])
    assert result.exit_code == 2
    assert words in result.stderr
    assert not out.exists()


def test_without_matplotlib_it_does_not_begin(folder, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("fastviz.jobs.charts.find_spec", lambda name: None if name == "matplotlib" else found(name))
    with pytest.raises(ImportError, match=r"fastviz\[evaluation\]"):
        compare([folder], tmp_path / "out")


def test_the_same_command_gives_the_same_files(folder, tmp_path):
    torch.manual_seed(1)
    runs = []
    for name in ("one", "two"):
        torch.rand(3)
        settings = {"measures": ["sparseness", "morf"], "options": {"morf": {"steps": 8}}, "batch_size": 1 + len(runs)}
        compare([folder], tmp_path / name, methods=["saliency"], **settings)
        runs.append(lines(tmp_path / name / "table.csv"))
    for first, second in zip(*runs, strict=True):
        assert float(first["value"]) == pytest.approx(float(second["value"]), abs=1e-5, nan_ok=True)
