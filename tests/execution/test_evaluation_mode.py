"""Evaluation mode inside the ``with``, and every training flag back behind it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from fastviz.execution.evaluation_mode import _holders, frozen_model


class Recorder(nn.Module):
    """Records the training flags and modes that hold while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm1d(2)
        self.seen: list[tuple[bool, bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(
            (self.training, self.drop.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
        return self.norm(self.drop(x))


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_frozen_model_runs_in_evaluation_mode_and_restores_every_flag() -> None:
    model = Recorder()
    model.norm.eval()  # a model in training with a frozen norm, as in fine-tuning
    before = flags(model)
    statistics = model.norm.running_mean.clone()
    with torch.inference_mode(), frozen_model(model):
        model(torch.randn(3, 2))
    assert model.seen == [(False, False, True, False)]
    assert flags(model) == before == [True, True, False]
    assert torch.equal(model.norm.running_mean, statistics)


def test_frozen_model_restores_after_exceptions_and_keyboard_interrupt() -> None:
    model = Recorder()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), frozen_model(model):
            raise error
        assert flags(model) == [True, True, True]


def test_frozen_model_in_two_threads_ends_with_the_last() -> None:
    """The thread that leaves first must not put the model back into training under the other."""
    model = Recorder()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with frozen_model(model):
            inside.set()
            leave.wait(300)

    thread = threading.Thread(target=hold)
    with frozen_model(model):
        thread.start()
        assert inside.wait(300)
    assert flags(model) == [False, False, False]
    leave.set()
    thread.join()
    assert flags(model) == [True, True, True]
    assert not _holders
