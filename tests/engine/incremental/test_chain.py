"""Chains against the model itself on every changed image, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastviz as fv
from fastviz.engine.incremental import Chain, Changes, outputs_of_changes
from fastviz.engine.incremental.advance import AdvancingRunner, paste
from fastviz.engine.incremental.plan import CALL_FLOPS

f64 = torch.float64

pytestmark = pytest.mark.usefixtures("traced")


@pytest.fixture(autouse=True)
def _calls_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the small networks here would run on whole images."""
    monkeypatch.setitem(CALL_FLOPS, "cpu", 1.0)


class Varied(nn.Module):
    """Strides, dilation, groups, ceil pooling, a sum, a concatenation, batch norm, and a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.left = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.right = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.last = nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.first(x))))
        x = torch.cat([F.relu(self.left(x)) + x, F.avg_pool2d(self.right(x), 3, 1, 1)], 1)
        out: Tensor = self.head(F.relu(self.last(x)).mean((2, 3)))
        return out


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Varied().to(f64).eval()
    nn.init.normal_(model.norm.running_mean, std=0.3)
    return model


def windows(size: tuple[int, int], side: int, sequences: int, seed: int = 0) -> Tensor:
    """The windows of a grid in random orders: step [Q, H, W] from 1 on."""
    rows, columns = -(-size[0] // side), -(-size[1] // side)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(rows * columns, generator=generator) for _ in range(sequences)]) + 1
    grid = orders.reshape(sequences, rows, columns)
    return grid.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : size[0], : size[1]]


def by_definition(model: nn.Module, images: Tensor, changes: Changes) -> Tensor:
    """The model on every state of every sequence, one by one: [Q, S + 1, K]."""
    found = []
    for q, step in enumerate(changes.step):
        at = q if changes.image is None else int(changes.image[q])
        image, other = images[at], changes.substitute[min(at, len(changes.substitute) - 1)]
        begin, end = (other, image) if changes.reveal else (image, other)
        states = [torch.where(step <= s, end, begin) for s in range(changes.steps + 1)]
        with torch.no_grad():
            found.append(torch.cat([model(state[None]) for state in states]))
    return torch.stack(found)


def check(model: nn.Module, images: Tensor, changes: Changes, path: str = "chain", **options: object) -> Chain:
    """The chain, if it gives the model's numbers on the ``path`` that it should take."""
    found = outputs_of_changes(model, images, changes, lambda output, sequence: output, **options)
    expected = by_definition(model, images, changes)
    exact = images.dtype == f64
    torch.testing.assert_close(found.values, expected, rtol=1e-10 if exact else 1e-4, atol=1e-12 if exact else 1e-5)
    assert found.stats["path"] == path, found.stats
    return found


def images(count: int = 3, size: tuple[int, int] = (72, 64), dtype: torch.dtype = f64) -> Tensor:
    return torch.randn(count, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_windows_go_on_rectangles(model):
    x = images()
    step = windows((72, 64), 8, 3)
    found = check(model, x, Changes(step, int(step.max()), torch.zeros(1, 3, 1, 1, dtype=f64).expand(1, 3, 72, 64)))
    assert found.stats["predicted_gain"] > 1.15
    assert found.stats["states"] == 3 * 73
    check(model, x, Changes(step, int(step.max()), images(3).flip(0), reveal=True))


def test_many_sequences_of_few_images_with_substitutes_of_their_own(model):
    x = images(2)
    step = windows((72, 64), 8, 5)
    about = torch.tensor([1, 0, 0, 1, 1])
    check(model, x, Changes(step, 30, images(2).flip(2), about))
    check(model, x, Changes(step, 30, images(1), about, reveal=True), batch_size=2)


def test_chunks_that_memory_holds_and_sequences_one_by_one(model):
    x = images(5)
    step = windows((72, 64), 16, 5)
    whole = check(model, x, Changes(step, int(step.max()), torch.zeros_like(x)))
    single = check(model, x, Changes(step, int(step.max()), torch.zeros_like(x)), memory=1)
    torch.testing.assert_close(single.values, whole.values)
    assert single.stats["batch_size"] == 1 < whole.stats["batch_size"]


def test_scattered_pixels_go_whole(model):
    x = images(2)
    step = torch.randperm(72 * 64, generator=torch.Generator().manual_seed(2)).reshape(1, 72, 64) // 400 + 1
    found = check(model, x, Changes(step.expand(2, 72, 64), int(step.max()), torch.zeros_like(x)), "steps")
    assert "save nothing" in found.stats["reason"]


def test_small_and_large_changes_in_one_sequence(model):
    """Whole maps are written too, so that rectangles go on from there."""
    step = windows((72, 64), 8, 1)
    step[:, ::9, ::7] = 20
    check(model, images(1), Changes(step, int(step.max()), images(1).flip(1)))


def test_changes_that_change_nothing_repeat_the_state_before(model):
    x = images(2)
    step = windows((72, 64), 16, 2)
    step[0][step[0] == 5] = 100  # never
    step[1][step[1] == 1] = 0  # before the first
    found = check(model, x, Changes(step, 25, torch.zeros_like(x)))
    assert found.stats["states"] == 2 + (20 - 1) + (20 - 1)
    torch.testing.assert_close(found.values[0, 5], found.values[0, 4], rtol=0, atol=0)


def test_a_change_that_never_comes():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)).to(f64)
    x = torch.rand(1, 1, 8, 8, dtype=f64)
    found = outputs_of_changes(model, x, Changes(torch.full((1, 8, 8), 9), 3, x * 0), lambda output, at: output)
    torch.testing.assert_close(found.values, model(x)[:, None].expand(1, 4, 2).detach())


def test_no_error_adds_up_over_many_steps():
    """In float32, after 256 changes: the last states are as close to the model as the first."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for at in range(5):
        layers += [nn.Conv2d(3 if at == 0 else 64, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)).eval()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    x = images(1, (32, 32), torch.float32)
    step = windows((32, 32), 2, 1)
    changes = Changes(step, 256, images(1, (32, 32), torch.float32).flip(3))
    found = outputs_of_changes(model, x, changes, lambda output, sequence: output)
    assert found.stats["path"] == "chain"
    sampled = [0, 1, 2, 3, 4, 252, 253, 254, 255, 256]
    states = torch.stack([torch.where(step[0] <= s, changes.substitute[0], x[0]) for s in sampled])
    with torch.no_grad():
        expected = model.double()(states.double())
    error = (found.values[0, sampled] - expected).abs().amax(1) / expected.abs().max()
    assert float(error.max()) < 2e-5
    assert float(error[5:].max()) < 4 * float(error[:5].max())


def test_paste_by_hand():
    maps = torch.zeros(2, 1, 3, 3)
    value = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]])
    paste(maps, value, torch.tensor([[1, 0], [0, 1]]), torch.tensor([1, 0]))
    assert maps[:, 0].tolist() == [[[0, 5, 6], [0, 7, 8], [0, 0, 0]], [[0, 0, 0], [1, 2, 0], [3, 4, 0]]]


def test_evaluate_gets_the_number_of_the_sequence(model):
    x = images(3)
    step = windows((72, 64), 16, 3)
    changes = Changes(step, 20, torch.zeros_like(x))
    found = outputs_of_changes(model, x, changes, lambda output, sequence: output[:, 0] + 1000.0 * sequence)
    expected = by_definition(model, x, changes)[..., 0] + 1000.0 * torch.arange(3)[:, None]
    torch.testing.assert_close(found.values, expected)


def test_images_and_substitutes_are_left_as_they_were(model):
    x, other = images(2).contiguous(memory_format=torch.channels_last), images(2).flip(1)
    before = x.clone(), other.clone()
    step = windows((72, 64), 16, 2)
    for reveal in (False, True):
        check(model, x, Changes(step, 20, other, reveal=reveal))
    torch.testing.assert_close((x, other), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: x.fill_(torch.nan), "not finite"),
        (lambda x: x[0, 0, 0, 0].fill_(torch.inf), "not finite"),
    ],
)
def test_values_that_are_not_finite_go_through_the_model(model, spoil: Callable[[Tensor], Tensor], reason: str):
    x = images(2)
    other = torch.zeros_like(x)
    spoil(other)
    step = windows((72, 64), 16, 2)
    changes = Changes(step, 20, other)
    found = outputs_of_changes(model, x, changes, lambda output, sequence: output)
    assert found.stats["path"] == "model"
    assert reason in found.stats["reason"]
    torch.testing.assert_close(found.values, by_definition(model, x, changes), equal_nan=True)


def test_a_model_that_cannot_be_traced_runs_as_it_is():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x).mean((2, 3))
            return out if float(x.flatten()[0]) < 100 else out * 2

    torch.manual_seed(0)
    x = images(2)
    step = windows((72, 64), 16, 2)
    check(Branches().to(f64), x, Changes(step, 20, torch.zeros_like(x)), "model")


def test_weights_that_change_between_calls_are_seen(model):
    x = images(1)
    changes = Changes(windows((72, 64), 16, 1), 20, torch.zeros_like(x))
    check(model, x, changes)
    model.last.weight.data.mul_(1.5)
    check(model, x, changes)


def test_tracing_waits_until_it_pays(model, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(CALL_FLOPS, "cpu", 1.0)
    x = images(1)
    changes = Changes(windows((72, 64), 16, 1), 20, torch.zeros_like(x))
    found = check(model, x, changes, "model")
    assert "tracing would cost more" in found.stats["reason"]
    check(model, x, changes, "chain", trace="always")
    check(model, x, changes, "model", trace="never")


def test_memory_that_runs_out_halves_the_batch(model, monkeypatch):
    x = images(4)
    changes = Changes(windows((72, 64), 16, 4), 20, torch.zeros_like(x))
    run = AdvancingRunner.run

    def tight(self: AdvancingRunner, clean, states, numbers, members):
        result = run(self, clean, states, numbers, members)
        if len(numbers) > 1:
            raise MemoryError  # after the maps were written
        return result

    monkeypatch.setattr(AdvancingRunner, "run", tight)
    assert check(model, x, changes).stats["retries"] > 0


def test_the_same_bits_at_any_number_of_threads(model):
    x = images(3, dtype=torch.float32)
    changes = Changes(windows((72, 64), 16, 3), 20, torch.zeros_like(x))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(outputs_of_changes(model.float(), x, changes, lambda output, at: output).values)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_squeezenet_on_photographs(shared: Path):
    model = fv.load_model("squeezenet1_0", weights=shared / "models/squeezenet1_0_imagenet.safetensors")
    x, _ = fv.load_images([shared / "images" / name for name in ("tabby.jpg", "school_bus.jpg")], model=model)
    step = windows((224, 224), 32, 2)
    changes = Changes(step, 49, torch.zeros_like(x))
    found = outputs_of_changes(model, x, changes, lambda output, sequence: output.softmax(1))
    assert found.stats["path"] == "chain"
    sampled = [0, 1, 7, 25, 48, 49]
    for q in range(2):
        states = torch.stack([torch.where(step[q] <= s, 0.0, x[q]) for s in sampled])
        with torch.no_grad():
            expected = model(states).softmax(1)
        torch.testing.assert_close(found.values[q, sampled], expected, rtol=1e-4, atol=2e-6)
