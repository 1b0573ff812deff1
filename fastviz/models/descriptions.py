"""What fastviz knows about a model: how to prepare images for it, its class names, its origin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from fastviz._util import checks
from fastviz._util.by_model import ByModel
from fastviz.models import timm_settings
from fastviz.models.demo_network import CLASS_NAMES, INPUT_SIZE, DemoNetwork
from fastviz.models.preparation import IMAGENET, Preprocessing, for_channels

__all__ = [
    "DEMO",
    "Description",
    "ModelInfo",
    "Preprocessing",
    "class_names",
    "describe",
    "describe_as",
    "guess_channels",
    "is_described",
    "model_info",
    "preprocessing",
    "preprocessing_of",
    "remember",
    "rename",
]


@dataclass(frozen=True)
class ModelInfo:
    """Where a model comes from.

    Attributes:
        name: the name given to :func:`load_model`; for any other module the name of its class.
        weights: the name of the weights, the path of their file, ``"built-in"`` for the built-in network, or None for
            random weights and for modules that :func:`load_model` did not make.

    >>> ModelInfo("squeezenet1_0", weights=None)
    ModelInfo(name='squeezenet1_0', weights=None)
    """

    name: str
    weights: str | None


@dataclass(frozen=True)
class Description:
    """What is known of one model."""

    info: ModelInfo
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None


DEMO = Description(
    ModelInfo("demo", None),
    Preprocessing((INPUT_SIZE, INPUT_SIZE), INPUT_SIZE, IMAGENET.mean, IMAGENET.std),
    CLASS_NAMES,
)

# Weak references do not keep the model alive. Nothing is stored on the model, which stays unchanged.
_descriptions: ByModel[Description] = ByModel()


def class_names(model: nn.Module) -> list[str]:
    """The names of the model's classes, index = class.

    They are known for models that :func:`load_model` made (a torchvision network with 1000 classes has ImageNet's
    names, also with random weights) and for models registered with :func:`describe`.

    Args:
        model: any torch module.

    Returns:
        One string a class.

    Raises:
        TypeError: ``model`` is not a torch module.
        ValueError: the names are not known.

    >>> from fastviz.models import load_model
    >>> class_names(load_model("demo"))[5]
    'goldfish'
    """
    known = _describe(model)
    if known.class_names is None:
        raise ValueError(
            f"the class names of this {known.info.name} are not known: give them once with "
            "fastviz.models.describe(model, class_names=[...])"
        )
    return list(known.class_names)


def preprocessing(model: nn.Module) -> Preprocessing:
    """How pictures are prepared for ``model``.

    A model of :func:`load_model` has torchvision's published values: those of its weights by name, else those of the
    network's first published weights. A model registered with :func:`describe` has the preprocessing given there.
    torchvision's detection networks take pictures of 0 to 1 of any size, and normalise them themselves. For every
    other module, the default applies: the shorter side resized to 256 pixels, a centre crop of 224x224,
    ImageNet's mean and standard deviation. If its first convolution takes another number of channels than 3 (see
    :func:`guess_channels`), each channel has the averages of ImageNet's values over the colours, 0.449 and 0.226.

    Args:
        model: any torch module.

    Returns:
        Sizes in pixels, mean and standard deviation in units of a picture with values 0 to 1.

    Raises:
        TypeError: ``model`` is not a torch module.

    >>> preprocessing(nn.Conv2d(3, 1, 1)).size
    (224, 224)
    """
    return _describe(model).preprocessing


def preprocessing_of(model: nn.Module, channels: int, argument: str = "x") -> Preprocessing:
    """:func:`preprocessing`, for a batch of images that has this many ``channels``.

    The batch's number of channels overrides a guess from the model's modules, but not a description of the model.

    Args:
        model: any torch module.
        channels: of the batch.
        argument: what an error calls the batch.

    Returns:
        Its ``mean`` and ``std`` have ``channels`` numbers.

    Raises:
        ValueError: the model is described as one of another number of channels; names ``argument``.

    >>> preprocessing_of(nn.Linear(3, 2), 1).mean
    (0.449,)
    """
    known = preprocessing(model)
    if len(known.mean) == channels:
        return known
    if is_described(model):
        raise ValueError(
            f"{argument} should have the {len(known.mean)} channels of the model's preprocessing, got {channels} "
            "(fastviz.models.describe(model, preprocessing=...) sets another one)"
        )
    return for_channels(IMAGENET, channels)


_CONVOLUTION = re.compile(r"Conv(Bn)?(Add)?(ReLU)?[123]d")


def guess_channels(model: nn.Module) -> int | None:
    """How many channels the images of ``model`` have, by its first convolution.

    The first in the order of registration, which in most models is the order of the calls.

    Args:
        model: any torch module.

    Returns:
        The number of channels; None without a convolution.

    Raises:
        TypeError: ``model`` is not a torch module.

    >>> guess_channels(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))), guess_channels(nn.Linear(3, 2))
    (1, None)
    """
    for module in checks.module(model).modules():
        # A scripted module is not an instance of a class in torch.nn, but it keeps the class's name and attributes.
        kind = getattr(module, "original_name", type(module).__name__)
        # The quantised ones are classes of their own, some with a rectifier in one.
        known = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or _CONVOLUTION.fullmatch(kind) is not None
        channels = getattr(module, "in_channels", None)
        if known and isinstance(channels, int) and channels > 0:  # a lazy convolution has 0 until its first call
            return channels
    return None


def model_info(model: nn.Module) -> ModelInfo:
    """The name of ``model`` and the origin of its weights.

    Args:
        model: any torch module.

    Returns:
        For a module that :func:`load_model` did not make: the name of its class, and None.

    Raises:
        TypeError: ``model`` is not a torch module.

    >>> model_info(nn.Conv2d(3, 1, 1))
    ModelInfo(name='Conv2d', weights=None)
    """
    return _describe(model).info


def describe(
    model: nn.Module, *, preprocessing: Preprocessing | None = None, class_names: Sequence[str] | None = None
) -> None:
    """Tell fastviz how pictures are prepared for ``model`` and what its classes are called; None changes nothing.

    The description is kept as long as the model lives; the model itself is not changed. A copy of the model has no
    description.

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
            raise ValueError("class_names should have one name per class, got none")
        known = replace(known, class_names=tuple(class_names))
    remember(model, known)


def remember(model: nn.Module, description: Description) -> None:
    """Store ``description`` for ``model``, replacing an older one."""
    _descriptions[_unwrapped(model)] = description


def rename(model: nn.Module, info: ModelInfo) -> None:
    """Store ``info`` for ``model``, and keep what else is known of it."""
    remember(model, replace(_describe(model), info=info))


def describe_as(model: nn.Module, other: nn.Module) -> None:
    """Copy what is known of the ``other`` model, if anything, to ``model``."""
    if is_described(other):
        remember(model, _describe(other))


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile`` or data parallelism wrapped; any other module itself."""
    parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = getattr(model, "module" if parallel else "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def _describe(model: nn.Module) -> Description:
    module = _unwrapped(checks.module(model))
    known = _descriptions.get(module)
    if known is not None:
        return known
    if isinstance(module, DemoNetwork):
        return DEMO
    info, channels = ModelInfo(type(module).__name__, None), guess_channels(module) or 3
    if _is_detector(module):
        return Description(info, Preprocessing(None, None, (0.0,) * channels, (1.0,) * channels), None)
    own = timm_settings.preprocessing(module, channels)
    if own is not None:
        return Description(info, own, timm_settings.class_names(module))
    return Description(info, for_channels(IMAGENET, channels), None)


def is_described(model: nn.Module) -> bool:
    """Whether the preprocessing of ``model`` is known, and not guessed."""
    module = _unwrapped(model)
    by_kind = isinstance(module, DemoNetwork) or _is_detector(module)
    return module in _descriptions or by_kind or timm_settings.of(module) is not None


def _is_detector(module: nn.Module) -> bool:
    """Whether it is a detection network of torchvision, which resizes and normalises pictures of 0 to 1 itself."""
    return type(getattr(module, "transform", None)).__name__ == "GeneralizedRCNNTransform"
