"""Recorded passes: with a stand-in for CUDA graphs that replays the operators it saw, and on a GPU the real ones."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastviz as fv
from fastviz.engine.optimize import priors
from fastviz.execution import cuda_graphs

MODEL = fv.load_model("demo")


class Tape(TorchDispatchMode):
    """What a CUDA graph does: the same operators on the same memory, and no Python; reading a value is an error."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        output = func(*args, **kwargs)
        returns = func._schema.returns
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        if not is_view and "empty" not in func.name():
            self.calls.append((func, args, kwargs, output))
        return output

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, output in self.calls:
                again = func(*args, **kwargs)
                old, new = (each if isinstance(each, (tuple, list)) else (each,) for each in (output, again))
                for held, value in zip(old, new, strict=True):
                    if isinstance(held, torch.Tensor) and held is not value:
                        held.copy_(value)

    def pool(self):
        return 0


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The CPU in the place of a GPU. Gives the list of graphs."""
    made = []

    def graph():
        made.append(Tape())
        return made[-1]

    @contextmanager
    def recording(tape, pool=None, stream=None):
        with tape:
            yield

    monkeypatch.setattr(cuda_graphs, "_on_gpu", lambda x: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    return made


def photographs(count, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(batch, 3, 64, 64, generator=generator) for _ in range(count)]


METHODS = {
    "saliency": lambda model, x: fv.saliency(model, x),
    "guided": lambda model, x: fv.guided_backprop(model, x, 3),
    "several": lambda model, x: fv.deconvnet(model, x, [1, fv.class_probability(2), None]),
    "layers": lambda model, x: fv.guided_backprop(model, x, fv.channel("conv2_2", 3) + 2 * fv.class_score(1)),
    "units": lambda model, x: fv.input_gradient(model, x, [fv.neuron("conv2_2", k) for k in range(3)]),
    "parts": lambda model, x: fv.saliency(model, x, 3, batch_size=1),
}


@pytest.mark.parametrize("name", METHODS)
def test_replayed_gradients_are_the_same(name, on_a_gpu):
    method = METHODS[name]
    xs = photographs(5)
    expected = [method(MODEL, x) for x in xs]
    with fv.cuda_graphs(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [method(MODEL, x) for x in xs]
    assert on_a_gpu
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_autocast_is_recorded_without_its_kept_weights(on_a_gpu):
    """Weights that change between replays are cast again."""
    model = fv.load_model("demo").requires_grad_()  # autocast keeps those that could be trained
    x = photographs(1)[0]

    def explain():
        return fv.guided_backprop(model, x, 3, precision="bfloat16")

    with fv.cuda_graphs():
        for scale in (1.0, 1.0, 1.0, 0.5):
            with torch.no_grad():
                model.conv1.weight.mul_(scale)
            found = explain()
    assert on_a_gpu
    torch.testing.assert_close(found, explain(), rtol=1e-5, atol=1e-6)


def test_nothing_is_recorded_outside_or_on_a_cpu(on_a_gpu, monkeypatch):
    for x in photographs(4):
        fv.saliency(MODEL, x)
    monkeypatch.setattr(cuda_graphs, "_on_gpu", lambda x: x.is_cuda)
    with fv.cuda_graphs():
        for x in photographs(4):
            fv.saliency(MODEL, x)
    assert not on_a_gpu


def test_two_rules_are_two_recordings(on_a_gpu):
    with fv.cuda_graphs():
        for x in photographs(4):
            found = [method(MODEL, x, 3) for method in (fv.deconvnet, fv.guided_backprop, fv.input_gradient)]
    expected = [method(MODEL, x, 3) for method in (fv.deconvnet, fv.guided_backprop, fv.input_gradient)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_new_weights_are_used(on_a_gpu):
    """Written into the old ones, or in their place."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.rand(2, 3, 8, 8)
    with fv.cuda_graphs():
        for _ in range(4):
            fv.saliency(model, x, 1)
        with torch.no_grad():
            model[0].weight.mul_(-1)
        torch.testing.assert_close(fv.input_gradient(model, x, 1), plainly(model, x))
        for _ in range(4):
            model[3].weight = nn.Parameter(torch.randn(5, 4 * 36))
            torch.testing.assert_close(fv.input_gradient(model, x, 1), plainly(model, x))


def plainly(model, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]


def test_checkpointed_parts_keep_the_rule(on_a_gpu):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

        def forward(self, x):
            maps = checkpoint(lambda y: self.second(torch.relu(self.first(y))), x, use_reentrant=False)
            return maps.mean((2, 3))

    model, xs = Checkpointed(), photographs(5)
    expected = [fv.guided_backprop(model, x, 1) for x in xs]
    assert not torch.equal(expected[0], fv.input_gradient(model, xs[0], 1))
    with fv.cuda_graphs():
        found = [fv.guided_backprop(model, x, 1) for x in xs]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


class Reading(nn.Module):
    """Reads a value in its forward pass, which no graph can hold."""

    def forward(self, x):
        return x.mean((2, 3)) * (2 if float(x.detach().sum()) > 0 else 3)


def test_what_cannot_be_recorded_runs_as_usual(on_a_gpu):
    model, x = Reading(), photographs(1)[0]
    with fv.cuda_graphs(), warnings.catch_warnings(record=True) as said:
        for sign in (1, 1, 1, -1, -1):
            found = fv.input_gradient(model, sign * x, 1)
            torch.testing.assert_close(found, plainly(model, sign * x))
    (warning,) = said
    assert re.search("cannot be recorded as a CUDA graph.*permitted", str(warning.message))


def test_models_with_hooks_are_not_recorded(on_a_gpu):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    with fv.cuda_graphs():
        for _ in range(6):
            fv.saliency(model, torch.rand(2, 3, 8, 8), 1)
    handle.remove()
    assert len(calls) == 6
    assert not on_a_gpu


def test_not_more_than_so_many_are_kept(on_a_gpu, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_MOST", 1)
    with fv.cuda_graphs():
        for batch in (1, 2):
            for _ in range(4):
                fv.saliency(MODEL, torch.rand(batch, 3, 64, 64), 3)
    assert len(on_a_gpu) == 2  # forward and backward of the first


def test_gradients_after_another_replay_are_refused(on_a_gpu):
    made = cuda_graphs.CapturedPasses()
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        made.replayed("square", lambda x: (x * x, None), x)
    first, nothing = made.replayed("square", lambda x: (x * x, None), x)
    second, _ = made.replayed("square", lambda x: (x * x, None), 2 * x)
    assert nothing is None
    assert second.tolist() == [4, 4]
    assert first.tolist() == [1, 1]
    assert torch.autograd.grad(second.sum(), x, retain_graph=True)[0].tolist() == [8, 8]
    assert torch.autograd.grad(3 * second.sum(), x)[0].tolist() == [24, 24]
    with pytest.raises(RuntimeError, match="before the pass is replayed again"):
        torch.autograd.grad(first.sum(), x)


def test_images_are_optimised_the_same(on_a_gpu):
    """Several images of which some stop early, so that shapes change on the way."""

    def make():
        return fv.maximize(MODEL, [3, 5, fv.neuron("conv2_2", 4)], steps=12, goal=0.9, priors=[priors.L2(1e-3)])

    expected = make()
    with fv.cuda_graphs():
        found = make()
    assert on_a_gpu
    torch.testing.assert_close(found.images, expected.images, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.steps, expected.steps)


def test_images_fool_the_same(on_a_gpu):
    photographs, _ = fv.load_images(Path(fv.__file__).parent / "models" / "data" / "photos", model=MODEL)
    for method in ("lbfgs", "sign"):
        expected = fv.fool(MODEL, photographs[:2], 5, method=method, quantize=True)
        with fv.cuda_graphs():
            found = fv.fool(MODEL, photographs[:2], 5, method=method, quantize=True)
        assert found.success.all()
        torch.testing.assert_close(found.l2, expected.l2, rtol=0.02, atol=0)
    assert on_a_gpu


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("fill", [0.0, "blur"])
def test_sweeps_are_the_same(fill, on_a_gpu):
    x = photographs(1, batch=3)[0]

    def maps():
        return fv.occlusion(MODEL, x, [3, None], window=16, stride=8, fill=fill, batch_size=4)

    expected = maps()
    with fv.cuda_graphs():
        found = maps()
    assert on_a_gpu
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_gradients_on_a_gpu(name):
    model, method = fv.load_model("demo").cuda(), METHODS[name]
    xs = [x.cuda() for x in photographs(5)]
    expected = [method(model, x) for x in xs]
    with fv.cuda_graphs(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [method(model, x) for x in xs]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_the_rest_on_a_gpu():
    model, x = fv.load_model("demo").cuda(), photographs(1, batch=3)[0].cuda()
    calls = {
        "bfloat16": lambda: fv.guided_backprop(model, x, 3, precision="bfloat16"),
        "images": lambda: fv.maximize(model, [3, 5], steps=12, priors=[priors.L2(1e-3)]).images,
        "sweep": lambda: fv.occlusion(model, x, 3, window=16, stride=8, batch_size=4).scores,
    }
    for name, call in calls.items():
        expected = call()
        with fv.cuda_graphs(), warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(4):
                found = call()
        close = {"bfloat16": 0.05, "images": 1e-2, "sweep": 1e-4}[name]
        torch.testing.assert_close(found, expected, rtol=close, atol=close, msg=name)
