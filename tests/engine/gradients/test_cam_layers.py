"""The layer of class activation maps where none is named, and Grad-CAM of transformers, by definition."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import targets
from fastviz.engine.gradients.cam_layers import default_layer

f64 = torch.float64


def layer_of(model: nn.Module, x: Tensor, target: targets.Target = 1) -> str:
    return default_layer(model, x, targets.resolve(target, model))


def definition(model: nn.Module, x: Tensor, layer: str, lay: Any) -> Tensor:
    """Grad-CAM as pytorch-grad-cam has it with a ``reshape_transform`` that lays the tokens out."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = model(x)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    maps, slopes = lay(kept[0].detach()), lay(gradient)
    return (slopes.mean((2, 3), keepdim=True) * maps).sum(1).relu()


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    torch.manual_seed(0)
    model = VisionTransformer(**sizes, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zeros, where they come from
    return model.to(f64).eval()


def test_a_vision_transformer() -> None:
    """The last block's patches have no say where a class token is read: what goes into its attention has."""
    model, x = vision_transformer(), torch.randn(2, 3, 32, 32, dtype=f64)
    name = layer_of(model, x)
    assert name == "encoder.layers.encoder_layer_2.ln_1"
    expected = definition(model, x, name, lambda rows: rows[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4))
    assert expected.any()
    torch.testing.assert_close(fv.grad_cam(model, x, 1), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fv.grad_cam(model, x, 1, layer=name), expected, rtol=1e-6, atol=1e-9)
    assert fv.guided_grad_cam(model, x, 1).shape == x.shape
    assert fv.grad_cam(model, x[:0], 1).shape == (0, 4, 4)


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_swin(name: str) -> None:
    """[N, H, W, C] is never read as [N, C, H, W]."""
    import torchvision

    torch.manual_seed(0)
    small = {"patch_size": [4, 4], "embed_dim": 12, "depths": [1, 2], "num_heads": [2, 2], "window_size": [2, 2]}
    block = {"swin_v2_t": torchvision.models.swin_transformer.SwinTransformerBlockV2}.get(name)
    merge = {"swin_v2_t": torchvision.models.swin_transformer.PatchMergingV2}.get(name)
    more = {} if block is None else {"block": block, "downsample_layer": merge}
    model = torchvision.models.SwinTransformer(**small, **more, num_classes=5).to(f64).eval()
    x = torch.randn(2, 3, 32, 48, dtype=f64)
    assert layer_of(model, x) == "permute"
    expected = definition(model, x, "norm", lambda maps: maps.permute(0, 3, 1, 2))
    assert expected.shape == (2, 4, 6)
    for layer in (None, "norm"):
        torch.testing.assert_close(fv.grad_cam(model, x, 1, layer=layer), expected, rtol=1e-6, atol=1e-12)


def test_timm_transformers() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64, dtype=f64)
    small: dict[str, dict[str, Any]] = {
        "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
        "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},  # two more tokens
        "vit_medium_patch16_reg4_gap_256": {"img_size": 64, "depth": 2},  # four registers, no class token
        "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2, "depths": (1, 2), "num_heads": (3, 6)},
    }
    expected = {
        "vit_tiny_patch16_224": ("blocks.1.norm1", lambda rows: rows[:, 1:]),
        "deit_tiny_distilled_patch16_224": ("blocks.1.norm1", lambda rows: rows[:, 2:]),
        "vit_medium_patch16_reg4_gap_256": ("norm", lambda rows: rows[:, 4:]),
        "swin_tiny_patch4_window7_224": ("norm", lambda maps: maps.flatten(1, 2)),
    }
    for name, options in small.items():
        model = timm.create_model(name, num_classes=5, **options).to(f64).eval()
        layer, patches = expected[name]
        assert layer_of(model, x) == layer, name
        side = 8 if "swin" in name else 4

        def lay(rows: Tensor, patches: Any = patches, side: int = side) -> Tensor:
            found = patches(rows).transpose(1, 2)
            return found.reshape(*found.shape[:2], side, side)

        torch.testing.assert_close(
            fv.grad_cam(model, x, 1), definition(model, x, layer, lay), rtol=1e-6, atol=1e-12, msg=name
        )
        activations = fv.activations(model, x, layer, as_maps=True)
        assert activations.shape[2:] == (side, side)
        assert fv.occlusion(model, x, 1, window=32, stride=32).scores.shape == (1, 2, 2)
        assert fv.saliency(model, x, 1).any()


def test_segmentation_is_explained_in_its_coarsest_maps() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
            self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU())
            self.up, self.head = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(6, 4, 1)
            self.aux = nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            first = self.down(x)
            return {"out": self.head(self.up(self.deep(first)) + first), "aux": self.aux(first)}

    torch.manual_seed(0)
    model, x = Net().to(f64), torch.randn(2, 3, 16, 16, dtype=f64)
    target = fv.region_score(2, torch.ones(8, 8, dtype=torch.bool))
    assert layer_of(model, x, target) == "deep"
    assert layer_of(model, x, fv.output(lambda output: output["aux"][:, 0].mean((1, 2)))) == "down"
    assert fv.grad_cam(model, x, target).shape == (2, 4, 4)


def test_opposite_targets_do_not_vanish_together() -> None:
    model, x = vision_transformer(), torch.randn(1, 3, 32, 32, dtype=f64)
    score = fv.class_score(1)
    assert layer_of(model, x, [score, -score]) == "encoder.layers.encoder_layer_2.ln_1"


def test_tokens_that_cannot_be_followed_need_a_layer() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)))
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.blocks(rows[:, torch.arange(rows.shape[1]).flip(0)]).mean(1))

    model, x = Shuffled().to(f64), torch.randn(1, 3, 16, 16, dtype=f64)
    with pytest.raises(ValueError, match=r"layer should be named for this network: .* 'patches', .*cannot be followed"):
        fv.grad_cam(model, x, 1)
    with pytest.raises(ValueError, match=r"layer 'blocks' should have maps .* \[1, 16, 8\] are rows and columns"):
        fv.grad_cam(model, x, 1, layer="blocks")
    assert fv.grad_cam(model, x, 1, layer="patches").shape == (1, 4, 4)


def test_a_gradient_of_zero_everywhere_causes_a_warning() -> None:
    model, x = vision_transformer(), torch.randn(1, 3, 32, 32, dtype=f64)
    nn.init.zeros_(model.heads.head.weight)  # type: ignore[union-attr, arg-type]
    with pytest.warns(UserWarning, match="the target has a gradient of zero everywhere at layer"):
        assert not fv.grad_cam(model, x, 1).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fv.occlusion(model, x, 1, window=16).scores.isfinite().all()


class Branched(nn.Module):
    """Its last maps are those of a layer that an attribute chooses; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=8, padding=1)
        self.head = nn.Linear(4, 5)
        self.deep, self.passes = True, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        maps = self.first(x).relu()
        maps = self.second(maps) if self.deep else maps
        return self.head(maps.mean((2, 3)))


FAMILY = (fv.grad_cam, fv.cam, fv.eigen_cam, fv.layer_cam, fv.guided_grad_cam)


@pytest.mark.parametrize("method", FAMILY, ids=lambda method: method.__name__)
def test_the_layer_is_looked_for_once(method: Any) -> None:
    model, x = Branched().to(f64).eval(), torch.randn(1, 3, 16, 16, dtype=f64)
    counts, maps = [], []
    for _ in range(3):
        before = model.passes
        maps.append(method(model, x, 1))
        counts.append(model.passes - before)
    assert counts[1] == counts[2] == counts[0] - 1
    assert torch.equal(maps[0], maps[1])


@pytest.mark.parametrize("method", FAMILY, ids=lambda method: method.__name__)
def test_the_layer_of_an_earlier_call_is_no_longer_the_last(method: Any) -> None:
    """Another path through the model, another size of images, a layer with another name: each as in a new model."""
    model, x = Branched().to(f64).eval(), torch.randn(2, 3, 16, 16, dtype=f64)

    def change_size() -> None:
        nonlocal x
        x = x[:, :, :8, :8]  # where the second layer has one position

    def rename() -> None:
        model.last, model.second = model.second, nn.Identity()
        model.forward = lambda x: model.head(model.last(model.first(x).relu()).mean((2, 3)))  # type: ignore[method-assign]

    def change_path() -> None:
        model.deep = False

    def change_back() -> None:
        model.deep = True

    # CAM cannot be without the second layer
    for change in (change_path, change_back, change_size, rename) if method is not fv.cam else (rename,):
        method(model, x, 1)
        change()
        found = method(model, x, 1)
        fv.forget(model)
        torch.testing.assert_close(found, method(model, x, 1), rtol=0, atol=0)
