"""Builds the two native libraries, `fastviz/ops/_cpu.so` and, where a CUDA toolkit is found, `fastviz/ops/_cuda.so`.

Environment: CUDA_HOME (the toolkit's own folder), FASTVIZ_CUDA=0 (leave `_cuda` out) or 1 (fail without it),
TORCH_CUDA_ARCH_LIST (default 7.5 to 9.0 and PTX), FASTVIZ_WERROR=0 or 1 (are warnings errors? in a checkout they are),
MAX_JOBS, FASTVIZ_PREBUILT=1 (leave out both: an editable install of a checkout that has them).
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]

# The oldest torch whose Stable ABI has all we use (std::string and optional arguments, parallel_for): 2.10.
TORCH_TARGET_VERSION = "0x020a000000000000"


def find_toolkit() -> str | None:
    """The CUDA toolkit's own folder. The parent of an `nvcc` on PATH may be a wrapper's, so links are followed."""
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(str(Path(nvcc).resolve().parents[1]))
    for candidate in candidates:
        if candidate and Path(candidate, "bin", "nvcc").exists() and Path(candidate, "include").is_dir():
            return candidate
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed inside, by the compilers too, and print it only if the body fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        outputs = {number: os.dup(number) for number in (1, 2)}
        failed = True
        try:
            for number in outputs:
                os.dup2(said.fileno(), number)
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, output in outputs.items():
                os.dup2(output, number)
                os.close(output)
            if failed:
                said.seek(0)
                sys.stderr.write(said.read().decode(errors="replace"))


toolkit = find_toolkit()
if toolkit:
    # Before the import below, which looks for the toolkit by itself.
    os.environ["CUDA_HOME"] = toolkit

import torch  # noqa: E402

with quiet():  # on a machine without a GPU it says so
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths


def why_no_cuda() -> str | None:
    """The reason to build `_cpu` only, or None."""
    if os.environ.get("FASTVIZ_CUDA") == "0":
        return "FASTVIZ_CUDA=0"
    if toolkit is None:
        return "no CUDA toolkit found (CUDA_HOME, /usr/local/cuda, nvcc on PATH)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return None


def sources(*folders: str) -> list[str]:
    found = [path for folder in folders for path in (ROOT / "csrc" / folder).glob("*.c*") if path.suffix != ".cuh"]
    return sorted(str(path.relative_to(ROOT)) for path in found)


source_hash = runpy.run_path(str(ROOT / "fastviz" / "ops" / "_build.py"))["source_hash"]


class Build(BuildExtension):
    """One folder of objects for each library (the operator files go into both), and a note of what was built."""

    def build_extension(self, ext):
        base = self.build_temp
        name = ext.name.rpartition(".")[2]
        self.build_temp = os.path.join(base, name)
        print(f"fastviz: building {name}.so from {len(ext.sources)} files", flush=True)
        try:
            with quiet():
                super().build_extension(ext)
        finally:
            self.build_temp = base

    def run(self):
        super().run()
        folder = ROOT if self.inplace else Path(self.build_lib)
        note = {
            "version": VERSION,
            "sources": source_hash(ROOT / "csrc", cuda=not reason),
            "torch": torch.__version__,
            "cuda": None if reason else torch.version.cuda,
        }
        if reason:
            note["why_no_cuda"] = reason
            (folder / "fastviz" / "ops" / "_cuda.so").unlink(missing_ok=True)
        (folder / "fastviz" / "ops" / "_build.json").write_text(json.dumps(note, indent=1) + "\n")


class Wheel(bdist_wheel):
    """No library uses Python's C API: one wheel serves every Python from 3.10 on."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


reason = why_no_cuda()
if reason and os.environ.get("FASTVIZ_CUDA") == "1":
    raise SystemExit(f"fastviz: FASTVIZ_CUDA=1, but the CUDA library cannot be built: {reason}")
if reason:
    print(f"fastviz: without _cuda.so: {reason}", flush=True)
else:
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;8.6;8.9;9.0+PTX")

# In a checkout warnings are errors; whoever builds the source distribution has a compiler that was never tried.
werror = os.environ.get("FASTVIZ_WERROR", "1" if (ROOT / ".git").exists() else "0")
warnings = ["-Wall", "-Wextra"] + (["-Werror"] if werror == "1" else [])
defines = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
# torch's headers as system headers: their warnings are not ours.
headers = [flag for path in include_paths() for flag in ("-isystem", path)]
# Absolute, because ninja runs elsewhere.
first = ["-include", str(ROOT.resolve() / "csrc" / "ops" / "oldest_glibc.h")]
cxx = [
    "-O3",
    "-std=c++17",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-g0",
    *warnings,
    *headers,
    *first,
]
# libgcc's conversions of 16-bit floats out of its static part: the shared one has them only since GCC 12.
link = ["-lgcc"]
extensions = [
    CppExtension(
        "fastviz.ops._cpu",
        sources("kernels/cpu", "ops"),
        define_macros=defines,
        extra_compile_args={"cxx": cxx},
        extra_link_args=link,
        py_limited_api=True,
    )
]
if not reason:
    device_warnings = ["-Werror=all-warnings"] if "-Werror" in warnings else []
    extensions.append(
        CUDAExtension(
            "fastviz.ops._cuda",
            sources("kernels/cuda") + [path for path in sources("ops") if not path.endswith("library.cpp")],
            # USE_CUDA makes torch's headers declare the functions for streams and launch errors.
            define_macros=[*defines, ("FASTVIZ_CUDA", None), ("USE_CUDA", None)],
            extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-std=c++17", "--threads=2", *device_warnings]},
            extra_link_args=link,
            py_limited_api=True,
        )
    )

if os.environ.get("FASTVIZ_PREBUILT") == "1":
    extensions = []
setup(
    ext_modules=extensions, cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=True), "bdist_wheel": Wheel}
)
