"""The comparison of training rows with validation rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.metrics.intervals import share
from eve_vl.train.overfitting import compare_with_training_rows
from helpers.number_task import CONFIG, Guess, endless, no_bad_samples, notes_of, scored, trainer_of


@pytest.mark.parametrize(
    ("training", "validation", "is_score", "overfits"),
    [
        (share(188, 200), share(24, 200), True, True),
        (share(30, 200), share(24, 200), True, False),
        (share(3, 4), share(1, 4), True, False),  # their intervals overlap
        (0.9, 4.26, False, True),
        (2.9, 4.26, False, False),
        (4.26, 0.9, False, False),
    ],
)
def test_half_the_error_on_training_rows_is_overfitting(training, validation, is_score, overfits):
    text = compare_with_training_rows("loss", training, validation, is_score=is_score)
    assert f"loss {training:.3f} on training rows, {validation:.3f} on validation rows" in text
    assert ("overfits" in text) == overfits


def test_training_rows_are_evaluated_once_at_the_end(tmp_path: Path):
    task = Guess(scored(0.2, 0.5, 0.97))
    trainer = trainer_of(tmp_path, task, replace(CONFIG, steps=4))
    trainer.training_rows = list
    trainer.fit(endless(), [], no_bad_samples(tmp_path))
    assert task.num_validations == 3
    assert notes_of(tmp_path)[0] == (
        "the run overfits its training rows: "
        "score 0.970 on training rows, 0.500 on validation rows; "
        "fewer steps, more rows or augmentation help"
    )
