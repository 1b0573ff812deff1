"""Many photographs × many methods: what is written, what goes wrong, and stopping."""

from __future__ import annotations

import copy
import errno
import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastviz import images, jobs, models
from fastviz.jobs.results import Settings
from fastviz.methods.registry import METHODS

SETTINGS = Settings("tiny", methods=("saliency", "guided_backprop", "grad_cam", "occlusion"), window=8, stride=8)

FAST = Settings("tiny", methods=("saliency",))


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (30, 24)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def all_files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def check_whole(out: Path) -> None:
    """Every line has its files, they can be read, and nothing else lies about."""
    expected = {"settings.json", "results.jsonl"}
    for line in lines(out):
        for key in ("photo", "overlay"):
            with Image.open(out / str(line[key])) as picture:
                picture.load()
        with np.load(out / str(line["arrays"])) as arrays:
            assert str(line["method"]) in arrays
        expected |= {str(line[key]) for key in ("photo", "overlay", "arrays")}
    assert all_files(out) == expected


def test_files_hold_what_the_methods_give(network, photos, tmp_path):
    out = tmp_path / "out"
    summary = jobs.explain([photos], out, SETTINGS, model=network, batch_size=3)
    x, names = images.load_images(photos, model=network)
    probabilities = network(x).detach().double().softmax(1)
    target = probabilities.argmax(1)
    found = lines(out)

    assert (summary.done, summary.skipped, summary.failures) == (5, 0, [])
    assert [(line["file"], line["method"]) for line in found] == [(n, m) for n in names for m in SETTINGS.methods]
    for name in SETTINGS.methods:
        options = {"window": 8, "stride": 8} if name == "occlusion" else {}
        result = METHODS[name].function(network, x, target, **options)
        maps = result if isinstance(result, torch.Tensor) else result.attribution
        for at, file in enumerate(names):
            line = next(line for line in found if (line["file"], line["method"]) == (file, name))
            assert line["target"] == line["predicted"] == target[at]
            assert line["class_name"] == ["cat", "dog", "bird"][target[at]]
            assert line["probability"] == pytest.approx(float(probabilities[at].max()), rel=1e-6)
            assert float(line["seconds"]) > 0
            with np.load(out / line["arrays"]) as arrays:
                assert str(arrays["photograph"]) == file
                assert arrays[name].dtype == np.float32
                torch.testing.assert_close(torch.from_numpy(arrays[name]), maps[at].detach())
    check_whole(out)


def test_pictures_show_the_crop_at_a_size_for_people(network, photos, tmp_path):
    rows, columns = np.mgrid[0:48, 0:60]
    ramps = np.stack([rows * 5, columns * 4, (rows + columns) * 2], axis=2).astype(np.uint8)
    Image.fromarray(ramps).save(photos / "0.png")
    jobs.explain([photos / "0.png"], tmp_path / "out", FAST, model=network)
    with Image.open(tmp_path / "out/inputs/0.png") as seen, Image.open(tmp_path / "out/overlays/0.saliency.png") as map:
        assert seen.size == map.size == (jobs.explainer.SHOWN_SIZE, jobs.explainer.SHOWN_SIZE)
        shown = torch.from_numpy(np.asarray(seen).copy()).float().permute(2, 0, 1) / 255
    x, _ = images.load_images(photos / "0.png", model=network)
    small = torch.nn.functional.interpolate(shown[None], (16, 16), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(small, images.restore(x[0], models.preprocessing(network)), atol=0.03, rtol=0)


@pytest.mark.parametrize(("target", "index"), [("2", 2), ("Dog", 1), ("predicted", None)])
def test_target(network, photos, tmp_path, target, index):
    jobs.explain([photos], tmp_path / "out", replace(FAST, target=target), model=network)
    for line in lines(tmp_path / "out"):
        assert line["target"] == (line["predicted"] if index is None else index)
        assert 0 < float(line["probability"]) <= float(line["predicted_probability"])


def test_a_network_without_class_names_is_explained_by_index(network, photos, tmp_path):
    model = copy.deepcopy(network)
    models.describe(model, preprocessing=models.Preprocessing((16, 16), 16, (0.5,) * 3, (0.5,) * 3))
    jobs.explain([photos], tmp_path / "out", replace(FAST, target="1"), model=model)
    assert {line["class_name"] for line in lines(tmp_path / "out")} == {"class 1"}
    with pytest.raises(ValueError, match="target should be a class from 0 to 2"):
        jobs.explain([photos], tmp_path / "other", replace(FAST, target="3"), model=model)


def test_batches_of_any_size_give_the_same(network, photos, tmp_path):
    for size in (1, 2, 16):
        jobs.explain([photos], tmp_path / str(size), SETTINGS, model=network, batch_size=size)
    for name in ("0", "4"):
        with np.load(tmp_path / f"1/arrays/{name}.npz") as one:
            for size in (2, 16):
                with np.load(tmp_path / f"{size}/arrays/{name}.npz") as other:
                    for method in SETTINGS.methods:
                        np.testing.assert_allclose(other[method], one[method], rtol=1e-4, atol=1e-6)


def test_photographs_of_different_sizes_for_a_network_without_a_size(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    models.describe(
        model, preprocessing=models.Preprocessing(None, 16, (0.5,) * 3, (0.5,) * 3), class_names=list("abc")
    )
    for number, size in enumerate([(32, 16), (16, 32), (32, 16), (32, 16)]):
        photograph(tmp_path / "photos" / f"{number}.png", number, size)
    jobs.explain([tmp_path / "photos"], tmp_path / "out", FAST, model=model)
    shapes = [np.load(tmp_path / f"out/arrays/{number}.npz")["saliency"].shape for number in range(4)]
    assert shapes == [(16, 32), (32, 16), (16, 32), (16, 32)]


def test_names_that_differ_only_in_their_ending_or_folder_keep_their_own_files(network, tmp_path):
    for path in ("a/x.png", "a/x.jpg", "a/y.bmp", "a/Y.png", "b/x.png", "a/sub/x.png"):
        photograph(tmp_path / path, seed=len(path))
    summary = jobs.explain([tmp_path / "a", tmp_path / "b"], tmp_path / "out", FAST, model=network)
    found = lines(tmp_path / "out")
    assert summary.done == 6
    assert len({str(line["arrays"]).lower() for line in found}) == 6
    assert "sub/x.png" in {line["file"] for line in found}
    check_whole(tmp_path / "out")


def test_the_model_is_left_as_it_was(network, photos, tmp_path):
    network.train()
    network[3].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    jobs.explain([photos], tmp_path / "out", SETTINGS, model=network)
    assert [module.training for module in network] == [True, True, True, False, True, True, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_few_photographs_are_in_memory_at_once(network, tmp_path, monkeypatch):
    """Reading runs ahead of the network by two batches, not by the whole folder."""
    for number in range(40):
        photograph(tmp_path / "photos" / f"{number}.png", number)
    read, most = [], []
    read_views = images.read_views
    monkeypatch.setattr(images, "read_views", lambda path, views: (read.append(path), read_views(path, views))[1])
    forward = network[0].forward
    written: list[int] = []
    network[0].forward = lambda x: (most.append(len(read) - sum(written)), written.append(len(x)), forward(x))[2]
    jobs.explain([tmp_path / "photos"], tmp_path / "out", replace(FAST, target="0"), model=network, batch_size=2)
    assert len(read) == 40
    assert max(most) <= 2 + 4 + 4  # a batch, what is read ahead, what the readers hold


def test_the_bar_reaches_its_end(network, photos, tmp_path, monkeypatch):
    """What is skipped, what fails and what is done add up to the number of maps."""
    bars: list[list[int]] = []

    @contextmanager
    def bar(wanted, total, done, unit):
        bars.append([total, done])
        yield lambda steps, text: bars[-1].append(steps)

    monkeypatch.setattr(jobs.runner, "bar", bar)
    jobs.explain([photos], tmp_path / "out", SETTINGS, model=network, limit=2)
    (photos / "3.png").write_bytes(b"")
    jobs.explain([photos], tmp_path / "out", SETTINGS, model=network, progress=True)
    assert [(total, sum(steps)) for total, *steps in bars] == [(8, 8), (20, 20)]
    assert bars[1][1] == 8


def test_a_photograph_that_fails_is_named_and_the_rest_done(network, photos, tmp_path):
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:200])
    (photos / "3.png").write_bytes(b"")
    os.mkfifo(photos / "4.jpg")
    (photos / "5.jpg").symlink_to("nowhere.jpg")
    summary = jobs.explain([photos], tmp_path / "out", SETTINGS, model=network)
    assert summary.done == 3
    reasons = dict(summary.failures)
    assert set(reasons) == {"2.png", "3.png", "4.jpg", "5.jpg"}
    assert "cut off" in reasons["2.png"]
    assert "empty" in reasons["3.png"]
    assert "there is no such file" in reasons["5.jpg"]
    assert {line["file"] for line in lines(tmp_path / "out")} == {"0.png", "1.png", "4.png"}
    check_whole(tmp_path / "out")


def test_scores_that_are_not_finite_fail_that_photograph(network, photos, tmp_path):
    bad, _ = images.load_images(photos / "1.png", model=network)

    def spoil(module, args, scores):
        return torch.where((args[0] == bad).all((1, 2, 3))[:, None], torch.nan, scores)

    network.register_forward_hook(spoil)
    summary = jobs.explain([photos], tmp_path / "out", FAST, model=network)
    assert summary.failures == [("1.png", "the scores of the network are not finite")]
    assert summary.done == 4
    x, _ = images.load_images(photos / "4.png", model=network)
    with np.load(tmp_path / "out/arrays/4.npz") as arrays:
        torch.testing.assert_close(torch.from_numpy(arrays["saliency"]), METHODS["saliency"].function(network, x)[0])


@pytest.mark.parametrize(
    ("settings", "options", "match"),
    [
        (replace(FAST, methods=("salency",)), {}, "method 'salency' is not known; nearest: saliency"),
        (replace(FAST, methods=()), {}, "methods should be one or more of saliency"),
        (replace(SETTINGS, layer="33"), {}, "layer '33' is not known; nearest: 3"),
        (replace(FAST, layer="3"), {}, "layer is not an argument of the chosen methods; it is one of grad_cam"),
        (replace(FAST, window=4), {}, "window is not an argument of the chosen methods; it is one of occlusion"),
        (replace(SETTINGS, window=17), {}, "window should be at most the image"),
        (replace(SETTINGS, window=0), {}, "window should be at least 1, got 0"),
        (replace(SETTINGS, layer="6"), {}, "layer '6' should have maps"),
        (replace(FAST, target="3"), {}, "target should be a class from 0 to 2 for this model, got 3"),
        (replace(FAST, target="-1"), {}, "target should be a class from 0 to 2 for this model, got -1"),
        (replace(FAST, target="birt"), {}, "target 'birt' is not known; nearest: bird"),
        (FAST, {"batch_size": 0}, "batch_size should be at least 1, got 0"),
        (FAST, {"limit": 0}, "limit should be at least 1, got 0"),
        (FAST, {"device": "tpu"}, "device should be auto, cpu, cuda or cuda:INDEX, got 'tpu'"),
        (FAST, {"device": "cuda:99"}, "device 'cuda:99' is not there: torch can use"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(network, photos, tmp_path, settings, options, match):
    with pytest.raises(ValueError, match=match):
        jobs.explain([photos], tmp_path / "out", settings, model=network, **options)
    assert not (tmp_path / "out").exists()


def test_no_photographs(network, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, match in (("empty", "at least one image"), ("missing.jpg", "should exist")):
        with pytest.raises(ValueError, match=match):
            jobs.explain([tmp_path / given], tmp_path / "out", FAST, model=network)
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_a_folder(network, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/deeper"):
        with pytest.raises(NotADirectoryError, match="file is not a folder"):
            jobs.explain([photos], tmp_path / out, FAST, model=network)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_without_permission(network, photos, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        jobs.explain([photos], tmp_path / "locked/out", FAST, model=network)


@pytest.mark.parametrize("at", range(1, 12))
def test_an_interrupted_job_keeps_what_is_finished_and_goes_on(network, photos, tmp_path, at):
    """Ctrl-C at any forward pass: every photograph with lines has all of its files, whole; nothing else lies about."""
    out = tmp_path / "out"
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt

    handle = network.register_forward_pre_hook(interrupt)
    with pytest.raises(jobs.Interrupted) as stopped:
        jobs.explain([photos], out, SETTINGS, model=network, batch_size=2)
    handle.remove()
    assert stopped.value.summary.done == (len(lines(out)) // 4 if out.exists() else 0)
    done = 0
    if out.exists():
        check_whole(out)
        done = len(lines(out)) // 4
    summary = jobs.explain([photos], out, SETTINGS, model=network, batch_size=2)
    assert (summary.done, summary.skipped) == (5 - done, done)
    check_whole(out)
    assert len(lines(out)) == 5 * 4


def test_a_full_disk_stops_the_job_and_leaves_whole_files(network, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    savez, calls = np.savez, []

    def full(file, **arrays):
        calls.append(1)
        if len(calls) > 2:
            file.write(b"half of")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(jobs.runner, "_WRITERS", 1)
    with pytest.raises(OSError, match=r"No space left on device.*arrays/2\.npz"):
        jobs.explain([photos], out, FAST, model=network, batch_size=1)
    assert [line["file"] for line in lines(out)] == ["0.png", "1.png"]
    assert not list(out.rglob("*.part"))
    assert not (out / "arrays/2.npz").exists()
    monkeypatch.undo()
    assert jobs.explain([photos], out, FAST, model=network).skipped == 2
    check_whole(out)
