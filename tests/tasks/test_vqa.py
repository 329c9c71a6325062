"""Visual question answering: targets, loss, predictions and answer lists against loops."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eve_vl.data.loader import eval_loader
from eve_vl.run.loading import read_labels
from eve_vl.tasks.classifier.evaluation import Prediction
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.vqa import evaluation as vqa_evaluation
from eve_vl.tasks.vqa.task import VQA
from eve_vl.train.evaluation_batches import evaluation_batches
from eve_vl.utils.errors import UserError
from helpers.measured import measured
from helpers.slow_search import lone_pairs
from helpers.tiny_rows import questions
from helpers.tiny_tasks import (
    ANSWER_LIST,
    CPU,
    TOKENIZER,
    build,
    config_of,
    eval_set,
    rows_of,
    shuffled,
    train_set,
)

COUNT = 6


def vqa_task(**sections: Any) -> VQA:
    task = build(config_of("vqa", **sections))
    assert isinstance(task, VQA)
    return task


def answer_logits(task: VQA, batch: Any) -> list[list[float]]:
    """Return the logits of each question, alone and without padding: those of its [CLS]."""
    logits = []
    for pair in lone_pairs(batch):
        image = task.encoder.image(pair.pixels)
        states = task.encoder.encode(image, task.encoder.text(pair.ids, None)).x_BND
        logits.append(task.answer_head(states[:, image.num_image])[0].tolist())
    return logits


TARGETS = [
    (("A red",), {"red": 1.0}),
    (("purple",), {}),
    ((), {}),
    (
        ("two", "2", "Two.", "yes", "yes", "left", "purple", "purple", "a", "ring"),
        {"2": 0.9, "yes": 0.6, "left": 0.3, "ring": 0.3},
    ),
    (("yes",) * 4 + ("no idea",) * 6, {"yes": 1.0, "no idea": 1.0}),
    (("blue", "the blue"), {"A Blue!": 0.6}),
]


def test_targets_are_those_worked_out_by_hand():
    task = vqa_task()
    batch = rows_of(train_set(task.config, len(TARGETS)), len(TARGETS))
    batch = replace(batch, answers=tuple(answers for answers, _ in TARGETS))
    for row_targets, (answers, expected) in zip(task.targets(batch).tolist(), TARGETS, strict=True):
        targets = dict(zip(ANSWER_LIST, row_targets, strict=True))
        assert targets == pytest.approx(dict.fromkeys(ANSWER_LIST, 0.0) | expected), answers


@torch.no_grad()
def test_loss_equals_a_loop_over_questions_and_answers():
    task = vqa_task()
    batch = rows_of(train_set(task.config, COUNT), COUNT)
    total = 0.0
    score = 0.0
    targets = task.targets(batch).tolist()
    for logits, row_targets in zip(answer_logits(task, batch), targets, strict=True):
        for logit, target in zip(logits, row_targets, strict=True):
            probability = 1 / (1 + math.exp(-logit))
            total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
        score += row_targets[logits.index(max(logits))]
    terms = task(batch).terms
    assert terms["vqa"].item() == pytest.approx(total / COUNT, rel=1e-4)
    assert terms["target_acc"].item() == pytest.approx(score / COUNT, rel=1e-5)


@torch.no_grad()
def test_predictions_are_the_most_probable_answers_in_order_of_id():
    task = vqa_task()
    dataset = eval_set(task.config, 9)
    predictions = evaluator_of(task).predict_all(shuffled(dataset, 4, seed=1))
    all_logits = answer_logits(task, rows_of(dataset, 9))
    for prediction, row, logits in zip(predictions, questions(9), all_logits, strict=True):
        assert prediction.question_id == row.question_id
        assert prediction.answers == row.answers
        assert prediction.answer_type == row.answer_type
        assert prediction.where == row.where
        assert prediction.answer == ANSWER_LIST[logits.index(max(logits))]
        probability = 1 / (1 + math.exp(-max(logits)))
        assert prediction.probability == pytest.approx(probability, rel=1e-4)


@pytest.mark.parametrize("labels", [ANSWER_LIST[::-1], ANSWER_LIST[1:], ()])
def test_weights_of_answers_are_dropped_if_the_list_differs(labels):
    """Even where the shape would fit; all other weights are kept."""
    task = vqa_task()
    tensors = task.state_dict()
    assert task.init_weights_from(tensors, ANSWER_LIST).keys() == tensors.keys()
    weights = task.init_weights_from(tensors, labels)
    assert tensors.keys() - weights.keys() == {"answer_head.3.weight", "answer_head.3.bias"}


def test_a_resumed_run_keeps_its_answer_list(tmp_path: Path):
    config = config_of("vqa")
    with pytest.raises(UserError, match=r"answers\.json: cannot be read \(No such file"):
        read_labels(tmp_path, config)
    (tmp_path / "answers.json").write_text(json.dumps(ANSWER_LIST))
    labels = read_labels(tmp_path, config)
    assert tuple(labels) == ANSWER_LIST
    assert VQA.prepare(config, [questions(9)], labels).labels == ANSWER_LIST
    assert read_labels(tmp_path, config_of("nlvr2")) == []


def test_accuracy_is_compared_with_answers_without_the_image(monkeypatch):
    """Row by row: the interval of the difference holds the difference of the means."""
    task = vqa_task(data={"train": ("scenes:train",)})
    evaluator = evaluator_of(task)
    source = questions(23)
    asked = [(row.question, row.answers) for row in source if row.answers]
    monkeypatch.setattr(vqa_evaluation, "training_questions", lambda _: asked)
    dataset = evaluator.dataset([source], task.config, TOKENIZER)
    loader = eval_loader(
        dataset,
        batch_size=5,
        rank=0,
        world=1,
    )
    with evaluation_batches(task, loader, CPU, torch.float32) as batches:
        result = evaluator.evaluate_with_rows(batches)
    numbers = result.numbers | evaluator.data_baselines(result.examples)
    assert {"vqa_acc_majority", "vqa_acc_blind/colour", "vqa_acc_blind/number"} <= numbers.keys()
    accuracy = measured(numbers["vqa_acc"])
    assert accuracy == result.numbers["vqa_acc"]
    low, high = accuracy.versus["vqa_acc_blind"]
    assert low < accuracy - numbers["vqa_acc_blind"] < high


def things(row: int, answer: str, truth: str) -> Prediction:
    return Prediction(
        answer=answer,
        answers=(truth,),
        answer_type="",
        content_type="",
        group="",
        question=f"what is on desk {row % 2}",
        question_id=row,
        image_id=row,
        is_answer_set=True,
        name=f"t:{row}",
        where=f"t:{row}",
    )


def test_answer_sets_have_wups_if_there_is_wordnet(monkeypatch):
    def similarity(word: str, second_word: str) -> float:
        return 0.5 if {word, second_word} == {"lamp", "paper tray"} else 0.0

    evaluator = evaluator_of(vqa_task())
    predictions = [
        things(0, "lamp & paper tray", "lamp & paper_tray"),
        things(1, "lamp", "paper_tray"),
        things(2, "lamp", "lamp & paper_tray"),
    ]
    train = [("what is on desk 1", ("paper_tray",)), ("what is on desk 0", ("lamp",))]
    monkeypatch.setattr(vqa_evaluation, "training_questions", lambda _: train)
    monkeypatch.setattr(vqa_evaluation, "wordnet_similarity", lambda: similarity)
    numbers = evaluator.metrics(predictions)
    assert numbers["num_answer_sets"] == 3
    assert numbers["vqa_acc"] == pytest.approx(1 / 3)
    assert numbers["wups_0.9"] == pytest.approx((1 + 0.05 + 0.05) / 3)
    assert numbers["wups_0.0"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    baselines = evaluator.data_baselines(predictions)
    assert baselines["wups_0.0_blind"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert not any("WordNet" in sentence for sentence in evaluator.warnings(numbers))
    answers = [row["answer"] for row in json.loads(evaluator.prediction_file(predictions))]
    assert answers == ["lamp, paper_tray", "lamp", "lamp"]

    monkeypatch.setattr(vqa_evaluation, "wordnet_similarity", lambda: None)
    numbers = evaluator.metrics(predictions)
    assert "wups_0.9" not in numbers
    assert "WUPS needs WordNet" in evaluator.warnings(numbers)[0]
