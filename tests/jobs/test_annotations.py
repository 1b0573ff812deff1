"""Labels and objects from files: CSV, folders and COCO, brought to what the network sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastviz.jobs.annotations import read_labels, read_objects
from fastviz.models.descriptions import Preprocessing

CLASSES = ["goldfish", "hen", "tabby cat"]
SEEN = Preprocessing((16, 16), 16, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def photos(tmp_path: Path) -> tuple[list[str], list[Path]]:
    """Two photographs, 64 wide and 32 high, in folders."""
    files = []
    for folder, name in (("hen", "a.png"), ("2", "b.png")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 32)).save(tmp_path / folder / name)
        files.append(tmp_path / folder / name)
    return ["hen/a.png", "2/b.png"], files


def test_labels(photos, tmp_path):
    names, files = photos
    assert read_labels("predicted", names, files, CLASSES) is None
    assert read_labels("folders", names, files, CLASSES) == {"hen/a.png": 1, "2/b.png": 2}
    table = tmp_path / "labels.csv"
    table.write_text("File,Class_Name,other\n2/b.png,Goldfish,x\na.png,1,y\n")
    assert read_labels(table, names, files, CLASSES) == {"hen/a.png": 1, "2/b.png": 0}
    # an index is taken before a name
    table.write_text("name,class_name,class_index\nb.png,hen,0\na.png,hen,2\n")
    assert read_labels(table, names, files, CLASSES) == {"hen/a.png": 2, "2/b.png": 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("file,score\na.png,1\n", "should have a column class_index or"),
        ("photo,label\na.png,1\n", "should have a column file or"),
        ("file,label\na.png,1\n", "got none for '2/b.png'"),
        ("file,label\na.png,7\nb.png,0\n", "labels of 'hen/a.png': class should be a class from 0 to 2"),
        ("file,label\na.png,dog\nb.png,0\n", "labels of 'hen/a.png'"),
        ("file,label\na.png\n", "line 2 of .* has fewer cells"),
    ],
)
def test_labels_that_are_refused(photos, tmp_path, text, words):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_labels(table, *photos, CLASSES)


def expected(left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    """A box in pixels of the photograph, as the network sees it: halved, the middle 16 of 32 columns."""
    mask = torch.zeros(16, 32, dtype=torch.bool)
    mask[top // 2 : bottom // 2, left // 2 : right // 2] = True
    return mask[:, 8:24]


def test_boxes_in_a_table(photos, tmp_path):
    names, files = photos
    table = tmp_path / "boxes.csv"
    for header, line in (
        ("file,left,top,right,bottom", "a.png,20,4,40,24"),
        ("filename,xmin,ymin,xmax,ymax,class", "a.png,20,4,40,24,hen"),
        ("image,x,y,width,height", "hen/a.png,20,4,20,20"),
    ):
        table.write_text(f"{header}\n{line}\n")
        masks = read_objects(table, names, files, SEEN)
        assert torch.equal(masks("hen/a.png"), expected(20, 4, 40, 24))
        assert masks("2/b.png") is None
    table.write_text("file,left,top,right,bottom\na.png,20,4,28,8\na.png,32,16,40,24\n")
    both = expected(20, 4, 28, 8) | expected(32, 16, 40, 24)
    assert torch.equal(read_objects(table, names, files, SEEN)("hen/a.png"), both)
    # outside of the crop there is nothing to see; an object of one pixel is seen
    table.write_text("file,left,top,right,bottom\na.png,0,0,10,10\nb.png,31,15,32,16\n")
    masks = read_objects(table, names, files, SEEN)
    assert not masks("hen/a.png").any()
    assert int(masks("2/b.png").sum()) == 1


def test_masks_in_a_table(photos, tmp_path):
    names, files = photos
    picture = np.zeros((32, 64), dtype=np.uint8)
    picture[4:24, 20:40] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    table = tmp_path / "masks.csv"
    table.write_text("file,mask\na.png,mask.png\n")
    assert torch.equal(read_objects(table, names, files, SEEN)("hen/a.png"), expected(20, 4, 40, 24))
    Image.fromarray(picture[:-1]).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="the photograph's size, 64x32, got 64x31"):
        read_objects(table, names, files, SEEN)("hen/a.png")


def test_coco(photos, tmp_path):
    """A box, a polygon and run lengths, plain and packed, of the same rectangle."""
    names, files = photos
    box, polygon = [20, 4, 20, 20], [[20, 4, 39, 4, 39, 23, 20, 23]]
    mask = np.zeros((32, 64), dtype=bool)
    mask[4:24, 20:40] = True
    flat, runs, value = mask.T.flatten(), [0], False
    for each in flat:
        if each != value:
            runs.append(0)
            value = each
        runs[-1] += 1
    forms = (
        {"bbox": box},
        {"bbox": box, "segmentation": polygon},
        {"segmentation": {"size": [32, 64], "counts": runs}},
        {"segmentation": {"size": [32, 64], "counts": packed(runs)}},
    )
    for form in forms:
        content = {"images": [{"id": 7, "file_name": "a.png"}], "annotations": [{"image_id": 7} | form]}
        path = tmp_path / "coco.json"
        path.write_text(json.dumps(content))
        assert torch.equal(read_objects(path, names, files, SEEN)("hen/a.png"), expected(20, 4, 40, 24)), form


def packed(runs: list[int]) -> str:
    """As COCO's own code packs run lengths."""
    text = ""
    for at, run in enumerate(runs):
        number, more = run - (runs[at - 2] if at > 2 else 0), True
        while more:
            piece, number = number & 0x1F, number >> 5
            more = number != -1 if piece & 0x10 else number != 0
            text += chr((piece | (0x20 if more else 0)) + 48)
    return text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("boxes.csv", "file,score\na.png,1\n", "should have columns left, top, right, bottom"),
        ("boxes.csv", "file,left,top,right,bottom\nc.png,1,1,2,2\n", "has none of the photographs"),
        ("boxes.csv", "file,left,top,right,bottom\na.png,9,1,2,2\n", "a width and a height above 0"),
        ("boxes.csv", "file,left,top,right,bottom\na.png,one,1,2,2\n", "line 2 of .* should have numbers"),
        ("coco.json", "{}", "should be a COCO file"),
        ("coco.json", '{"images": [], "annotations": [{"image_id": 1}]}', "about an image that it does not list"),
    ],
)
def test_objects_that_are_refused(photos, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_objects(tmp_path / name, *photos, SEEN)
