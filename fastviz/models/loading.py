"""A network by name: the demo network inside the package, torchvision's, timm's, anyone's own, or one in a file."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import replace
from pathlib import Path

from torch import nn

from fastviz.models import callables, cards, programs, timm_networks, torchvision_networks, weight_files
from fastviz.models.demo_network import DemoNetwork
from fastviz.models.descriptions import DEMO, ModelInfo, remember

__all__ = ["has_own_weights", "load_model", "model_names"]

_DEMO_WEIGHTS = Path(__file__).parent / "data" / "demo.safetensors"


def load_model(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """The network called ``name``, in evaluation mode, on the CPU.

    Args:
        name: one of

            - ``"demo"``, the small trained network inside the package (20 classes, 64x64 pixels, no network access and
              no torchvision needed);
            - one of torchvision's classification networks, see :func:`model_names`;
            - ``"timm/NAME"``, a network of timm (``pip install "fastviz[timm]"``), also with the tag of its weights:
              ``"timm/resnet18.a1_in1k"``;
            - ``"package.module:function"``, a function or a class that gives a module when it is called without
              arguments; modules of the current folder are found, too;
            - the path of a file that holds a whole network: ``.pt2`` of ``torch.export.save``, or TorchScript of
              ``torch.jit.save``. Exported networks keep the names of their layers; of scripts they cannot be seen.
        weights: the name of torchvision weights (``"DEFAULT"``, ``"IMAGENET1K_V1"``), which torchvision downloads once,
            or ``"DEFAULT"`` for those of timm, which timm downloads once; or the path of a file of weights
            (.safetensors, .pth, .pt, .ckpt, .bin, .tar: the content decides, not the name); or None: random weights,
            drawn from torch's generator (for ``"demo"``: its own trained weights; for a function: those that it gives).

    A file may hold float16, bfloat16 or float64; the parameters keep the dtype that the network is made in, float32. It
    may be the checkpoint of a training script, with the state dict under one of the usual keys and with wrappers'
    prefixes, see :func:`fastviz.models.weight_files.unpack`. For networks of torchvision and timm it may have another
    number of classes than 1000 (give their names with :func:`describe`), for those of timm another number of image
    channels, too. Where it holds two sets of weights, plain and averaged, a warning says which is taken: the plain one.
    Files are read with ``torch.load(weights_only=True)`` and a few harmless classes besides tensors (NumPy's numbers,
    ``argparse.Namespace``), so no code in them runs. A file named as torchvision's download is known as those weights.
    A warning names NaN and infinite values. Where an architecture's authors published their weights in another layout
    than timm's, timm's own conversion is taken, and a warning says so.

    How images are prepared and what the classes are called is what the weights' publishers say (torchvision's, timm's),
    unless a small file beside the file of weights says otherwise: ``NAME.toml`` or ``NAME.json`` beside
    ``NAME.safetensors``, with any of the words ``mean``, ``std``, ``size``, ``resize``, ``interpolation`` and
    ``labels``, see :class:`fastviz.models.cards.Card`; or :func:`describe` does.

    The side heads of GoogLeNet and Inception v3, which only training uses, are left out. Both networks rescale their
    input themselves when they get weights (``transform_input=True``, as all weights that descend from torchvision's
    need it; for others set ``model.transform_input = False``).

    Loading weights draws no random numbers.

    Returns:
        A torch module that maps images [N, 3, H, W] to scores [N, K].

    Raises:
        TypeError: ``name`` or ``weights`` of another type, or a function that gives no module.
        ValueError: an unknown name (with the nearest ones), a file that is missing, broken or wants to run code, or
            weights of another architecture (with all names that differ, and the network they fit, where that is one
            of torchvision's with 1000 classes); weights for a file that holds its own.
        ModuleNotFoundError: torchvision or timm is needed and not installed.
        ImportError: there is no such function; says what was looked for, and where.
        OSError: weights could not be downloaded.

    >>> from fastviz.models import class_names
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
    model = _loaded(name, weights)
    in_file = programs.is_file_name(name) and not callables.is_callable_name(name)
    cards.apply(model, name if in_file else weights)
    return model


def _loaded(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    if name == "demo":
        return _load_demo(weights)
    if name.startswith(timm_networks.PREFIX):
        return timm_networks.load(name, weights)
    if callables.is_callable_name(name):
        return callables.load(name, weights)
    if programs.is_file_name(name):
        return programs.load(name, weights)
    return torchvision_networks.load(name, weights)


def model_names(pattern: str | None = None) -> list[str]:
    """Names that :func:`load_model` knows: ``"demo"``, then torchvision's classification networks, in their order.

    Args:
        pattern: only names of this form, in which ``*`` stands for anything; those of timm, more than a thousand, are
            among them then: ``"timm/*"``, ``"*resnet18*"``.

    Returns:
        Names for :func:`load_model`. Without torchvision and timm only ``"demo"``.

    Raises:
        TypeError: ``pattern`` is not a string.

    >>> model_names()[0], model_names("d*mo")
    ('demo', ['demo'])
    """
    names = ["demo", *torchvision_networks.names()]
    if pattern is None:
        return names
    if not isinstance(pattern, str):
        raise TypeError(f"pattern should be a string, got {type(pattern).__name__}")
    return fnmatch.filter([*names, *timm_networks.names()], pattern)


def has_own_weights(name: str) -> bool:
    """Whether the network ``name`` comes with weights, as the demo, the result of a function and a file do."""
    return name == "demo" or callables.is_callable_name(name) or programs.is_file_name(name)


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
    remember(model, replace(DEMO, info=ModelInfo("demo", source)))
    return model.eval()
