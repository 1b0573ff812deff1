"""The command line, from the arguments to the exit status."""

from __future__ import annotations

import html
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import fastviz
from fastviz import cli, jobs, models
from fastviz._util import output_folder
from fastviz.jobs import report
from fastviz.methods.registry import EXPLAINERS, METHODS
from fastviz.models.demo_network import DemoNetwork

ROOT = Path(__file__).parents[2]
QUICK = ["--methods", "saliency,grad_cam"]


@pytest.fixture(autouse=True)
def _built_in(weights, monkeypatch):
    monkeypatch.setattr(models.loading, "_DEMO_WEIGHTS", weights)
    monkeypatch.setattr(jobs.explainer, "SHOWN_SIZE", 64)


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def run(*args: object, status: int = 0):
    """Run the command line; an error must be one line."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    if status == 2:
        assert re.fullmatch(r"fastviz: error: .*\n", result.stderr), result.stderr
        assert result.stdout == ""
    return result


def lines(out: Path) -> list[dict[str, object]]:
    return list(jobs.open(out).rows())


# ------------------------------------------------------------------------------------------------------------ run


def test_run(photos, tmp_path):
    result = run("run", photos, "--out", tmp_path / "out", *QUICK)
    assert "3 images explained" in result.stdout
    assert re.search(r"busy \d+ % of the time", result.stdout)
    assert re.search(r"^saliency +\d+\.\d +\d+\.\d ms", result.stdout, re.MULTILINE)
    assert f"fastviz report {tmp_path / 'out'}" in result.stdout
    assert [line["method"] for line in lines(tmp_path / "out")] == ["saliency", "grad_cam"] * 3


def test_run_passes_its_options_on(photos, tmp_path):
    options = {"--target": "lion", "--batch-size": 1, "--limit": 2, "--maps": "uint8", "--device": "cpu"}
    flat = [word for pair in options.items() for word in pair]
    flat += ["--option", "grad_cam.layer=conv2_1", "--option", "occlusion.window=32", "--option", "occlusion.stride=32"]
    run("run", photos, "--out", tmp_path / "out", "--methods", "grad_cam, occlusion", "--thumbnails", *flat)
    found = lines(tmp_path / "out")
    assert [(line["id"], line["target_name"]) for line in found] == [("0.png", "lion")] * 2 + [("1.png", "lion")] * 2
    maps = jobs.open(tmp_path / "out").maps("0.png")
    assert maps["grad_cam"].shape == (32, 32)
    blocks = maps["occlusion"].reshape(2, 32, 2, 32)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert jobs.open(tmp_path / "out").table(["thumbnail"])["thumbnail"].null_count == 2


def test_run_goes_on_and_refuses_other_settings(photos, tmp_path):
    out = tmp_path / "out"
    run("run", photos / "0.png", "--out", out, *QUICK)
    assert "2 images explained" in run("run", photos, "--out", out, *QUICK).stdout
    assert "3 done before" in run("run", photos, "--out", out, *QUICK).stdout
    refused = run("run", photos, "--out", out, *QUICK, "--target", "3", status=2)
    assert "target: 'predicted' before, '3' now; give another folder, or --overwrite" in refused.stderr
    run("run", photos / "1.png", "--out", out, *QUICK, "--target", "3", "--overwrite")
    assert {line["id"] for line in lines(out)} == {"1.png"}


def test_run_takes_a_job_file_and_words_count_more(photos, tmp_path):
    (tmp_path / "job.yaml").write_text(
        f"inputs: {photos}\nout: {tmp_path / 'out'}\nmethods: [saliency]\ntarget: lion\n"
    )
    run("run", tmp_path / "job.yaml", "--target", "koala")
    assert {(line["method"], line["target_name"]) for line in lines(tmp_path / "out")} == {("saliency", "koala")}


def test_run_names_the_images_that_failed(photos, tmp_path):
    (photos / "1.png").write_bytes(b"")
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:300])
    result = run("run", photos, "--out", tmp_path / "out", *QUICK, status=1)
    assert "2 images explained" in result.stdout
    assert "3 failed" in result.stdout
    for name in ("1.png", "broken.jpg", "cut.png"):
        assert len(re.findall(rf"^fastviz: failed: .*{name}.*$", result.stderr, re.MULTILINE)) == 1
    assert {line["id"] for line in lines(tmp_path / "out") if line["status"] == "ok"} == {"0.png", "2.png"}
    again = run("run", photos, "--out", tmp_path / "out", *QUICK, "--no-retry-failed", status=1)
    assert "0 images explained" in again.stdout
    stopped = run("run", photos, "--out", tmp_path / "out", *QUICK, "--max-failures", 2, status=1)
    assert "stopped: more than 2 images failed" in stopped.stderr


def test_run_says_what_it_would_do(photos, tmp_path):
    run("run", photos / "0.png", "--out", tmp_path / "out", *QUICK)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    said = run("run", photos, "--out", tmp_path / "out", *QUICK, "--dry-run").stdout
    assert re.search(r"to do +2 images, 2 rows each", said)
    assert re.search(r"done before +1", said)
    assert re.search(r"time +\d+ s \(\d+\.\d ms per image\)", said)
    assert re.search(r"size +\d+\.\d [kM]B", said)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    run("run", photos, "--out", tmp_path / "new", *QUICK, "--dry-run")
    assert not (tmp_path / "new").exists()


def test_report(photos, tmp_path):
    (photos / "1.png").write_bytes(b"")
    run("run", photos, "--out", tmp_path / "out", *QUICK, "--thumbnails", "--overlays", status=1)
    said = run("report", tmp_path / "out").stdout
    page = tmp_path / "out/report.html"
    assert said == f"open {page.resolve()}\n"
    assert "is empty" in (tmp_path / "out/report_files/lines-00000.js").read_text()
    assert "holds no job" in run("report", tmp_path / "photos", status=2).stderr


def test_run_keeps_what_is_done_at_ctrl_c(photos, tmp_path, monkeypatch):
    rows, calls = jobs.explainer.Explainer.rows, []

    def interrupted(self, decoded):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield from rows(self, decoded)

    monkeypatch.setattr(jobs.explainer.Explainer, "rows", interrupted)
    out = tmp_path / "out"
    result = run("run", photos, "--out", out, *QUICK, "--batch-size", "1", status=130)
    assert result.stderr == f"fastviz: stopped; 2 images done in {out}, and the same command continues from there\n"
    assert {line["id"] for line in lines(out)} == {"0.png", "1.png"}


@pytest.mark.parametrize("command", ["run", "segment", "patches", "embed", "neighbours"])
def test_a_folder_that_another_run_writes_into_is_refused(photos, tmp_path, command):
    with output_folder.locked(tmp_path / "out"):
        refused = run(command, photos, "--out", tmp_path / "out", status=2)
        assert "another run of fastviz" in refused.stderr
    assert not (tmp_path / "out").exists()


class RunsCode:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "squeezenet1_O", "--weights", "x.pth"], "model 'squeezenet1_O' is not known; nearest: squeezenet"),
        (["--model", "resnet18"], "--weights is needed for resnet18: a .safetensors or .pth file, or DEFAULT"),
        (["--model", "resnet18", "--weights", "DEFALT"], "weights of resnet18 should be 'IMAGENET1K_V1', 'DEFAULT'"),
        (["--weights", "missing.pth"], "weights 'missing.pth' cannot be read: there is no such file"),
        (["--weights", "{tmp}/text.pth"], "cannot be read"),
        (["--weights", "{tmp}/code.pth"], "refused: it wants to run"),
        (["--weights", "{tmp}/other.safetensors"], "do not fit demo: missing conv1.weight"),
        (["--methods", "salency"], "method 'salency' is not known; nearest: saliency"),
        (["--methods", ","], "methods should be one or more of saliency"),
        (["--option", "grad_cam.layer=conv5"], "layer 'conv5' is not known; nearest: conv5_1"),
        (["--option", "grad_cam.layer=fc7"], "layer 'fc7' should have maps"),
        (["--option", "grad_cam.layr=fc7"], "option of grad_cam 'layr' is not known; nearest: layer"),
        (["--option", "gradcam.layer=fc7"], "method 'gradcam' is not known; nearest: grad_cam"),
        (["--option", "window=8"], "--option should be METHOD.NAME=VALUE"),
        (["--methods", "cam"], "model should end in a global average"),
        (["--option", "occlusion.window=65"], "window should be at most the image"),
        (["--option", "occlusion.window=8", "--option", "occlusion.stride=9"], "stride should be at most the window"),
        (["--option", "occlusion.window=wide"], "window should be"),
        (["--limit", "many"], "Invalid value for '--limit'"),
        (["--maps", "int3"], "maps should be"),
        (["--target", "kaola"], "target 'kaola' is not known; nearest: koala"),
        (["--target", "20"], "target should be a class from 0 to 19 for this model, got 20"),
        (["--device", "tpu"], "and one that torch can use here, got 'tpu'"),
        (["--device", "cuda:99"], "and one that torch can use here, got 'cuda:99'"),
        (["--batch-size", "0"], "batch_size should be at least 1, got 0"),
        (["--limit", "0"], "limit should be at least 1, got 0"),
        (["--nonsense"], "No such option: --nonsense"),
        (["{tmp}/missing.jpg"], "paths should exist, got"),
        (["{tmp}/empty"], "paths should hold at least one image, got none"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(photos, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"a": RunsCode()}, tmp_path / "code.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    result = run("run", photos / "0.png", "--out", tmp_path / "out", *given, status=2)
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_missing_arguments_and_commands(tmp_path):
    assert "Missing argument 'INPUTS...'" in run("run", "--out", tmp_path, status=2).stderr
    assert "--out is needed: a folder for the tables" in run("run", "a.jpg", status=2).stderr
    assert "Did you mean 'report'" in run("reprot", status=2).stderr


def test_an_out_that_is_a_file(photos, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file is not a folder" in run("run", photos, "--out", tmp_path / "file", *QUICK, status=2).stderr


def test_an_error_of_ours_says_how_to_see_more(photos, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise KeyError("x")

    monkeypatch.setattr(jobs, "run", broken)
    result = run("run", photos, "--out", tmp_path / "out", status=1)
    assert result.stderr == "fastviz: error: unexpected KeyError: 'x' (set FASTVIZ_TRACEBACK=1 to see where)\n"
    monkeypatch.setenv("FASTVIZ_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(cli.app, ["run", "a", "--out", "b"]).exception, KeyError)


def test_a_warning_is_one_line(photos, tmp_path):
    """A network without rectifiers: guided backprop warns, and the warning shows no code."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 64), torch.nn.GELU(), torch.nn.Flatten()).eval()
    models.describe(model, preprocessing=models.preprocessing(DemoNetwork()), class_names=["a", "b"])
    original = models.load_model
    try:
        models.load_model = lambda name, weights=None: model
        result = run("run", photos, "--out", tmp_path / "out", "--methods", "guided_backprop")
    finally:
        models.load_model = original
    assert re.match(r"fastviz: warning: .*\n", result.stderr)
    assert ".py:" not in result.stderr


# ---------------------------------------------------------------------------------------------- whole processes


def start(*args: object, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fastviz", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished(photos, weights, tmp_path, signal_):
    out = tmp_path / "out"
    for number in range(3, 30):  # so many that it is not done before the signal comes, however busy the machine is
        shutil.copy(photos / "0.png", photos / f"{number}.png")
    arguments = ["run", photos, "--out", out, "--weights", weights, "--methods", "saliency,occlusion"]
    process = start(*arguments, "--option", "occlusion.stride=2")
    begun = lambda: (out / "job.json").exists() and list(out.glob(".fastviz-*.part"))  # noqa: E731
    while not begun() and process.poll() is None:  # then the first image is done
        time.sleep(0.05)
    process.send_signal(signal_)
    _, error = process.communicate()
    assert process.returncode == 130, error
    found = re.fullmatch(
        r"fastviz: stopped; (\d+) images? done in .*, and the same command continues from there\n", error
    )
    assert found, error
    assert len({line["id"] for line in lines(out)}) == int(found[1]) > 0
    assert {path.name for path in out.iterdir()} == {"job.json", "stats.json", "part-00000.parquet"}


def test_a_file_that_may_not_grow_is_one_line(photos, weights, tmp_path):
    """The system's own limit on the size of files, in place of a full disk."""
    arguments = ["run", photos, "--out", tmp_path / "out", "--weights", weights, *QUICK]
    process = start(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)))
    _, error = process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(r"fastviz: error: .*/out/.*: File too large\n", error), error
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_pipe_that_closes_is_no_error():
    process = start("models")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait()


# ---------------------------------------------------------------------------------------------------------- lists


def test_version():
    assert run("--version").stdout == f"fastviz {fastviz.__version__}\n"


def test_no_arguments_shows_the_commands():
    result = CliRunner().invoke(cli.app, [])
    for command in ("run", "report", "export", "demo", "methods", "models", "layers", "info"):
        assert command in result.output


def test_methods_lists_the_registry_with_papers():
    output = run("methods").stdout
    for method in METHODS.values():
        assert re.search(rf"^{method.name} ", output, re.MULTILINE)
        assert method.paper.split(", https")[0] in output


def test_models():
    assert run("models").stdout.splitlines() == models.model_names()


def test_layers():
    output = run("layers", "demo").stdout
    assert re.search(r"^conv2_1 +Conv2d +64×32×32 +18,496 +12×12 +2×2 *$", output, re.MULTILINE)
    assert "is not known; nearest: demo" in run("layers", "dem", status=2).stderr
    assert "size should be at least 1, got 0" in run("layers", "demo", "--size", 0, status=2).stderr


def test_layers_of_another_size():
    pytest.importorskip("torchvision")
    assert re.search(r"^features\.0 +Conv2d +64×31×31 ", run("layers", "alexnet", "--size", 128).stdout, re.MULTILINE)


def test_info():
    output = run("info").stdout
    assert re.search(rf"^fastviz +{re.escape(fastviz.__version__)}", output, re.MULTILINE)
    assert re.search(rf"^torch +{re.escape(torch.__version__.partition('+')[0])}", output, re.MULTILINE)
    assert re.search(r"^cpu library +/.*_cpu\.so", output, re.MULTILINE)
    assert re.search(r"^CUDA +" + ("" if torch.cuda.is_available() else "not used: "), output, re.MULTILINE)


@pytest.mark.parametrize(
    ("built", "available", "library", "words"),
    [
        (None, False, "not loaded: no", "not used: this torch is built without CUDA"),
        ("13.0", True, "/lib/_cuda.so", "used (CUDA 13.0)"),
        (
            "13.0",
            True,
            "not loaded: it was not built",
            "not by fastviz's operators: library not loaded: it was",
        ),
    ],
)
def test_info_says_why_cuda_is_or_is_not_used(monkeypatch, built, available, library, words):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert words in cli.lists._about_cuda(library)


# ----------------------------------------------------------------------------------------------------------- demo


def test_demo_shows_every_method_on_every_photograph(tmp_path, monkeypatch):
    """What takes most of the time, the pictures that are optimised, is tested with each command."""
    from fastviz.cli import dream, fool, invert, maximize, style, texture

    made = []
    for command in (dream, fool, invert, maximize, style, texture):
        section = report.Section(f"Made by {command.__name__}", "", [])
        monkeypatch.setattr(command, "demo_section", lambda *_, section=section: section)
        made.append(section.title)
    monkeypatch.setattr(texture, "neural_section", lambda _: report.Section("Made by a network", "", []))
    result = run("demo", "--out", tmp_path / "out")
    page = tmp_path / "out/index.html"
    assert result.stdout == f"open {page.resolve()}\n"
    text = page.read_text()
    for name in EXPLAINERS:
        assert f"<h2>{name.replace('_', ' ')}</h2>" in text
    assert re.findall("Not for this network: model should end in a global average|Not (?:for|here)", text) == [
        "Not for this network: model should end in a global average"  # what cam says
    ]
    assert text.count("data:image/jpeg") == 3 * (1 + len(EXPLAINERS) - 1)
    for photo in ("tabby_cat.jpg", "espresso.jpg", "rocket.jpg"):
        assert text.count(f'{photo}">') == len(EXPLAINERS)
    for title in ("Filters of the first layer", "Patches that excite a unit"):
        assert re.search(rf"<h2>{title}</h2>.*?data:image/png", text, re.DOTALL)
    for title in (*made, "Made by a network"):
        assert f"<h2>{title}</h2>" in text


@pytest.fixture
def quick_demo(monkeypatch):
    """The demo with two methods and no sections."""
    monkeypatch.setattr(sys.modules["fastviz.cli.demo"], "_sections", lambda _: [])
    two = {name: EXPLAINERS[name] for name in ("saliency", "segment")}
    for place in ("fastviz.methods.registry", "fastviz.jobs.report.page"):
        monkeypatch.setattr(f"{place}.EXPLAINERS", two)


def test_demo_needs_no_extra_and_replaces_its_own_page(quick_demo, tmp_path, monkeypatch):
    """The command that people try first, in an environment that holds what the package itself needs."""
    for name in ("pyarrow", "cv2", "skimage", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    for _ in range(2):
        run("demo", "--out", tmp_path / "out")
        assert os.listdir(tmp_path / "out") == ["index.html"]
    text = (tmp_path / "out/index.html").read_text()
    assert 'Not here: segment needs OpenCV: pip install "fastviz[segment]"' in html.unescape(text)


def test_demo_refuses_a_folder_with_somebody_elses_page(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    assert "has index.html that fastviz did not make" in run("demo", "--out", tmp_path, status=2).stderr
    assert (tmp_path / "index.html").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ the real thing


def test_run_a_real_photograph_with_a_real_network(shared, tmp_path):
    """The maps lie on the animal: a fox in the middle of the dark."""
    run(
        *("run", shared / "images/red_fox.jpg", "--out", tmp_path / "out", "--model", "squeezenet1_0"),
        *("--weights", shared / "models/squeezenet1_0_imagenet.safetensors", "--target", "red fox"),
        *("--methods", "saliency,guided_backprop,grad_cam,occlusion"),
        *("--option", "occlusion.window=48", "--option", "occlusion.stride=24"),
    )
    arrays = jobs.open(tmp_path / "out").maps("red_fox.jpg")
    maps = {
        "saliency": arrays["saliency"],
        "guided_backprop": np.abs(arrays["guided_backprop"]).sum(0),
        "grad_cam": arrays["grad_cam"],
        "occlusion": arrays["occlusion"].clip(0),
    }
    for name, found in maps.items():
        height, width = found.shape
        box = found[height // 3 : -height // 8, width // 6 : -width // 4]
        assert box.mean() > 2 * found.mean() * 0.75, name


def test_every_method_has_a_command():
    commands = typer.main.get_command(cli.app).commands
    assert {method.verb for method in METHODS.values()} <= set(commands)
    assert METHODS["embedding"].verb == "embed"
    assert METHODS["saliency"].verb == "run"
