"""Evaluation of visual question answering: accuracy, and baselines that see no image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eve_vl.config import Config, VQAConfig, generated
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.loader import open_train_and_val
from eve_vl.data.records import usable_rows
from eve_vl.evaluation.ablations import How
from eve_vl.evaluation.evaluator import ClassifierEvaluator
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import intervals
from eve_vl.metrics import vqa as metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.tasks.vqa import VQA
from eve_vl.utils.errors import UserError

GENERATED_ROWS = 10_000  # the baselines read at most this many rows of a generated source, spread evenly: drawing takes time


@dataclass(frozen=True, kw_only=True)
class VQAExample:
    """A question with the model's best answer and the annotators' answers (none where they are kept back)."""

    question: str
    question_id: int | str
    answer: str
    probability: float
    answers: tuple[str, ...]
    answer_type: str
    content_type: str = ""
    group: str = ""
    where: str
    name: str = ""
    position: tuple[int, int] = (0, 0)
    image_id: int
    """Hash of the image."""


class VQAEvaluator(ClassifierEvaluator[VQA]):
    """VQA accuracy."""

    section = VQAConfig
    main_metric = "vqa_acc"
    baselines = (
        Baseline(
            *("vqa_acc", "question", "vqa_acc_blind", "answering without the image", "uses the image"),
            others={
                "vqa_acc_words": "guessing from the question's words",
                "vqa_acc_noise": "looking at noise instead of the image",
                "vqa_acc_wrong_image": "looking at a wrong image",
                "vqa_acc_image_only": "not reading the question",
            },
        ),
        Baseline("vqa_acc_pair", "pair of questions", "vqa_acc_blind_pair", "answering without the image"),
    )
    ablations: tuple[How, ...] = ("noise", "wrong_image", "image_only")
    has_prediction_file = True

    def predict_batch(self, batch: QuestionBatch) -> list[VQAExample]:
        """Return the answers to the questions of a batch."""
        probability_B, best_B = self.task.predict(batch)[0].float().sigmoid().max(1)
        return [
            VQAExample(answer=self.task.answers[best], probability=probability, **row)
            for row, probability, best in zip(batch.rows(), probability_B.tolist(), best_B.tolist(), strict=True)
        ]

    def order(self, prediction: VQAExample) -> Any:
        """Sort by question id, numbers before words."""
        return str(type(prediction.question_id)), prediction.question_id, prediction.where

    def metrics(self, predictions: Sequence[VQAExample]) -> dict[str, float]:
        """Return the metrics of `metrics.vqa`, and the number of questions without an answer in the list."""
        numbers = metrics.summary(
            [each.answer for each in predictions],
            [each.answers for each in predictions],
            [each.answer_type for each in predictions],
            [each.image_id for each in predictions],
            [each.content_type for each in predictions],
            [each.group for each in predictions],
        )
        known = [[metrics.normalize(answer) for answer in each.answers] for each in predictions if each.answers]
        outside = sum(self.task.answer_ids.keys().isdisjoint(given) for given in known)
        return numbers | ({"num_outside_list": outside} if outside else {})

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add a sentence about answers that no run with this list can give."""
        found = super().warnings(numbers)
        if outside := numbers.get("num_outside_list"):
            of = numbers["num_questions"] - numbers["num_unanswered"]
            listed = f"the run's {len(self.task.answers)} answers"
            found.append(f"of {of:,} questions, {outside:,} have an answer that is not among {listed}: always wrong")
        return found

    def per_row_scores(self, predictions: Sequence[VQAExample]) -> dict[str, float]:
        """Return the accuracy of each question that has answers; questions about one image belong together."""
        known = [each for each in predictions if each.answers]
        return {f"{each.name}{GROUP}{each.image_id}": metrics.accuracy_of(each.answer, each.answers) for each in known}

    def data_baselines(self, predictions: Sequence[VQAExample]) -> dict[str, float]:
        """Return baselines that see no image; empty if training or evaluation has no answers to compare."""
        train = training_questions(self.task.config)
        if not train or not any(each.answers for each in predictions):
            return {}
        own, scores = self.metrics(predictions)["vqa_acc"], self.per_row_scores(predictions)
        guesses = {
            "vqa_acc_blind": metrics.blind_answers(train, [each.question for each in predictions]),
            "vqa_acc_words": metrics.answers_by_words(train, [each.question for each in predictions]),
            # as if all asked the same
            "vqa_acc_majority": metrics.blind_answers([("", given) for _, given in train], [""] * len(predictions)),
        }
        found: dict[str, float] = {}
        for name, answers in guesses.items():
            guessed = [replace(each, answer=answer) for each, answer in zip(predictions, answers, strict=True)]
            found |= {key.replace("vqa_acc", name): value for key, value in self.metrics(guessed).items() if "vqa_acc" in key}
            gain_R = np.subtract([*scores.values()], [*self.per_row_scores(guessed).values()]) / len(scores)
            found["vqa_acc"] = intervals.over(own, name, gain_R, [*map(intervals.group_of, scores)])
        return found

    def prediction_file(self, predictions: Sequence[VQAExample]) -> str:
        """Return the JSON that the VQA server takes: a list of question_id and answer."""
        return json.dumps([{"question_id": each.question_id, "answer": each.answer} for each in predictions], indent=0) + "\n"


def training_questions(config: Config) -> list[tuple[str, tuple[str, ...]]]:
    """Return question and answers of a run's training rows that have answers, without the held-out rows.

    Empty where the training data is out of reach.
    """
    try:
        sources = open_train_and_val(config, QuestionRows.kind_of(config))[0]
    except UserError:
        return []
    questions = []
    for name, source in zip(config.data.train, sources, strict=True):
        count = min(len(source), GENERATED_ROWS) if generated(name) else len(source)
        rows = usable_rows(source, np.linspace(0, len(source), count, endpoint=False).astype(int).tolist())
        questions += [(row.question, row.answers) for _, row in rows if row.answers]
    return questions
