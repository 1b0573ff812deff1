"""Activations of several layers in one pass, in bounded memory, and as a picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import fastviz as fv


class Counting(nn.Module):
    """Passes its input on and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), Counting(), nn.Flatten()
    ).double()


def images(N: int = 7) -> torch.Tensor:
    return torch.randn(N, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_values(batch_size):
    """Before the in-place rectifier, in evaluation mode, whatever the batches."""
    model, x = network(), images()
    found = fv.activations(model, x, layers=["0", "3"], batch_size=batch_size)
    model.eval()
    with torch.no_grad():
        first = model[0](x)
        torch.testing.assert_close(found["0"], first)
        torch.testing.assert_close(found["3"], model[3](model[2](first.relu())))
    assert list(found) == ["0", "3"]
    assert not found["0"].requires_grad


def test_every_convolution_is_the_default():
    found = fv.activations(network(), images(2))
    assert {name: list(maps.shape) for name, maps in found.items()} == {"0": [2, 4, 7, 7], "2": [2, 5, 5, 5]}


def test_later_passes_end_at_the_last_layer_needed():
    model = network()
    fv.activations(model, images(6), "3", batch_size=2)
    assert model[4].calls == 1


def test_a_layer_called_twice_gives_its_last_output():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    model, x = Twice(), images(5).float()
    with torch.no_grad():
        expected = model.conv(model.conv(x))
    torch.testing.assert_close(fv.activations(model, x, "conv", batch_size=2), expected)


def test_other_shapes_and_no_images():
    found = fv.activations(network(), images(0), layers=["2", "5"])
    assert found["2"].shape == (0, 5, 5, 5)
    assert found["5"].shape == (0, 125)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype(dtype):
    assert fv.activations(network().to(dtype), images(2).to(dtype), "0").dtype == dtype


def test_one_layer_gives_a_tensor_and_several_a_dictionary():
    model, x = network(), images(3)
    found = fv.activations(model, x, layers=["2", "0", "2"])
    assert list(found) == ["2", "0"]
    torch.testing.assert_close(fv.activations(model, x, "2"), found["2"])
    with pytest.raises(ValueError, match="layer or layers should be given, not both, got '2' and"):
        fv.activations(model, x, "2", layers=["0"])
    with pytest.raises(TypeError, match=r"layer should be one name, got \['2'\]; give several as layers"):
        fv.activations(model, x, ["2"])


def test_reduced_precision_is_near_and_has_the_dtype_of_the_images():
    """Of every method that reads: another number than the exact one, by less than bfloat16 rounds."""
    model, x = network().float(), images(3).float()
    exact, near = (fv.activations(model, x, "2", precision=word) for word in ("model", "bfloat16"))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.02 * exact.abs().max()
    exact, near = (fv.patches(model, x, "2", k=1, precision=word).values for word in ("model", "bfloat16"))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.02 * exact.abs().max()
    exact, near = (fv.embedding(model, x, "2", precision=word).vectors for word in ("model", "bfloat16"))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.02


def state(model: nn.Module) -> list[object]:
    modules = list(model.modules())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
    return [hooks, [module.training for module in modules], [p.requires_grad for p in model.parameters()]]


@pytest.mark.parametrize("error", [None, RuntimeError("x"), KeyboardInterrupt()])
def test_the_model_is_left_as_it_was(error):
    model = network()
    model[3].eval()
    before, x = state(model), images()
    kept, random = x.clone(), torch.get_rng_state()

    def fail(module, inputs):
        if error is not None:
            raise error

    handle = model[2].register_forward_pre_hook(fail)
    if error is None:
        fv.activations(model, x, "2", batch_size=2)
    else:
        with pytest.raises(type(error)):
            fv.activations(model, x, "2", batch_size=2)
    handle.remove()
    assert state(model) == before
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": []}, "layers should hold at least one name, got none"),
        ({"layer": "7"}, "layer '7' is not known"),
        ({"layer": "0", "batch_size": 0}, "batch_size should be at least 1, got 0"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        fv.activations(network(), images(), **options)


def test_a_layer_that_is_not_called():
    model = network()
    spare = nn.ModuleDict({"model": model, "spare": nn.Conv2d(3, 3, 3)})
    spare.forward = lambda x: model(x)
    with pytest.raises(ValueError, match="layer 'spare' was not called in the forward pass"):
        fv.activations(spare, images(), layers=["spare"])
    assert list(fv.activations(spare, images())) == ["model.0", "model.2"]


def test_a_layer_that_gives_no_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    with pytest.raises(TypeError, match="layer 'pair' should return one floating-point tensor, got tuple"):
        fv.activations(Whole(), images(), "pair")
    with pytest.raises(ValueError, match="layer or layers should be given for this model: it calls no convolution"):
        fv.activations(Whole(), images())


# ------------------------------------------------------------------------------------------------------ pictures


def test_scales():
    maps = torch.tensor([[[0.0, 1.0]], [[2.0, 4.0]]])
    each = fv.activation_grid(maps, columns=2)
    together = fv.activation_grid(maps, columns=2, scale="together")
    assert each[0].unique().tolist() == [0.0, 1.0]
    # 256 greys: those of 0, 1/4, 1/2 and 1
    torch.testing.assert_close(together[0].unique(), torch.tensor([0.0, 64, 128, 255]) / 255)


def test_places_and_size():
    """Three maps of 2x3 in rows of two, the constant one black."""
    maps = torch.zeros(3, 2, 3)
    maps[0, 1, 2] = maps[2, 0, 0] = 5
    grid = fv.activation_grid(maps, columns=2)
    factor = 1200 // 6
    assert grid.shape == (3, 2 * (2 * factor + 4) + 4, 2 * (3 * factor + 4) + 4)
    first, second, third = grid[0, 4:404, 4:604], grid[0, 4:404, 608:1208], grid[0, 408:808, 4:604]
    assert torch.equal(first, (maps[0] / 5).repeat_interleave(factor, 0).repeat_interleave(factor, 1))
    assert not second.any()
    assert third[0, 0] == 1
    assert (grid[0, 408:808, 608:1208] == 1).all()  # paper where there is no fourth


def test_the_image_is_drawn_beside_the_maps():
    image = torch.rand(3, 20, 10)
    grid = fv.activation_grid(torch.rand(16, 13, 13), image=image)
    alone = fv.activation_grid(torch.rand(16, 13, 13))
    assert grid.shape == (3, alone.shape[1], alone.shape[2] + 4 + 224)
    shown = functional.interpolate(image[None], (448, 224), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(grid[:, 4:452, 4:228], shown)


def test_colours():
    grid = fv.activation_grid(torch.rand(1, 4, 4), colours="viridis")
    assert not torch.equal(grid[0], grid[1])


@pytest.mark.parametrize(
    ("maps", "options", "words"),
    [
        (torch.zeros(4, 4), {}, r"maps should have shape \[C, h, w\], got \[4, 4\]"),
        (torch.full((1, 2, 2), torch.nan), {}, "maps should be finite"),
        (torch.zeros(1, 2, 2), {"scale": "all"}, "scale should be one of 'each', 'together', got 'all'"),
        (torch.zeros(1, 2, 2), {"colours": "blue"}, "name should be one of .* got 'blue'"),
    ],
)
def test_a_grid_refuses(maps, options, words):
    with pytest.raises(ValueError, match=words):
        fv.activation_grid(maps, **options)
