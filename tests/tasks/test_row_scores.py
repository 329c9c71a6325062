"""Scores of rows in evaluation, and rows that are left out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.data.loader import eval_loader
from eve_vl.metrics import intervals
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.train.evaluation_batches import evaluation_batches
from eve_vl.utils.errors import UserError
from helpers.tiny_rows import ListSource, pairs, questions
from helpers.tiny_tasks import CPU, SOURCES, TOKENIZER, build, config_of, numbers_of


def dataset_of(task: Any, source: Any) -> Any:
    return evaluator_of(task).dataset([source], task.config, TOKENIZER)


def evaluate(task: Any, source: Any) -> Any:
    loader = eval_loader(
        dataset_of(task, source),
        batch_size=5,
        rank=0,
        world=1,
    )
    with evaluation_batches(task, loader, CPU, torch.float32) as batches:
        return evaluator_of(task).evaluate_with_rows(batches)


@pytest.mark.parametrize(
    ("name", "number", "start"),
    [
        ("vqa", "vqa_acc", ""),
        ("nlvr2", "nlvr2_acc", ""),
        ("retrieval", "tr1", "tr1 "),
        ("retrieval", "ir1", "ir1 "),
    ],
)
def test_a_number_is_the_mean_of_the_scores_of_its_rows(name, number, start):
    result = evaluate(build(config_of(name)), SOURCES.get(name, pairs)(23))
    scores = [score for row, score in result.row_scores.items() if row.startswith(start)]
    assert len(scores) == result.numbers[number].n
    assert np.mean(scores) == pytest.approx(result.numbers[number])


def test_scores_to_choose_a_step_by_have_r_mean_as_their_mean():
    task = build(config_of("retrieval"))
    rows = []
    for row, pair in enumerate(pairs(9)):
        captions = ("a red circle", f"number {row}")[: 1 + row % 2]
        rows.append(replace(pair, captions=captions))
    loader = eval_loader(
        dataset_of(task, ListSource(rows)),
        batch_size=4,
        rank=0,
        world=1,
    )
    with evaluation_batches(task, loader, CPU, torch.float32) as batches:
        numbers, scores = evaluator_of(task).validate(batches)
    assert len(scores) == 9 + 13
    assert np.mean(list(scores.values())) == pytest.approx(numbers["r_mean"])


def test_scores_of_searches_among_different_candidates_are_not_comparable():
    task = build(config_of("retrieval"))
    all_rows = evaluate(task, pairs(12)).row_scores
    first_rows = evaluate(task, ListSource(pairs(12).rows[:6])).row_scores
    assert not all_rows.keys() & first_rows.keys()
    assert len({intervals.group_of(row) for row in all_rows}) == 12


def test_unusable_rows_change_numbers_as_if_they_were_missing():
    task = build(config_of("vqa"))
    rows = list(questions(12).rows)
    usable_rows = [*rows[:2], *rows[3:7], *rows[8:]]
    rows[2] = None
    rows[7] = None
    dataset = dataset_of(task, ListSource(rows))
    skipped: list[Any] = []
    numbers = numbers_of(task, dataset, 3, skipped=skipped)
    assert numbers == pytest.approx(numbers_of(task, dataset_of(task, ListSource(usable_rows)), 3))
    assert [error.where for error in skipped] == ["list:2", "list:7"]
    with pytest.raises(UserError, match="cannot be used"):
        numbers_of(task, dataset, 3)


def test_unusable_rows_of_a_search_are_left_out_on_demand():
    task = build(config_of("retrieval", data={"skip_invalid_val": True}))
    skipped: list[Any] = []
    numbers = numbers_of(task, dataset_of(task, pairs(9, bad=[6])), 2, skipped=skipped)
    assert [error.where for error in skipped] == ["list:6"]
    assert numbers["num_images"] == 8
