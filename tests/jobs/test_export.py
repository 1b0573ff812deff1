"""The maps of a job as files for other tools."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from fastviz import images, jobs
from fastviz.jobs.export import _runs, export
from tests.jobs.common import photograph


@pytest.fixture
def out(network, photos, tmp_path):
    photograph(photos / "sub/0.png", 9)
    photograph(photos / "sub/new\nline.png", 10)
    photograph(photos / os.fsdecode(b"caf\xe9.png"), 11)
    jobs.run([photos], tmp_path / "out", model=network, methods=["saliency", "guided_backprop"], thumbnails=True)
    return tmp_path / "out"


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_arrays_keep_their_paths(out, tmp_path):
    assert export(out, tmp_path / "to", "npy") == "16 maps"
    assert len(files(tmp_path / "to")) == 16
    assert {"saliency/0.png.npy", "saliency/sub/0.png.npy", "guided_backprop/sub/new_line.png.npy"} <= files(
        tmp_path / "to"
    )
    for name in ("0.png", "sub/0.png"):
        for method, found in jobs.open(out).maps(name).items():
            np.testing.assert_array_equal(np.load(tmp_path / "to" / method / f"{name}.npy"), found)


def test_pictures(out, tmp_path):
    assert export(out, tmp_path / "to", "png") == "16 pictures"
    assert images.read_image(tmp_path / "to/saliency/sub/0.png.png").shape[0] == 3


def test_masks_of_coco(out, tmp_path):
    assert export(out, tmp_path / "to", "coco-masks", threshold=0.4) == "16 masks (annotations.json)"
    content = json.loads((tmp_path / "to/annotations.json").read_text())
    image = next(each for each in content["images"] if each["file_name"] == "sub/0.png")
    found = next(
        each for each in content["annotations"] if each["image_id"] == image["id"] and each["method"] == "saliency"
    )
    expected = jobs.open(out).maps("sub/0.png")["saliency"]
    expected = expected >= 0.4 * expected.max()
    runs = found["segmentation"]["counts"]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    np.testing.assert_array_equal(flat.reshape(expected.T.shape).T, expected)
    assert found["area"] == expected.sum()
    left, top, width, height = found["bbox"]
    assert expected[top : top + height, left : left + width].sum() == expected.sum()
    # the package's own reader of COCO's masks takes it
    from fastviz.jobs.annotations import read_objects
    from fastviz.models.descriptions import Preprocessing

    photograph(tmp_path / "to/small.png", size=(16, 16))
    seen = Preprocessing((16, 16), 16, (0.5,) * 3, (0.5,) * 3)
    content["annotations"] = [found]
    (tmp_path / "to/one.json").write_text(json.dumps(content))
    masks = read_objects(tmp_path / "to/one.json", ["sub/0.png"], [tmp_path / "to/small.png"], seen)
    np.testing.assert_array_equal(masks("sub/0.png").numpy(), expected)


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 0], [0, 1]], [3, 1]),
        ([[1, 0], [0, 0]], [0, 1, 3]),
        ([[1, 1], [1, 1]], [0, 4]),
        ([[0, 1], [1, 0]], [1, 2, 1]),
        ([[0, 0], [0, 0]], [4]),
    ],
)
def test_run_lengths_by_hand(mask, runs):
    assert _runs(np.array(mask, dtype=bool)) == runs


def test_heat_maps_of_fiftyone(out, tmp_path):
    assert export(out, tmp_path / "to", "fiftyone") == "8 samples (labels.json)"
    content = json.loads((tmp_path / "to/labels.json").read_text())
    # FiftyOne makes no field by itself
    assert set(content["sample_fields"]) == {"filepath", "id_in_job", "prediction", "saliency", "guided_backprop"}
    for sample in content["samples"]:
        assert set(sample) - {"tags"} == set(content["sample_fields"])
        assert os.path.exists(os.fsencode(sample["filepath"])) or "caf" in sample["filepath"]
        assert sample["prediction"]["_cls"] == "Classification"
        assert images.read_image(sample["saliency"]["map_path"]).shape == (3, 16, 16)


def test_several_targets_have_a_file_each(network, photos, tmp_path):
    jobs.run([photos / "0.png"], tmp_path / "out", model=network, methods="saliency", top_k=3)
    export(tmp_path / "out", tmp_path / "to", "npy")
    assert files(tmp_path / "to") == {f"saliency/0.png.{target}.npy" for target in range(3)}


def test_what_is_refused(out, network, photos, tmp_path):
    with pytest.raises(ValueError, match=r"to should be .*npy.*, got 'mat'"):
        export(out, tmp_path / "to", "mat")
    with pytest.raises(ValueError, match="threshold should be above 0 and at most 1, got 0"):
        export(out, tmp_path / "to", "coco-masks", threshold=0)
    jobs.run([photos], tmp_path / "none", model=network, methods="saliency", maps="none")
    with pytest.raises(ValueError, match="holds no maps"):
        export(tmp_path / "none", tmp_path / "to", "npy")
    jobs.run([photos], tmp_path / "two", model=network, methods=["saliency", "grad_cam"])
    with pytest.raises(ValueError, match=r"same size for each image.*--map-size"):
        export(tmp_path / "two", tmp_path / "to", "coco-masks")
