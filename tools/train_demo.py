"""Trains the built-in network: ``python tools/train_demo.py DATA.zip --out fastviz/models/data/demo.safetensors``.

DATA.zip is an image folder of the 20 classes (``train/CLASS/*.JPEG``, ``val/CLASS/*.JPEG``, 64x64 RGB). Every epoch
writes a checkpoint beside the output, from which the next run resumes. At the end the batch norms are folded into the
convolutions, the weights are rounded to float16 and written, and the written file is evaluated on the validation
images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz.models.demo_network import INPUT_SIZE, DemoNetwork

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
BATCH = 128


def read_split(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, 64, 64] in 0 to 1 and class indices [N] of one split, classes in alphabetical order."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(f"{split}/") and n.endswith(".JPEG"))
        folders = sorted({n.split("/")[1] for n in names})
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    labels = torch.tensor([folders.index(n.split("/")[1]) for n in names])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255, labels


def augment(x: Tensor, generator: torch.Generator, *, gentle: bool) -> Tensor:
    """Random crop, aspect ratio, rotation, flip, brightness, contrast, saturation and one erased square per picture.

    ``gentle`` makes each change a quarter as large, and erases nothing.
    """
    amount = 0.25 if gentle else 1.0
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    scale = uniform(1 - 0.4 * amount, 1.05)
    aspect, turn = uniform(-0.2 * amount, 0.2 * amount).exp(), uniform(-0.2 * amount, 0.2 * amount)
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = scale * aspect * turn.cos() * mirror
    theta[:, 0, 1] = -scale * turn.sin()
    theta[:, 1, 0] = scale * turn.sin() * mirror
    theta[:, 1, 1] = scale / aspect * turn.cos()
    theta[:, 0, 2] = uniform(-1, 1) * (1.1 - scale)
    theta[:, 1, 2] = uniform(-1, 1) * (1.1 - scale)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def one_each(low: float, high: float) -> Tensor:
        return uniform(low, high).view(n, 1, 1, 1)

    x = x + one_each(-0.15 * amount, 0.15 * amount)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * one_each(1 - 0.3 * amount, 1 + 0.3 * amount)
    grey = x.mean(1, keepdim=True)
    x = (grey + (x - grey) * one_each(1 - 0.5 * amount, 1 + 0.5 * amount)).clamp(0, 1)
    if gentle:
        return x

    size = 20
    rows = torch.randint(-size, INPUT_SIZE, (n, 1), generator=generator)
    columns = torch.randint(-size, INPUT_SIZE, (n, 1), generator=generator)
    line = torch.arange(INPUT_SIZE)
    inside_rows = (line >= rows) & (line < rows + size)
    inside_columns = (line >= columns) & (line < columns + size)
    erased = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return torch.where(erased, MEAN, x)


def cutmix(x: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix for half of the batches: a rectangle of each picture, and that fraction of its target, come from another
    picture."""
    if torch.rand((), generator=generator) < 0.5:
        return x, targets
    share = float(torch.rand((), generator=generator)) * 0.5
    side = round(INPUT_SIZE * share**0.5)
    top, left = torch.randint(0, INPUT_SIZE - side + 1, (2,), generator=generator).tolist()
    order = torch.randperm(len(x), generator=generator)
    mixed = x.clone()
    mixed[..., top : top + side, left : left + side] = x[order][..., top : top + side, left : left + side]
    share = (side / INPUT_SIZE) ** 2
    return mixed, targets * (1 - share) + targets[order] * share


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor, device: torch.device) -> float:
    """Top-1 accuracy."""
    model.eval()
    right = 0
    for batch, truth in zip(((x - MEAN) / STD).split(250), labels.split(250), strict=True):
        right += int((model(batch.to(device)).argmax(1).cpu() == truth).sum())
    return right / len(x)


def fold_batch_norm(trained: DemoNetwork) -> DemoNetwork:
    """An equivalent network in evaluation mode, with the batch norms folded into the convolutions."""
    folded = DemoNetwork().eval()
    state = trained.state_dict()
    for name, module in trained.named_children():
        if isinstance(module, nn.Conv2d):
            norm = trained.get_submodule(name.replace("conv", "norm"))
            assert isinstance(norm, nn.BatchNorm2d)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            state[f"{name}.weight"] = module.weight * scale.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = norm.bias - norm.running_mean * scale
    folded.load_state_dict({k: v for k, v in state.items() if not k.startswith("norm")})
    return folded


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write atomically: to a temporary file beside ``path``, which is then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    temporary.chmod(0o644)  # safetensors creates files that only their owner can read
    os.replace(temporary, path)


@dataclass(frozen=True)
class Phase:
    """Epochs with one learning-rate cycle: up to ``rate`` and down to 0."""

    epochs: int
    rate: float
    gentle: bool  # whether the augmentations are small


# The second phase starts from the averaged weights and fine-tunes them on nearly unchanged pictures.
PHASES = (Phase(45, 0.1, gentle=False), Phase(15, 0.02, gentle=True))


class Training:
    """The state of a run, which checkpoints store and epochs change."""

    def __init__(self, checkpoint: Path, device: torch.device) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.model = DemoNetwork(batch_norm=True).to(device, memory_format=torch.channels_last)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
        )
        self.saved = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {"epoch": -1}
        if self.saved["epoch"] >= 0:
            self.model.load_state_dict(self.saved["model"])
            self.average.load_state_dict(self.saved["average"])

    def begin(self, phase: Phase, first: int, steps: int) -> int:
        """Set up the optimizer and learning rates of a phase; returns the epoch to start with."""
        goes_on = self.saved["epoch"] >= first
        if not goes_on:
            self.model.load_state_dict(self.average.module.state_dict())
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=phase.rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=phase.rate, total_steps=steps * phase.epochs, pct_start=0.15
        )
        if goes_on:
            self.optimizer.load_state_dict(self.saved["optimizer"])
            self.schedule.load_state_dict(self.saved["schedule"])
        return max(first, self.saved["epoch"] + 1)

    def epoch(self, number: int, phase: Phase, x: Tensor, labels: Tensor) -> float:
        """One pass over the pictures, whole batches only; returns the mean loss."""
        generator = torch.Generator().manual_seed(number)
        self.model.train()
        losses = []
        for index in torch.randperm(len(x), generator=generator)[: len(x) // BATCH * BATCH].split(BATCH):
            batch = augment(x[index], generator, gentle=phase.gentle)
            targets = F.one_hot(labels[index], 20).float()
            if not phase.gentle:
                batch, targets = cutmix(batch, targets, generator)
            batch = ((batch - MEAN) / STD).to(self.device, memory_format=torch.channels_last)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = F.cross_entropy(self.model(batch), targets.to(self.device), label_smoothing=0.05)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.average.update_parameters(self.model)
            losses.append(loss.detach())
        self.save(number)
        return float(torch.stack(losses).mean())

    def save(self, number: int) -> None:
        """Write the checkpoint of a finished epoch."""
        parts = ("model", "average", "optimizer", "schedule")
        state = {name: getattr(self, name).state_dict() for name in parts} | {"epoch": number}
        replace_file(self.checkpoint, lambda path: torch.save(state, path))


def train(arguments: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train_x, train_labels = read_split(arguments.data, "train")
    val_x, val_labels = read_split(arguments.data, "val")
    torch.manual_seed(0)
    training = Training(arguments.out.with_suffix(".checkpoint.pt"), device)
    first = 0
    for phase in PHASES:
        last = first + phase.epochs
        if training.saved["epoch"] + 1 < last:
            for number in range(training.begin(phase, first, len(train_x) // BATCH), last):
                started = time.perf_counter()
                loss = training.epoch(number, phase, train_x, train_labels)
                top1 = accuracy(training.average.module, val_x, val_labels, device)
                print(
                    f"epoch {number}: loss {loss:.3f}, top-1 {top1:.3f}, {time.perf_counter() - started:.0f} s",
                    flush=True,
                )
        first = last
    finish(arguments.out, training.average.module.cpu(), val_x, val_labels)


def finish(out: Path, trained: DemoNetwork, val_x: Tensor, val_labels: Tensor) -> None:
    """Fold, round, write, read back and evaluate."""
    folded = fold_batch_norm(trained.eval())
    tensors = {name: value.detach().half().contiguous() for name, value in folded.state_dict().items()}
    replace_file(out, lambda path: save_file(tensors, path))
    shipped = DemoNetwork().eval()
    shipped.load_state_dict({name: value.float() for name, value in load_file(out).items()})
    top1 = accuracy(shipped, val_x, val_labels, torch.device("cpu"))
    print(json.dumps({"validation_top1": top1, "images": len(val_x), "bytes": out.stat().st_size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's default")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        parser.error(f"data should be a zip file of pictures, got {arguments.data}, which does not exist")
    train(arguments)


if __name__ == "__main__":
    main()
