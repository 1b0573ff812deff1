"""Networks by name: their weights, how pictures are prepared for them, and the names of their classes."""

from __future__ import annotations

import enum
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.by_model import ByModel
from fastviz.models import weight_files
from fastviz.models.demo_network import CLASS_NAMES, INPUT_SIZE, DemoNetwork

__all__ = [
    "ModelInfo",
    "Preprocessing",
    "class_names",
    "describe",
    "guess_channels",
    "load_model",
    "model_info",
    "model_names",
    "preprocessing",
    "preprocessing_of",
]

_DEMO_WEIGHTS = Path(__file__).parent / "data" / "demo.safetensors"
_IMAGENET_CLASSES = 1000

# torchvision's networks with side heads that only training uses, and the names of those heads.
_SIDE_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input: resize, crop the centre, subtract ``mean``, divide by ``std``.

    Attributes:
        size: height and width of the input in pixels; None keeps what the resizing gives.
        resize: length in pixels of the picture's shorter side before the crop, its shape kept; None resizes the whole
            picture to ``size`` without a crop, changing its shape.
        mean: one number a channel, in units of a picture with values 0 to 1. One number alone makes the input grey.
        std: as ``mean``.
        interpolation: ``"bilinear"`` or ``"bicubic"``, both with antialiasing.

    Raises:
        ValueError: a size below 1, a crop larger than what ``resize`` leaves, ``mean`` and ``std`` of different
            lengths, a ``std`` of 0 or less.

    >>> Preprocessing(size=(224, 224), resize=256, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).size
    (224, 224)
    """

    size: tuple[int, int] | None
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if self.size is not None:
            if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
                raise ValueError(f"size should be (height, width) or None, got {self.size!r}")
            height, width = (checks.whole_number(length, "size", minimum=1) for length in self.size)
            object.__setattr__(self, "size", (height, width))
        if self.resize is not None:
            checks.whole_number(self.resize, "resize", minimum=1)
            if self.size is not None and self.resize < max(self.size):
                raise ValueError(
                    f"resize should be at least the larger side of size, {max(self.size)}, got {self.resize}"
                )
        for argument in ("mean", "std"):
            object.__setattr__(self, argument, tuple(float(number) for number in getattr(self, argument)))
            if not all(math.isfinite(number) for number in getattr(self, argument)):
                raise ValueError(f"{argument} should be finite, got {getattr(self, argument)}")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean and std should have one number a channel each, got {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std should be above 0, got {self.std}")
        checks.one_of(self.interpolation, "interpolation", ("bilinear", "bicubic"))


@dataclass(frozen=True)
class ModelInfo:
    """Where a model comes from.

    Attributes:
        name: the name given to :func:`load_model`; for any other module the name of its class.
        weights: the name of the weights, the path of their file, ``"built-in"`` for the built-in network, or None for
            random weights and for modules that :func:`load_model` did not make.
    """

    name: str
    weights: str | None


@dataclass(frozen=True)
class _Description:
    """What is known of one model."""

    info: ModelInfo
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None


_IMAGENET = Preprocessing((224, 224), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# of the three colours; for images that have others
_GREY_MEAN, _GREY_STD = 0.449, 0.226
_DEMO = _Description(
    ModelInfo("demo", None),
    Preprocessing((INPUT_SIZE, INPUT_SIZE), INPUT_SIZE, _IMAGENET.mean, _IMAGENET.std),
    CLASS_NAMES,
)

# Weak, so that describing a model does not keep it alive; beside the model, so that the model stays as it is.
_descriptions: ByModel[_Description] = ByModel()


def load_model(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """The network called ``name``, in evaluation mode, in float32 on the CPU.

    Args:
        name: ``"demo"``, the small trained network inside the package (20 classes, 64x64 pixels, no network access and
            no torchvision needed), or one of torchvision's classification networks, see :func:`model_names`.
        weights: the name of torchvision weights (``"DEFAULT"``, ``"IMAGENET1K_V1"``), which torchvision downloads once;
            or the path of a file of weights (.safetensors, .pth, .pt, .ckpt, .bin, .tar: the content decides, not the
            name); or None: random weights, drawn from torch's generator (for ``"demo"``: its own trained weights).

    A file may hold float16, bfloat16 or float64; the parameters are float32. It may be the checkpoint of a training
    script, with the state dict under one of the usual keys and what wrappers leave before every name, see
    :func:`fastviz.models.weight_files.unpack`, and hold another number of classes than 1000 (then give their names with
    :func:`describe`). Where it holds two sets of weights, plain and averaged, a warning says which is taken: the plain
    one. Files are read with ``torch.load(weights_only=True)`` and a few harmless classes beside tensors (NumPy's
    numbers, ``argparse.Namespace``), so no code in them runs. A file named as torchvision's download is known as those
    weights. NaN and infinite values are warned of.

    The side heads of GoogLeNet and Inception v3, which only training uses, are left out. Both networks rescale their
    input themselves when they get weights (``transform_input=True``, as all weights that descend from torchvision's
    need it; for others set ``model.transform_input = False``).

    Loading weights draws no random numbers.

    Raises:
        TypeError: ``name`` or ``weights`` of another type.
        ValueError: an unknown name (with the nearest ones), a file that is missing, broken or wants to run code, or
            weights of another architecture (with all names that differ, and the network they fit, where that is one
            of torchvision's with 1000 classes).
        ModuleNotFoundError: torchvision is needed and not installed.
        OSError: weights could not be downloaded.

    >>> model = load_model("demo")
    >>> class_names(model)[-1]
    'tabby cat'
    """
    if not isinstance(name, str):
        raise TypeError(f"name should be a string, got {type(name).__name__}")
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise TypeError(
            f"weights should be the name of torchvision weights, a path, or None, got {type(weights).__name__}"
        )
    if name == "demo":
        return _load_demo(weights)
    vision = _torchvision_models()
    if vision is None:
        raise ModuleNotFoundError(
            f"model {name!r} needs torchvision: pip install torchvision (without it there is only 'demo')"
        )
    checks.nearest(name, "model", model_names())
    published = vision.get_model_weights(name)
    if weights is None:
        model = _build(name, next(iter(published)), _IMAGENET_CLASSES, trained=False)
        return _finish(model, name, None, next(iter(published)), _IMAGENET_CLASSES)
    choice = _choose_weights(weights, name, published)
    if isinstance(choice, Path):
        # A file that keeps the name of a download is those weights; any other is prepared for as the oldest are.
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


def model_names() -> list[str]:
    """The names :func:`load_model` knows: ``"demo"``, then torchvision's classification networks in alphabetical order.

    Without torchvision only ``"demo"``.
    """
    vision = _torchvision_models()
    return ["demo"] if vision is None else ["demo", *vision.list_models(module=vision)]


def class_names(model: nn.Module) -> list[str]:
    """The names of the model's classes, index = class.

    Known for what :func:`load_model` makes (for a torchvision network with 1000 classes: ImageNet's names, also when
    its weights are random) and for what :func:`describe` was told.

    Raises:
        TypeError: ``model`` is not a torch module.
        ValueError: the names are not known.
    """
    known = _describe(model)
    if known.class_names is None:
        raise ValueError(
            f"the class names of this {known.info.name} are not known: tell them once with "
            "fastviz.models.describe(model, class_names=[...])"
        )
    return list(known.class_names)


def preprocessing(model: nn.Module) -> Preprocessing:
    """How pictures are prepared for ``model``.

    Known for what :func:`load_model` makes (torchvision's published values: those of the weights by name, else those of
    the network's first published weights) and for what :func:`describe` was told. For every other module: shorter side
    resized to 256 pixels, centre crop of 224x224, ImageNet's mean and standard deviation; where its first convolution
    takes another number of channels than 3 (see :func:`guess_channels`), the means of those over the colours, 0.449 and
    0.226, for each channel.

    Raises:
        TypeError: ``model`` is not a torch module.

    >>> preprocessing(nn.Conv2d(3, 1, 1)).size
    (224, 224)
    """
    return _describe(model).preprocessing


def preprocessing_of(model: nn.Module, channels: int, argument: str = "x") -> Preprocessing:
    """:func:`preprocessing`, for a batch of images that has this many ``channels``.

    What a batch shows is believed before what the modules of a model let guess, but not before what was told.

    Raises:
        ValueError: the model is described as one of another number of channels; names ``argument``.
    """
    known = preprocessing(model)
    if len(known.mean) == channels:
        return known
    if _is_described(model):
        raise ValueError(
            f"{argument} should have the {len(known.mean)} channels of the model's preprocessing, got {channels} "
            "(fastviz.models.describe(model, preprocessing=...) tells another one)"
        )
    return _usual(channels)


def guess_channels(model: nn.Module) -> int | None:
    """How many channels the images of ``model`` have, as its first convolution says; None without a convolution.

    First in the order in which the modules were registered, which most models call them in.

    >>> guess_channels(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))), guess_channels(nn.Linear(3, 2))
    (1, None)
    """
    for module in model.modules():
        # scripted ones are of no class of torch.nn, but keep their names and numbers
        kind = getattr(module, "original_name", type(module).__name__)
        known = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or kind in ("Conv1d", "Conv2d", "Conv3d")
        channels = getattr(module, "in_channels", None)
        if known and isinstance(channels, int) and channels > 0:  # 0 is a lazy one that has seen nothing yet
            return channels
    return None


def model_info(model: nn.Module) -> ModelInfo:
    """The name of ``model`` and where its weights come from.

    Raises:
        TypeError: ``model`` is not a torch module.

    >>> model_info(nn.Conv2d(3, 1, 1))
    ModelInfo(name='Conv2d', weights=None)
    """
    return _describe(model).info


def describe(
    model: nn.Module, *, preprocessing: Preprocessing | None = None, class_names: Sequence[str] | None = None
) -> None:
    """Tell fastviz how pictures are prepared for ``model`` and what its classes are called; None leaves it as it was.

    Kept beside the model, which is not changed, as long as the model lives, or until
    :func:`fastviz.forget`; a copy of the model is not described.

    Args:
        model: any torch module.
        preprocessing: resizing, crop, mean and standard deviation.
        class_names: one string a class, index = class.

    Raises:
        TypeError: an argument of another type.
        ValueError: no class names.

    >>> model = nn.Linear(3, 2)
    >>> describe(model, class_names=["cat", "dog"])
    >>> class_names(model)
    ['cat', 'dog']
    """
    known = _describe(model)
    if preprocessing is not None:
        if not isinstance(preprocessing, Preprocessing):
            raise TypeError(f"preprocessing should be a Preprocessing, got {type(preprocessing).__name__}")
        known = replace(known, preprocessing=preprocessing)
    if class_names is not None:
        if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
            raise TypeError(f"class_names should be a list of strings, got {class_names!r}")
        if not class_names:
            raise ValueError("class_names should have one name a class, got none")
        known = replace(known, class_names=tuple(class_names))
    _descriptions[_unwrapped(model)] = known


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile`` returned; any other module itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _describe(model: nn.Module) -> _Description:
    module = _unwrapped(checks.module(model))
    known = _descriptions.get(module)
    if known is not None:
        return known
    if isinstance(module, DemoNetwork):
        return _DEMO
    return _Description(ModelInfo(type(module).__name__, None), _usual(guess_channels(module) or 3), None)


def _is_described(model: nn.Module) -> bool:
    module = _unwrapped(model)
    return module in _descriptions or isinstance(module, DemoNetwork)


def _usual(channels: int) -> Preprocessing:
    """What is taken for a model that nobody has described."""
    if channels == len(_IMAGENET.mean):
        return _IMAGENET
    return replace(_IMAGENET, mean=(_GREY_MEAN,) * channels, std=(_GREY_STD,) * channels)


def _torchvision_models() -> Any | None:
    """The module ``torchvision.models``, or None where torchvision is not installed."""
    try:
        import torchvision.models
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torchvision":
            raise
        return None
    return torchvision.models


def _load_demo(weights: str | os.PathLike[str] | None) -> nn.Module:
    if weights is None or weights == "DEFAULT":
        path, source = _DEMO_WEIGHTS, "built-in"
        if not path.is_file():
            raise FileNotFoundError(f"the weights of the built-in network are missing, reinstall fastviz: {path}")
    else:
        path = Path(os.path.expanduser(weights))
        source = str(path)
    state = weight_files.read(path)
    with weight_files.NoWeightsYet():
        model = DemoNetwork()
    state = weight_files.chosen(state, model.state_dict(), source)
    problem = weight_files.fill(model, state)
    if problem:
        raise ValueError(f"weights {source!r} do not fit demo: {problem}")
    weight_files.check_finite(state, source)
    _descriptions[model] = replace(_DEMO, info=ModelInfo("demo", source))
    return model.eval()


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
    """``model`` in evaluation mode and described, prepared for as torchvision's weights ``member`` are."""
    transform = member.transforms()
    categories = member.meta.get("categories")
    _descriptions[model] = _Description(
        ModelInfo(name, source),
        Preprocessing(
            (transform.crop_size[0], transform.crop_size[0]),
            transform.resize_size[0],
            tuple(transform.mean),
            tuple(transform.std),
            transform.interpolation.value,
        ),
        tuple(categories) if categories and len(categories) == classes else None,
    )
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
