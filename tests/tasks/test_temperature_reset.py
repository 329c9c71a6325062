"""A temperature of another run that is too low for the loss starts again."""

import math
from typing import Any

import pytest
import torch

from helpers.slow_contrast import slow_contrastive
from helpers.tiny_tasks import build, config_of, rows_of, train_set


@pytest.mark.parametrize(("temperature", "is_reset"), [(0.002, True), (0.07, False), (0.4, False)])
def test_temperature_is_reset_if_the_loss_is_above_that_of_a_guess(temperature, is_reset):
    task: Any = build(config_of("retrieval"))
    batch = rows_of(train_set(task.config, 6), 6)
    parameter = task.contrast.features.temperature
    with torch.no_grad():
        parameter.fill_(temperature)
        images = task.image_features(batch.images_BCHW)
        texts = task.text_features(batch.ids_BT, batch.is_padding_BT)
    loss = slow_contrastive(images, texts, images, texts, torch.eye(6), temperature)
    guess_loss = math.log(6)
    note = ""
    if is_reset:
        assert loss > guess_loss
        note = (
            f"temperature reset from 0.002 to 0.07: contrastive loss {loss:.2f} "
            f"on training rows, of a uniform guess {guess_loss:.2f}"
        )
    assert task.reset_temperatures(batch) == note
    assert parameter.item() == pytest.approx(0.07 if is_reset else temperature)
