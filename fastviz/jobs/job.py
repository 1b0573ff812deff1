"""The description of a job: inputs, methods, target and outputs; from Python or YAML."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from fastviz._util import checks
from fastviz.jobs.arguments import choose_methods
from fastviz.jobs.inputs import Inputs
from fastviz.jobs.places import Place, place_of
from fastviz.jobs.tables.schema import MAPS, MapKind
from fastviz.methods.registry import EXPLAINERS
from fastviz.models.descriptions import Preprocessing
from fastviz.targets.objectives import Objective

__all__ = ["DEFAULT_METHODS", "Job", "read_yaml"]

DEFAULT_METHODS = ("saliency", "guided_backprop", "grad_cam", "occlusion")
"""The methods that a job runs by default."""

_OWN = ("model", "x", "target", "batch_size", "progress")
"""Arguments of methods that the job itself passes."""


@dataclass(frozen=True, eq=False)
class Job:
    """The description of a job. The first group of fields determines the numbers and must be the same to resume a job.

    Attributes:
        inputs: files, folders, patterns, lists (.txt), tables (.csv, .tsv, .parquet), tar shards, or a dataset, a
            DataLoader, a list of images or a tensor: see :class:`fastviz.jobs.inputs.Inputs`.
        out: the folder for the results, or an S3 address (``s3://BUCKET/KEY``).
        model: a name for :func:`fastviz.load_model`, or a module.
        weights: as for :func:`fastviz.load_model`.
        methods: names of the registry (see ``fastviz.METHODS``), or a dictionary of name → options; a list may mix
            names and such dictionaries.
        target: ``"predicted"``; ``"label"``, the label of each input; a class index or name; an objective such as
            ``fastviz.neuron(...)``; or an objective as text, see :func:`fastviz.targets.parsing.parse_target`.
        top_k: explain the ``top_k`` most probable classes instead of one; only with ``target="predicted"``.
        maps: ``"float32"`` as the methods give them, ``"float16"``, ``"uint8"`` (256 steps from the smallest to the
            largest value of each map), ``"uint6"`` (64 steps, which take half the space), or ``"none"``.
        map_size: height and width to which all maps are resized (bilinear), or one number for both; None keeps their
            sizes.
        thumbnails: keep a small JPEG of the crop that the network saw.
        overlays: keep each map as a JPEG, drawn over the photograph.

        image_column, label_column, id_column: column names in tables; None finds common names.
        limit: the maximum number of inputs.
        device: ``"auto"`` (a GPU if torch can use one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        batch_size: images in a batch; None chooses a number for the device. Halved when memory runs out.
        workers: number of processes that decode ahead of the network; None uses a part of the cores if that saves time.
            With Ray: number of actors, each with the network; None is one for each GPU of the cluster, or one for every
            four cores.
        engine: ``"local"``, or ``"ray"`` for the actors of a Ray cluster.

        options: method → its options, including the registry's defaults; not an argument.

    Raises:
        TypeError, ValueError: an argument has another type or value; the message names it.

    >>> Job("photographs", "explained", methods=["saliency", {"occlusion": {"window": 32}}]).model
    'demo'
    """

    inputs: Any
    out: str | os.PathLike[str]
    model: str | nn.Module = "demo"
    weights: str | os.PathLike[str] | None = None
    methods: Any = DEFAULT_METHODS
    target: Any = "predicted"
    top_k: int = 1
    maps: MapKind = "float32"
    map_size: int | tuple[int, int] | None = None
    thumbnails: bool = False
    overlays: bool = False

    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    limit: int | None = None
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    engine: str = "local"

    options: dict[str, dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def set_(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        set_("out", place_of(self.out))
        set_("options", _options(self.methods))
        if not isinstance(self.model, (str, nn.Module)):
            raise TypeError(f"model should be a name or a torch module, got {type(self.model).__name__}")
        if self.weights is not None:
            set_("weights", os.fspath(self.weights))
        if isinstance(self.target, bool) or not isinstance(self.target, (str, int, Objective)):
            raise TypeError(
                "target should be 'predicted', 'label', a class index or name, or an objective, got "
                f"{type(self.target).__name__}"
            )
        checks.whole_number(self.top_k, "top_k", minimum=1)
        if self.top_k > 1 and self.target != "predicted":
            raise ValueError(f"top_k should be 1 unless target is 'predicted', got {self.top_k}")
        checks.one_of(self.maps, "maps", MAPS)
        if isinstance(self.map_size, int):
            set_("map_size", (self.map_size, self.map_size))
        if self.map_size is not None:
            if not isinstance(self.map_size, (tuple, list)) or len(self.map_size) != 2:
                raise ValueError(f"map_size should be (height, width) or one number, got {self.map_size!r}")
            set_("map_size", tuple(checks.whole_number(side, "map_size", minimum=1) for side in self.map_size))
        for name in ("thumbnails", "overlays"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} should be True or False, got {getattr(self, name)!r}")
        for name, minimum in (("limit", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) is not None:
                checks.whole_number(getattr(self, name), name, minimum=minimum)

    @property
    def home(self) -> Place:
        """Where the results go, as a path or an S3 address."""
        return place_of(self.out)

    @cached_property
    def source(self) -> Inputs:
        """The inputs as a stream."""
        return Inputs(self.inputs, self.home, self.image_column, self.label_column, self.id_column, self.limit)

    def parameters(self, method: str) -> str:
        """A hash of everything that determines a method's numbers: its name and all options, including defaults."""
        taken = inspect.signature(EXPLAINERS[method].function).parameters
        values = {name: each.default for name, each in taken.items() if name not in _OWN}
        words = json.dumps([method, values | self.options[method]], sort_keys=True, default=repr)
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def settings(self, weights: str, preprocessing: Preprocessing, target: object) -> dict[str, Any]:
        """The settings that determine the results, as JSON values.

        ``weights`` is a hash of all weights, ``target`` the parsed target.
        """
        model = self.model if isinstance(self.model, str) else type(self.model).__name__
        # The text of an objective may name a file, whose content matters.
        target = repr(target) if isinstance(target, Objective) else self.target
        values = {
            "model": model,
            "weights": weights,
            "preprocessing": asdict(preprocessing),
            "methods": self.options,
            "target": str(target),
            "top_k": self.top_k,
            "maps": self.maps,
            "map_size": None if self.map_size is None else list(self.map_size),  # type: ignore[arg-type]
            "thumbnails": self.thumbnails,
            "overlays": self.overlays,
        }
        return dict(json.loads(json.dumps(values, default=repr)))


def _options(methods: Any) -> dict[str, dict[str, Any]]:
    """Method → its options, which override the registry's defaults; checks that the method has each option."""
    if isinstance(methods, (str, Mapping)):
        methods = [methods]
    if not isinstance(methods, Iterable):
        raise TypeError(f"methods should be names, or name → options, got {type(methods).__name__}")
    found: dict[str, dict[str, Any]] = {}
    for one in methods:
        given = {one: None} if isinstance(one, str) else one
        if not isinstance(given, Mapping):
            raise TypeError(f"methods should be names, or name → options, got {one!r}")
        for name, options in given.items():
            (method,) = choose_methods([name])
            if options is not None and not isinstance(options, Mapping):
                raise TypeError(f"methods: the options of {name} should be name → value, got {options!r}")
            if options and name in found:
                raise ValueError(f"methods should name each method once, got {name} twice")
            takes = [each for each in inspect.signature(method.function).parameters if each not in _OWN]
            for option in options or {}:
                checks.nearest(option, f"methods: option of {name}", takes)
            found.setdefault(method.name, dict(method.defaults) | dict(options or {}))
    choose_methods(found)
    return found


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arguments of a job from a YAML file: the fields of :class:`Job` by name, including ``inputs`` and ``out``.

    Paths are relative to the working directory, as on the command line.

    Raises:
        ImportError: PyYAML is not installed.
        ValueError: the file is not YAML, or has unknown names (the nearest are listed).
        OSError: the file cannot be read.
    """
    try:
        import yaml
    except ImportError:
        raise ImportError('job files need PyYAML: pip install "fastviz[jobs]"') from None
    try:
        found = yaml.safe_load(Path(os.path.expanduser(path)).read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"job {os.fspath(path)!r} should be YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"job {os.fspath(path)!r} should be name: value, got {type(found).__name__}")
    known = [each.name for each in fields(Job) if each.init]
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"job {os.fspath(path)!r} should have names of arguments, got {name!r}")
        checks.nearest(name, f"argument in {os.fspath(path)}", known)
    return found
