"""The shape of the code base: who may import whom, and who may touch what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastviz"

# A module may import those of lower levels; within a level, those named before it.
LEVELS = [
    ["_build", "checks", "demo_network", "geometry", "progress", "top_k", "projection", "nearest", "placement"],
    ["native", "ops", "weight_files", "models", "colour_tables", "pictures", "image_paths", "images", "captions"],
    ["animation", "drawing", "streaming", "embedding_file"],
    ["windows", "elementwise", "map_axes", "capture", "replay"],
    ["targets", "reach", "fingerprint", "graph", "unit_crop"],
    ["strided", "batch_norm", "winograd", "convolutions", "backward", "features"],
    [
        *("incremental", "canvas", "priors", "transforms", "optimize", "gram_losses"),
        *("fooling", "box_method", "genomes"),
    ],
    [
        *("methods.gradients", "methods.cam", "methods.occlusion", "methods.segmentation"),
        *(
            "methods.filters",
            "methods.activations",
            "methods.embedding",
            "methods.neighbours",
            "methods.patches",
            "methods.patch_sheets",
        ),
        *("methods.maximization", "methods.inversion", "methods.latent", "methods.adversarial", "methods.evolution"),
        *("methods.dream", "methods.texture", "methods.style", "methods.neural_texture"),
    ],
    ["methods"],
    ["job_folder", "jobs", "report"],
    ["cli", "__main__", "compat", "accelerate"],
]
ORDER = [name for level in LEVELS for name in level]
ASIDE = ["reference", "__init__"]
FILES_ALLOWED = {
    "_build",
    "native",
    "weight_files",
    "models",
    "images",
    "captions",
    "animation",
    "drawing",
    "embedding_file",
    "report",
    "jobs",
    "job_folder",
    "cli",
    "compat",
    # what it calls takes arrays: OpenCV's GrabCut
    "methods.segmentation",
}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, those inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(name: str) -> int:
    """Where a module stands in the order; a submodule of a package stands where the package does."""
    while name not in ORDER and "." in name:
        name = name.rpartition(".")[0]
    return ORDER.index(name)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ASIDE])
def test_imports_go_only_downwards(name):
    for imported in imports(MODULES[name]):
        target = imported.removeprefix("fastviz.")
        if not imported.startswith("fastviz.") or target not in MODULES:
            continue
        same_package = place(target) == place(name)
        assert same_package or place(target) < place(name), f"fastviz.{name} should not import fastviz.{target}"


def test_reference_is_imported_by_tests_and_benchmarks_only():
    for name, path in MODULES.items():
        assert "fastviz.reference" not in imports(path), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_ops_names_the_native_operators(name):
    if name != "ops":
        assert "ops.fastviz" not in MODULES[name].read_text()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_numpy_pictures_and_files_stay_at_the_edge(name):
    if not {name, name.partition(".")[0]} & FILES_ALLOWED:
        roots = {imported.partition(".")[0] for imported in imports(MODULES[name])}
        assert not roots & {"PIL", "numpy", "cv2", "matplotlib"}
        assert not re.search(r"\bopen\(|\.write_text\(|\.read_text\(", MODULES[name].read_text())


def test_kernels_know_no_torch():
    for path in (ROOT / "csrc" / "kernels").rglob("*"):
        if path.is_file():
            included = re.findall(r'#include [<"](.*?)[>"]', path.read_text())
            assert not [header for header in included if "torch" in header or "ATen" in header or "c10" in header], path


def test_operator_files_use_the_stable_abi_only():
    for path in (ROOT / "csrc" / "ops").iterdir():
        for header in re.findall(r'#include [<"](.*?)[>"]', path.read_text()):
            assert "torch/" not in header or header.startswith(("torch/csrc/stable/", "torch/headeronly/")), path


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)


def test_import_does_nothing_but_import():
    """No warning, no CUDA, no slow library: those are imported where they are used."""
    script = (
        "import sys, warnings, torch; warnings.simplefilter('error'); import fastviz; "
        "assert not torch.cuda.is_initialized(); "
        "slow = {'torchvision', 'cv2', 'sklearn', 'captum', 'matplotlib', 'scipy', 'torch._inductor'}; "
        "before = set(sys.modules); assert not slow & before, slow & before"
    )
    result = run(script)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_public_names_exist():
    import fastviz

    for name in fastviz.__all__:
        assert hasattr(fastviz, name), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_lists_its_public_names(name):
    tree = ast.parse(MODULES[name].read_text())
    assigned = {
        t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    }
    if name not in ("__main__", "compat"):
        assert "__all__" in assigned
