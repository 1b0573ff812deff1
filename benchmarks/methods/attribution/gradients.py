"""Gradient methods compared with captum: ``python -m benchmarks.methods.attribution.gradients [--only PART]
[--rounds N]``.

Parts: ``methods``, saliency, guided backprop and deconvnet of 8 images on eight networks; ``bfloat16``, guided backprop
in lower precision; ``units``, single units of a layer; ``folder``, saliency from files to maps, with freed memory kept
for all as on the command line; ``memory``, peak memory per image. Each part can be run separately; the file keeps the
results of the others.

captum gets the network in contiguous and in channels_last memory. Its guided backprop and deconvnet use hooks on
``nn.ReLU`` modules that must not be in-place, so it gets a copy with out-of-place ones. It does not handle functional
rectifiers and ReLU6, which saves it time.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastviz as fv
from benchmarks.common import parse, parser, row, shares, side_by_side, write
from fastviz._util.memory import keep_freed_memory
from fastviz.images import streams

NETWORKS = (
    "alexnet",
    "vgg16",
    "squeezenet1_0",
    "googlenet",
    "resnet50",
    "densenet121",
    "inception_v3",
    "mobilenet_v2",
)
METHODS = {"saliency": "Saliency", "guided_backprop": "GuidedBackprop", "deconvnet": "Deconvolution"}
BATCH = 8
TARGET_CLASS = 7
UNITS = 128
PICTURES = 64

Rows = list[dict[str, Any]]
Call = Callable[[], Any]


def network(name: str, device: torch.device, batch: int = BATCH) -> tuple[nn.Module, Tensor]:
    """A torchvision network with random weights, and images of the right size."""
    import torchvision

    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **quick).eval().to(device)
    size = 299 if name == "inception_v3" else 224
    return model, torch.randn(batch, 3, size, size, device=device)


def for_hooks(model: nn.Module) -> nn.Module:
    """A copy with out-of-place rectifiers."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def captum_calls(model: nn.Module, x: Tensor, method: str) -> dict[str, Call]:
    """captum with the unchanged torchvision model, and with everything in channels_last memory."""
    from captum import attr

    calls = {}
    for words, order in (("captum", torch.contiguous_format), ("captum, channels_last", torch.channels_last)):
        theirs = (copy.deepcopy(model) if method == "saliency" else for_hooks(model)).to(memory_format=order)
        images = x.contiguous(memory_format=order)
        explainer = getattr(attr, METHODS[method])(theirs)
        calls[words] = lambda e=explainer, i=images: e.attribute(i, target=TARGET_CLASS)
    return calls


def in_turns(calls: dict[str, Call], device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Times of the ``calls``; on a GPU, ours are CUDA graph replays after the warm-up."""
    with fv.cuda_graphs():
        return side_by_side(calls, device, rounds=rounds, least=0, warm_up=3 if device.type == "cuda" else 1)


def methods(device: torch.device, rounds: int, networks: Sequence[str] = NETWORKS) -> Rows:
    rows = []
    for name in networks:
        model, x = network(name, device)
        for method in METHODS:
            ours = getattr(fv, method)
            calls = {"fastviz": lambda f=ours, m=model, i=x: f(m, i, TARGET_CLASS), **captum_calls(model, x, method)}
            times = in_turns(calls, device, rounds)
            reach = 1.0
            if method == "guided_backprop" and name in ("resnet50", "vgg16"):
                reach = 1.2 if device.type == "cpu" else 2.0
            found = row(method, f"{name}, {BATCH} images", times, {"captum": reach})
            rows.append({**found, "profile": shares(calls["fastviz"], device)})
    return rows


def bfloat16(device: torch.device, rounds: int) -> Rows:
    """captum runs under autocast too, and in the model's own precision."""
    rows = []
    for name in ("resnet50", "vgg16"):
        model, x = network(name, device)
        rivals = captum_calls(model, x, "guided_backprop")

        def lower(call: Call) -> Call:
            def run() -> Any:
                with torch.autocast(device.type, torch.bfloat16):
                    return call()

            return run

        calls = {
            "fastviz": lambda m=model, i=x: fv.guided_backprop(m, i, TARGET_CLASS, precision="bfloat16"),
            **rivals,
            "captum, channels_last, bfloat16": lower(rivals["captum, channels_last"]),
        }
        times = in_turns(calls, device, rounds)
        reach = 1.5 if device.type == "cpu" else 3.0
        rows.append(row("guided_backprop bfloat16", f"{name}, {BATCH} images", times, {"captum": reach}))
    return rows


def units(device: torch.device, rounds: int) -> Rows:
    """Units of AlexNet's third convolution, at random positions and channels of its 384 maps of 13x13."""
    from captum.attr import NeuronGuidedBackprop

    model, x = network("alexnet", device, batch=1)
    theirs = for_hooks(model)
    explainer = NeuronGuidedBackprop(theirs, theirs.features[6])
    generator = torch.Generator().manual_seed(0)
    places = [torch.randint(high, (UNITS,), generator=generator) for high in (384, 13, 13)]
    chosen = [(k, (i, j)) for k, i, j in zip(*(place.tolist() for place in places), strict=True)]

    def captum(batch: int) -> None:
        for start in range(0, UNITS, batch):
            k, i, j = (place[start : start + batch].to(device) for place in places)
            copies = x.expand(len(k), -1, -1, -1).contiguous()
            numbers = torch.arange(len(k), device=device)
            explainer.attribute(copies, lambda maps, at=(numbers, k, i, j): maps[at])

    def captum_singly() -> None:
        for k, (i, j) in chosen:
            explainer.attribute(x, (k, i, j))

    def fastviz() -> None:
        fv.guided_backprop(model, x, [fv.neuron("features.6", k, at) for k, at in chosen])

    def fastviz_singly() -> None:
        for k, at in chosen:
            fv.guided_backprop(model, x, fv.neuron("features.6", k, at))

    rows = []
    case = f"{UNITS} units of AlexNet conv3"
    calls = {"fastviz": fastviz, "captum, 32 units a pass": lambda: captum(32), "captum, one a pass": captum_singly}
    times = in_turns(calls, device, rounds)
    rows.append(row("guided_backprop of units", case, times, {"captum, 32 units a pass": 5, "captum, one a pass": 5}))
    calls = {"fastviz": fastviz_singly, "captum, one a pass": captum_singly}
    times = in_turns(calls, device, rounds)
    rows.append(row("guided_backprop of units", f"{case}, one a call", times, {"captum, one a pass": 5}))
    return rows


def write_pictures(folder: Path) -> None:
    """Smooth random pictures of 500x375 pixels as JPEG files."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for number in range(PICTURES):
        coarse = torch.rand(1, 3, 24, 32, generator=generator)
        pixels = nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)[0]
        noisy = (pixels + 0.05 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
        array = (noisy * 255).byte().permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(folder / f"{number:03}.jpg", quality=90)


def folder(device: torch.device, rounds: int) -> Rows:
    """From files to maps: the predicted class and its saliency for every picture in a folder."""
    keep_freed_memory()
    from captum.attr import Saliency
    from PIL import Image
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    rows = []
    with tempfile.TemporaryDirectory() as place:
        write_pictures(Path(place))
        files = sorted(Path(place).iterdir())
        for name in ("squeezenet1_0", "resnet50"):
            model = fv.load_model(name).to(device)
            plain = copy.deepcopy(model)

            def script(plain: nn.Module = plain) -> None:
                explainer = Saliency(plain)
                for file in files:
                    x = prepare(Image.open(file).convert("RGB"))[None].to(device)
                    with torch.no_grad():
                        target = plain(x).argmax(1)
                    explainer.attribute(x.requires_grad_(), target=target).amax(1).cpu()

            def fastviz(model: nn.Module = model, precision: Any = "model") -> None:
                for batch in streams.batches(place, model=model, batch_size=16):
                    fv.saliency(model, batch.images, precision=precision).cpu()

            calls: dict[str, Call] = {"fastviz": fastviz, "captum, picture by picture": script}
            times = in_turns(calls, device, rounds)
            reach = {"captum, picture by picture": 3.0 if device.type == "cpu" else 10.0}
            found = row("saliency of a folder", f"{name}, {PICTURES} JPEG files", times, reach)
            rows.append({**found, "profile": shares(fastviz, device), "captum_profile": shares(script, device)})
            calls["fastviz"] = lambda f=fastviz: f(precision="bfloat16")
            times = in_turns(calls, device, rounds)
            rows.append(row("saliency of a folder, bfloat16", f"{name}, {PICTURES} JPEG files", times, reach))
    return rows


def peak_memory(name: str, who: str, device: torch.device) -> float:
    """MB per image that guided backprop of a batch needs beyond the model and the images, in a separate process."""
    model, x = network(name, device)
    calls = {"fastviz": lambda: fv.guided_backprop(model, x, TARGET_CLASS), **captum_calls(model, x, "guided_backprop")}
    if device.type == "cuda":
        calls[who]()
        torch.cuda.reset_peak_memory_stats()
        before: float = torch.cuda.memory_allocated()
        calls[who]()
        return (torch.cuda.max_memory_allocated() - before) / 2**20 / BATCH
    fv.guided_backprop(model, x[:1], TARGET_CLASS)  # libraries allocate memory on their first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls[who]()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / BATCH


def memory(device: torch.device, rounds: int) -> Rows:
    """Rows whose "times" are megabytes per image, printed and stored separately from the others."""
    rows = []
    for name in NETWORKS:
        found = {}
        for who in ("fastviz", "captum", "captum, channels_last"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.methods.attribution.gradients",
                "--device",
                str(device),
                "--peak",
                name,
                who,
            ]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[who] = float(said.split()[-1])
        print(f"peak memory per image, {name:15s} " + "  ".join(f"{who} {mb:.0f} MB" for who, mb in found.items()))
        rows.append({"network": name, "megabytes_an_image": found})
    return rows


PARTS = {"methods": methods, "bfloat16": bfloat16, "units": units, "folder": folder}


def options() -> argparse.Namespace:
    arguments = parser(__doc__, "gradients")
    arguments.add_argument(
        "--only", choices=[*PARTS, "memory"], help="run one part; the file keeps the results of the others"
    )
    arguments.add_argument("--networks", nargs="+", choices=NETWORKS, help='measure only these of the part "methods"')
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--peak", nargs=2, metavar=("NETWORK", "WHO"), help="print the peak memory and stop")
    return parse(arguments, "gradients")


def kept(path: Path, part: str) -> Rows:
    """The rows of one part in an earlier result file."""
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    return [each for each in earlier if each.get("part") == part]


def main() -> None:
    warnings.simplefilter("ignore")
    chosen = options()
    if chosen.peak:
        print(peak_memory(*chosen.peak, chosen.device))
        return
    rows = []
    if chosen.networks:
        made = [{**each, "part": "methods"} for each in methods(chosen.device, chosen.rounds, chosen.networks)]
        new = {(each["name"], each["case"]) for each in made}
        earlier = [each for part in PARTS for each in kept(chosen.out, part)]
        write(chosen.out, [each for each in earlier if (each["name"], each["case"]) not in new] + made, chosen.device)
        return
    for part, measure in PARTS.items():
        if chosen.only in (None, part):
            rows += [{**each, "part": part} for each in measure(chosen.device, chosen.rounds)]
        else:
            rows += kept(chosen.out, part)
    if chosen.only != "memory":
        write(chosen.out, rows, chosen.device)
    if chosen.only in (None, "memory"):
        place = chosen.out.parent / "memory" / chosen.out.name
        write(place, memory(chosen.device, chosen.rounds), chosen.device)


if __name__ == "__main__":
    main()
