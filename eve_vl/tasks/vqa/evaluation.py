"""Metrics, baselines and prediction files of questions.

Letters: B questions of a batch, R all questions.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eve_vl.config import Config
from eve_vl.config.generated_sources import generated
from eve_vl.data.answer_sets import as_daquar, things_of
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import usable_rows
from eve_vl.metrics import intervals
from eve_vl.metrics import vqa as vqa_metrics
from eve_vl.metrics.answer_form import normalize
from eve_vl.metrics.answers_without_images import answers_by_question, answers_by_words
from eve_vl.metrics.intervals import GROUP
from eve_vl.metrics.wordnet import HOW_TO_GET, wordnet_similarity
from eve_vl.metrics.wups import THRESHOLDS, wups
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classifier.evaluation import ABLATIONS, ClassifierEvaluator, Prediction
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.tasks.vqa.task import VQA
from eve_vl.utils.errors import UserError

# the baselines read at most this many rows of a generated source, spread evenly: drawing takes time
GENERATED_ROWS = 10_000
NUM_SETS = "num_answer_sets"
WUPS = "wups_"


class VQAEvaluator(ClassifierEvaluator[VQA]):
    """VQA accuracy. Predictions have the best `answer` and its `probability`."""

    section = VQAConfig
    main_metric = "vqa_acc"
    baselines = (
        Baseline(
            "vqa_acc",
            "question",
            "vqa_acc_blind",
            "answering without the image",
            "uses the image",
            further_baselines={
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
        logits_BA, _ = self.task.predict(batch)
        probability_B, best_B = self.task.probabilities(logits_BA).max(1)
        predictions = []
        for row, probability, best in zip(
            batch.rows(), probability_B.tolist(), best_B.tolist(), strict=True
        ):
            answer = self.task.answers[best]
            predictions.append(Prediction(answer=answer, probability=probability, **row))
        return predictions

    def order(self, prediction: Prediction) -> Any:
        """Sort by question id, numbers before words."""
        return str(type(prediction.question_id)), prediction.question_id, prediction.where

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `metrics.vqa`, those of answer sets, and `num_outside_list`.

        The latter counts the questions without an answer in the list.
        """
        columns: dict[str, list[Any]] = {}
        for name in ("answer", "answers", "answer_type", "image_id", "content_type", "group"):
            columns[name] = [getattr(prediction, name) for prediction in predictions]
        numbers = vqa_metrics.summary(
            columns["answer"],
            columns["answers"],
            columns["answer_type"],
            columns["image_id"],
            columns["content_type"],
            columns["group"],
        )
        numbers |= metrics_of_sets(predictions)
        num_outside = 0
        for prediction in predictions:
            if prediction.answers:
                answers = [normalize(answer) for answer in prediction.answers]
                num_outside += self.task.answer_ids.keys().isdisjoint(answers)
        if num_outside:
            numbers["num_outside_list"] = num_outside
        return numbers

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add sentences about missing WUPS and about answers outside the list of the run."""
        sentences = super().warnings(numbers)
        if NUM_SETS in numbers and not any(name.startswith(WUPS) for name in numbers):
            sentences.append(HOW_TO_GET)
        num_outside = numbers.get("num_outside_list")
        if num_outside:
            num_answered = numbers["num_questions"] - numbers["num_unanswered"]
            sentences.append(
                f"of {num_answered:,} questions, {num_outside:,} have an answer that is not among "
                f"the run's {len(self.task.answers)} answers: always wrong"
            )
        return sentences

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the accuracy of each question that has answers.

        Questions about one image belong together.
        """
        scores = {}
        for prediction in predictions:
            if prediction.answers:
                name = f"{prediction.name}{GROUP}{prediction.image_id}"
                scores[name] = vqa_metrics.accuracy_of(prediction.answer, prediction.answers)
        return scores

    def data_baselines(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return baselines that see no image.

        Empty if training or evaluation has no answers to compare.
        """
        train = training_questions(self.task.config)
        if not train or not any(prediction.answers for prediction in predictions):
            return {}
        questions = [prediction.question for prediction in predictions]
        # as if all questions were equal
        equal_questions = [("", answers) for _, answers in train]
        guesses = {
            "vqa_acc_blind": answers_by_question(train, questions),
            "vqa_acc_words": answers_by_words(train, questions),
            "vqa_acc_majority": answers_by_question(equal_questions, [""] * len(questions)),
        }
        accuracy = self.metrics(predictions)["vqa_acc"]
        scores = self.per_row_scores(predictions)
        groups = [intervals.group_of(row) for row in scores]
        numbers: dict[str, float] = {}
        for name, answers in guesses.items():
            guessed = with_answers(predictions, answers)
            for metric, value in self.metrics(guessed).items():
                if "vqa_acc" in metric:
                    numbers[metric.replace("vqa_acc", name)] = value
                elif metric.startswith(WUPS):
                    numbers[metric + name.removeprefix("vqa_acc")] = value
            guessed_scores = self.per_row_scores(guessed)
            gain_R = np.subtract([*scores.values()], [*guessed_scores.values()]) / len(scores)
            numbers["vqa_acc"] = intervals.with_difference(accuracy, name, gain_R, groups)
        return numbers

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return the JSON that the VQA server takes: a list of question_id and answer.

        Answer sets are written as in DAQUAR's files.
        """
        rows = []
        for prediction in predictions:
            answer = prediction.answer
            if prediction.is_answer_set:
                answer = as_daquar(answer)
            rows.append({"question_id": prediction.question_id, "answer": answer})
        return json.dumps(rows, indent=0) + "\n"


def metrics_of_sets(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return the metrics of answers that are sets of things; empty if there are none.

    num_answer_sets: their questions. wups_0.9, wups_0.0: their mean WUPS at these thresholds, if
    WordNet is there.
    """
    sets = [prediction for prediction in predictions if prediction.is_answer_set]
    sets = [prediction for prediction in sets if prediction.answers]
    if not sets:
        return {}
    numbers: dict[str, float] = {NUM_SETS: len(sets)}
    similarity = wordnet_similarity()
    if similarity is None:
        return numbers
    images = [prediction.image_id for prediction in sets]
    for threshold in THRESHOLDS:
        scores = []
        for prediction in sets:
            predicted = things_of(normalize(prediction.answer))
            true = things_of(normalize(prediction.answers[0]))
            scores.append(wups(predicted, true, similarity, threshold))
        numbers[f"{WUPS}{threshold}"] = intervals.mean(scores, images, is_share=True)
    return numbers


def with_answers(predictions: Sequence[Prediction], answers: Sequence[str]) -> list[Prediction]:
    """Return predictions with other answers."""
    changed = []
    for prediction, answer in zip(predictions, answers, strict=True):
        changed.append(Prediction(**vars(prediction) | {"answer": answer}))
    return changed


def training_questions(config: Config) -> list[tuple[str, tuple[str, ...]]]:
    """Return question and answers of a run's training rows that have answers.

    Held-out rows are left out. Empty where the training data is out of reach.
    """
    try:
        sources, _ = open_train_and_val(config, QuestionRows.kind_of(config))
    except UserError:
        return []
    questions = []
    for name, source in zip(config.data.train, sources, strict=True):
        num_rows = len(source)
        if generated(name):
            num_rows = min(num_rows, GENERATED_ROWS)
        row_numbers = np.linspace(0, len(source), num_rows, endpoint=False).astype(int).tolist()
        for _, row in usable_rows(source, row_numbers):
            if row.answers:
                questions.append((row.question, row.answers))
    return questions
