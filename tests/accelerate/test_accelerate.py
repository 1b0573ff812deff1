"""``fastviz.accelerate``: what it reaches, that all of it is put back, and scripts that run under it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import fastviz
import fastviz.accelerate as function
from fastviz.compat import captum as ours

attr = pytest.importorskip("captum.attr")

ROOT = Path(__file__).parents[2]
# In a list, where accelerate does not look.
THEIRS = [getattr(attr, name) for name in ours.__all__]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    assert [getattr(attr, name) for name in ours.__all__] == THEIRS


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a user who imported captum's class before."""
    module = ModuleType("somebodys_module")
    module.__dict__.update(Occlusion=attr.Occlusion, also=attr.Occlusion, kept=[attr.Occlusion])
    monkeypatch.setitem(sys.modules, "somebodys_module", module)
    return module


def test_the_function_and_the_module() -> None:
    assert function is fastviz.accelerate
    assert callable(fastviz.accelerate)
    assert isinstance(sys.modules["fastviz.accelerate"], ModuleType)


def test_what_is_reached(mine: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from captum.attr._core import occlusion
    from captum.attr._core.neuron import neuron_guided_backprop_deconvnet as neurons

    existing = attr.Occlusion(nn.Identity())
    done = fastviz.accelerate("captum")
    try:
        for name in ours.__all__:
            assert getattr(attr, name) is getattr(ours, name)
            assert done.replaced["captum"][name] >= 2  # where it is defined, and in captum.attr
        assert occlusion.Occlusion is ours.Occlusion
        assert neurons.GuidedBackprop is ours.GuidedBackprop
        from captum.attr import Occlusion

        assert Occlusion is ours.Occlusion
        assert mine.Occlusion is mine.also is ours.Occlusion
        # not reached: containers, existing objects
        assert mine.kept == [THEIRS[ours.__all__.index("Occlusion")]]
        assert type(existing) is mine.kept[0]
        assert isinstance(Occlusion(nn.Identity()), attr.Attribution)
    finally:
        done.undo()
    assert mine.Occlusion is mine.also is attr.Occlusion
    assert occlusion.Occlusion is attr.Occlusion
    assert neurons.GuidedBackprop is attr.GuidedBackprop
    places = sum(done.replaced["captum"].values())
    said = capsys.readouterr().err
    assert said.startswith("fastviz.accelerate: captum: Occlusion, FeatureAblation, Saliency,")
    assert said.endswith(f"(in {places} places)\n")


def test_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        assert attr.Saliency is ours.Saliency
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"), fastviz.accelerate("captum", quiet=True):
        stop()
    assert capsys.readouterr().err == ""


def test_blocks_within_blocks_and_in_any_order() -> None:
    first = fastviz.accelerate("captum", quiet=True)
    second = fastviz.accelerate("captum", "kornia", quiet=True)
    assert str(second).startswith(
        "fastviz.accelerate: captum: was in place already\nfastviz.accelerate: kornia: total_"
    )
    first.undo()
    first.undo()  # once is enough
    assert attr.Saliency is ours.Saliency
    second.undo()
    assert attr.Saliency is THEIRS[ours.__all__.index("Saliency")]


def test_threads() -> None:
    """It holds for all threads, and the last one that leaves puts the names back."""
    entered, leave = threading.Barrier(5), threading.Event()
    seen = []

    def work() -> None:
        with fastviz.accelerate("captum", quiet=True):
            entered.wait()
            leave.wait()
            seen.append(attr.Occlusion)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.wait()
    assert attr.Occlusion is ours.Occlusion
    leave.set()
    for thread in threads:
        thread.join()
    assert seen == [ours.Occlusion] * 4


def test_what_meant_ours_before_still_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what took the name in between means captum's again."""
    before, between = ModuleType("before"), ModuleType("between")
    before.__dict__["Occlusion"] = ours.Occlusion
    monkeypatch.setitem(sys.modules, "before", before)
    with fastviz.accelerate("captum", quiet=True):
        exec("from captum.attr import Occlusion", between.__dict__)
        monkeypatch.setitem(sys.modules, "between", between)
    assert before.Occlusion is ours.Occlusion
    assert between.Occlusion is attr.Occlusion


def test_other_tools() -> None:
    kornia = pytest.importorskip("kornia")
    torchmetrics = pytest.importorskip("torchmetrics")
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from fastviz.compat import grad_cam as our_cam
    from fastviz.compat import kornia as our_kornia
    from fastviz.compat import torchmetrics as our_torchmetrics

    x = torch.rand(2, 3, 5, 5)
    before = [kornia.losses.total_variation(x), kornia.losses.TotalVariation()(x)]
    with fastviz.accelerate("kornia", "torchmetrics", "grad_cam", quiet=True) as done:
        assert kornia.losses.total_variation is our_kornia.total_variation
        assert kornia.losses.TotalVariation is our_kornia.TotalVariation
        assert torchmetrics.image.TotalVariation is our_torchmetrics.TotalVariation
        assert torchmetrics.functional.image.total_variation is our_torchmetrics.total_variation
        assert grad_cam.GradCAM is our_cam.GradCAM
        # whole numbers go to the tools' own functions, which are called by their names inside the tools
        assert kornia.losses.total_variation(x.int()).dtype == torch.int64
        assert torchmetrics.functional.image.total_variation((9 * x).int()).dtype == torch.int64
        torch.testing.assert_close([kornia.losses.total_variation(x), kornia.losses.TotalVariation()(x)], before)
    assert list(done.replaced) == ["kornia", "torchmetrics", "grad_cam"]
    assert kornia.losses.total_variation is not our_kornia.total_variation
    assert torchmetrics.image.TotalVariation is not our_torchmetrics.TotalVariation
    assert grad_cam.GradCAM is not our_cam.GradCAM


def test_classes_that_call_themselves_by_name_still_work() -> None:
    """pytorch-grad-cam's says super(GradCAM, self): with another class under that name it would not start."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))

    class Own(grad_cam.GradCAM):  # type: ignore[name-defined, misc]
        pass

    with fastviz.accelerate("grad_cam", quiet=True):
        found = Own(model, [model[1]])(torch.rand(1, 1, 6, 6), None)
        smooth = grad_cam.GradCAM(model, [model[1]])(torch.rand(1, 1, 6, 6), None, eigen_smooth=True)
    assert found.shape == smooth.shape == (1, 6, 6)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="tools 'captun' is not known; nearest: captum"):
        fastviz.accelerate("captun")
    monkeypatch.setitem(sys.modules, "pystiche", None)
    with pytest.raises(ImportError, match="'pystiche' is not: it"):
        fastviz.accelerate("captum", "pystiche")  # captum is put back: see the fixture


def test_all_that_are_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is there and cannot be imported, as pystiche 1.0 beside a newer torchvision, stays as it is."""
    module = sys.modules["fastviz.accelerate"]
    tools = {"captum": module.TOOLS["captum"], "nothing": ("no_such_package", {}), "broken": ("broken", {"broken": ()})}
    monkeypatch.setattr(module, "TOOLS", tools)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "broken" or find(name))
    with fastviz.accelerate() as done:
        assert list(done.replaced) == ["captum"]
        assert "cannot be imported" in done.left["broken"]
    assert "fastviz.accelerate: broken stays as it is: tools should be installed" in capsys.readouterr().err
    with pytest.raises(ImportError, match="'broken' is not: it cannot be imported"):
        fastviz.accelerate("broken")


# ---------------------------------------------------------------------------------------------------------- scripts


def run(tmp_path: Path, script: str, *arguments: str, name: str = "script.py") -> subprocess.CompletedProcess[str]:
    path = tmp_path / name
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fastviz.accelerate", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)


SCRIPT = """
import pickle
import sys
from dataclasses import dataclass
from helper import NAME
from captum.attr import Occlusion
from captum.attr._core.saliency import Saliency

@dataclass
class Point:
    x: int

assert __name__ == "__main__" and __spec__ is None
assert sys.modules["__main__"].Point is Point
assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
print(__file__, sys.argv, NAME, Occlusion.__module__, Saliency.__module__)
sys.exit(int(sys.argv[2]))
"""


def test_a_script(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("NAME = 'beside the script'")
    result = run(tmp_path, SCRIPT, "--option", "7")
    assert result.returncode == 7, result.stderr
    path = tmp_path / "script.py"
    modules = "fastviz.compat.captum.perturbation fastviz.compat.captum.gradient"
    assert result.stdout == f"{path} {[str(path), '--option', '7']} beside the script {modules}\n"
    assert result.stderr.startswith("fastviz.accelerate: captum: Occlusion, ")
    assert result.stderr.count("\n") == 1


def test_a_script_that_imports_the_substitute_first_and_a_tool_that_is_none(tmp_path: Path) -> None:
    """What would run without fastviz runs with it, so a tool that cannot be accelerated stays as it is."""
    (tmp_path / "kornia.py").write_text("name = 'not the real one'")
    script = "import fastviz.compat.captum, captum.attr as a, kornia\nprint(a.Occlusion.__module__, kornia.name)"
    result = run(tmp_path, script)
    assert result.stdout == "fastviz.compat.captum.perturbation not the real one\n"
    assert result.returncode == 0
    assert "fastviz.accelerate: kornia stays as it is: tools should be installed" in result.stderr


def test_a_script_without_tools_that_fails(tmp_path: Path) -> None:
    """No tool is imported for it, and its traceback is the one that it has without fastviz."""
    script = (
        "import sys\n\ndef broken():\n    raise ValueError('no such luck')\n\n"
        "print({'captum', 'kornia', 'torchmetrics', 'pytorch_grad_cam'} & set(sys.modules))\nbroken()\n"
    )
    found, expected = run(tmp_path, script), plain(tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (1, "set()\n", expected.stderr)
    assert "no such luck" in found.stderr


def plain(folder: Path) -> subprocess.CompletedProcess[str]:
    """The script without fastviz."""
    return subprocess.run([sys.executable, str(folder / "script.py")], capture_output=True, text=True, check=False)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What ``python -m fastviz.accelerate`` runs, in this process; it puts nothing in place."""
    main = importlib.import_module("fastviz.accelerate.__main__")
    monkeypatch.setattr(main, "accelerate_on_import", lambda: None)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return lambda *arguments: main.main([str(each) for each in arguments])


def test_errors_of_syntax(tmp_path: Path, start: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script.py").write_text("if True print()")
    with pytest.raises(SystemExit, match="1"):
        start(tmp_path / "script.py")
    assert capsys.readouterr().err == plain(tmp_path).stderr


def test_scripts_that_do_not_exist(
    tmp_path: Path, start: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        start(tmp_path / "no.py")
    said = capsys.readouterr().err
    assert said.endswith(f"can't open file '{tmp_path / 'no.py'}': [Errno 2] No such file or directory\n")


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["-m"], 2), (["-h"], None), (["--help"], None)])
def test_usage(
    arguments: list[str], code: int | None, start: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        start(*arguments)
    assert stopped.value.code == code
    said = capsys.readouterr()
    assert "python -m fastviz.accelerate script.py [arguments]" in (said.err if code else said.out)


def test_scripts_that_end_themselves(tmp_path: Path, start: Callable[..., None]) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit('a reason')")
    with pytest.raises(SystemExit, match="a reason"):
        start(tmp_path / "script.py")


def test_a_module_and_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import sys, time\nimport captum.attr as a\n"
        "print(sys.argv[1:], a.Occlusion.__module__, flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "fastviz.accelerate", "-m", "job", "-x"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "['-x'] fastviz.compat.captum.perturbation\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "accelerate/__main__" not in errors
