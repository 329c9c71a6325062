"""A temperature of another run that does not fit, and training rows against validation rows."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eve_vl.metrics.intervals import share
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.overfitting import compare_with_training_rows
from eve_vl.train.trainer import Trainer
from helpers.tiny_tasks import build, config_of, rows_of, train_set
from tests.train.test_best import CONFIG, Guess, endless, notes_of, scored


@pytest.mark.parametrize(
    ("seen", "validated", "is_score", "overfits"),
    [
        (share(188, 200), share(24, 200), True, True),
        (share(30, 200), share(24, 200), True, False),
        (share(3, 4), share(1, 4), True, False),  # their intervals overlap
        (0.9, 4.26, False, True),
        (2.9, 4.26, False, False),
        (4.26, 0.9, False, False),
    ],
)
def test_overfitting_is_named(seen, validated, is_score, overfits):
    text = compare_with_training_rows("loss", seen, validated, is_score=is_score)
    assert f"loss {seen:.3f} on training rows, {validated:.3f} on validation rows" in text
    assert ("overfits" in text) == overfits


def test_training_rows_are_measured_once_at_the_end(tmp_path: Path):
    task = Guess(scored(0.2, 0.5, 0.97))
    trainer = Trainer(
        replace(CONFIG, steps=4), tmp_path, task, task, device=torch.device("cpu"), texts={}
    )
    trainer.training_rows = list
    trainer.fit(endless(), [], BadSamples(tmp_path, num_rows=1, max_share=1, writes=True))
    assert task.num_validations == 3
    note = "the run overfits its training rows: score 0.970 on training rows, 0.500 on validation rows; "
    assert notes_of(tmp_path)[0] == note + "fewer steps, more rows or augmentation help"


@pytest.mark.parametrize("temperature", [0.002, 0.07, 0.4])
def test_a_temperature_worse_than_a_guess_starts_afresh(temperature: float):
    task = build(config_of("retrieval"))
    assert isinstance(task, Retrieval)
    batch = rows_of(train_set(task.config, 6), 6)
    task.eval()
    head = task.contrast.features
    with torch.no_grad():
        head.temperature.fill_(temperature)
        image_Bd, text_Bd = (
            task.image_features(batch.images_BCHW),
            task.text_features(batch.ids_BT, batch.is_padding_BT),
        )
    losses = []  # pair by pair, in Python's floats
    for own, others in ((image_Bd, text_Bd), (text_Bd, image_Bd)):
        for row in range(len(own)):
            scores = [(own[row] @ other).item() / temperature for other in others]
            losses.append(math.log(sum(math.exp(score - scores[row]) for score in scores)))
    loss = sum(losses) / len(losses)
    note = task.reset_temperatures(batch)
    if loss > math.log(len(image_Bd)) and temperature < 0.07:
        assert note == (
            f"temperature reset from {temperature:g} to 0.07: contrastive loss {loss:.2f} on training rows, "
            f"of a uniform guess {math.log(len(image_Bd)):.2f}"
        )
    assert bool(note) == (temperature == 0.002)
    assert head.temperature.item() == pytest.approx(0.07 if note else temperature)
