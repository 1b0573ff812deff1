"""torchvision's classification networks: their construction, and their weights by name or from a file."""

from __future__ import annotations

import enum
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastviz._util import checks
from fastviz.models import timm_networks, weight_files
from fastviz.models.descriptions import Description, ModelInfo, Preprocessing, remember

__all__ = ["load", "names"]

_IMAGENET_CLASSES = 1000

# torchvision's networks with side heads that only training uses, and the names of those heads.
_SIDE_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def names() -> list[str]:
    """The names of torchvision's classification networks in alphabetical order; empty without torchvision."""
    vision = _torchvision_models()
    return [] if vision is None else [str(name) for name in vision.list_models(module=vision)]


def load(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    """The network ``name`` with ``weights``, see :func:`fastviz.load_model`."""
    vision = _torchvision_models()
    if vision is None:
        raise ModuleNotFoundError(
            f"model {name!r} needs torchvision: pip install \"fastviz[vision]\" (without it there is only 'demo')"
        )
    timm = timm_networks.PREFIX + name
    if name not in names() and timm in timm_networks.names():
        raise ValueError(f"model {name!r} is not one of torchvision's: timm has it, as {timm!r}")
    checks.nearest(name, "model", ["demo", *names()])
    published = vision.get_model_weights(name)
    if weights is None:
        model = _build(name, next(iter(published)), _IMAGENET_CLASSES, trained=False)
        return _finish(model, name, None, next(iter(published)), _IMAGENET_CLASSES)
    choice = _choose_weights(weights, name, published)
    if isinstance(choice, Path):
        # A file with the name of a download is taken for those weights. Any other gets the preprocessing of the oldest.
        member = next((m for m in published if Path(m.url).stem == choice.stem), next(iter(published)))
        state, source = weight_files.read(choice), str(choice)
    else:
        state, member, source = _download(choice, name), choice, choice.name
    model = _build(name, member, _IMAGENET_CLASSES, trained=True)
    state = weight_files.chosen(state, model.state_dict(), source)
    fitting = _adapt(state, name)
    classes = weight_files.new_row_count(fitting, model.state_dict(), _IMAGENET_CLASSES)
    if classes != _IMAGENET_CLASSES:
        model = _build(name, member, classes, trained=True)
    problem = weight_files.fill(model, fitting)
    if problem:
        owner = _owner(state, tried=name)
        whose = f"they are weights of {owner}; " if owner else ""
        raise ValueError(f"weights {source!r} do not fit {name}: {whose}{problem}")
    weight_files.check_finite(fitting, source)
    return _finish(model, name, source, member, classes)


def _torchvision_models() -> Any | None:
    """The module ``torchvision.models``, or None where torchvision is not installed."""
    try:
        import torchvision.models
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torchvision":
            raise
        return None
    return torchvision.models


def _build(name: str, member: Any, classes: int, *, trained: bool) -> nn.Module:
    """A torchvision network with random weights; with ``trained`` one that waits for :func:`weight_files.fill`."""
    vision = _torchvision_models()
    assert vision is not None
    options: dict[str, Any] = {"num_classes": classes}
    if name in _SIDE_HEADS:
        options |= {"aux_logits": False, "init_weights": not trained, "transform_input": trained}
    if name.startswith("vit_"):
        # The position embedding has a fixed size, which depends on the weights.
        options["image_size"] = member.meta["min_size"][0]
    if not trained:
        model: nn.Module = vision.get_model(name, weights=None, **options)
        return model
    with weight_files.NoWeightsYet():
        model = vision.get_model(name, weights=None, **options)
    return model


def _finish(model: nn.Module, name: str, source: str | None, member: Any, classes: int) -> nn.Module:
    """``model`` in evaluation mode and described, with the preprocessing of torchvision's weights ``member``."""
    transform = member.transforms()
    categories = member.meta.get("categories")
    preprocessing = Preprocessing(
        (transform.crop_size[0], transform.crop_size[0]),
        transform.resize_size[0],
        tuple(transform.mean),
        tuple(transform.std),
        transform.interpolation.value,
    )
    classes_known = categories and len(categories) == classes
    remember(model, Description(ModelInfo(name, source), preprocessing, tuple(categories) if classes_known else None))
    return model.eval()


def _choose_weights(weights: str | os.PathLike[str], name: str, published: type[enum.Enum]) -> Any:
    """A member of torchvision's enum of weights, or the path of a file."""
    if isinstance(weights, str):
        word = weights.removeprefix(f"{published.__name__}.")
        if word in published.__members__:
            return published[word]
    path = Path(os.path.expanduser(weights))
    if path.suffix.lower() in weight_files.FILE_TYPES or path.exists() or isinstance(weights, os.PathLike):
        return path
    names = ", ".join(repr(word) for word in published.__members__)
    raise ValueError(
        f"weights of {name} should be {names}, or the path of a {', '.join(weight_files.FILE_TYPES)} file, "
        f"got {weights!r}"
    )


def _download(member: Any, name: str) -> dict[str, Tensor]:
    try:
        loaded = member.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no space, or not the promised file
        raise OSError(
            f"weights {member.name} of {name} could not be downloaded from {member.url}: {error}; "
            "a file that is already there can be given by its path"
        ) from error
    return weight_files.unpack(loaded, member.url)


def _adapt(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """``state`` without the side heads of network ``name``, with the names of tensors that torchvision has today."""
    side_heads = _SIDE_HEADS.get(name, ())
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(side_heads)}
    if name.startswith("densenet"):
        # torchvision's files are older than the rule that module names have no dots: "norm.1.weight" is "norm1.weight".
        kept = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in kept.items()}
    return kept


def _owner(state: Mapping[str, Tensor], *, tried: str) -> str | None:
    """The torchvision network with 1000 classes that ``state`` fits, found by its number of parameters, or None."""
    vision = _torchvision_models()
    assert vision is not None
    for name in vision.list_models(module=vision):
        member = next(iter(vision.get_model_weights(name)))
        # The published number of Inception's parameters counts its side head.
        counted = state if name == "inception_v3" else _adapt(state, name)
        if (
            name != tried
            and member.meta.get("num_params") == weight_files.parameter_count(counted)
            and not weight_files.fill(_build(name, member, _IMAGENET_CLASSES, trained=True), _adapt(state, name))
        ):
            return str(name)
    return None
