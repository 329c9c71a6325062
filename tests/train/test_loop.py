"""The training loop: log, checkpoints, hooks of a task, parameters with another learning rate."""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eve_vl.train import checkpoint_writer
from eve_vl.train.meter import Meter
from eve_vl.train.run_log import read_log
from eve_vl.train.step import StepOutput
from eve_vl.utils.cores import core_seconds
from eve_vl.utils.errors import UserError
from helpers.number_task import (
    CONFIG,
    Guess,
    Numbers,
    endless,
    no_bad_samples,
    scored,
    step_folder,
    train,
    trainer_of,
    weights,
)

SCORES = scored(0.1, 0.2, 0.3, 0.4)


def interrupted(step: int) -> Iterator[Numbers]:
    """Yield batches up to that of a step, which never comes."""
    yield from itertools.islice(endless(), step - 1)
    raise KeyboardInterrupt


def test_restart_before_the_first_checkpoint_begins_a_new_log(tmp_path: Path):
    run = tmp_path / "run"
    config = replace(
        CONFIG,
        log_every=1,
        save_every=8,
        val_every=8,
    )
    notes = ["random weights"]
    trainer = trainer_of(run, Guess(SCORES), config, notes=notes)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(interrupted(3), [], no_bad_samples(run))
    assert [row["kind"] for row in read_log(run)] == ["note", "train", "train"]
    train(run, Guess(SCORES), config, notes=notes)
    train_steps = [("train", step) for step in range(1, 9)]
    assert [(row["kind"], row["step"]) for row in read_log(run)] == [
        ("note", 0),
        *train_steps,
        ("note", 8),
        ("val", 8),
    ]


def test_failed_validation_saves_a_checkpoint_first(tmp_path: Path):
    class UnusableRow(Guess):
        def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], dict[str, float]]:
            raise UserError("a row to evaluate on cannot be used")

    run = tmp_path / "run"
    with pytest.raises(UserError, match="cannot be used"):
        train(run, UnusableRow([]), replace(CONFIG, val_every=3, save_every=8))
    assert weights(step_folder(run, 3)).any()


def test_checkpoint_is_in_place_before_its_validation_begins(tmp_path: Path, monkeypatch):
    """A kill during validation would lose it otherwise; here a thread writes it slowly, as with a
    GPU."""
    run = tmp_path / "run"
    write_files = checkpoint_writer.write_files
    checkpoints_at_validation = []

    class LookingGuess(Guess):
        def validate(self, loader):
            checkpoints_at_validation.append(sorted((run / "checkpoints").glob("step_*")))
            return super().validate(loader)

    def write_slowly(*files: Any) -> dict[str, str]:
        time.sleep(0.2)
        return write_files(*files)

    monkeypatch.setattr(checkpoint_writer, "write_files", write_slowly)
    trainer = trainer_of(run, LookingGuess(SCORES), replace(CONFIG, steps=4))
    trainer.writer.in_background = True
    trainer.fit(endless(), [], no_bad_samples(run))
    first = step_folder(run, 2)
    assert checkpoints_at_validation == [[first], [first, step_folder(run, 4)]]


def test_core_seconds_before_training_do_not_count(tmp_path: Path):
    trainer = trainer_of(tmp_path, Guess(SCORES))
    before = core_seconds()
    while core_seconds() - before < 0.2:  # as reading validation data does
        pass
    meter = Meter(trainer.window)
    meter.add({"loss": torch.zeros(())})
    assert meter.result(CONFIG, 1)["core_seconds"] < 0.1
    meter.cores_start -= 3.0
    resumed = Meter(meter.state())
    assert 3.0 <= resumed.result(CONFIG, 1)["core_seconds"] < 3.2


@dataclass(kw_only=True)
class CountedRows(Numbers):
    """A batch that knows how many rows those of its step have together."""

    num_rows: int = 1
    total: int | None = None


class RowCountingGuess(Guess):
    """A task that weighs rows alike, however they are spread over micro-batches."""

    def before_step(self, micro_batches: list[CountedRows]) -> list[CountedRows]:
        total = sum(batch.num_rows for batch in micro_batches)
        return [replace(batch, total=total) for batch in micro_batches]

    def forward(self, batch: CountedRows) -> StepOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert batch.total is not None
        share = torch.tensor(2 * batch.num_rows / batch.total)  # the loop takes the mean of two
        loss = share * (self.weight - batch.num_rows).square().sum()
        return StepOutput(loss=loss, terms={"share": share})


def test_before_step_sees_all_micro_batches_of_a_step(tmp_path: Path):
    run = tmp_path / "run"
    task = RowCountingGuess(SCORES)
    gradients: list[Tensor] = []
    task.weight.register_hook(gradients.append)
    config = replace(
        CONFIG,
        steps=1,
        batch_size=2,
        accumulation=2,
        log_every=1,
    )
    trainer = trainer_of(run, task, config)
    batches = iter([CountedRows(num_rows=1), CountedRows(num_rows=3)])
    trainer.fit(batches, [], no_bad_samples(run))
    expected = torch.full((3,), -2 * (1 / 4 * 1 + 3 / 4 * 3))
    assert torch.equal(sum(gradients, torch.zeros(3)), expected)
    (row,) = (row for row in read_log(run) if row["kind"] == "train")
    assert row["share"] == 1


class TwoNumbers(Guess):
    """A task with a second parameter."""

    def __init__(self):
        super().__init__(scored(0.1))
        self.head = nn.Parameter(torch.zeros(3))

    def forward(self, batch: Numbers) -> StepOutput:
        loss = super().forward(batch).loss + (self.head - 1).square().sum()
        return StepOutput(loss=loss, terms={})


def test_new_parameters_train_with_the_learning_rate_of_heads(tmp_path: Path):
    """One step of AdamW moves every weight by its learning rate."""
    config = replace(
        CONFIG,
        steps=1,
        head_lr_multiplier=5.0,
        weight_decay=0.0,
        clip_norm=0.0,
        lr=0.01,
        schedule="linear",
    )
    task = TwoNumbers()
    train(tmp_path / "run", task, config, new={"head"})
    torch.testing.assert_close(
        task.weight.detach(),
        torch.full((3,), 0.01),
        rtol=1e-3,
        atol=1e-6,
    )
    torch.testing.assert_close(
        task.head.detach(),
        torch.full((3,), 0.05),
        rtol=1e-3,
        atol=1e-6,
    )


def test_a_caller_can_set_an_earlier_last_step_while_training(tmp_path: Path):
    run = tmp_path / "run"
    config = replace(
        CONFIG, steps=8, warmup=0.0, schedule="linear", log_every=1, save_every=8, val_every=8
    )
    trainer = trainer_of(run, Guess(SCORES), config)
    trainer.last_step = lambda step: 8 if step < 3 else 5
    trainer.fit(endless(), [], no_bad_samples(run))
    rows = read_log(run)
    rates = [row["lr"] / config.lr for row in rows if row["kind"] == "train"]
    assert rates == pytest.approx(
        [
            8 / 8,
            7 / 8,
            6 / 8,
            2 / 5,
            1 / 5,
        ]
    )
    assert [row["step"] for row in rows if row["kind"] == "val"] == [5]
    assert step_folder(run, 5).is_dir()
