"""A job compared with the bare methods and a captum script: ``python -m benchmarks.jobs.throughput IMAGES``.

Saliency and Grad-CAM of the built-in network over a folder of images. The bare loop reads batches of the same size,
runs the two methods and keeps nothing; a second loop reads the images before the clock starts. The script runs captum
image by image and writes a ``.npy`` file for each method. The job writes its tables. All of them alternate in chunks.
Freed memory is kept, as it is on the command line, for all of them alike.

Then the whole job runs with the local engine and with Ray, on two cores, for Ray with two actors of one core each. An
actor takes seconds to start, so a Ray run with one batch per actor is measured too, and the ratio is given with and
without it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fastviz as fv
from benchmarks.common import parse, parser, write
from fastviz import images, jobs
from fastviz._util.memory import keep_freed_memory

METHODS = ["saliency", "grad_cam"]
LAYER = "relu5_1"


def bare_loop(model: nn.Module, files: Sequence[Path], size: int) -> None:
    """Read and explain the images, and keep nothing."""
    seen = fv.images.settings_for(model)
    for first in range(0, len(files), size):
        explained(model, torch.stack([images.read_prepared(file, seen) for file in files[first : first + size]]))


def explained(model: nn.Module, x: torch.Tensor) -> None:
    fv.saliency(model, x)
    fv.grad_cam(model, x)


def captum_script(model: nn.Module, files: Sequence[Path], out: Path) -> None:
    """A typical captum script: one image at a time, one file per map."""
    from captum.attr import LayerGradCam, Saliency

    seen = fv.images.settings_for(model)
    saliency, cam = Saliency(model), LayerGradCam(model, model.get_submodule(LAYER))
    for file in files:
        x = images.read_prepared(file, seen)[None].requires_grad_()
        target = int(model(x).argmax())
        heat = saliency.attribute(x, target=target).amax(1)[0]
        place = cam.attribute(x, target=target, relu_attributions=True)[0, 0]
        for name, found in (("saliency", heat), ("grad_cam", place)):
            path = out / name / f"{file.parent.name}-{file.stem}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, found.detach().numpy())


def against_ray(model: nn.Module, files: Sequence[Path], size: int, rounds: int) -> dict[str, Any]:
    """The same job with both engines on two cores, alternating."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:2])  # also for the processes that Ray starts
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    times: dict[str, list[float]] = {"local": [], "ray": [], "ray, a batch an actor": []}
    try:
        for _ in range(rounds):
            for name in times:
                part = files[: 2 * size] if "batch" in name else files
                options = {"model": model, "methods": METHODS, "batch_size": size}
                if name != "local":
                    options |= {"engine": "ray", "workers": 2}
                with tempfile.TemporaryDirectory() as out:
                    times[name].append(timed(partial(jobs.run, part, out, **options)))
                    assert jobs.open(out).count(ok=True) == len(part)
    finally:
        ray.shutdown()
        os.sched_setaffinity(0, cores)
    median = {name: float(np.median(each)) for name, each in times.items()}
    both = 2 * size / len(files) * median["local"]
    start = max(0.0, median["ray, a batch an actor"] - both)
    return {
        "what": f"the same by Ray, 2 actors on 2 cores, {len(files)} images",
        "images": len(files),
        "seconds": {name: round(value, 2) for name, value in median.items()},
        "seconds_to_start": round(start, 2),
        "ray_over_local": round(median["ray"] / median["local"], 3),
        "ray_over_local_without_the_start": round((median["ray"] - start) / median["local"], 3),
        "targets": {"ray_over_local_without_the_start": 1.15},
    }


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    arguments = parser(__doc__, "jobs/throughput")
    arguments.add_argument("images", type=Path)
    arguments.add_argument("--count", type=int, default=5000)
    arguments.add_argument("--chunks", type=int, default=4)
    arguments.add_argument("--script", type=int, default=500, help="images for the captum script")
    arguments.add_argument("--ray-rounds", type=int, default=3, help="0 leaves Ray out")
    given = parse(arguments, "jobs/throughput")
    keep_freed_memory()
    model = fv.load_model("demo")
    files = images.find_images(given.images)[: given.count]
    home = Path(tempfile.mkdtemp())
    size = 48
    warm = torch.rand(size, 3, 64, 64)
    explained(model, warm)
    ready = torch.rand(size, 3, 64, 64)
    times: dict[str, list[float]] = {name: [] for name in ("job", "bare loop", "bare loop, images in memory", "script")}
    memory = []
    step = len(files) // given.chunks
    for chunk in range(given.chunks):
        part = files[chunk * step : (chunk + 1) * step]
        run = lambda part=part: jobs.run(part, home / "out", model=model, methods=METHODS, batch_size=size)  # noqa: E731
        times["job"].append(timed(run) / step)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        times["bare loop"].append(timed(lambda part=part: bare_loop(model, part, size)) / step)
        passes = max(1, step // size // 4)
        in_memory = timed(lambda passes=passes: [explained(model, ready) for _ in range(passes)])
        times["bare loop, images in memory"].append(in_memory / passes / size)
        few = part[: given.script // given.chunks]
        times["script"].append(timed(lambda few=few: captum_script(model, few, home / "npy")) / len(few))
    results = jobs.open(home / "out")
    assert results.count(ok=True) == step * given.chunks
    size_on_disk = sum(path.stat().st_size for path in results.parts)
    median = {name: 1000 * float(np.median(each)) for name, each in times.items()}
    rows: list[dict[str, Any]] = [
        {
            "what": f"saliency and Grad-CAM, demo network, {step * given.chunks} images",
            "images": step * given.chunks,
            "ms_an_image": {name: round(value, 3) for name, value in median.items()},
            "job_over_bare_loop": round(median["job"] / median["bare loop"], 3),
            "job_over_bare_loop_images_in_memory": round(median["job"] / median["bare loop, images in memory"], 3),
            "script_over_job": round(median["script"] / median["job"], 2),
            "peak_mb_after_each_chunk": memory,
            "bytes_an_image": size_on_disk // (step * given.chunks),
            "targets": {"job_over_bare_loop": 1.1, "script_over_job": 4},
        }
    ]
    shutil.rmtree(home)
    if given.ray_rounds:
        rows.append(against_ray(model, files, size, given.ray_rounds))
    print(json.dumps(rows, indent=2))
    write(given.out, rows, given.device)


if __name__ == "__main__":
    main()
