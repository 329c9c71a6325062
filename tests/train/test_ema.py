"""Moving averages of weights against a slow loop; training and exact resume are unaffected."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError
from tests.train.test_best import CONFIG, Guess, Numbers, scored

STEPS = 30
AVERAGED = replace(CONFIG, steps=STEPS, val_every=10, save_every=10, ema_decay=0.7, lr=0.05)


class Recorded(Guess):
    """It notes its weights before every step, and in validation."""

    def __init__(self):
        super().__init__(scored(0.1, 0.2, 0.3, 0.4))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def forward(self, batch: Numbers):
        self.trained.append(self.weight.detach().clone())
        return super().forward(batch)

    def validate(self, loader):
        self.validated.append(self.weight.detach().clone())
        return super().validate(loader)


def fit(run: Path, config=AVERAGED) -> Recorded:
    def batches() -> Iterator[Numbers]:
        while True:
            yield Numbers()

    run.mkdir(exist_ok=True)
    task = Recorded()
    trainer = Trainer(config, run, task, task, device=torch.device("cpu"), texts={})
    trainer.resume()
    trainer.fit(batches(), [], BadSamples(run, num_rows=1, max_share=1, writes=True))
    return task


def slow_averages(weights: list[Tensor], decay: float) -> list[list[float]]:
    """After each step, number by number, in Python's floats."""
    kept = [weights[0].tolist()]
    for step, weight in enumerate(weights[1:], start=1):
        rate = min(decay, (1 + step) / (10 + step))
        kept.append(
            [
                rate * old + (1 - rate) * new
                for old, new in zip(kept[-1], weight.tolist(), strict=True)
            ]
        )
    return kept


def test_a_slow_loop_finds_the_same(tmp_path: Path):
    task = fit(tmp_path / "run")
    live = [*task.trained, task.weight.detach()]
    expected = slow_averages(live, 0.7)
    assert len(task.validated) == 3
    for step, seen in zip((10, 20, 30), task.validated, strict=True):
        folder = tmp_path / f"run/checkpoints/step_{step:08d}"
        torch.testing.assert_close(seen, torch.tensor(expected[step]), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(seen, live[step], rtol=1e-3)
        assert torch.equal(load_file(folder / "model.safetensors")["weight"], seen)
        assert torch.equal(load_file(folder / "live.safetensors")["weight"], live[step])
        assert load_file(folder / "live.safetensors").keys() == {"weight"}
    assert torch.equal(
        load_file(tmp_path / "run/best/model.safetensors")["weight"], task.validated[-1]
    )


def test_training_does_not_notice(tmp_path: Path):
    one, two = fit(tmp_path / "with"), fit(tmp_path / "without", replace(AVERAGED, ema_decay=0.0))
    assert all(map(torch.equal, one.trained, two.trained))
    assert not (tmp_path / "without/checkpoints/step_00000030/live.safetensors").exists()


def test_a_run_goes_on_bit_for_bit(tmp_path: Path):
    fit(tmp_path / "run")
    last = tmp_path / "run/checkpoints/step_00000030"
    last.rename(tmp_path / "last")
    task = fit(tmp_path / "run")
    assert len(task.trained) == 10
    for name in ("model", "live", "optimizer"):
        one, two = (
            load_file(folder / f"{name}.safetensors") for folder in (tmp_path / "last", last)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_a_checkpoint_without_live_weights_is_no_start(tmp_path: Path):
    fit(tmp_path / "run", replace(AVERAGED, ema_decay=0.0))
    with pytest.raises(UserError, match=r"live.safetensors: cannot be read"):
        fit(tmp_path / "run", replace(AVERAGED, steps=40))
