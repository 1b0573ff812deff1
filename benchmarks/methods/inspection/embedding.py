"""Feature vectors of many images: components, neighbours, maps of thousands of images, streaming from files.

``python -m benchmarks.methods.inspection.embedding`` takes ten minutes on two cores. The vectors are synthetic,
rectified mixtures of 300 numbers with noise, so that their variances decrease like those of features. If there is a
time limit instead of an alternative, it is listed as "time allowed". ``--photos`` also streams the photographs of a
folder, and ``--classes`` compares class neighbours in a folder that has a folder for each class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastviz as fv
from benchmarks.common import parse, parser, row, side_by_side, write
from fastviz.vectors.nearest_neighbours import nearest

Rows = list[dict[str, Any]]
ROUNDS = 5


def features(count: int, numbers: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(count, 300, generator=generator) * torch.linspace(0, -3, 300).exp()
    spread = torch.randn(300, numbers, generator=generator)
    return (mixed @ spread + 0.2 * torch.randn(count, numbers, generator=generator)).relu().to(device)


def components(x: Tensor, k: int) -> Rows:
    """Exact components against exact solvers, randomized ones against randomized solvers of as many columns."""
    from sklearn.decomposition import PCA

    array = x.cpu().numpy()
    case = f"{len(x)} x {x.shape[1]} to {k}"
    exact = fv.pca(x, k)
    solvers: dict[str, Callable[[], Any]] = {
        "fastviz": lambda: fv.pca(x, k),
        "scikit-learn covariance_eigh": lambda: PCA(k, svd_solver="covariance_eigh").fit_transform(array),
        "scikit-learn arpack": lambda: PCA(k, svd_solver="arpack", random_state=0).fit_transform(array),
    }
    times = side_by_side(solvers, x.device, rounds=ROUNDS, warm_up=1)
    rows = [row("pca", case, times, {}, "to a residual of 1e-5 of the largest variance")]
    few = {"n_oversamples": 6, "iterated_power": 2}

    def by_scikit(**options: Any) -> Any:
        return PCA(k, svd_solver="randomized", random_state=0, **options).fit_transform(array)

    calls: dict[str, Callable[[], Any]] = {
        "fastviz": lambda: fv.pca(x, k, solver="randomized", oversampling=6, iterations=3),
        "torch.pca_lowrank": lambda: torch.pca_lowrank(x, k + 6, niter=2),
        "scikit-learn, 2 iterations": lambda: by_scikit(**few),
        "scikit-learn, its own choice": by_scikit,
    }
    times = side_by_side(calls, x.device, rounds=ROUNDS, warm_up=1)
    best = float(exact.variance.double().sum())
    missed = [f"{name} {1 - held(call(), x - exact.mean, k) / best:.2g}" for name, call in calls.items()]
    note = f"missing of the variance that the exact components hold: {', '.join(missed)}"
    print(note)
    return [*rows, row("pca, randomized", case, times, {"torch.pca_lowrank": 1.0}, note)]


def held(found: Any, centred: Tensor, k: int) -> float:
    """The variance that the first ``k`` directions hold of what a solver found: components, U S V, or coordinates."""
    if isinstance(found, tuple):
        coordinates = centred @ found[2][:, :k]
    else:
        coordinates = torch.as_tensor(getattr(found, "coordinates", found))
    return float(coordinates.double().square().sum()) / (len(centred) - 1)


def neighbours(x: Tensor) -> Rows:
    from sklearn.neighbors import NearestNeighbors

    array = x.cpu().numpy()
    calls: dict[str, Callable[[], Any]] = {
        "fastviz": lambda: nearest(x, 10),
        "torch.cdist and topk": lambda: torch.cdist(x, x).topk(11, largest=False),
        "scikit-learn brute": lambda: NearestNeighbors(n_neighbors=11, algorithm="brute").fit(array).kneighbors(array),
    }
    times = side_by_side(calls, x.device, rounds=ROUNDS, warm_up=1)
    mine = nearest(x, 10)[0]
    theirs = torch.cdist(x, x).topk(11, largest=False).indices[:, 1:]
    same = float((mine == theirs).all(1).float().mean())
    note = f"fastviz: those of float64, always; torch.cdist has the same for {100 * same:.1f} % of the vectors"
    targets = {"torch.cdist and topk": 1.0}
    return [row("nearest neighbours", f"10 of {len(x)} x {x.shape[1]}", times, targets, note)]


def planes(count: int) -> Rows:
    """t-SNE of many vectors of 50 numbers, one run each; scikit-learn's, which takes longest, of a sixth of them."""
    from openTSNE import TSNE

    x = features(count, 50, torch.device("cpu"))
    near = nearest(x, 10)[0]

    def theirs() -> Any:
        return TSNE(n_jobs=torch.get_num_threads(), random_state=0).fit(x.numpy())

    def kept(plane: Any) -> float:
        found = nearest(torch.as_tensor(plane), 10)[0]
        return float((found[:, :, None] == near[:, None]).any(2).float().mean())

    planes: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {
        "fastviz": lambda: planes.update(fastviz=fv.tsne(x, engine="openTSNE")),
        "openTSNE": lambda: planes.update(openTSNE=theirs()),
    }
    times = side_by_side(calls, x.device, rounds=1, least=0, warm_up=0)
    note = "of the 10 nearest, this share is kept: " + ", ".join(f"{n} {kept(p):.3f}" for n, p in planes.items())
    print(note)
    rows = [row("t-SNE", f"{count} x 50", times, {}, note)]
    few = x[: count // 6]
    engines: dict[str, Callable[[], Any]] = {
        "fastviz": lambda: fv.tsne(few, engine="openTSNE"),
        "scikit-learn": lambda: fv.tsne(few, engine="sklearn"),
    }
    times = side_by_side(engines, x.device, rounds=1, least=0, warm_up=0)
    return [*rows, row("t-SNE", f"{len(few)} x 50", times, {})]


def maps(count: int) -> Rows:
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.rand(20, 2, generator=generator)
    crowds = centres[torch.randint(0, 20, (count,), generator=generator)] + torch.randn(count, 2, generator=generator)
    pictures = torch.randint(0, 256, (count, 3, 96, 96), generator=generator, dtype=torch.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("scatter", "grid"):

            def draw(layout: Any = layout) -> None:
                found = fv.image_map(pictures, crowds, layout=layout)
                fv.images.save_image(found.picture, Path(folder) / f"{layout}.png")

            times = side_by_side({"fastviz": draw}, torch.device("cpu"), rounds=ROUNDS, warm_up=0)
            times["time allowed"] = {"median_ms": 60_000.0, "spread_ms": 0.0}
            case = f"{count} images, {layout}, written as PNG"
            rows.append(row("map of images", case, times, {"time allowed": 1.0}))
    return rows


def streaming(photos: Path, device: torch.device) -> Rows:
    """Vectors of the photographs in a folder from a SqueezeNet, compared with typical scripts."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.models import SqueezeNet1_0_Weights

    model = fv.load_model("squeezenet1_0").to(device)
    files = fv.images.find_images(photos)
    prepare = SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms()
    x, _ = fv.load_images(files, model=model)
    x = x.to(device)

    class Files(Dataset[Tensor]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Tensor:
            with Image.open(files[index]) as picture:
                prepared: Tensor = prepare(picture.convert("RGB"))
            return prepared

    def vectors(batch: Tensor) -> Tensor:
        return model.features(batch).mean((2, 3))

    def one_by_one() -> Tensor:
        with torch.inference_mode():
            return torch.cat([vectors(Files()[index][None].to(device)) for index in range(len(files))])

    def loaded() -> Tensor:
        with torch.inference_mode():
            loader = DataLoader(Files(), batch_size=32, num_workers=2)
            return torch.cat([vectors(batch.to(device)) for batch in loader])

    def bare() -> Tensor:
        with torch.inference_mode():
            return torch.cat([vectors(batch) for batch in x.split(32)])

    mine = fv.embedding(model, files).vectors
    for rival in (one_by_one(), loaded(), bare()):
        torch.testing.assert_close(mine, rival, rtol=1e-3, atol=1e-3)
    calls: dict[str, Callable[[], Any]] = {
        "fastviz": lambda: fv.embedding(model, files),
        "one image after another": one_by_one,
        "DataLoader, 2 workers": loaded,
        "forward passes alone": bare,
    }
    times = side_by_side(calls, device, rounds=ROUNDS, warm_up=1)
    return [row("embedding of files", f"SqueezeNet, {len(files)} photographs", times, {})]


def classes(folder: Path) -> Rows:
    """The 10-nearest-neighbour accuracy of the images' classes, among the vectors and in the plane."""
    found = fv.embedding(fv.load_model("demo"), folder)
    names = [name.split("/")[0] for name in found.names]
    labels = torch.tensor([sorted(set(names)).index(name) for name in names])

    def accuracy(vectors: Tensor) -> float:
        return float((labels[nearest(vectors, 10)[0]].mode(1).values == labels).float().mean())

    shares = {
        "features": accuracy(found.vectors),
        "t-SNE": accuracy(fv.tsne(found.vectors, engine="sklearn")),
        "two components": accuracy(fv.pca(found.vectors).coordinates),
        "pixels": accuracy(found.pictures.flatten(1).float()),
    }
    note = "10-nearest-neighbour accuracy: " + ", ".join(
        f"{name} {100 * share:.1f} %" for name, share in shares.items()
    )
    print(note)
    calls = {"fastviz": lambda: fv.tsne(found.vectors, engine="sklearn")}
    times = side_by_side(calls, torch.device("cpu"), rounds=2, warm_up=0)
    return [row("t-SNE", f"{len(names)} x {found.vectors.shape[1]}, scikit-learn", times, {}, note)]


def main() -> None:
    arguments = parser(__doc__, "embedding")
    arguments.add_argument("--count", type=int, default=10_000, help="vectors, and images on a map")
    arguments.add_argument("--numbers", type=int, default=4096, help="numbers in a vector")
    arguments.add_argument("--photos", type=Path, help="a folder of photographs")
    arguments.add_argument("--classes", type=Path, help="a folder with a folder of images for each class")
    arguments.add_argument("--tsne", type=int, help="t-SNE of this many vectors, for example 60000; takes 10 minutes")
    arguments.add_argument("--only", choices=("components", "neighbours", "maps"), help="measure one part")
    options = parse(arguments, "embedding")
    rows: Rows = []
    if options.only != "maps":
        x = features(options.count, options.numbers, options.device)
        if options.only != "neighbours":
            rows += components(x, 2) + components(x, 50)
        if options.only != "components":
            rows += neighbours(x)
    if options.only in (None, "maps"):
        rows += maps(options.count)
    if options.photos is not None:
        rows += streaming(options.photos, options.device)
    if options.classes is not None:
        rows += classes(options.classes)
    if options.tsne is not None:
        rows += planes(options.tsne)
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
