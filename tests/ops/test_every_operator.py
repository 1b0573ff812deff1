"""What holds for every operator: derivatives, compilation, export, threads, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from fastviz import ops
from tests.ops.common import (
    as_volume,
    devices,
    fixed,
    gradients,
    make,
    of_volumes,
    orders,
    patch_search_call,
    splice_call,
    splice_volumes_call,
)

CALLS = {
    "occlude": lambda x: ops.occlude(x, *fixed(x.device)[:2], 0.5),
    "occlude_signals": lambda x: ops.occlude(x[:, :, 0], fixed(x.device)[0][:, 1::2], fixed(x.device)[1], 0.5),
    "occlude_volumes": lambda x: ops.occlude(as_volume(x), of_volumes(x.device)[0], fixed(x.device)[1], 0.5),
    "occlude_fill": lambda x: ops.occlude(x[:1], fixed(x.device)[0], None, x[1:]),
    "guided_relu": lambda x: ops.guided_relu(x),
    "deconvnet": lambda x: ops.guided_relu(x, "deconvnet"),
    "guided_relu6": lambda x: ops.guided_relu(x, "guided", 6),
    "total_variation": lambda x: ops.total_variation(x, beta=2.5),
    "gram": lambda x: ops.gram(x, "hw"),
    "gram_loss": lambda x: ops.gram_loss(x, torch.ones(1, 3, 3, dtype=x.dtype, device=x.device)),
}
EVERY_CALL = {
    **CALLS,
    "splice": splice_call,
    "splice_volumes": splice_volumes_call,
    "patch_search": patch_search_call,
}
calls = pytest.mark.parametrize("name", CALLS)


@calls
def test_gradcheck(name):
    if name in ("guided_relu", "deconvnet", "guided_relu6"):
        return  # their backward rules are no derivatives: test_guided_relu compares them with the definition
    x = make((2, 3, 4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(CALLS[name], (x,))


@devices
@orders
@pytest.mark.parametrize("name", EVERY_CALL)
def test_compile(name, order, device):
    """Compiled without a break in the graph, the values and gradients are those of the eager call."""
    call = EVERY_CALL[name]
    x = make((2, 3, 6, 7), torch.float32, device, order)
    real = call(x)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), real, rtol=0, atol=0)
    if name in CALLS:
        torch.testing.assert_close(gradients(compiled, x), gradients(call, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY_CALL)
def test_export(name):
    class Module(torch.nn.Module):
        def forward(self, x):
            return EVERY_CALL[name](x)

    x = make((2, 3, 6, 7), torch.float32)
    exported = torch.export.export(Module(), (x,))
    assert any("fastviz" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), EVERY_CALL[name](x), rtol=0, atol=0)


def opcheck_arguments(device: str, order: str) -> dict[str, tuple]:
    x = make((2, 3, 7, 6), torch.float32, device, order)
    boxes, index, at, crop_index, known = fixed(torch.device(device))
    offsets = torch.tensor([0, 3, 7], device=device)
    ordered = index.argsort(stable=True)
    mask = torch.full(((x.numel() + 7) // 8,), 0b10110100, dtype=torch.uint8, device=device)
    leaf = x.detach().clone().requires_grad_()
    target = torch.ones(1, 3, 3, device=device)
    return {
        "occlude": (leaf, boxes, index, None, 0.5),
        "_occlude_backward": (x.repeat(4, 1, 1, 1)[:7], boxes, ordered, offsets, False),
        "splice": (x, x[:, :, :3, :2].contiguous(), at, at, [4, 5], crop_index, 0.0),
        "guided_relu": (leaf, "guided", 0.5, True),
        "_guided_relu_in_place": (x.clone(), "deconvnet", 0.5, True),
        "_guided_relu_backward": (x, mask, "guided", order == "channels_last"),
        "total_variation": (leaf, "isotropic", 2.5, True, False),
        "_total_variation_backward": (torch.ones(2, device=device), x, "isotropic", 2.5, True, False),
        "gram": (leaf, "hw"),
        "gram_loss": (leaf, target, "hw"),
        "patch_search": (x[0], x[1:, :, 1:4, 2:4], known, x[0, 0, :3, :2].abs()),
    }


@devices
@orders
@pytest.mark.parametrize("axes", [1, 3])
def test_opcheck_of_signals_and_volumes(axes, order, device):
    """A signal is a picture of one row whose boxes and origins have no rows."""
    shape = (2, 3, 1, 7) if axes == 1 else (2, 3, 4, 5, 6)
    x = make(shape, torch.float32, device, order)
    index, volumes = fixed(torch.device(device))[1], of_volumes(torch.device(device))
    boxes, origins = (volumes[0][:, 2::3], volumes[1][:, 2:]) if axes == 1 else volumes
    size = [1, 3] if axes == 1 else [2, 3, 4]
    operators = torch.ops.fastviz
    torch.library.opcheck(operators.occlude.default, (x.clone().requires_grad_(), boxes, index, None, 0.5))
    torch.library.opcheck(operators.occlude.default, (x[:1], boxes, None, x[1:].clone().requires_grad_(), 0.0))
    offsets = torch.tensor([0, 3, 7], device=device)
    grad = x.repeat(4, *[1] * (x.dim() - 1))[:7]
    torch.library.opcheck(operators._occlude_backward.default, (grad, boxes, index.argsort(stable=True), offsets, True))
    crop = x[..., :2].contiguous()
    torch.library.opcheck(
        operators.splice.default, (x, crop, origins, origins, size, torch.tensor([1, 0], device=device), 0.0)
    )


@devices
@orders
@pytest.mark.parametrize("name", opcheck_arguments("cpu", "contiguous"))
def test_opcheck(name, order, device):
    torch.library.opcheck(getattr(torch.ops.fastviz, name).default, opcheck_arguments(device, order)[name])


def test_every_operator_is_checked():
    """A new operator in library.cpp appears in test_opcheck too, or in a test of what the CPU alone has."""
    listed = {
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastviz::")
    }
    parts = {"_fill_in", "_grow_texture", "_winograd_tiles", "_winograd_maps"}
    assert listed == {*opcheck_arguments("cpu", "contiguous"), *parts, "_instructions"}


@calls
def test_second_order_is_refused_in_words(name):
    if name == "gram":
        return  # gram's backward is differentiable
    x = make((2, 3, 4, 5)).requires_grad_()

    def second_derivative():
        (first,) = torch.autograd.grad(CALLS[name](x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)

    with pytest.raises(RuntimeError, match="has no derivative of second order"):
        second_derivative()


@pytest.mark.parametrize("name", EVERY_CALL)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_same_bits_at_any_number_of_threads(name, order):
    x = make((2, 3, 60, 47), torch.float32, order=order) if "gram" not in name else make((2, 3, 70, 70), torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(gradients(CALLS[name], x) if name in CALLS else EVERY_CALL[name](x))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.cuda
@calls
def test_same_bits_between_runs_on_cuda(name):
    x = make((2, 3, 60, 47), torch.float32, "cuda")
    torch.testing.assert_close(gradients(CALLS[name], x), gradients(CALLS[name], x), rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", EVERY_CALL)
def test_cuda_graph(name):
    """Captured once, replayed on new values."""
    call = EVERY_CALL[name]
    x = make((2, 3, 32, 30), torch.float32, "cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(output, call(x), rtol=0, atol=0)


@pytest.mark.cuda
def test_more_than_two_to_the_31_elements_on_cuda():
    x = torch.ones(1, 3, 27000, 27000, dtype=torch.float16, device="cuda")
    x[..., -1, -1] = 3
    assert ops.guided_relu(x)[0, :, -1, -1].tolist() == [3, 3, 3]
    assert ops.total_variation(x, norm="l1", border="zero").tolist() == [12.0]


def test_meta_tensors():
    x = torch.empty(2, 3, 7, 6, device="meta")
    assert ops.gram(x).shape == (2, 3, 3)
    assert ops.total_variation(x).shape == (2,)
