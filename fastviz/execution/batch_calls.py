"""Which ATen calls keep the images of a batch separate: a rule for each kind of call.

Each rule gets the arguments of a call by name, and returns where the (first) result holds the images; None if they may
mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastviz.execution.batch_places import Images, Same, operands

if TYPE_CHECKING:
    from fastviz.execution.batch_watch import Watch

__all__ = [
    "LEAST_DIMS",
    "NOT_POINTWISE",
    "OWN",
    "PLAIN",
    "POINTWISE",
    "RULES",
    "TRAINING",
    "of_batch_norm",
    "of_first",
]

Rule = Callable[["Watch", dict[str, Any]], "Images | None"]

POINTWISE = {
    *("clone", "detach", "alias", "_to_copy", "to", "copy", "contiguous", "lift_fresh", "masked_fill", "where"),
    *("_prelu_kernel", "fill", "zero", "real", "imag", "_conj", "resolve_conj", "resolve_neg", "dropout", "lerp"),
    *("native_dropout", "rrelu_with_noise", "log_sigmoid", "hardswish", "softsign", "absolute", "mish", "celu"),
}
NOT_POINTWISE = {"equal"}

OWN = {
    *("fastviz::guided_relu", "fastviz::_guided_relu_in_place"),
    *("fastviz::_winograd_tiles", "fastviz::_winograd_maps"),
}

PLAIN = (Tensor, nn.Parameter)

LEAST_DIMS = {"convolution", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"}
TRAINING = {"native_batch_norm": 5, "cudnn_batch_norm": 5}
"""The argument by which frequent calls of a network know whether they are in training mode."""


def _input(watch: Watch, given: dict[str, Any], *names: str) -> tuple[Tensor, Images] | None:
    """The first argument and its place; None if another one depends on the images, too."""
    tensor = given[next(name for name in names if name in given)]
    place = watch.of(tensor)
    others = [each for each in operands(given.values()) if each is not tensor]
    if not isinstance(place, Images) or any(isinstance(watch.of(each), Images) for each in others):
        return None
    return tensor, place


def _axis(dim: int, dims: int) -> int:
    return dim + dims if dim < 0 else dim


def _resized(place: Images, count: int, before: Sequence[int], after: Sequence[int]) -> Images | None:
    """Where a tensor holds the images after a reshape from ``before`` to ``after``."""
    ahead = place.outer
    for size in before[: place.dim]:
        ahead *= size
    passed = 1
    for dim, size in enumerate(after):
        if size and passed * size > ahead:
            # this dimension holds the remaining entries before the images, all images, and perhaps entries after them
            if ahead % passed or size % (ahead // passed * count):
                return None
            outer = ahead // passed
            return Images(dim, outer, size // (outer * count))
        passed *= size
    return None


def _view(watch: Watch, given: dict[str, Any]) -> Images | None:
    found = _input(watch, given, "self")
    shape = given.get("size", given.get("shape"))
    if found is None or not isinstance(shape, (list, tuple)):
        return None
    tensor, place = found
    sizes = list(shape)
    if -1 in sizes:
        known = 1
        for size in sizes:
            known *= 1 if size == -1 else size
        sizes[sizes.index(-1)] = tensor.numel() // max(1, known)
    return _resized(place, watch.count, tensor.shape, sizes)


def _expand(watch: Watch, given: dict[str, Any]) -> Images | None:
    found = _input(watch, given, "self")
    if found is None:
        return None
    tensor, place = found
    return place._replace(dim=place.dim + len(given["size"]) - tensor.dim())


def _repeat(watch: Watch, given: dict[str, Any]) -> Images | None:
    found = _input(watch, given, "self")
    if found is None:
        return None
    dim = found[1].dim + len(given["repeats"]) - found[0].dim()
    return found[1]._replace(dim=dim) if given["repeats"][dim] == 1 else None


def _order(watch: Watch, given: dict[str, Any], order: Sequence[int]) -> Images | None:
    """For calls that arrange the old dimensions in this order (-1: a new one)."""
    found = _input(watch, given, "self")
    if found is None or found[1].dim not in order:
        return None
    return found[1]._replace(dim=list(order).index(found[1].dim))


def _permute(watch: Watch, given: dict[str, Any]) -> Images | None:
    dims = given["self"].dim()
    return _order(watch, given, [_axis(dim, dims) for dim in given["dims"]])


def _transpose(watch: Watch, given: dict[str, Any]) -> Images | None:
    dims = given["self"].dim()
    order = list(range(dims))
    if dims > 1:
        first, second = _axis(given.get("dim0", 0), dims), _axis(given.get("dim1", 1), dims)
        order[first], order[second] = second, first
    return _order(watch, given, order)


def _unsqueeze(watch: Watch, given: dict[str, Any]) -> Images | None:
    dims = given["self"].dim()
    order = list(range(dims))
    order.insert(_axis(given["dim"], dims + 1), -1)
    return _order(watch, given, order)


def _squeeze(watch: Watch, given: dict[str, Any]) -> Images | None:
    shape = given["self"].shape
    dims = given.get("dim", range(len(shape)))
    gone = {_axis(dim, len(shape)) for dim in ([dims] if isinstance(dims, int) else dims)}
    return _order(watch, given, [dim for dim in range(len(shape)) if dim not in gone or shape[dim] != 1])


def _elsewhere(watch: Watch, given: dict[str, Any]) -> Images | None:
    """Calls along some dimensions, which must not include that of the images."""
    found = _input(watch, given, "self", "input")
    if found is None:
        return None
    tensor, place = found
    dims = given.get("dim", given.get("dims", given.get("dimension")))
    if dims is None or dims == []:
        return None
    along = {_axis(dim, tensor.dim()) for dim in ([dims] if isinstance(dims, int) else dims)}
    return None if place.dim in along else place


def _reduced(watch: Watch, given: dict[str, Any]) -> Images | None:
    """The same for calls that remove these dimensions."""
    place = _elsewhere(watch, given)
    if place is None or given.get("keepdim"):
        return place
    tensor = given.get("self", given.get("input"))
    assert isinstance(tensor, Tensor)
    dims = given["dim"]
    along = {_axis(dim, tensor.dim()) for dim in ([dims] if isinstance(dims, int) else dims)}
    return place._replace(dim=place.dim - sum(dim < place.dim for dim in along))


def _select(watch: Watch, given: dict[str, Any]) -> Images | None:
    return _reduced(watch, {**given, "keepdim": False})


def _slice(watch: Watch, given: dict[str, Any]) -> Images | None:
    """Slices; along the images' dimension only of all images."""
    place = _elsewhere(watch, given)
    if place is not None:
        return place
    found = _input(watch, given, "self")
    if found is None:
        return None
    size = found[0].shape[found[1].dim]
    whole = (given["start"] or 0) in (0, -size) and given["step"] == 1 and (given["end"] or size) >= size
    return found[1] if whole else None


def _joined(watch: Watch, given: dict[str, Any]) -> Images | None:
    """Concatenation."""
    tensors = [each for each in given["tensors"] if each.numel()]
    states = [(each, watch.of(each)) for each in tensors]
    dims = tensors[0].dim()
    if any(each.dim() != dims for each in tensors):
        return None
    place = watch.aligned(states, dims)
    return None if place is None or _axis(given["dim"], dims) == place.dim else place


def _stacked(watch: Watch, given: dict[str, Any]) -> Images | None:
    tensors = given["tensors"]
    dims = tensors[0].dim()
    place = watch.aligned([(each, watch.of(each)) for each in tensors], dims)
    return place and place._replace(dim=place.dim + (_axis(given["dim"], dims + 1) <= place.dim))


def of_first(watch: Watch, given: dict[str, Any]) -> Images | None:
    """Convolutions, pools, resizing: image by image in dimension 0; their other arguments are constants."""
    found = _input(watch, given, "input", "self", "x", "images")
    if found is None or found[1].dim != 0 or found[0].dim() < 3:
        return None
    return found[1]


def _padded(watch: Watch, given: dict[str, Any]) -> Images | None:
    found = _input(watch, given, "self")
    if found is None:
        return None
    pairs = len(given["pad"] if "pad" in given else given["padding"]) // 2
    return found[1] if found[1].dim < found[0].dim() - pairs else None


def of_batch_norm(watch: Watch, given: dict[str, Any]) -> Images | None:
    """With running statistics image by image; with batch statistics only if each image is a channel of its own."""
    found = _input(watch, given, "input")
    if found is None:
        return None
    place = found[1]
    if place.dim == 0:
        return None if given.get("training", given.get("train", False)) else place
    if place.dim != 1:
        return None
    constants = [each for each in operands(given.values()) if each is not found[0] and each.dim() == 1]
    return place if all(watch.is_uniform(each, place._replace(dim=0)) for each in constants) else None


def _layer_norm(watch: Watch, given: dict[str, Any]) -> Images | None:
    found = _input(watch, given, "input")
    if found is None:
        return None
    return found[1] if found[1].dim < found[0].dim() - len(given["normalized_shape"]) else None


def _product(watch: Watch, given: dict[str, Any]) -> Images | None:
    """Products of matrices [n, m] × [m, k], or of batches of them, and perhaps a sum with a third."""
    first, second = (
        (given["self"], given["mat2"]) if "mat2" in given and "mat1" not in given else _factors(given)
    )  # fmt: skip
    dims = first.dim()
    places = [watch.of(first), watch.of(second)]
    moving = [place for place in places if isinstance(place, Images)]
    if not moving:
        return None  # only what is added depends on the images
    if dims == 3 and all(place.dim == 0 for place in moving):
        if len(set(moving)) > 1:
            return None
        place = moving[0]
        for each, known in zip((first, second), places, strict=True):
            if not isinstance(known, Images) and not watch.is_uniform(each, place):
                return None
    elif len(moving) == 1 and moving[0].dim == dims - 2 and isinstance(places[0], Images):
        place = moving[0]
    elif len(moving) == 1 and moving[0].dim == dims - 1 and isinstance(places[1], Images):
        place = moving[0]._replace(dim=second.dim() - 1)
    else:
        return None
    if "mat1" in given or "batch1" in given:
        added = given["self"]
        return watch.aligned([(added, watch.of(added)), (_Shaped(dims), place)], dims)  # type: ignore[list-item]
    return place


class _Shaped:
    """A placeholder for the product in a sum with it."""

    def __init__(self, dims: int) -> None:
        self._dims = dims

    def dim(self) -> int:
        return self._dims


def _factors(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    names = ("mat1", "mat2") if "mat1" in given else ("batch1", "batch2")
    return given[names[0]], given[names[1]]


def _attention(watch: Watch, given: dict[str, Any]) -> Images | None:
    """Attention of [N, heads, L, E]; each image (or head) has its own queries, keys and values."""
    states = [(given[name], watch.of(given[name])) for name in ("query", "key", "value")]
    if any(each.dim() != 4 for each, _ in states):
        return None
    place = watch.aligned(states, 4)
    mask = given.get("attn_mask", given.get("attn_bias"))
    if place is None or place.dim > 1 or not isinstance(mask, (Tensor, type(None))):
        return None
    return place if mask is None else watch.aligned([*states, (mask, watch.of(mask))], 4)


def _whole_attention(watch: Watch, given: dict[str, Any]) -> Images | None:
    """torch's own attention layers: [N, L, E] and constants."""
    inputs = [given[name] for name in ("query", "key", "value", "src") if name in given]
    others = [each for each in operands(given.values()) if not any(each is tensor for tensor in inputs)]
    if any(not isinstance(watch.of(each), Same) for each in others) or given.get("mask") is not None:
        return None
    return Images(0) if all(each.dim() == 3 and watch.of(each) == Images(0) for each in inputs) else None


def _looked_up(watch: Watch, given: dict[str, Any]) -> Images | None:
    """``x[:, :, index]``: constants that choose places along other dimensions than that of the images."""
    found = _input(watch, given, "self")
    if found is None:
        return None
    tensor, place = found
    indices = list(given["indices"])
    chosen = [at for at, index in enumerate(indices) if index is not None]
    if not chosen or any(indices[at].dtype in (torch.bool, torch.uint8) for at in chosen) or place.dim in chosen:
        return None
    together = chosen == list(range(chosen[0], chosen[-1] + 1))
    width = max(indices[at].dim() for at in chosen)
    at = place.dim - sum(each < place.dim for each in chosen)  # its place among the dimensions that are not chosen
    front = chosen[0] if together else 0
    return place._replace(dim=at if at < front else at + width) if tensor.dim() > place.dim else None


def _embedded(watch: Watch, given: dict[str, Any]) -> Images | None:
    place = watch.of(given["indices"])
    return place if isinstance(place, Images) and isinstance(watch.of(given["weight"]), Same) else None


def _gathered(watch: Watch, given: dict[str, Any]) -> Images | None:
    states = [(each, watch.of(each)) for each in (given["self"], given["index"])]
    dims = given["self"].dim()
    place = watch.aligned(states, dims)
    if place is None or place.dim == _axis(given["dim"], dims):
        return None
    return place if given["index"].shape[place.dim] == given["self"].shape[place.dim] else None


def _sampled(watch: Watch, given: dict[str, Any]) -> Images | None:
    states = [(each, watch.of(each)) for each in (given["input"], given["grid"])]
    place = watch.aligned(states, given["input"].dim())
    return place if place is not None and place.dim == 0 and given["input"].dim() == given["grid"].dim() else None


def _windows_of(watch: Watch, given: dict[str, Any]) -> Images | None:
    """``Tensor.unfold``: a new last dimension."""
    return _elsewhere(watch, given)


def _triangle(watch: Watch, given: dict[str, Any]) -> Images | None:
    found = _input(watch, given, "self")
    return found[1] if found is not None and found[1].dim < found[0].dim() - 2 else None


def _restrided(watch: Watch, given: dict[str, Any]) -> Images | None:
    """Other strides for dimensions of size 1, which mean nothing; poolings do that to their results."""
    found = _input(watch, given, "self")
    if found is None or list(given["size"]) != list(found[0].shape) or given["storage_offset"] is not None:
        return None
    strides = zip(found[0].shape, found[0].stride(), given["stride"], strict=True)
    return found[1] if all(size == 1 or old == new for size, old, new in strides) else None


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "_view_copy"), _view),
    "expand": _expand,
    "repeat": _repeat,
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    **dict.fromkeys(
        (
            *("_softmax", "_log_softmax", "cumsum", "cumprod", "cummax", "cummin", "flip", "roll", "glu", "sort"),
            *("topk", "split", "split_with_sizes", "narrow", "index_select", "renorm", "_fft_r2c", "_fft_c2r"),
            *("_fft_c2c", "softmax", "log_softmax", "logcumsumexp", "_safe_softmax", "chunk", "rot90"),
        ),
        _elsewhere,
    ),
    **dict.fromkeys(
        (
            *("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "logsumexp"),
            *("linalg_vector_norm", "norm", "argmax", "argmin", "any", "all", "median", "nansum", "kthvalue", "mode"),
            *("count_nonzero", "aminmax"),
        ),
        _reduced,
    ),
    **dict.fromkeys(("select", "unbind"), _select),
    "slice": _slice,
    "cat": _joined,
    "stack": _stacked,
    **dict.fromkeys(
        (
            *("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution"),
            *("cudnn_convolution_relu", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d"),
            *("avg_pool1d", "avg_pool3d", "max_pool2d", "mkldnn_max_pool2d", "adaptive_avg_pool2d"),
            *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool2d"),
            *("adaptive_max_pool3d", "adaptive_avg_pool1d", "upsample_nearest1d", "upsample_nearest2d"),
            *("upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
            *("upsample_linear1d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d"),
            *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "native_group_norm"),
            *("im2col", "col2im", "fractional_max_pool2d", "lp_pool2d"),
        ),
        of_first,
    ),
    **dict.fromkeys(
        (
            *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d"),
            *("replication_pad2d", "replication_pad3d"),
        ),
        _padded,
    ),
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
            *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "batch_norm_elemt"),
        ),
        of_batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "_addmm_activation"), _product),
    **dict.fromkeys(
        (
            *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
            *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
        ),
        _attention,
    ),
    **dict.fromkeys(("_native_multi_head_attention", "_transformer_encoder_layer_fwd"), _whole_attention),
    "index": _looked_up,
    "embedding": _embedded,
    "gather": _gathered,
    "grid_sampler_2d": _sampled,
    "unfold": _windows_of,
    **dict.fromkeys(("tril", "triu"), _triangle),
    "as_strided_": _restrided,
}
