"""The pictures of the gallery: ``python tools/gallery.py`` runs docs/gallery/METHOD.py and writes METHOD.webp.

Each recipe runs unchanged in a separate folder with the package's ``photos/`` and ``textures/``. ``--only NAME`` runs
some of them. ``--model NAME --weights FILE --photos FOLDER --out FOLDER`` runs them with another network on other
photographs; such pictures are not committed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

from PIL import Image

import fastviz

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
ELSEWHERE = {"randomised": ROOT / "docs" / "explanation"}
"""Pictures of other pages that are made in the same way."""
DATA = ROOT / "fastviz" / "models" / "data"
QUALITY = 82

OF_THE_DEMO = re.compile(r'"(relu|pool|fc)|class_names')
"""Names that only the built-in network has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a method; may be repeated")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--weights")
    parser.add_argument("--photos", type=Path, default=DATA / "photos")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.out is None and (options.model != "demo" or options.photos != DATA / "photos"):
        parser.error("--out should be given with another network or other photographs")
    names = options.only or [*sorted(recipe.stem for recipe in GALLERY.glob("*.py")), *ELSEWHERE]
    failed = [name for name in names if not _drawn(name, options)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _drawn(name: str, options: argparse.Namespace) -> bool:
    """Run the recipe and keep its picture; returns whether it succeeded."""
    home = ELSEWHERE.get(name, GALLERY)
    recipe = (home / f"{name}.py").read_text()
    if options.model != "demo" and (OF_THE_DEMO.search(recipe) or name == "cam"):
        print(f"{name}: names layers or classes of the built-in network", flush=True)
        return True
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photos").symlink_to(options.photos.resolve())
        (Path(folder) / "textures").symlink_to(DATA / "textures")
        if not _ran(name, recipe, folder, options):
            print(f"{name}: failed", flush=True)
            return False
        out = options.out or home
        out.mkdir(parents=True, exist_ok=True)
        with Image.open(Path(folder) / f"{name}.png") as picture:
            picture.save(out / f"{name}.webp", quality=QUALITY, method=6)
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    return True


def _ran(name: str, recipe: str, folder: str, options: argparse.Namespace) -> bool:
    """Run a recipe in a separate process, forked after the imports."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] == 0
    try:
        os.chdir(folder)
        if options.model != "demo":
            load = fastviz.load_model
            fastviz.load_model = lambda name: load(options.model, options.weights)
        exec(compile(recipe, f"docs/gallery/{name}.py", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
