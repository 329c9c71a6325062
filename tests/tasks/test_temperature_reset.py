"""A temperature of another run that is too low for the loss starts again."""

import math

import pytest
import torch
from torch import Tensor

from eve_vl.tasks.retrieval.task import Retrieval
from helpers.tiny_tasks import build, config_of, rows_of, train_set


def slow_contrastive_loss(image_Bd: Tensor, text_Bd: Tensor, temperature: float) -> float:
    """Return the loss pair by pair, in Python's floats."""
    losses = []
    for queries_Bd, candidates_Bd in ((image_Bd, text_Bd), (text_Bd, image_Bd)):
        for row, query_d in enumerate(queries_Bd):
            scores = [(query_d @ candidate_d).item() / temperature for candidate_d in candidates_Bd]
            losses.append(math.log(sum(math.exp(score - scores[row]) for score in scores)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.002, 0.07, 0.4])
def test_temperature_is_reset_if_the_loss_is_above_that_of_a_guess(temperature: float):
    task = build(config_of("retrieval"))
    assert isinstance(task, Retrieval)
    batch = rows_of(train_set(task.config, 6), 6)
    task.eval()
    head = task.contrast.features
    with torch.no_grad():
        head.temperature.fill_(temperature)
        image_Bd = task.image_features(batch.images_BCHW)
        text_Bd = task.text_features(batch.ids_BT, batch.is_padding_BT)
    loss = slow_contrastive_loss(image_Bd, text_Bd, temperature)
    guess_loss = math.log(len(image_Bd))
    note = task.reset_temperatures(batch)
    if temperature > 0.002:
        assert note == ""
        assert head.temperature.item() == pytest.approx(temperature)
        return
    assert loss > guess_loss
    assert note == (
        f"temperature reset from {temperature:g} to 0.07: contrastive loss {loss:.2f} "
        f"on training rows, of a uniform guess {guess_loss:.2f}"
    )
    assert head.temperature.item() == pytest.approx(0.07)
