"""NLVR2: losses of its three heads against a loop, and its predictions."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.nlvr2.task import NLVR2
from helpers.slow_search import lone_pairs, normalized
from helpers.tiny_rows import statements
from helpers.tiny_tasks import build, config_of, eval_set, rows_of, shuffled, train_set

COUNT = 6
HEADS = ("nlvr2", "nlvr2_paired", "nlvr2_compare")


def nlvr2_task(name: str = "nlvr2") -> NLVR2:
    task = build(config_of(name))
    assert isinstance(task, NLVR2)
    return task


def slow_logits(
    task: Any,
    left: Tensor,
    right: Tensor,
    ids: Tensor,
) -> list[float]:
    """Return the logits of one statement, no and yes."""
    states = []
    for pixels in (left, right):
        image = task.encoder.image(pixels)
        states.append(task.encoder.encode(image, task.encoder.text(ids, None)).x_BND)
    if task.settings.head == "paired":
        return task.paired_head(*states, None)[0].tolist()
    left_D, right_D = (x_BND[0, 17] for x_BND in states)  # the text's [CLS]
    if task.settings.head == "concat":
        return task.concat_head(torch.cat([left_D, right_D])[None])[0].tolist()
    norm = task.compare_head.norm
    std_D = (norm.running_var + norm.eps).sqrt()
    left_D = (left_D - norm.running_mean) / std_D
    right_D = (right_D - norm.running_mean) / std_D
    compared = torch.cat([left_D, right_D, (left_D - right_D).abs(), left_D * right_D])
    return task.compare_head.classify(compared[None])[0].tolist()


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_loss_equals_a_loop_over_statements(name):
    task = nlvr2_task(name)
    batch: Any = rows_of(train_set(task.config, COUNT), COUNT)
    total = 0.0
    num_right = 0
    for row, pair in enumerate(lone_pairs(batch)):
        right = normalized(batch.right_BCHW[row])
        logits = slow_logits(task, pair.pixels, right, pair.ids)
        label = int(batch.labels[row])
        total += math.log(1 + math.exp(logits[1 - label] - logits[label]))
        num_right += logits[label] > logits[1 - label]
    terms = task(batch).terms
    assert terms["nlvr2"].item() == pytest.approx(total / COUNT, rel=1e-4)
    assert terms["acc"].item() == pytest.approx(num_right / COUNT)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_both_images_and_their_sides_matter(name):
    task = nlvr2_task(name)
    batch: Any = rows_of(eval_set(task.config, 4), 4)
    left = batch.images_BCHW
    right = batch.right_BCHW
    logits = task.predict(batch)[0]
    for images in (
        (right, left),
        (left, left),
        (right, right),
    ):
        changed = replace(batch, images_BCHW=images[0], right_BCHW=images[1])
        assert ((task.predict(changed)[0] - logits).abs().amax(1) > 1e-3).all()


def test_predictions_come_in_order_of_identifier():
    task = nlvr2_task()
    predictions = evaluator_of(task).predict_all(shuffled(eval_set(task.config, 9), 4, seed=1))
    rows = sorted(statements(9), key=lambda row: row.identifier)
    for prediction, row in zip(predictions, rows, strict=True):
        assert prediction.identifier == row.identifier
        assert prediction.label == row.label
        assert prediction.group == row.group
        assert prediction.is_true == (prediction.probability > 0.5)
    assert len({prediction.is_true for prediction in predictions}) == 2
