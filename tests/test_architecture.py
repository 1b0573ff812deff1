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

# The folders of the package. One may import those below it in this list, and itself.
FOLDERS = [
    "__main__",
    "cli",
    "compat",
    "accelerate",
    "jobs",
    "evaluation",
    "methods",
    "engine",
    "vectors",
    "targets",
    "graph",
    "execution",
    "images",
    "models",
    "ops",
    "_util",
]
# Folders and modules inside of folders, in the same order. What is not named stands with the folder itself, above them.
INSIDE = {
    "engine": ["masking", "optimize", "incremental", "gradients"],
    # Forward passes, batches and recordings use the fast convolutions. These need to know what a model can be run on.
    "execution": [
        "fast_conv",
        "inputs",
        "preparedness",
        "evaluation_mode",
        "compiled",
        "exported",
        "quantised",
        "precision",
        "model_outputs",
    ],
}
FAMILIES = ["attribution", "inspection", "synthesis", "adversarial"]
ASIDE = ["reference", "__init__"]

# PIL, numpy, OpenCV, matplotlib and files on disk belong to these folders and modules.
EDGE = {
    "images",
    "jobs",
    "cli",
    "compat",
    "models",
    "ops._build",
    "ops._library",
    "_util.files",
    # folders that runs of jobs and of the command line write into, and their locks
    "_util.output_folder",
    # vectors on disk beside the names of their images
    "methods.inspection.embedding_file",
    # thousands of small parts of a plane, which tensors are slow at
    "engine.masking.feature_boxes",
    # what it calls takes arrays: OpenCV's GrabCut
    "methods.attribution.segmentation",
}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions, without ``fastviz.``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    inside = {name.removeprefix("fastviz.") for name in found if name.startswith("fastviz.")}
    # `from fastviz.methods import attribution` imports the module; the folder before it only holds its name
    return {name for name in inside if name in MODULES}


def roots(path: Path) -> set[str]:
    """The first words of everything that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def height(name: str) -> tuple[int, int]:
    """How far up a module stands: by its folder, then by the folder inside it."""
    folder, _, rest = name.partition(".")
    inner = INSIDE.get(folder, [])
    part = rest.partition(".")[0]
    return len(FOLDERS) - FOLDERS.index(folder), len(inner) - inner.index(part) if part in inner else len(inner) + 1


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ASIDE])
def test_imports_go_only_downwards(name):
    for imported in imports(MODULES[name]):
        is_own_package = name.startswith(f"{imported}.") and MODULES[imported].name == "__init__.py"
        if imported in ASIDE or is_own_package:
            continue
        assert height(imported) <= height(name), f"fastviz.{name} should not import fastviz.{imported}"


def family(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "methods" and len(parts) > 1 and parts[1] in FAMILIES else None


@pytest.mark.parametrize("name", [name for name in MODULES if family(name)])
def test_families_of_methods_do_not_import_one_another(name):
    others = {imported for imported in imports(MODULES[name]) if family(imported) not in (None, family(name))}
    assert not others, f"fastviz.{name} should not import {sorted(others)}"


def test_every_folder_has_its_place():
    folders = {name.partition(".")[0] for name in MODULES} - set(ASIDE)
    assert folders <= set(FOLDERS)
    assert {name.split(".")[1] for name in MODULES if name.startswith("methods.")} <= {*FAMILIES, "registry"}


def test_tests_and_benchmarks_stand_in_folders_of_the_package():
    for top in ("tests", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT / top)
            assert (PACKAGE / folder).is_dir() or folder.parts[:1] == ("repository",), path


def test_reference_is_imported_by_tests_and_benchmarks_only():
    for name, path in MODULES.items():
        assert "reference" not in imports(path), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_ops_names_the_native_operators(name):
    if name.partition(".")[0] != "ops":
        assert "ops.fastviz" not in MODULES[name].read_text()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_numpy_pictures_and_files_stay_at_the_edge(name):
    if not {name, name.partition(".")[0]} & EDGE:
        assert not roots(MODULES[name]) & {"PIL", "numpy", "cv2", "matplotlib"}
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


def test_no_file_is_too_long():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 450, path


# Functions that may be longer, with the reason.
LONG = {
    # commands: half of each declares its options, which typer reads from the signature
    ("cli.dream", "dream"),
    ("cli.maximize", "maximize"),
    ("cli.run", "run"),
    ("cli.style", "style"),
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_function_is_too_long(name):
    """At most 60 lines beside the docstring."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (name, node.name) not in LONG:
            words = node.body[0] if ast.get_docstring(node) else None
            documented = 0 if words is None else words.end_lineno - words.lineno + 1
            assert node.end_lineno - node.lineno + 1 - documented <= 60, f"fastviz.{name}.{node.name}"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)


def test_import_does_nothing_but_import():
    """No warning, no CUDA, no slow library, no tables of jobs and measures: those are imported where they are used."""
    script = (
        "import sys, warnings, torch; warnings.simplefilter('error'); import fastviz; "
        "assert not torch.cuda.is_initialized(); "
        "slow = {'torchvision', 'cv2', 'sklearn', 'captum', 'matplotlib', 'scipy', 'torch._inductor', 'fastviz.jobs', "
        "'fastviz.evaluation'}; "
        "before = set(sys.modules); assert not slow & before, slow & before; "
        "fastviz.jobs.run, fastviz.evaluate, fastviz.evaluation.Curve"
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
    # a folder that only holds modules has no names
    only_words = len(tree.body) == 1
    if name not in ("__main__", "compat") and not only_words:
        assert "__all__" in assigned


def test_files_that_the_contributor_page_names_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    words = re.findall(r"`((?:fastviz|tests|benchmarks|csrc|docs|tools)/[\w./]+)`", page)
    named = {word for word in words if not re.search("NAME|FAMILY|FOLDER|MODULE", word)}
    assert len(named) > 25
    assert not [word for word in sorted(named) if not (ROOT / word).exists()]
