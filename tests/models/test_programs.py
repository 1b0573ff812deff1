"""Networks that files hold as a whole: exported ones and scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import models


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch", ["any", "fixed"])
def test_an_exported_network_runs_layer_by_layer(net: Net, tmp_path: Path, batch: str) -> None:
    shapes = ({0: torch.export.Dim("n")},) if batch == "any" else None
    torch.export.save(torch.export.export(net, (X,), dynamic_shapes=shapes), tmp_path / "net.pt2")
    model = fv.load_model(str(tmp_path / "net.pt2"))
    assert models.model_info(model).name == str(tmp_path / "net.pt2")
    torch.testing.assert_close(model(X), net(X))
    torch.testing.assert_close(fv.grad_cam(model, X, 1), fv.grad_cam(net, X, 1))
    torch.testing.assert_close(fv.guided_backprop(model, X, 1), fv.guided_backprop(net, X, 1))
    assert [layer.name for layer in fv.layers(model, (24, 24))] == [layer.name for layer in fv.layers(net, (24, 24))]
    found = fv.occlusion(model, X, 1, window=8, stride=8, trace="always")
    torch.testing.assert_close(found.scores, fv.occlusion(net, X, 1, window=8, stride=8).scores)
    assert fv.activations(model, X, "body.2").shape == (2, 8, 12, 12)


def test_a_script_file(net: Net, tmp_path: Path) -> None:
    torch.jit.trace(net, X).save(tmp_path / "net.pt")
    model = fv.load_model(str(tmp_path / "net.pt"))
    torch.testing.assert_close(fv.saliency(model, X, 1), fv.saliency(net, X, 1))
    found = fv.occlusion(model, X, 1, window=8, stride=8, trace="always")
    assert found.stats["path"] == "dense"
    assert "script" in found.stats["reason"]
    torch.testing.assert_close(found.scores, fv.occlusion(net, X, 1, window=8, stride=8).scores)
    with pytest.raises(ValueError, match="script"):
        fv.grad_cam(model, X, 1)


def test_what_is_no_network(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds 6 tensors and no network: name the network"):
        fv.load_model(str(tmp_path / "w.pth"))
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"refused: it wants to run .*Net"):
        fv.load_model(str(tmp_path / "whole.pt"))
    with pytest.raises(ValueError, match=r"none.pt2': no such file"):
        fv.load_model(str(tmp_path / "none.pt2"))
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(ValueError, match=r"is a file of ONNX, which torch does not run: torch.export.save"):
        fv.load_model(str(tmp_path / "net.onnx"))
    torch.jit.trace(net, X).save(tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"weights should not be given for .*net.pt': it is a program"):
        fv.load_model(str(tmp_path / "net.pt"), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"is a TorchScript program .*: give it as the model, or"):
        fv.load_model("resnet18", tmp_path / "net.pt")
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "net.pt").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot be read"):
        fv.load_model(str(tmp_path / "cut.pt2"))
