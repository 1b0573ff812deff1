"""Put fastviz in the place of other tools' classes and functions: ``fastviz.accelerate("captum")``.

For code that cannot be edited: ``python -m fastviz.accelerate script.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import FunctionType, ModuleType

from fastviz._util import checks

__all__ = ["TOOLS", "Acceleration", "accelerate", "package"]

# Tool → what it is imported as; its names that have a substitute in fastviz.compat, by the module they are public in.
TOOLS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "captum": (
        "captum",
        {
            "captum.attr": (
                *("Occlusion", "FeatureAblation", "Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution"),
                *("NeuronGuidedBackprop", "NeuronDeconvolution", "LayerGradCam", "GuidedGradCam"),
                *("IntegratedGradients", "GradientShap", "NoiseTunnel", "LayerActivation", "LayerGradientXActivation"),
                *("InternalInfluence", "LayerConductance", "FeaturePermutation", "ShapleyValueSampling"),
                *("ShapleyValues", "KernelShap", "Lime"),
            )
        },
    ),
    "grad_cam": (
        "pytorch_grad_cam",
        {
            "pytorch_grad_cam": (
                *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM", "GradCAMElementWise", "EigenCAM"),
                *("EigenGradCAM", "SegEigenCAM", "FEM", "KPCA_CAM", "RandomCAM", "FullGrad", "AblationCAM", "ScoreCAM"),
                "GuidedBackpropReLUModel",
            ),
            "pytorch_grad_cam.metrics.road": (
                *("ROADMostRelevantFirst", "ROADLeastRelevantFirst", "ROADMostRelevantFirstAverage"),
                *("ROADLeastRelevantFirstAverage", "ROADCombined"),
            ),
        },
    ),
    "torchcam": ("torchcam", {"torchcam.methods": ("ScoreCAM", "SSCAM", "ISCAM")}),
    "lucent": (
        "lucent",
        {
            "lucent.optvis.render": ("render_vis",),
            "lucent.optvis.transform": (
                *("jitter", "normalize", "pad", "random_rotate", "random_scale", "standard_transforms"),
            ),
        },
    ),
    "kornia": ("kornia", {"kornia.losses": ("total_variation", "TotalVariation")}),
    "torchmetrics": (
        "torchmetrics",
        {"torchmetrics.functional.image": ("total_variation",), "torchmetrics.image": ("TotalVariation",)},
    ),
    "monai": ("monai", {"monai.visualize": ("OcclusionSensitivity",)}),
    "pystiche": (
        "pystiche",
        {"pystiche": ("gram_matrix",), "pystiche.loss.functional": ("total_variation_loss",)},
    ),
}


@dataclass
class _Active:
    """A tool whose names are replaced.

    Attributes:
        substitutes: name → the tool's own object and ours.
        fixed: names in modules, by the id of the dictionary that holds them, that keep their meaning: those that meant
            ours before anything was replaced, and those by which the tool's own objects call themselves.
        holders: accelerations that have not been undone.
    """

    substitutes: dict[str, tuple[object, object]]
    fixed: set[tuple[int, str]]
    holders: int = 0


_active: dict[str, _Active] = {}
_lock = threading.RLock()


@dataclass(eq=False)
class Acceleration:
    """What :func:`accelerate` did, until :meth:`undo`; ``str()`` says it in words.

    Attributes:
        replaced: tool → name → number of places where it meant the tool's own and now means fastviz's.
        left: tool → why it stays as it is, of those that were not asked for by name.
    """

    replaced: dict[str, dict[str, int]]
    left: dict[str, str] = field(default_factory=dict)
    _undone: bool = field(default=False, repr=False)

    def undo(self) -> None:
        """Give the names back their old meaning, unless another acceleration still holds; once is enough.

        Objects that were made in between stay what they are.
        """
        with _lock:
            if not self._undone:
                self._undone = True
                for tool in self.replaced:
                    _release(tool)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        """One line a tool."""
        lines = []
        for tool, names in self.replaced.items():
            places = sum(names.values())
            what = f"{', '.join(names)} (in {places} places)" if places else "was in place already"
            lines.append(f"fastviz.accelerate: {tool}: {what}")
        lines += [f"fastviz.accelerate: {tool} stays as it is: {reason}" for tool, reason in self.left.items()]
        return "\n".join(lines)


def accelerate(*tools: str, quiet: bool = False) -> Acceleration:
    """Let the names of other tools mean fastviz's classes and functions, which give the same results sooner.

    Every name in every loaded module that is bound to one of the tool's objects is bound to fastviz's instead: in the
    tool's own modules, so also what is imported from them later, and in yours that have imported it before. Not
    reached are objects that exist already, subclasses of the tool's classes, and what is kept in containers,
    attributes, default arguments or local variables. The tools' classes and functions themselves do not change.

    It holds for all threads. As a context manager it ends with the ``with``; accelerations may nest and end in any
    order, the last one that ends puts the names back, also in modules that were imported in between.

    Args:
        tools: ``"captum"``, ``"grad_cam"`` (pytorch-grad-cam), ``"torchcam"``, ``"lucent"``, ``"kornia"``,
            ``"torchmetrics"``, ``"monai"``, ``"pystiche"``; none for all that are installed and can be imported.
        quiet: do not say on standard error what was replaced.

    Returns:
        A handle with :meth:`~Acceleration.undo`; ``replaced``: how many places by name; ``left``: why not.

    Raises:
        ValueError: a tool that is not known; the message lists the nearest.
        ImportError: a tool that was named and is not installed, or cannot be imported.

    >>> with accelerate("captum", quiet=True) as accelerated:
    ...     from captum.attr import Occlusion
    >>> Occlusion.__module__, accelerated.replaced["captum"]["Occlusion"] > 1
    ('fastviz.compat.captum.perturbation', True)
    """
    for tool in tools:
        checks.nearest(tool, "tools", TOOLS)
    chosen = tools or [tool for tool, (name, _) in TOOLS.items() if importlib.util.find_spec(name) is not None]
    done = Acceleration({})
    with _lock:
        try:
            for tool in dict.fromkeys(chosen):
                try:
                    done.replaced[tool] = _replace(tool)
                except ImportError as error:
                    if tools:
                        raise
                    done.left[tool] = str(error)
        except BaseException:
            done.undo()
            raise
    if not quiet and (done.replaced or done.left):
        print(done, file=sys.stderr)
    return done


def package(tool: str) -> str:
    """What a tool is imported as."""
    return TOOLS[tool][0]


def _replace(tool: str) -> dict[str, int]:
    """Bind the tool's names to ours; name → number of places."""
    if tool not in _active:
        substitutes = _substitutes(tool)
        ours = {id(mine) for _, mine in substitutes.values()}
        fixed = {(id(namespace), name) for namespace, name, value in _bindings() if id(value) in ours}
        for theirs, _ in substitutes.values():
            fixed |= _own_names(theirs)
        _active[tool] = _Active(substitutes, fixed)
    active = _active[tool]
    active.holders += 1
    meanings = {id(theirs): (name, mine) for name, (theirs, mine) in active.substitutes.items()}
    counts = _rebind(meanings, active.fixed)
    return {name: counts[name] for name in active.substitutes if counts[name]}


def _release(tool: str) -> None:
    active = _active[tool]
    active.holders -= 1
    if not active.holders:
        del _active[tool]
        meanings = {id(mine): (name, theirs) for name, (theirs, mine) in active.substitutes.items()}
        _rebind(meanings, active.fixed)


def _own_names(thing: object) -> set[tuple[int, str]]:
    """Names by which functions of a class find the class in their module, as ``super(Name, self)`` does."""
    return {
        (id(function.__globals__), name)
        for function in getattr(thing, "__dict__", {}).values()
        if isinstance(function, FunctionType)
        for name in function.__code__.co_names
        if function.__globals__.get(name) is thing
    }


def _substitutes(tool: str) -> dict[str, tuple[object, object]]:
    """Name → the tool's own object and ours."""
    imported, modules = TOOLS[tool]
    try:
        # the tool's objects first: our module needs them too
        theirs = {
            name: getattr(importlib.import_module(module), name) for module, names in modules.items() for name in names
        }
        ours = importlib.import_module(f"fastviz.compat.{tool}")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == imported
        reason = "it is not installed" if missing else f"it cannot be imported: {error}"
        raise ImportError(f"tools should be installed to be accelerated, but {tool!r} is not: {reason}") from error
    return {name: (value, getattr(ours, name)) for name, value in theirs.items()}


def _bindings() -> Iterator[tuple[dict[str, object], str, object]]:
    """Every name in every loaded module but fastviz's own, with the dictionary that holds it and its value."""
    for title, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and title.partition(".")[0] != "fastviz":
            namespace = vars(module)
            for name, value in list(namespace.items()):
                yield namespace, name, value


def _rebind(meanings: Mapping[int, tuple[str, object]], fixed: Set[tuple[int, str]]) -> Counter[str]:
    """Bind names whose value has an id in ``meanings`` to what stands there; how often, by the title that does.

    The ``fixed`` names keep theirs.
    """
    counts: Counter[str] = Counter()
    for namespace, name, value in _bindings():
        if id(value) in meanings and (id(namespace), name) not in fixed:
            title, namespace[name] = meanings[id(value)]
            counts[title] += 1
    return counts
