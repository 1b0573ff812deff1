"""What follows a layer for many maps at once: the same as running the model with a hook, however it is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastviz.execution.after_layer import AfterLayer
from fastviz.execution.evaluation_mode import frozen_model

f64 = torch.float64


class Written(nn.Module):
    """The same network but for what ``tail`` does with the first maps, the layer's, and the image."""

    def __init__(self, tail: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.LazyLinear(3)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu_()
        return self.fc(self.tail(first, self.layer(first), x))


def fixed(first: Tensor, maps: Tensor, x: Tensor) -> Tensor:
    """The number of images is read in front of the layer."""
    return maps.reshape(len(x), 4, -1).mean(2)


def in_place(first: Tensor, maps: Tensor, x: Tensor) -> Tensor:
    """What stands in front is worked on behind the layer."""
    first.mul_(2)
    return (first + maps).mean((2, 3))


TAILS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], bool]] = {
    "plain": (lambda first, maps, x: maps.relu_().mean((2, 3)), True),
    "added": (lambda first, maps, x: (maps + first).mean((2, 3)), True),
    "added in place": (lambda first, maps, x: maps.add_(first).mean((2, 3)), True),
    "added to the shortcut": (lambda first, maps, x: first.clone().add_(maps).mean((2, 3)), False),
    "joined": (lambda first, maps, x: torch.cat([first, maps, x], 1).mean((2, 3)), True),
    "stacked": (lambda first, maps, x: torch.stack([first, maps]).mean((0, 3, 4)), True),
    "number of images": (fixed, False),
    "in place": (in_place, True),
    "mixed": (lambda first, maps, x: (maps - maps.mean(0)).mean((2, 3)), False),
}


@pytest.mark.parametrize("name", TAILS)
def test_the_same_as_a_hook(name: str) -> None:
    tail, together = TAILS[name]
    model = Written(tail).to(f64)
    image = torch.randn(1, 2, 6, 5, dtype=f64, generator=torch.Generator().manual_seed(1))
    model(image)
    with frozen_model(model), torch.no_grad():
        rest = AfterLayer(model, "layer", image)
        assert rest.together == together
        maps = torch.randn(5, 4, 6, 5, dtype=f64, generator=torch.Generator().manual_seed(2))
        for _ in range(2):
            found = rest(maps)
        for at in range(5):
            handle = model.layer.register_forward_hook(lambda m, i, o, at=at: maps[at : at + 1].clone())
            expected = model(image.clone())
            handle.remove()
            torch.testing.assert_close(found[at : at + 1], expected)
        torch.testing.assert_close(rest.output, model(image))
    assert not model.layer._forward_hooks


def test_tensors_joined_along_their_first_dimension_stay_as_they_are() -> None:
    """One box of a level, three of another: they were expanded to the same number."""

    def boxes(first: Tensor, maps: Tensor, x: Tensor) -> Tensor:
        levels = torch.cat([maps.new_ones(1, 4), maps.new_zeros(3, 4)])
        return maps.mean((2, 3)) + levels.mean(0)

    model = Written(boxes).to(f64)
    image = torch.randn(1, 2, 6, 5, dtype=f64)
    expected = model(image)
    with frozen_model(model), torch.no_grad():
        rest = AfterLayer(model, "layer", image)
        assert rest.together
        torch.testing.assert_close(rest(rest.maps.repeat(2, 1, 1, 1)), expected.detach().repeat(2, 1))


def test_outputs_that_are_lists() -> None:
    class Detecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Conv2d(2, 4, 3)

        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"scores": each.mean((1, 2))} for each in self.layer(x)]

    model = Detecting().to(f64)
    image = torch.randn(1, 2, 6, 5, dtype=f64)
    with frozen_model(model), torch.no_grad():
        rest = AfterLayer(model, "layer", image)
        found = rest(torch.cat([rest.maps, 2 * rest.maps]))
    assert len(found) == 2
    torch.testing.assert_close(found[1]["scores"], 2 * rest.output[0]["scores"])


@pytest.mark.parametrize("several", [False, True], ids=["dictionary", "tuple"])
def test_outputs_that_hold_several_tensors(several: bool) -> None:
    class Segmenting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> object:
            out = self.head(self.layer(x).relu())
            return (out, out.mean((2, 3))) if several else {"out": out, "aux": out.mean((2, 3))}

    model = Segmenting().to(f64)
    with frozen_model(model), torch.no_grad():
        rest = AfterLayer(model, "layer", torch.randn(1, 2, 6, 5, dtype=f64))
        maps = torch.cat([rest.maps, 2 * rest.maps, rest.maps])
        found = rest(maps)
        out = model.head(maps.relu())
    first, second = found if several else (found["out"], found["aux"])
    torch.testing.assert_close(first, out)
    torch.testing.assert_close(second, out.mean((2, 3)))
    assert rest.together is not several


def test_what_stands_in_front_runs_twice_and_never_again() -> None:
    """Once as it is, once to note it."""
    model = Written(TAILS["added"][0]).to(f64)
    image = torch.randn(1, 2, 6, 5, dtype=f64)
    model(image)
    calls = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(func is torch.conv2d and args[1] is model.first.weight)
            return func(*args, **(kwargs or {}))

    with frozen_model(model), torch.no_grad(), Watch():
        rest = AfterLayer(model, "layer", image)
        for _ in range(5):
            rest(rest.maps.repeat(3, 1, 1, 1))
    assert sum(calls) == 2


def test_a_layer_that_is_called_twice_counts_at_its_last_call() -> None:
    torch.manual_seed(0)
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2)).eval()
    with torch.no_grad():
        image = torch.randn(1, 3)
        rest = AfterLayer(model, "1", image)
        torch.testing.assert_close(rest.maps, model[:4](image))
        maps = torch.rand(3, 4)
        torch.testing.assert_close(rest(maps), model[4](maps))
