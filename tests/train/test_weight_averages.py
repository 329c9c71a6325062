"""Moving averages of weights against a slow loop; training and exact resume are unaffected."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eve_vl.utils.errors import UserError
from helpers.number_task import CONFIG, Guess, Numbers, scored, step_folder, train
from helpers.run_comparison import tensor_differences

AVERAGED = replace(
    CONFIG,
    steps=12,
    val_every=4,
    save_every=4,
    ema_decay=0.7,
    lr=0.05,
)


class RecordingGuess(Guess):
    """A task that records its weights before every step, and in validation."""

    def __init__(self):
        super().__init__(scored(0.1, 0.2, 0.3, 0.4))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.trained_weights: list[Tensor] = []
        self.validated_weights: list[Tensor] = []

    def forward(self, batch: Numbers):
        self.trained_weights.append(self.weight.detach().clone())
        return super().forward(batch)

    def validate(self, loader):
        self.validated_weights.append(self.weight.detach().clone())
        return super().validate(loader)


def fit(run: Path, config=AVERAGED) -> RecordingGuess:
    task = RecordingGuess()
    train(run, task, config)
    return task


def slow_averages(weights: list[Tensor], decay: float) -> list[list[float]]:
    """After each step, number by number, in Python's floats."""
    averages = [weights[0].tolist()]
    for step, weight in enumerate(weights[1:], start=1):
        rate = min(decay, (1 + step) / (10 + step))
        row = []
        for before, now in zip(averages[-1], weight.tolist(), strict=True):
            row.append(rate * before + (1 - rate) * now)
        averages.append(row)
    return averages


def test_averages_equal_those_of_a_slow_loop(tmp_path: Path):
    run = tmp_path / "run"
    task = fit(run)
    live = [*task.trained_weights, task.weight.detach()]
    expected = slow_averages(live, 0.7)
    assert len(task.validated_weights) == 3
    for step, validated in zip((4, 8, 12), task.validated_weights, strict=True):
        torch.testing.assert_close(validated, torch.tensor(expected[step]), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(validated, live[step], rtol=1e-3)
        saved_live = load_file(step_folder(run, step) / "live.safetensors")
        assert saved_live.keys() == {"weight"}
        assert torch.equal(saved_live["weight"], live[step])
        saved = load_file(step_folder(run, step) / "model.safetensors")
        assert torch.equal(saved["weight"], validated)
    best = load_file(run / "best/model.safetensors")
    assert torch.equal(best["weight"], task.validated_weights[-1])


def test_averages_do_not_change_training(tmp_path: Path):
    averaged = fit(tmp_path / "averaged")
    plain = fit(tmp_path / "plain", replace(AVERAGED, ema_decay=0.0))
    assert all(map(torch.equal, averaged.trained_weights, plain.trained_weights))
    assert not (step_folder(tmp_path / "plain", 12) / "live.safetensors").exists()


def test_resumed_run_with_averages_equals_uninterrupted_run(tmp_path: Path):
    run = tmp_path / "run"
    fit(run)
    uninterrupted = tmp_path / "uninterrupted"
    step_folder(run, 12).rename(uninterrupted)
    task = fit(run)
    assert len(task.trained_weights) == 4
    assert (uninterrupted / "live.safetensors").is_file()
    assert list(tensor_differences(step_folder(run, 12), uninterrupted)) == []


def test_averages_cannot_resume_without_live_weights(tmp_path: Path):
    fit(tmp_path / "run", replace(AVERAGED, ema_decay=0.0))
    with pytest.raises(UserError, match=r"live.safetensors: cannot be read"):
        fit(tmp_path / "run", replace(AVERAGED, steps=16))
