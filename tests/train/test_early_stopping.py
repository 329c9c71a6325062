"""train.patience: a run ends after validations without improvement."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.train.early_stopping import EarlyStopping
from eve_vl.utils.errors import UserError
from helpers.number_task import CONFIG, Guess, notes_of, scored, step_folder, train, validations

NAN = float("nan")
STOPPED = "stopped early: 2 validations without a better score"


@pytest.mark.parametrize(
    ("scores", "num_validations"),
    [
        ((0.3, 0.2, 0.1), 3),
        ((0.1, 0.3, 0.2, 0.3), 4),  # the same again is no better
        ((NAN, 0.1, NAN, 0.2, 0.1, 0.2), 6),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), None),
    ],
)
def test_training_stalls_after_two_validations_without_a_better_score(scores, num_validations):
    for sign in (1, -1):  # of a score, and of a loss
        stopping = EarlyStopping(2, is_higher_better=sign == 1)
        without_patience = EarlyStopping(0, is_higher_better=sign == 1)
        assert not stopping.has_stalled()
        for number, score in enumerate(scores, 1):
            stopping.scores.append(sign * score)
            without_patience.scores.append(sign * score)
            assert stopping.has_stalled() == (number == num_validations)
            assert not without_patience.has_stalled()


def test_more_patience_continues_a_stopped_run_and_more_steps_do_not(tmp_path: Path, capsys):
    run = tmp_path / "run"
    config = replace(
        CONFIG,
        steps=12,
        save_every=5,
        patience=2,
    )
    assert train(run, Guess(scored(0.3, 0.2, 0.1)), config)["score"] == 0.3
    assert list(validations(run)) == [2, 4, 6]
    assert step_folder(run, 6).is_dir()
    notes = notes_of(run)
    assert STOPPED in notes

    capsys.readouterr()
    train(run, Guess([]), replace(config, steps=24), notes=["24 steps from here on"])
    assert capsys.readouterr().out == (
        "resuming from step 6 of 24; nothing left to train: "
        "train.patience 2 has ended it; a larger one, or 0, continues\n"
    )
    assert notes_of(run) == notes
    train(run, Guess(scored(0.05, 0.05, 0.05)), replace(config, patience=9))
    assert step_folder(run, 12).is_dir()


@pytest.mark.parametrize("killed_at", [2, 6])
def test_resumed_run_counts_validations_before_the_restart(tmp_path: Path, killed_at):
    run = tmp_path / "run"
    config = replace(CONFIG, steps=12, patience=3)
    scores = scored(0.5, 0.2, 0.3, 0.4, 0.9, 0.9)
    num_before = killed_at // 2
    train(run, Guess(scores[:num_before]), replace(config, steps=killed_at))
    assert train(run, Guess(scores[num_before:]), config)["score"] == 0.5
    assert list(validations(run)) == [2, 4, 6, 8]


def test_without_a_main_metric_patience_watches_a_loss(tmp_path: Path):
    run = tmp_path / "run"
    losses = (3.0, 2.0, 2.5, 2.1, 1.0)
    task = Guess([{"loss": loss} for loss in losses], main_metric=None)
    with pytest.raises(UserError, match="no number to watch"):
        train(run, task, replace(CONFIG, patience=2))
    shutil.rmtree(run)
    task.main_loss = "loss"
    train(run, task, replace(CONFIG, steps=10, patience=2))
    assert list(validations(run, "loss").values()) == [3.0, 2.0, 2.5, 2.1]
