"""Metrics, baselines and prediction files of questions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eve_vl.config import Config
from eve_vl.config.generated_sources import generated
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import usable_rows
from eve_vl.metrics import intervals
from eve_vl.metrics import vqa as vqa_metrics
from eve_vl.metrics.answer_form import normalize
from eve_vl.metrics.blind_answers import answers_by_question, answers_by_words
from eve_vl.metrics.intervals import GROUP
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classifier.evaluation import ABLATIONS, ClassifierEvaluator, Prediction
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.tasks.vqa.task import VQA
from eve_vl.utils.errors import UserError

GENERATED_ROWS = 10_000  # the baselines read at most this many rows of a generated source, spread evenly: drawing takes time


def _columns(predictions: Sequence[Prediction], names: str) -> list[list[Any]]:
    """Return the values of each named attribute of predictions."""
    return [[getattr(each, name) for each in predictions] for name in names.split()]


class VQAEvaluator(ClassifierEvaluator[VQA]):
    """VQA accuracy. Predictions have the best `answer` and its `probability`."""

    section = VQAConfig
    main_metric = "vqa_acc"
    baselines = (
        Baseline(
            *(
                "vqa_acc",
                "question",
                "vqa_acc_blind",
                "answering without the image",
                "uses the image",
            ),
            others={
                "vqa_acc_words": "guessing from the question's words",
                "vqa_acc_noise": "looking at noise instead of the image",
                "vqa_acc_wrong_image": "looking at a wrong image",
                "vqa_acc_image_only": "not reading the question",
            },
        ),
        Baseline(
            "vqa_acc_pair", "pair of questions", "vqa_acc_blind_pair", "answering without the image"
        ),
    )
    ablations = ABLATIONS["both"]

    def predict_batch(self, batch: QuestionBatch) -> list[Prediction]:
        """Return the answers to the questions of a batch."""
        probability_B, best_B = self.task.probabilities(self.task.predict(batch)[0]).max(1)
        return [
            Prediction(answer=self.task.answers[best], probability=probability, **row)
            for row, probability, best in zip(
                batch.rows(), probability_B.tolist(), best_B.tolist(), strict=True
            )
        ]

    def order(self, prediction: Prediction) -> Any:
        """Sort by question id, numbers before words."""
        return str(type(prediction.question_id)), prediction.question_id, prediction.where

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `metrics.vqa` and `num_outside_list`.

        The latter counts the questions without an answer in the list.
        """
        numbers = vqa_metrics.summary(
            *_columns(predictions, "answer answers answer_type image_id content_type group")
        )
        known = (map(normalize, each.answers) for each in predictions if each.answers)
        outside = sum(self.task.answer_ids.keys().isdisjoint(given) for given in known)
        return numbers | ({"num_outside_list": outside} if outside else {})

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add a sentence about answers that no run with this list can give."""
        found = super().warnings(numbers)
        if outside := numbers.get("num_outside_list"):
            rows = f"of {numbers['num_questions'] - numbers['num_unanswered']:,} questions, {outside:,}"
            found.append(
                f"{rows} have an answer that is not among the run's {len(self.task.answers)} answers: always wrong"
            )
        return found

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the accuracy of each question that has answers.

        Questions about one image belong together.
        """
        known = [each for each in predictions if each.answers]
        return {
            f"{each.name}{GROUP}{each.image_id}": vqa_metrics.accuracy_of(each.answer, each.answers)
            for each in known
        }

    def data_baselines(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return baselines that see no image.

        Empty if training or evaluation has no answers to compare.
        """
        train = training_questions(self.task.config)
        if not train or not any(each.answers for each in predictions):
            return {}
        own, scores = self.metrics(predictions)["vqa_acc"], self.per_row_scores(predictions)
        (questions,) = _columns(predictions, "question")
        guesses = {
            "vqa_acc_blind": answers_by_question(train, questions),
            "vqa_acc_words": answers_by_words(train, questions),
            # as if all questions were equal
            "vqa_acc_majority": answers_by_question(
                [("", given) for _, given in train], [""] * len(questions)
            ),
        }
        found: dict[str, float] = {}
        for name, answers in guesses.items():
            guessed = [
                Prediction(**vars(each) | {"answer": text})
                for each, text in zip(predictions, answers, strict=True)
            ]
            found |= {
                key.replace("vqa_acc", name): value
                for key, value in self.metrics(guessed).items()
                if "vqa_acc" in key
            }
            gain_R = np.subtract(
                [*scores.values()], [*self.per_row_scores(guessed).values()]
            ) / len(scores)
            found["vqa_acc"] = intervals.with_difference(
                own, name, gain_R, [*map(intervals.group_of, scores)]
            )
        return found

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return the JSON that the VQA server takes: a list of question_id and answer."""
        return (
            json.dumps(
                [{"question_id": each.question_id, "answer": each.answer} for each in predictions],
                indent=0,
            )
            + "\n"
        )


def training_questions(config: Config) -> list[tuple[str, tuple[str, ...]]]:
    """Return question and answers of a run's training rows that have answers.

    Held-out rows are left out. Empty where the training data is out of reach.
    """
    try:
        sources = open_train_and_val(config, QuestionRows.kind_of(config))[0]
    except UserError:
        return []
    questions = []
    for name, source in zip(config.data.train, sources, strict=True):
        count = min(len(source), GENERATED_ROWS) if generated(name) else len(source)
        rows = usable_rows(
            source, np.linspace(0, len(source), count, endpoint=False).astype(int).tolist()
        )
        questions += [(row.question, row.answers) for _, row in rows if row.answers]
    return questions
