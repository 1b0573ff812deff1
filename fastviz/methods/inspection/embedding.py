"""Feature vectors of many images: streamed, stored in a file and reused."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.engine.incremental.job import whole_passes
from fastviz.execution import forward
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.forward import Pool
from fastviz.execution.hooks import layer_module
from fastviz.execution.map_axes import Planes
from fastviz.execution.precision import Precision, checked_precision
from fastviz.images import streams, tensors
from fastviz.images.notebook import NotebookResult
from fastviz.images.paths import Identity
from fastviz.images.streams import Source, Stream
from fastviz.methods.inspection import embedding_file
from fastviz.methods.inspection.embedding_file import Stored

__all__ = ["Embedding", "embedding", "load_embedding"]


@dataclass(frozen=True, eq=False, repr=False)
class Embedding(NotebookResult):
    """The result of :func:`embedding`: one row for each readable image, in the order of the source.

    Attributes:
        vectors: [N, D], float32 (float64 if the model is).
        pictures: uint8 [N, 3, t, t] on the CPU, thumbnails of the network's inputs.
        names: N names, see :func:`fastviz.images.streams.batches`.
        layer: the layer of the vectors; ``"input of NAME"`` for the input of a layer.
        failures: name and reason for each image that could not be read.
        reused: how many of the vectors were read from ``file``.

    >>> found = embedding(nn.Flatten(), torch.rand(5, 3, 8, 8), "")
    >>> found.vectors.shape, found.names
    (torch.Size([5, 192]), ['0', '1', '2', '3', '4'])
    """

    vectors: Tensor
    pictures: Tensor
    names: list[str]
    layer: str
    failures: list[tuple[str, str]] = field(default_factory=list)
    reused: int = 0

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        return list(zip(self.names, self.pictures, strict=True))


def embedding(
    model: nn.Module,
    source: Source,
    layer: str | None = None,
    *,
    pool: Pool = "mean",
    batch_size: int | None = None,
    precision: Precision = "model",
    size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    thumbnails: int = 96,
    file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Embedding:
    """Feature vectors [N, D] of the images of ``source``, with their names and thumbnails.

    Images are streamed: besides the result, only a few batches are in memory. By default the vector is the input of the
    last linear layer ("fc7" of AlexNet and VGG, 4,096 numbers), or, for a network that ends in a convolution
    (SqueezeNet), the spatial mean of its input (512 numbers). :func:`fastviz.tsne` projects vectors to a plane: van der
    Maaten, Hinton 2008, https://jmlr.org/papers/v9/vandermaaten08a.html.

    Args:
        model: any module.
        source: files, folders and patterns, a dataset or a tensor of images, see
            :func:`fastviz.images.streams.batches`.
        layer: dotted name of the layer whose output is used; None is the default above.
        pool: how maps [N, C, H, W] and tokens [N, L, D] are reduced: ``"mean"`` over the positions or tokens;
            ``"flatten"``: all values.
        batch_size: images in a pass; None is 32, and on a CPU as many as fit its caches (8 of 224x224).
        precision: see :func:`fastviz.input_gradient`.
        size: as in :func:`fastviz.load_images`.
        limit: the maximum number of images; None for all.
        thumbnails: side of the thumbnails, in pixels.
        file: a .safetensors file that stores the result, for a source of files. Valid vectors in it are not computed
            again: those of the same model (including weights), layer and arguments, of images with the same path, size
            and modification time. An interrupted call stores its vectors, and the next call continues from there.
        overwrite: replace a ``file`` that holds vectors of another model, or made with other arguments.
        progress: show a progress bar on a terminal.

    Returns:
        An :class:`Embedding` with vectors [N, D], float32 (float64 if the model is), on the device of the stream, with
        one row for each readable image.

    Raises:
        TypeError, ValueError: invalid arguments; a layer that does not exist, is not called or has no vectors, tokens
            or maps; vectors of different lengths; a source without a readable image; a ``file`` although the source is
            not files, or one that holds something else.
        OSError: ``file`` cannot be written.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> found = embedding(model, torch.rand(5, 3, 8, 8))
    >>> found.vectors.shape, found.layer
    (torch.Size([5, 4]), 'input of 3')
    """
    checks.one_of(pool, "pool", ("mean", "flatten"))
    checked_precision(precision)
    checks.whole_number(thumbnails, "thumbnails", minimum=1)
    stream = streams.batches(source, model=model, batch_size=batch_size, size=size, limit=limit, progress=progress)
    if layer is not None:
        layer_module(model, layer)
    store = (
        None
        if file is None
        else _Store(checks.path(file, "file"), stream, model, (layer, pool, thumbnails, precision), overwrite)
    )
    rows = _Rows(0 if stream.names is None else len(stream.names))
    if store is not None:
        store.add_valid(rows)
    reused = len(rows.indices)
    missing = set(rows.indices)
    todo = stream if not reused else stream.only([at for at in range(len(stream.names or ())) if at not in missing])
    extractor = _Extractor(model, layer, pool, precision, batch_size)
    try:
        with frozen_model(model), torch.no_grad():
            for batch in todo:
                shown = tensors.resize(stream.pictures(batch), thumbnails, thumbnails, "bilinear")
                rows.add(batch.indices, extractor(batch.images), (shown * 255).round().byte().cpu())
                if store is not None:
                    store.record(batch.indices)
    except BaseException:
        if store is not None and len(rows.indices) > reused:
            with suppress(OSError):  # keep the vectors so far if they can be written
                store.write(rows, extractor.name)
        raise
    if not rows.indices:
        reason = f"; the first: {todo.failures[0][1]}" if todo.failures else ""
        raise ValueError(f"source should have at least one image that can be read, got none{reason}")
    if store is not None and len(rows.indices) > reused:
        store.write(rows, extractor.name)
    vectors, small = rows.in_order()
    names = [str(at) if stream.names is None else stream.names[at] for at in sorted(rows.indices)]
    name = extractor.name or (store.layer if store is not None else "")
    return Embedding(vectors.to(stream.device), small, names, name, todo.failures, reused)


def load_embedding(file: str | os.PathLike[str]) -> Embedding:
    """The vectors, thumbnails and names that :func:`embedding` stored in ``file``, on the CPU.

    Args:
        file: a .safetensors file that :func:`embedding` wrote.

    Returns:
        An :class:`Embedding` with all its vectors, which count as ``reused``.

    Raises:
        ValueError: there is no such file, or it is not an embedding.

    >>> import tempfile
    >>> from fastviz import images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images.save_image(torch.rand(3, 16, 16), f"{folder}/a.png")
    ...     model = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    ...     kept = embedding(model, folder, "1", size=16, file=f"{folder}/vectors.safetensors")
    ...     load_embedding(f"{folder}/vectors.safetensors").names
    ['a.png']
    """
    stored = embedding_file.read(checks.path(file, "file"))
    return Embedding(stored.vectors, stored.pictures, stored.names, stored.layer, reused=len(stored.names))


class _Extractor:
    """Converts images to vectors; ``name`` is the name of the layer, empty before the first batch."""

    def __init__(
        self, model: nn.Module, layer: str | None, pool: Pool, precision: Precision, batch_size: int | None
    ) -> None:
        self._model, self._layer, self._pool, self._precision = model, layer, pool, precision
        self._batch_size = batch_size
        self._calls: Counter[str] = Counter()
        self._batches = Batches(model)
        self._planes: Planes | None = None
        self._has_maps = self._looked = False
        self.name = ""

    def __call__(self, images: Tensor) -> Tensor:
        from_input = self._layer is None
        if not self.name:
            name = forward.penultimate(self._model, images[:1].clone()) if self._layer is None else self._layer
            self.name, self._module = f"input of {name}" if from_input else name, name
        found: list[Tensor] = []

        def record(module: nn.Module, inputs: Any, output: object) -> None:
            value = (inputs[0] if inputs else None) if from_input else output
            self._has_maps = isinstance(value, Tensor) and value.dim() == 4
            found[:] = [forward.vectors(value, self.name, self._pool, self._planes)]

        def rows(part: Tensor) -> Tensor:
            forward.run(self._model, part, {self._module: record}, self._calls, self._precision)
            return found[0]

        parts = [self._all_rows(rows, part) for part in images.split(self._at_once(images))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _at_once(self, images: Tensor) -> int:
        if self._batch_size is not None or images.device.type != "cpu":
            return len(images)
        return whole_passes(self._model, images)

    def _all_rows(self, rows: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """The vectors of ``images``; the first batch finds out which dimension of 4-d maps holds the channels."""
        parts = self._batches(lambda part: self._batches.watched(rows, part), images)
        vectors = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._has_maps and self._pool == "mean" and not self._looked:
            self._looked = True
            self._planes = forward.planes_of(self._model, images[:1], self._module, of_input=self._layer is None)
            if self._planes is not None and self._planes.order != (0, 1, 2, 3):
                return self._all_rows(rows, images)
        if len(vectors) != len(images):
            raise ValueError(f"layer {self.name!r} should have one row per image, got {len(vectors)} for {len(images)}")
        return vectors


class _Rows:
    """Vectors and thumbnails by position in the source, in growing tensors."""

    def __init__(self, expected: int) -> None:
        self.indices: list[int] = []
        self._expected = expected
        self._vectors = self._pictures = torch.empty(0)

    def add(self, indices: list[int], vectors: Tensor, small: Tensor) -> None:
        """More rows, at ``indices``."""
        start, end = len(self.indices), len(self.indices) + len(indices)
        if start and vectors.shape[1:] != self._vectors.shape[1:]:
            raise ValueError(
                f"vectors should have one length, got {self._vectors.shape[1]} and {vectors.shape[1]} numbers: give "
                "size, or pool 'mean'"
            )
        if end > len(self._vectors):
            room = max(end, self._expected, 2 * start)
            self._vectors, self._pictures = (
                torch.cat([old[:start].to(new), new.new_empty(room - start, *new.shape[1:])])
                if start
                else new.new_empty(room, *new.shape[1:])
                for old, new in ((self._vectors, vectors), (self._pictures, small))
            )
        self._vectors[start:end], self._pictures[start:end] = vectors, small
        self.indices += indices

    def in_order(self) -> tuple[Tensor, Tensor]:
        """Vectors and pictures, by position."""
        count = len(self.indices)
        order = sorted(range(count), key=self.indices.__getitem__)
        if order == list(range(count)):
            return self._vectors[:count], self._pictures[:count]
        return self._vectors[order], self._pictures[order]


def _status(path: Path) -> tuple[int, int, int]:
    """Size and times of a file; zeros if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Store:
    """The file of a call: reads valid vectors from it and writes the result to it.

    Raises:
        ValueError: the source is not files, or the file holds something else.
    """

    def __init__(
        self, file: Path, stream: Stream, model: nn.Module, arguments: tuple[str | None, str, int, str], overwrite: bool
    ) -> None:
        if stream.files is None:
            raise ValueError("file can only keep the vectors of a source of files: others may change unseen")
        self._file, self._names = file, stream.names or []
        self._files = stream.files
        # Recorded before the files are read, so that changes in between are noticed.
        self._before = [_status(path) for path in stream.files]
        self._known: dict[int, Identity] = {}
        self._settings: dict[str, object] = {
            "model": embedding_file.fingerprint(model),
            **dict(zip(("layer", "pool", "thumbnails", "precision"), arguments, strict=True)),
            "preprocessing": repr(stream.preprocessing),
        }
        self.layer = ""
        self._stored: Stored | None = None
        if file.exists() and not overwrite:
            self._stored = embedding_file.read(file)
            others = [key for key, value in self._settings.items() if self._stored.settings.get(key) != value]
            if others:
                raise ValueError(
                    f"file {str(file)!r} holds vectors made with another {' and '.join(others)}; give another file, or "
                    "overwrite it"
                )
            self.layer = self._stored.layer

    def add_valid(self, rows: _Rows) -> None:
        """Add the vectors that are still valid to ``rows``."""
        if self._stored is None:
            return
        held = {place: row for row, (place, _) in enumerate(self._stored.origins)}
        found = []
        for at, file in enumerate(self._files):
            row = held.get(os.path.abspath(file))
            now = None if row is None else self._stored.origins[row][1].still(file)
            if row is not None and now is not None:
                self._known[at] = now
                found.append((at, row))
        if found:
            indices, kept = map(list, zip(*found, strict=True))
            rows.add(indices, self._stored.vectors[kept], self._stored.pictures[kept])

    def record(self, indices: list[int]) -> None:
        """Record the identity of files that were just read, except those that changed since the start."""
        for at in indices:
            self._known[at] = Identity(0, 0, 0)
            with suppress(OSError):
                now = Identity.of(self._files[at])
                if self._before[at] == (now.bytes, now.modified, now.changed):
                    self._known[at] = now

    def write(self, rows: _Rows, layer: str) -> None:
        """Write all ``rows``."""
        vectors, small = rows.in_order()
        order = sorted(rows.indices)
        names = [self._names[at] for at in order]
        origins = [(os.path.abspath(self._files[at]), self._known.get(at, Identity(0, 0, 0))) for at in order]
        embedding_file.write(self._file, Stored(vectors, small, names, origins, layer, self._settings))
