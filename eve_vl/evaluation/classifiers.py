"""Evaluation of questions, statements and labels: metrics, baselines and prediction files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eve_vl.config import ClassificationConfig, Config, NLVR2Config, VQAConfig, generated
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.data.kinds.pairs import StatementBatch
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.loader import open_train_and_val
from eve_vl.data.records import usable_rows
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluator import Baseline, ClassifierEvaluator, How, json_lines
from eve_vl.metrics import classification as classification_metrics
from eve_vl.metrics import intervals
from eve_vl.metrics import vqa as vqa_metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.tasks.classification import Classification
from eve_vl.tasks.nlvr2 import NLVR2
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
        numbers = vqa_metrics.summary(
            [each.answer for each in predictions],
            [each.answers for each in predictions],
            [each.answer_type for each in predictions],
            [each.image_id for each in predictions],
            [each.content_type for each in predictions],
            [each.group for each in predictions],
        )
        known = [[vqa_metrics.normalize(answer) for answer in each.answers] for each in predictions if each.answers]
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
        return {f"{each.name}{GROUP}{each.image_id}": vqa_metrics.accuracy_of(each.answer, each.answers) for each in known}

    def data_baselines(self, predictions: Sequence[VQAExample]) -> dict[str, float]:
        """Return baselines that see no image; empty if training or evaluation has no answers to compare."""
        train = training_questions(self.task.config)
        if not train or not any(each.answers for each in predictions):
            return {}
        own, scores = self.metrics(predictions)["vqa_acc"], self.per_row_scores(predictions)
        guesses = {
            "vqa_acc_blind": vqa_metrics.answers_by_question(train, [each.question for each in predictions]),
            "vqa_acc_words": vqa_metrics.answers_by_words(train, [each.question for each in predictions]),
            # as if all asked the same
            "vqa_acc_majority": vqa_metrics.answers_by_question([("", given) for _, given in train], [""] * len(predictions)),
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


@dataclass(frozen=True, kw_only=True)
class NLVR2Example:
    """A statement with the model's verdict and the true label (None where it is kept back)."""

    statement: str
    identifier: str
    is_true: bool
    probability: float
    """Of being true."""
    label: bool | None
    group: str
    where: str
    name: str = ""
    position: tuple[int, int] = (0, 0)


class NLVR2Evaluator(ClassifierEvaluator[NLVR2]):
    """NLVR2 accuracy and consistency."""

    section = NLVR2Config
    main_metric = "nlvr2_acc"
    baselines = (Baseline("nlvr2_acc", "pair", 0.5, "chance"),)
    has_prediction_file = True

    def predict_batch(self, batch: StatementBatch) -> list[NLVR2Example]:
        """Return the verdicts on the statements of a batch."""
        probability_B = self.task.predict(batch)[0].float().softmax(1)[:, 1]
        return [
            NLVR2Example(is_true=probability > 0.5, probability=probability, **row)
            for row, probability in zip(batch.rows(), probability_B.tolist(), strict=True)
        ]

    def order(self, prediction: NLVR2Example) -> Any:
        """Sort by identifier."""
        return prediction.identifier, prediction.where

    def metrics(self, predictions: Sequence[NLVR2Example]) -> dict[str, float]:
        """Return the metrics of `metrics.classification`."""
        return classification_metrics.nlvr2_summary(
            [each.is_true for each in predictions], [each.label for each in predictions], [each.group for each in predictions]
        )

    def per_row_scores(self, predictions: Sequence[NLVR2Example]) -> dict[str, float]:
        """Return whether the verdict on each labelled pair is right; pairs of one statement belong together."""
        known = [each for each in predictions if each.label is not None]
        return {f"{each.name}{GROUP}{each.group or each.name}": float(each.is_true == each.label) for each in known}

    def prediction_file(self, predictions: Sequence[NLVR2Example]) -> str:
        """Return the CSV that NLVR2's evaluation takes: identifier and True or False, no header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((each.identifier, each.is_true) for each in predictions)
        return text.getvalue()


ABLATIONS: dict[str, tuple[How, ...]] = {
    "image": ("noise",),
    "text": (),
    "both": ("noise", "wrong_image", "image_only"),
}
ABLATED = {"noise": "looking at noise", "wrong_image": "looking at a wrong image", "image_only": "not reading the text"}


@dataclass(frozen=True, kw_only=True)
class ClassificationExample:
    """A row with the model's probabilities, float32 (C,), and its labels (none where they are kept back)."""

    probability_C: np.ndarray
    label: str
    """The most probable."""
    labels: tuple[str, ...]
    where: str
    name: str = ""
    position: tuple[int, int] = (0, 0)


def _ablated(metric: str) -> dict[str, str]:
    """Return the ablations of a metric by name, with their descriptions."""
    return {f"{metric}_{how}": words for how, words in ABLATED.items()}


class ClassificationEvaluator(ClassifierEvaluator[Classification]):
    """Accuracy or average precision."""

    section = ClassificationConfig
    score_name = "acc"
    baselines = (
        Baseline("acc", "row", "acc_majority", "always giving the most frequent label", others=_ablated("acc")),
        Baseline("mean_ap", "row", "mean_ap_chance", "a constant score", others=_ablated("mean_ap")),
    )
    has_prediction_file = True

    def __init__(self, task: Classification, tokenizer: Tokenizer | None = None):
        super().__init__(task, tokenizer)
        self.main_metric = "mean_ap" if task.settings.multilabel else "balanced_acc"
        self.ablations = ABLATIONS[task.settings.inputs]

    def predict_batch(self, batch: LabelBatch) -> list[ClassificationExample]:
        """Return the labels of the rows of a batch."""
        probability_BC = self.task.probabilities(self.task.predict(batch)[0]).cpu().numpy()
        return [
            # a view would keep its whole batch in memory
            ClassificationExample(probability_C=each_C.copy(), label=self.task.sizes.labels[int(each_C.argmax())], **row)
            for row, each_C in zip(batch.rows(), probability_BC, strict=True)
        ]

    def metrics(self, predictions: Sequence[ClassificationExample]) -> dict[str, float]:
        """Return the metrics of `metrics.classification` over the rows that have labels."""
        known = [each for each in predictions if each.labels]
        if not known:
            return {"num_rows": 0}
        unknown = sum(self.task.class_ids.keys().isdisjoint(each.labels) for each in known)
        numbers = {"num_unknown": unknown} if unknown else {}
        if not self.task.settings.multilabel:
            true = [each.labels[0] for each in known]
            return classification_metrics.summary([each.label == each.labels[0] for each in known], true) | numbers
        is_true_RC = np.array([[label in each.labels for label in self.task.sizes.labels] for each in known])
        return classification_metrics.ranking_summary(np.stack([each.probability_C for each in known]), is_true_RC) | numbers

    def per_row_scores(self, predictions: Sequence[ClassificationExample]) -> dict[str, float]:
        """Return whether the most probable label of each labelled row is one of its labels."""
        return {each.name: float(each.label in each.labels) for each in predictions if each.labels}

    def prediction_file(self, predictions: Sequence[ClassificationExample]) -> str:
        """Return a JSON line for each row: label and probability; of several labels all from 0.5 on."""

        def line(each: ClassificationExample) -> dict[str, object]:
            found: dict[str, object] = {"label": each.label, "probability": float(each.probability_C.max())}
            if self.task.settings.multilabel:
                named = zip(self.task.sizes.labels, each.probability_C.tolist(), strict=True)
                found["labels"] = {label: value for label, value in named if value >= 0.5}
            return found

        return json_lines(predictions, line)

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add a sentence about labels that the run does not know."""
        found = super().warnings(numbers)
        if unknown := numbers.get("num_unknown"):
            of_rows = f"of {numbers['num_rows']} rows, {unknown}"
            found.append(f"{of_rows} have no label that the run knows ({self.task.labels_file}): always wrong")
        return found
