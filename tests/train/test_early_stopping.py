"""train.patience: a run ends after validations without improvement."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.utils.errors import UserError
from helpers.number_task import CONFIG, Guess, notes_of, scored, step_folder, train, validations

NAN = float("nan")
STOPPED = "stopped early: 2 validations without a better score"


@pytest.mark.parametrize(
    ("scores", "last_step", "best_score"),
    [
        ((0.1, 0.3, 0.2, 0.3), 8, 0.3),  # the same again is no better
        ((NAN, 0.1, NAN, 0.2, 0.1, 0.2), 12, 0.2),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 12, 0.6),
        ((0.3, 0.2, 0.1), 6, 0.3),
    ],
)
def test_run_stops_after_two_validations_without_a_better_score(
    tmp_path: Path, scores, last_step, best_score
):
    run = tmp_path / "run"
    config = replace(CONFIG, steps=12, save_every=5, patience=2)
    assert train(run, Guess(scored(*scores)), config)["score"] == best_score
    assert list(validations(run)) == list(range(2, last_step + 1, 2))
    assert (STOPPED in notes_of(run)) == (last_step < 12)
    assert step_folder(run, last_step).is_dir()
    task = Guess([])
    train(run, task, config)
    assert task.num_validations == 0  # the run is finished


def test_more_patience_continues_a_stopped_run_and_more_steps_do_not(tmp_path: Path, capsys):
    run = tmp_path / "run"
    config = replace(CONFIG, steps=12, save_every=5, patience=2)
    train(run, Guess(scored(0.3, 0.2, 0.1)), config)
    notes = notes_of(run)
    capsys.readouterr()
    train(run, Guess([]), replace(config, steps=24), notes=["24 steps from here on"])
    assert capsys.readouterr().out == (
        "resuming from step 6 of 24; nothing left to train: "
        "train.patience 2 has ended it; a larger one, or 0, continues\n"
    )
    assert notes_of(run) == notes
    train(run, Guess(scored(0.05, 0.05, 0.05)), replace(config, patience=9))
    assert step_folder(run, 12).is_dir()


@pytest.mark.parametrize("killed_at", [2, 4, 6])
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
