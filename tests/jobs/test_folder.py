"""The folder of a job: going on, other settings, damaged folders, lines that do not fit."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastviz import images, jobs, models
from fastviz.jobs.results import Settings

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


class Counted:
    """How many pictures a model saw."""

    def __init__(self, model: nn.Module) -> None:
        self.pictures = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.pictures += len(args[0])


def test_a_second_run_does_only_what_is_new(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network, limit=3)
    first = (out / "results.jsonl").read_text()
    counted = Counted(network)
    summary = jobs.explain([photos], out, FAST, model=network)
    assert (summary.done, summary.skipped) == (2, 3)
    assert counted.pictures == 2 + 2  # one pass for the scores, one for the method
    assert (out / "results.jsonl").read_text().startswith(first)
    assert [line["file"] for line in lines(out)] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    check_whole(out)


def test_what_changed_or_lost_a_file_is_done_again(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network)
    photograph(photos / "1.png", seed=77, size=(40, 40))
    (out / "overlays/2.saliency.png").unlink()
    summary = jobs.explain([photos], out, FAST, model=network)
    assert (summary.done, summary.skipped) == (2, 3)
    assert sorted(str(line["file"]) for line in lines(out)) == [f"{number}.png" for number in range(5)]
    check_whole(out)
    assert jobs.explain([photos], out, FAST, model=network).skipped == 5


@pytest.mark.parametrize("cut", [3, 40])
def test_a_line_cut_off_by_a_crash_is_done_again(network, photos, tmp_path, cut):
    out = tmp_path / "out"
    jobs.explain([photos], out, SETTINGS, model=network)
    text = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(text[:-cut])
    summary = jobs.explain([photos], out, SETTINGS, model=network)
    assert (summary.done, summary.skipped) == (1, 4)
    assert len(lines(out)) == 5 * 4
    check_whole(out)


def test_a_line_that_lost_its_end_of_line_does_not_swallow_the_next(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network, limit=2)
    text = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(text[:-1])
    jobs.explain([photos], out, FAST, model=network)
    assert len(lines(out)) == 5


def test_other_settings_are_refused(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.explain([photos], out, SETTINGS, model=network)
    before = {name: (out / name).read_bytes() for name in all_files(out)}
    with pytest.raises(ValueError, match=r"other settings \(target, stride\).*--overwrite"):
        jobs.explain([photos], out, replace(SETTINGS, target="cat", stride=4), model=network)
    assert {name: (out / name).read_bytes() for name in all_files(out)} == before


def test_overwrite_replaces(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.explain([photos], out, SETTINGS, model=network)
    summary = jobs.explain([photos / "3.png"], out, FAST, model=network, overwrite=True)
    assert (summary.done, summary.skipped) == (1, 0)
    check_whole(out)
    assert [(line["file"], line["method"]) for line in lines(out)] == [("3.png", "saliency")]


def test_weights_are_known_by_their_content(tmp_path):
    for name, text in (("a.pth", b"1"), ("b.pth", b"1"), ("c.pth", b"2")):
        (tmp_path / name).write_bytes(text)
    first, moved, other = (Settings("m", str(tmp_path / f"{name}.pth")).fingerprint() for name in "abc")
    assert first == moved != other


def test_a_folder_with_somebody_elses_files_is_refused_and_kept(network, photos, tmp_path):
    out = tmp_path / "out"
    (out / "inputs").mkdir(parents=True)
    (out / "inputs/mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="has inputs that fastviz did not make"):
            jobs.explain([photos], out, FAST, model=network, overwrite=overwrite)
    assert all_files(out) == {"inputs/mine.txt"}


def test_pictures_of_an_earlier_run_are_no_photographs(network, photos, tmp_path):
    out = photos / "explained"
    jobs.explain([photos], out, FAST, model=network)
    photograph(out / "contact_sheet.png")
    summary = jobs.explain([photos], out, FAST, model=network)
    assert (summary.done, summary.skipped) == (0, 5)
    with pytest.raises(ValueError, match="only pictures that fastviz wrote"):
        jobs.explain([out], out, FAST, model=network)


def test_two_runs_at_once_write_every_line_once(network, photos, tmp_path):
    """The second is refused in a sentence, whatever settings it has, and the first goes on."""
    out = tmp_path / "out"

    def run_another(module, args):
        for options in ({}, {"overwrite": True}):
            with pytest.raises(ValueError, match=r"out: another run of fastviz \(process \d+\) is writing into"):
                jobs.explain([photos], out, FAST, model=other, **options)

    other = copy.deepcopy(network)
    models.describe(other, preprocessing=models.preprocessing(network), class_names=["cat", "dog", "bird"])
    handle = network.register_forward_pre_hook(run_another)
    jobs.explain([photos], out, FAST, model=network, batch_size=5)
    handle.remove()
    assert [line["file"] for line in lines(out)] == [f"{number}.png" for number in range(5)]
    check_whole(out)


def test_lines_that_an_earlier_version_doubled_are_dropped(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.explain([photos], out, SETTINGS, model=network)
    text = (out / "results.jsonl").read_text().splitlines()
    for doubled in (text + text, [line for line in text for _ in range(2)], text[:4] + text[2:4] + text[4:]):
        (out / "results.jsonl").write_text("".join(line + "\n" for line in doubled))
        jobs.explain([photos], out, SETTINGS, model=network)
        assert len(lines(out)) == 5 * 4
        check_whole(out)


def test_the_content_of_a_photograph_counts(network, photos, tmp_path):
    """Another picture of the same size and time is not done; the same one with another time, or copied, is."""
    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network)
    status = (photos / "1.png").stat()
    picture = bytearray((photos / "1.png").read_bytes())
    picture[-30] ^= 1  # the same length
    (photos / "1.png").write_bytes(picture)
    os.utime(photos / "1.png", ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.utime(photos / "2.png", ns=(1, 1))
    (photos / "copy").write_bytes((photos / "3.png").read_bytes())
    (photos / "copy").replace(photos / "3.png")
    summary = jobs.explain([photos], out, FAST, model=network)
    assert summary.skipped == 4
    counted = Counted(network)
    assert jobs.explain([photos], out, FAST, model=network).skipped == 4 + summary.done
    assert counted.pictures == 0 or summary.failures


def test_what_is_left_of_removed_photographs_goes(network, photos, tmp_path):
    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network)
    (photos / "1.png").unlink()
    assert jobs.explain([photos / "0.png"], out, FAST, model=network).skipped == 1
    assert [line["file"] for line in lines(out)] == ["0.png", "2.png", "3.png", "4.png"]  # not asked for, but there
    check_whole(out)


def damages(out: Path):
    """Ways in which a folder gets damaged, and whether only --overwrite can mend it."""

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-9])

    def folder(path: Path) -> None:
        path.unlink()
        (path / "inside").mkdir(parents=True)

    def file(path: Path) -> None:
        import shutil

        shutil.rmtree(path)
        path.write_text("a file")

    def add(text: bytes) -> None:
        path = out / "results.jsonl"
        path.write_bytes(path.read_bytes() + text)

    line = (out / "results.jsonl").read_bytes().splitlines()[0]
    return {
        "half a line": (lambda: cut(out / "results.jsonl"), False),
        "garbage": (lambda: add(b"\xff\xfe\0garbage\n[1, 2]\n{}\n" + b"[" * 99_999 + b"\n"), False),
        "values of other types": (
            lambda: add(line.replace(b'"photo": "inputs/0.png"', b'"photo": null') + b"\n"),
            False,
        ),
        "a path elsewhere": (lambda: add(line.replace(b"inputs/0.png", b"inputs/../../x.png") + b"\n"), False),
        "no lines": ((out / "results.jsonl").unlink, False),
        "a folder for lines": (lambda: folder(out / "results.jsonl"), False),
        "no arrays": ((out / "arrays/1.npz").unlink, False),
        "empty arrays": (lambda: (out / "arrays/1.npz").write_bytes(b""), False),
        "half of the arrays": (lambda: cut(out / "arrays/1.npz"), False),
        "half a picture": (lambda: cut(out / "overlays/1.saliency.png"), False),
        "a folder for a picture": (lambda: folder(out / "inputs/1.png"), False),
        "a file for a folder": (lambda: file(out / "overlays"), False),
        "no settings": ((out / "settings.json").unlink, True),
        "half of the settings": (lambda: cut(out / "settings.json"), True),
        "a folder for settings": (lambda: folder(out / "settings.json"), True),
        "neither settings nor lines": (lambda: [(out / f).unlink() for f in ("settings.json", "results.jsonl")], True),
    }


@pytest.mark.parametrize(
    "damage",
    [
        *("half a line", "garbage", "values of other types", "a path elsewhere", "no lines", "a folder for lines"),
        *("no arrays", "empty arrays", "half of the arrays", "half a picture", "a folder for a picture"),
        *("a file for a folder", "no settings", "half of the settings", "a folder for settings"),
        "neither settings nor lines",
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_damaged_folder_is_mended(network, photos, tmp_path, damage, overwrite):
    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network)
    harm, needs_overwrite = damages(out)[damage]
    harm()
    if needs_overwrite and not overwrite:
        with pytest.raises(ValueError, match=r"settings.json is missing, damaged or of another version.*--overwrite"):
            jobs.explain([photos], out, FAST, model=network)
        return
    jobs.explain([photos], out, FAST, model=network, overwrite=overwrite)
    assert sorted(line["file"] for line in lines(out)) == [f"{number}.png" for number in range(5)]
    check_whole(out)


NAMES = [
    *(
        b"new\nline.png",
        b"caf\xe9.png",
        b"q'\"<b>&amp;.png",
        b"tab\t.png",
        b"-dash.png",
        b"a" * 251 + b".png",
        b"A.png",
    ),
    *(b"a.png", b"back\\slash.png", b"%41?#.png", b"x.png/y.png", b"x.jpg", b"\x1b[31m.png", "é😀.png".encode()),
    *("e\u0301😀.png".encode(), b"a..png", b" .png"),
]


def test_file_names_of_any_kind(network, tmp_path):
    """All are explained, kept, shown in the report as text, and found again by the next run."""
    from fastviz.jobs import contact_sheets, report

    for number, name in enumerate(NAMES):
        photograph(tmp_path / "photos" / os.fsdecode(name), number)
    out = tmp_path / "out"
    summary = jobs.explain([tmp_path / "photos"], out, FAST, model=network)
    assert (summary.done, summary.failures) == (len(NAMES), [])
    assert {os.fsencode(str(line["file"])) for line in lines(out)} == set(NAMES)
    check_whole(out)
    assert jobs.explain([tmp_path / "photos"], out, FAST, model=network).skipped == len(NAMES)
    (sheet, *_) = contact_sheets.contact_sheets(out)
    assert images.read_image(sheet).shape[0] == 3
    (page,) = report.pages(out, title="t", facts={}, failures=[("bad\n\udce9", "<i>")])
    text = page.read_text()
    for shown in (
        r"new\nline.png",
        r"caf\xe9.png",
        "q&#39;&#34;&lt;b&gt;&amp;amp;.png",
        "é😀.png",
        r"bad\n\xe9",
        "&lt;i&gt;",
    ):
        assert shown in text, shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(network, photos, tmp_path, monkeypatch):
    """Not an exception of our own making, but what the system says of a write to a full device, late, at the flush."""
    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network, limit=2)
    opened = Path.open
    writing = lambda self: self.name.endswith(".part") and self.parent.name == "arrays"  # noqa: E731

    def full(self, *args, **options):
        return opened(Path("/dev/full") if writing(self) else self, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"No space left on device.*arrays/2\.npz"):
        jobs.explain([photos], out, FAST, model=network)
    monkeypatch.undo()
    check = [line["file"] for line in lines(out)]
    assert check == ["0.png", "1.png"]
    assert jobs.explain([photos], out, FAST, model=network).skipped == 2
    check_whole(out)


def test_lines_that_do_not_fit_on_the_disk_are_taken_back(network, photos, tmp_path, monkeypatch):
    """A write may stop half-way without an error: the half line must not stay."""
    from fastviz.jobs import folder

    out = tmp_path / "out"
    jobs.explain([photos], out, FAST, model=network, limit=1)
    before = (out / "results.jsonl").read_bytes()
    results = next(jobs.read_results(out))
    folder = folder.JobFolder(out, FAST, overwrite=False)

    class Short:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *problem):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            return self.file.write(data[:10])

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **options: Short(opened(self, *args, **options)))
    with pytest.raises(OSError, match="No space left"):
        folder.append(results)
    monkeypatch.undo()
    assert (out / "results.jsonl").read_bytes() == before
