"""Whole networks in files: programs of ``torch.export`` and TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fastviz.models import weight_files
from fastviz.models.descriptions import ModelInfo, rename

__all__ = ["is_file_name", "load"]

_TYPES = (*weight_files.FILE_TYPES, ".pt2", ".ts", ".torchscript", ".jit", ".onnx")


def is_file_name(name: str) -> bool:
    """Whether ``name`` is that of a file rather than that of a network.

    >>> is_file_name("nets/small.pt2"), is_file_name("resnet18")
    (True, False)
    """
    path = Path(name).expanduser()
    return path.suffix.lower() in _TYPES or path.is_file()


def load(name: str, weights: object) -> nn.Module:
    """The network in the file ``name``.

    A program of ``torch.export.save`` keeps the layers' names and runs layer by layer, like the original module. A
    TorchScript program (``torch.jit.save``) stays one; its layers are not accessible.

    Raises:
        ValueError: no such file, another kind of file, or a broken one; or ``weights`` beside it.
    """
    path = Path(name).expanduser()
    kind = weight_files.program_kind(path) if path.is_file() else ""
    if not kind:
        _refuse(path, name)
    if weights is not None:
        raise ValueError(f"weights should not be given for {name!r}: it is a program ({kind}) that holds its own")
    try:
        model = _exported(path) if kind == "exported" else torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # a broken file can raise anything: it depends on the parser
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {name!r} cannot be read: {said}") from error
    if kind == "TorchScript":
        model.eval()
    rename(model, ModelInfo(name, str(path)))
    return model


def _exported(path: Path) -> nn.Module:
    """The program as modules with the original layer names, for any number of images where possible."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own file format
        program = torch.export.load(path)
        inputs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        if len(inputs) != 1:
            raise ValueError(f"it should take images and nothing else, and takes {len(inputs)} inputs")
        model = torch.export.unflatten(program)
        like = next(node.meta["val"] for node in program.graph.nodes if node.name == inputs[0].arg.name)
        if isinstance(like, Tensor) and like.dim() and isinstance(like.shape[0], int):
            model = _of_any_batch(model, torch.zeros([*map(int, like.shape)], dtype=like.dtype))
    for module in model.modules():
        module.training = False  # its eval() is refused
    return model


def _of_any_batch(model: torch.export.UnflattenedModule, images: Tensor) -> torch.export.UnflattenedModule:
    """A program for a fixed number of ``images`` exported again, for any number; ``model`` itself if it cannot be
    separated from that number. Two passes check whether the images of a larger batch stay independent.
    """
    generator = torch.Generator().manual_seed(0)
    many = torch.rand((2 * len(images), *images.shape[1:]), generator=generator).to(images.dtype)
    model.check_input_constraints = False
    try:
        shapes = (({0: torch.export.Dim("images")},),)  # of *args
        free = torch.export.unflatten(torch.export.export(model, (many,), dynamic_shapes=shapes))
        with torch.no_grad():
            apart = torch.cat([model(part) for part in many.split(len(images))])
            torch.testing.assert_close(free(many), apart)
        return free
    except Exception:  # torch.export raises many kinds of errors for that
        return model
    finally:
        model.check_input_constraints = True


def _refuse(path: Path, name: str) -> None:
    """Raise an error that says what the file is, since it holds no program."""
    if not path.is_file():
        raise ValueError(f"model {name!r}: no such file")
    if path.suffix.lower() == ".onnx":
        raise ValueError(
            f"model {name!r} is a file of ONNX, which torch does not run: torch.export.save of the module that it was "
            "made from makes a .pt2 file, which fastviz takes"
        )
    state: dict[str, Tensor] = weight_files.read(path)
    raise ValueError(
        f"model {name!r} holds {len(state)} tensors and no network: name the network (a name of torchvision or timm, "
        "or package.module:function) and give this file as its weights"
    )
