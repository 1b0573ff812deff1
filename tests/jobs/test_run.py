"""Many images × many methods: what is in the tables, what goes wrong, and what is refused."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastviz as fv
from fastviz import images, jobs, models
from fastviz.jobs import explainer
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.run import as_job
from fastviz.methods.registry import EXPLAINERS, METHODS
from tests.jobs.common import photograph

ALL = {"saliency": {}, "guided_backprop": {}, "grad_cam": {}, "occlusion": {"window": 8, "stride": 8}}


def rows(out: Path) -> list[dict[str, object]]:
    return list(jobs.open(out).rows())


def names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_rows_hold_what_the_methods_give(network, photos, tmp_path):
    out = tmp_path / "out"
    summary = jobs.run([photos], out, model=network, methods=ALL, batch_size=3)
    x, files = images.load_images(photos, model=network)
    probabilities = network(x).detach().double().softmax(1)
    target = probabilities.argmax(1)
    found = rows(out)

    assert (summary.done, summary.skipped, summary.failed) == (5, 0, 0)
    assert [(row["id"], row["method"]) for row in found] == [(name, method) for name in files for method in ALL]
    assert names(out) == {"job.json", "stats.json", "part-00000.parquet"}
    for name, options in ALL.items():
        result = METHODS[name].function(network, x, target, **options)
        maps = (result if isinstance(result, torch.Tensor) else result.attribution).detach()
        for at, file in enumerate(files):
            row = next(row for row in found if (row["id"], row["method"]) == (file, name))
            assert row["target"] == row["predicted"] == target[at]
            assert row["target_name"] == row["predicted_name"] == ["cat", "dog", "bird"][target[at]]
            assert row["probability"] == pytest.approx(float(probabilities[at].max()), rel=1e-6)
            assert row["status"] == "ok"
            assert row["seconds"] > 0
            kept = jobs.open(out).maps(file)[name]
            assert kept.dtype == np.float32
            torch.testing.assert_close(torch.from_numpy(kept), maps[at], rtol=1e-5, atol=1e-7)


def test_a_row_says_where_its_image_is(network, photos, tmp_path):
    jobs.run([photos], tmp_path / "out", model=network, methods="saliency")
    row = rows(tmp_path / "out")[1]
    status = (photos / "1.png").stat()
    assert row["uri"] == "1.png"
    assert row["source"] == (photos / "1.png").as_uri()
    assert row["hash"] == hashlib.sha256((photos / "1.png").read_bytes()).hexdigest()
    assert (row["bytes"], row["modified"], row["changed"]) == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def test_maps_of_one_shape_are_a_tensor_column(network, photos, tmp_path):
    import pyarrow as pa

    jobs.run([photos], tmp_path / "one", model=network, methods={"saliency": {}, "occlusion": {"window": 8}})
    kind = jobs.open(tmp_path / "one").schema.field("map").type
    assert isinstance(kind, pa.FixedShapeTensorType)
    assert kind.shape == [16, 16]
    jobs.run([photos], tmp_path / "several", model=network, methods=["saliency", "grad_cam", "guided_backprop"])
    shapes = {row["method"]: row["map_shape"] for row in rows(tmp_path / "several")}
    assert shapes == {"saliency": [16, 16], "grad_cam": [8, 8], "guided_backprop": [3, 16, 16]}
    jobs.run([photos], tmp_path / "resized", model=network, methods=["saliency", "grad_cam"], map_size=32)
    assert jobs.open(tmp_path / "resized").schema.field("map").type.shape == [32, 32]
    resized = jobs.open(tmp_path / "resized").maps("0.png")["grad_cam"]
    x, _ = images.load_images(photos / "0.png", model=network)
    torch.testing.assert_close(torch.from_numpy(resized), fv.grad_cam(network, x, size=(32, 32))[0])


@pytest.mark.parametrize(("maps", "step"), [("uint8", 1 / 255), ("float16", 2**-10)])
def test_smaller_maps_are_off_by_less_than_a_step(network, photos, tmp_path, maps, step):
    for kind in ("float32", maps):
        jobs.run([photos], tmp_path / kind, model=network, methods=["saliency", "guided_backprop"], maps=kind)
    exact, small = (jobs.open(tmp_path / kind).maps("2.png") for kind in ("float32", maps))
    for name, found in exact.items():
        span = max(found.max(), 0) - min(found.min(), 0)
        assert 0 < np.abs(small[name] - found).max() <= step * span
        assert ((found == 0) <= (small[name] == 0)).all()


def test_maps_and_pictures_by_choice(network, photos, tmp_path):
    jobs.run([photos], tmp_path / "none", model=network, methods="saliency", maps="none")
    assert "map" not in jobs.open(tmp_path / "none").schema.names
    with pytest.raises(ValueError, match="holds no maps"):
        jobs.open(tmp_path / "none").maps("0.png")
    jobs.run(
        [photos], tmp_path / "all", model=network, methods=["saliency", "grad_cam"], thumbnails=True, overlays=True
    )
    table = jobs.open(tmp_path / "all").table()
    assert [each is not None for each in table["thumbnail"].to_pylist()] == [True, False] * 5
    assert all(each[:2] == b"\xff\xd8" for each in table["overlay"].to_pylist())


def test_overlays_have_a_size_for_people(network, photos, tmp_path):
    import io

    jobs.run([photos], tmp_path / "out", model=network, methods="saliency", thumbnails=True, overlays=True, limit=1)
    (row,) = jobs.open(tmp_path / "out").table(["thumbnail", "overlay"]).to_pylist()
    with Image.open(io.BytesIO(row["overlay"])) as overlay, Image.open(io.BytesIO(row["thumbnail"])) as thumbnail:
        assert overlay.size == (jobs.explainer.SHOWN_SIZE,) * 2 == (384, 384)
        assert thumbnail.size == (jobs.explainer.THUMBNAIL,) * 2


@pytest.mark.parametrize(("target", "index"), [("2", 2), (2, 2), ("Dog", 1), ("predicted", None)])
def test_target(network, photos, tmp_path, target, index):
    jobs.run([photos], tmp_path / "out", model=network, methods="saliency", target=target)
    for row in rows(tmp_path / "out"):
        assert row["target"] == (row["predicted"] if index is None else index)
        assert 0 < row["probability"] <= row["predicted_probability"]


def test_top_k_has_one_row_per_class(network, photos, tmp_path):
    jobs.run([photos], tmp_path / "out", model=network, methods=ALL, top_k=2, limit=2)
    x, _ = images.load_images(photos, model=network)
    best = network(x[:1]).softmax(1)[0].topk(2).indices
    found = [row for row in rows(tmp_path / "out") if row["id"] == "0.png"]
    assert [(row["target"], row["method"]) for row in found] == [(int(t), m) for t in best for m in ALL]
    kept = jobs.open(tmp_path / "out").maps("0.png")
    for name, options in ALL.items():
        result = METHODS[name].function(network, x[:1], best[None], **options)
        maps = (result if isinstance(result, torch.Tensor) else result.attribution).detach()
        torch.testing.assert_close(torch.from_numpy(kept[name]), maps[0], rtol=1e-4, atol=1e-6)


def test_an_objective_as_target(network, photos, tmp_path):
    target = fv.neuron("3", channel=1)
    jobs.run([photos], tmp_path / "out", model=network, methods="saliency", target=target)
    x, _ = images.load_images(photos, model=network)
    found = torch.from_numpy(jobs.open(tmp_path / "out").maps("3.png")["saliency"])
    torch.testing.assert_close(found, fv.saliency(network, x, target)[3])
    assert {row["target"] for row in rows(tmp_path / "out")} == {None}


def test_a_network_without_class_names_is_explained_by_index(network, photos, tmp_path):
    model = nn.Sequential(network)
    models.describe(model, preprocessing=models.Preprocessing((16, 16), 16, (0.5,) * 3, (0.5,) * 3))
    jobs.run([photos], tmp_path / "out", model=model, methods="saliency", target="1")
    assert {row["target_name"] for row in rows(tmp_path / "out")} == {"class 1"}
    with pytest.raises(ValueError, match="target should be a class from 0 to 2"):
        jobs.run([photos], tmp_path / "other", model=model, methods="saliency", target="3")


def test_batches_and_workers_give_the_same(network, photos, tmp_path):
    for name, options in {"1": {"batch_size": 1}, "2": {"batch_size": 2}, "16": {"batch_size": 16}}.items():
        jobs.run([photos], tmp_path / name, model=network, methods=ALL, **options)
    for workers in (1, 4):
        jobs.run([photos], tmp_path / f"w{workers}", model=network, methods=ALL, batch_size=2, workers=workers)
    for file in ("0.png", "4.png"):
        one = jobs.open(tmp_path / "1").maps(file)
        for name in ("2", "16"):
            for method, found in jobs.open(tmp_path / name).maps(file).items():
                np.testing.assert_allclose(found, one[method], rtol=1e-4, atol=1e-6)
        two = jobs.open(tmp_path / "2").maps(file)
        for workers in (1, 4):
            for method, found in jobs.open(tmp_path / f"w{workers}").maps(file).items():
                np.testing.assert_array_equal(found, two[method])


def test_noise_does_not_depend_on_the_place_in_a_batch(network, photos, tmp_path):
    methods = {"smooth_grad": {"samples": 3}}
    jobs.run([photos], tmp_path / "all", model=network, methods=methods)
    jobs.run([photos / "3.png"], tmp_path / "one", model=network, methods=methods)
    both = [jobs.open(tmp_path / name).maps("3.png")["smooth_grad"] for name in ("all", "one")]
    np.testing.assert_array_equal(*both)


def test_images_of_different_sizes_for_a_network_without_a_size(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    models.describe(
        model, preprocessing=models.Preprocessing(None, 16, (0.5,) * 3, (0.5,) * 3), class_names=list("abc")
    )
    for number, size in enumerate([(32, 16), (16, 32), (32, 16), (32, 16)]):
        photograph(tmp_path / "photos" / f"{number}.png", number, size)
    jobs.run([tmp_path / "photos"], tmp_path / "out", model=model, methods="saliency")
    shapes = [jobs.open(tmp_path / "out").maps(f"{number}.png")["saliency"].shape for number in range(4)]
    assert shapes == [(16, 32), (32, 16), (16, 32), (16, 32)]


def test_the_model_is_left_as_it_was(network, photos, tmp_path):
    network.train()
    network[3].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    jobs.run([photos], tmp_path / "out", model=network, methods=ALL)
    assert [module.training for module in network] == [True, True, True, False, True, True, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_scores_come_with_the_first_gradient(network, photos, tmp_path):
    """No pass for the scores alone: one pass a method."""
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    jobs.run([photos], tmp_path / "out", model=network, methods=["saliency", "guided_backprop"], batch_size=5)
    assert seen == [5, 5]


# ------------------------------------------------------------------------------------------------------- failures


def test_an_image_that_fails_is_a_row_and_the_rest_is_done(network, photos, tmp_path):
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:200])
    (photos / "3.png").write_bytes(b"")
    os.mkfifo(photos / "4.jpg")
    (photos / "5.jpg").symlink_to("nowhere.jpg")
    header = b"IHDR" + struct.pack(">2I5B", 65535, 65535, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (photos / "6.png").write_bytes(header + struct.pack(">I", 9) + b"IDAT" + bytes(30))
    summary = jobs.run([photos], tmp_path / "out", model=network, methods=ALL)
    assert (summary.done, summary.failed) == (3, 5)
    reasons = dict(jobs.open(tmp_path / "out").failures())
    assert reasons == dict(summary.failures)
    assert set(reasons) == {"2.png", "3.png", "4.jpg", "5.jpg", "6.png"}
    for name, words in {
        "2.png": "cut off",
        "3.png": "empty",
        "4.jpg": "not a regular file",
        "5.jpg": "there is no such file",
        "6.png": "exceeds limit",
    }.items():
        assert words in reasons[name]
    assert {row["id"] for row in rows(tmp_path / "out") if row["status"] == "ok"} == {"0.png", "1.png", "4.png"}


def test_failures_are_tried_again_by_the_next_run(network, photos, tmp_path):
    out, whole = tmp_path / "out", (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(b"")
    options = {"model": network, "methods": ALL}
    assert jobs.run([photos], out, **options).failed == 1
    kept = jobs.run([photos], out, retry_failed=False, **options)
    assert (kept.done, kept.skipped, kept.failed) == (0, 4, 1)
    again = jobs.run([photos], out, **options)
    assert (again.done, again.skipped, again.failed) == (0, 4, 1)
    (photos / "2.png").write_bytes(whole)
    last = jobs.run([photos], out, **options)
    assert (last.done, last.skipped, last.failed) == (1, 4, 0)
    found = rows(out)
    assert len(found) == 5 * len(ALL)
    assert {row["status"] for row in found} == {"ok"}


def test_a_run_stops_at_too_many_failures(network, photos, tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        (photos / name).write_bytes(b"")
    with pytest.raises(jobs.TooManyFailures, match=r"more than 1 images failed, the last one 2\.png"):
        jobs.run([photos], tmp_path / "out", model=network, methods="saliency", max_failures=1, batch_size=1)
    assert {row["id"]: row["status"] for row in rows(tmp_path / "out")} == {
        "0.png": "ok",
        "1.png": "failed",
        "2.png": "failed",
    }


def test_scores_that_are_not_finite_fail_that_image(network, photos, tmp_path):
    bad, _ = images.load_images(photos / "1.png", model=network)

    def spoil(module, args, scores):
        return torch.where((args[0] == bad).all((1, 2, 3))[:, None], torch.nan, scores)

    network.register_forward_hook(spoil)
    summary = jobs.run([photos], tmp_path / "out", model=network, methods="saliency")
    assert summary.failures == [("1.png", "the scores of the network are not finite")]
    assert summary.done == 4


def test_a_method_that_fails_for_one_image_is_named(network, photos, tmp_path, monkeypatch):
    x, _ = images.load_images(photos / "1.png", model=network)
    guided_grad_cam = METHODS["guided_grad_cam"]

    def function(model, images, target, **options):
        if any(torch.equal(image, x[0]) for image in images):
            raise ValueError("this one does not suit")
        return guided_grad_cam.function(model, images, target, **options)

    monkeypatch.setitem(METHODS, "guided_grad_cam", guided_grad_cam)
    monkeypatch.setitem(jobs.explainer.EXPLAINERS, "guided_grad_cam", replace(guided_grad_cam, function=function))
    summary = jobs.run([photos], tmp_path / "out", model=network, methods=["saliency", "guided_grad_cam"])
    assert summary.failures == [("1.png", "guided_grad_cam: this one does not suit")]
    found = {(row["id"], row["method"]): row["status"] for row in rows(tmp_path / "out")}
    assert [key for key, status in found.items() if status != "ok"] == [("1.png", "guided_grad_cam")]
    assert len(found) == 10


def test_batches_shrink_where_the_memory_does_not_suffice(network, photos, tmp_path):
    """The error is torch's own, of an allocation that cannot succeed."""
    seen = []

    def refuse(module, args):
        if len(args[0]) > 2:
            torch.empty(1 << 60)
        seen.append(len(args[0]))

    network.register_forward_pre_hook(refuse)
    summary = jobs.run([photos], tmp_path / "out", model=network, methods=["saliency", "grad_cam"], batch_size=5)
    assert (summary.done, summary.failed) == (5, 0)
    assert max(seen) == 2


# -------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"methods": "salency"}, "method 'salency' is not known; nearest: saliency"),
        ({"methods": []}, "methods should be one or more of saliency"),
        ({"methods": {"grad_cam": {"layer": "33"}}}, "layer '33' is not known; nearest: 3"),
        ({"methods": {"saliency": {"layer": "3"}}}, "option of saliency 'layer' is not known"),
        ({"methods": {"occlusion": {"widow": 4}}}, "option of occlusion 'widow' is not known; nearest: window"),
        ({"methods": {"occlusion": {"window": 17}}}, "window should be at most the image"),
        ({"methods": {"occlusion": {"window": 0}}}, "window should be at least 1, got 0"),
        ({"methods": {"grad_cam": {"layer": "6"}}}, "layer '6' should have maps"),
        ({"methods": ["saliency", {"saliency": {"batch_size": 2}}]}, "saliency twice"),
        ({"target": "3"}, "target should be a class from 0 to 2 for this model, got 3"),
        ({"target": "-1"}, "target should be a class from 0 to 2 for this model, got -1"),
        ({"target": "birt"}, "target 'birt' is not known; nearest: bird"),
        ({"target": "dog", "top_k": 2}, "top_k should be 1 unless target is 'predicted', got 2"),
        ({"maps": "uint4"}, "maps should be .*float32.*, got 'uint4'"),
        ({"map_size": (3,)}, r"map_size should be \(height, width\) or one number, got \(3,\)"),
        ({"batch_size": 0}, "batch_size should be at least 1, got 0"),
        ({"limit": 0}, "limit should be at least 1, got 0"),
        ({"top_k": 0}, "top_k should be at least 1, got 0"),
        ({"workers": -1}, "workers should be at least 0, got -1"),
        ({"max_failures": -1}, "max_failures should be at least 0, got -1"),
        ({"engine": "rai"}, "engine 'rai' is not known; nearest: ray"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(network, photos, tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        jobs.run([photos], tmp_path / "out", **({"model": network, "methods": "saliency"} | options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": 3}, "model should be a name or a torch module, got int"),
        ({"target": 1.5}, "target should be .*, got float"),
        ({"methods": [{"saliency": 3}]}, "the options of saliency should be name → value, got 3"),
        ({"methods": 3}, "methods should be names, or name → options, got int"),
        ({"overlays": 1}, "overlays should be True or False, got 1"),
        ({"layer": "3"}, "unexpected keyword argument 'layer'"),
    ],
)
def test_arguments_of_another_type_are_refused(network, photos, tmp_path, options, match):
    with pytest.raises(TypeError, match=match):
        jobs.run([photos], tmp_path / "out", **({"model": network} | options))


def test_a_device_that_is_not_there(photos, tmp_path):
    for device, match in (("tpu", "device should be auto, cpu, cuda or cuda:INDEX"), ("cuda:99", "torch can use here")):
        with pytest.raises(ValueError, match=match):
            jobs.run([photos], tmp_path / "out", device=device, methods="saliency")


def test_an_out_that_cannot_be_a_folder(network, photos, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/deeper"):
        with pytest.raises(NotADirectoryError, match="file is not a folder"):
            jobs.run([photos], tmp_path / out, model=network)


def test_pyarrow_is_asked_for_in_words(photos, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'jobs need pyarrow: pip install "fastviz\[jobs\]"'):
        jobs.run([photos], tmp_path / "out")
    with pytest.raises(ImportError, match="pyarrow"):
        jobs.open(tmp_path)


# ------------------------------------------------------------------------------------------------------- job files


def test_a_job_file_says_the_same_as_arguments(photos, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        f"""
inputs: [{photos}]
out: {tmp_path / "one"}
methods:
  - saliency
  - occlusion: {{window: 32, stride: 32}}
target: lion
maps: uint8
"""
    )
    assert jobs.run(path, limit=2).done == 2
    methods = ["saliency", {"occlusion": {"window": 32, "stride": 32}}]
    jobs.run([photos], tmp_path / "two", methods=methods, target="lion", maps="uint8", limit=2)
    settings = [json.loads((tmp_path / name / "job.json").read_text())["settings"] for name in ("one", "two")]
    assert settings[0] == settings[1]
    assert settings[0]["weights"].startswith("sha256:")
    assert jobs.run(path).skipped == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("inputs: [a", "should be YAML"),
        ("- a", "should be name: value, got list"),
        ("inputs: a\nmethod: saliency", "argument in .*job.yaml 'method' is not known; nearest: methods"),
        ("out: a", "inputs should be in the job file"),
        ("inputs: a", "out should be a folder"),
    ],
)
def test_bad_job_files(tmp_path, text, match):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ValueError, match=match):
        jobs.run(tmp_path / "job.yaml")


def test_lines_where_there_is_no_terminal(network, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastviz.jobs.progress.MINUTE", 0.0)
    jobs.run([photos], tmp_path / "out", model=network, methods="saliency", progress=True, batch_size=2)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"fastviz: 5 of 5 images, [\d.]+ per second, 0 s left", lines[-1])
    assert len(lines) == 3


def test_nothing_is_warned_of(network, photos, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jobs.run([photos], tmp_path / "out", model=network, methods=ALL, workers=1)


def test_batches_with_slow_methods_are_small(photos, network, tmp_path):
    """An actor returns whole batches, so a slow one would be lost as a whole."""

    def size(*methods, **options):
        return Explainer(as_job([photos], tmp_path / "out", model=network, methods=list(methods), **options)).batch_size

    assert size("saliency", "score_cam") == 8
    assert size("saliency", "grad_cam") > 8
    assert size("saliency", "score_cam", batch_size=32) == 32


def test_methods_that_draw_random_numbers_run_on_single_images():
    seeded = [name for name, each in EXPLAINERS.items() if "seed" in inspect.signature(each.function).parameters]
    assert seeded
    assert all(map(explainer._runs_per_image, seeded))
