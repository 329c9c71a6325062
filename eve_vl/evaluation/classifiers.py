"""Metrics, baselines and prediction files of questions, statements and labels."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch

from eve_vl.config import ClassificationConfig, Config, NLVR2Config, VQAConfig, generated
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import usable_rows
from eve_vl.evaluation.evaluator import Baseline, Evaluator, How
from eve_vl.metrics import classification as classification_metrics
from eve_vl.metrics import intervals
from eve_vl.metrics import vqa as vqa_metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.tasks.classifiers import NLVR2, VQA, Classification, Classifier
from eve_vl.train.processes import gather_objects
from eve_vl.utils.errors import UserError

AnyClassifier = TypeVar("AnyClassifier", bound=Classifier[Any])
ABLATED = {
    "noise": "looking at noise",
    "wrong_image": "looking at a wrong image",
    "image_only": "not reading the text",
}
ABLATIONS: dict[str, tuple[How, ...]] = {
    "image": ("noise",),
    "text": (),
    "both": ("noise", "wrong_image", "image_only"),
}
"""By task.inputs."""
GENERATED_ROWS = 10_000  # the baselines read at most this many rows of a generated source, spread evenly: drawing takes time


class Prediction(SimpleNamespace):
    """Fields of a row that are no tensors, and the model's output for it.

    The fields are those of `RowBatch.rows`; each evaluator names its outputs.
    """

    name: str = ""
    position: tuple[int, int] = (0, 0)


class ClassifierEvaluator(Evaluator[AnyClassifier]):
    """The evaluation of a task whose head gives each row logits."""

    def predict_batch(self, batch: Any) -> list[Any]:
        """Return the predictions for the rows of a batch."""
        raise NotImplementedError

    def order(self, prediction: Any) -> Any:
        """Return the sort key of a prediction."""
        return prediction.where

    @torch.no_grad()
    def predict_all(self, loader: Iterable[Any]) -> list[Any]:
        """Return the predictions for the rows of all processes, sorted by `order`."""
        own = [prediction for batch in loader for prediction in self.predict_batch(batch)]
        return sorted(itertools.chain(*gather_objects(own)), key=self.order)


def _columns(predictions: Sequence[Prediction], names: str) -> list[list[Any]]:
    """Return the values of each named attribute of predictions."""
    return [[getattr(each, name) for each in predictions] for name in names.split()]


def json_lines(predictions: Sequence[Any], line: Callable[[Any], Mapping[str, Any]]) -> str:
    """Return a JSON line for each prediction.

    Lines are in the order of the sources and their rows. Each holds the number of its source and the row's position there, both
    from 0, before the values of `line`.
    """
    rows = sorted(predictions, key=lambda each: each.position)
    named = (
        {"source": each.position[0], "position": each.position[1], "row": each.where}
        for each in rows
    )
    return "".join(
        json.dumps({**names, **line(each)}) + "\n" for names, each in zip(named, rows, strict=True)
    )


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
        known = (map(vqa_metrics.normalize, each.answers) for each in predictions if each.answers)
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
            "vqa_acc_blind": vqa_metrics.answers_by_question(train, questions),
            "vqa_acc_words": vqa_metrics.answers_by_words(train, questions),
            # as if all questions were equal
            "vqa_acc_majority": vqa_metrics.answers_by_question(
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
            found["vqa_acc"] = intervals.over(own, name, gain_R, [*map(intervals.group_of, scores)])
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


class NLVR2Evaluator(ClassifierEvaluator[NLVR2]):
    """NLVR2 accuracy and consistency.

    Predictions have `is_true` and the `probability` of being true.
    """

    section = NLVR2Config
    main_metric = "nlvr2_acc"
    baselines = (Baseline("nlvr2_acc", "pair", 0.5, "chance"),)

    def predict_batch(self, batch: StatementBatch) -> list[Prediction]:
        """Return whether the statements of a batch are true."""
        probability_B = self.task.probabilities(self.task.predict(batch)[0])[:, 1]
        return [
            Prediction(is_true=probability > 0.5, probability=probability, **row)
            for row, probability in zip(batch.rows(), probability_B.tolist(), strict=True)
        ]

    def order(self, prediction: Prediction) -> Any:
        """Sort by identifier."""
        return prediction.identifier, prediction.where

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `metrics.classification`."""
        return classification_metrics.nlvr2_summary(*_columns(predictions, "is_true label group"))

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return whether each labelled pair is judged right.

        Pairs of one statement belong together.
        """
        known = [each for each in predictions if each.label is not None]
        return {
            f"{each.name}{GROUP}{each.group or each.name}": float(each.is_true == each.label)
            for each in known
        }

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return the CSV that NLVR2's evaluation takes.

        Each line holds the identifier and True or False. There is no header.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            (each.identifier, each.is_true) for each in predictions
        )
        return text.getvalue()


class ClassificationEvaluator(ClassifierEvaluator[Classification]):
    """Accuracy or average precision.

    Predictions have the `probability_C` of all labels and the most probable `label`.
    """

    section = ClassificationConfig
    score_name = "acc"
    baselines = tuple(
        Baseline(
            metric,
            "row",
            baseline,
            than,
            others={f"{metric}_{how}": words for how, words in ABLATED.items()},
        )
        for metric, baseline, than in (
            ("acc", "acc_majority", "always giving the most frequent label"),
            ("mean_ap", "mean_ap_chance", "a constant score"),
        )
    )

    def __init__(self, task: Classification):
        super().__init__(task)
        self.main_metric = "mean_ap" if task.settings.multilabel else "balanced_acc"
        self.ablations = ABLATIONS[task.settings.inputs]

    def predict_batch(self, batch: LabelBatch) -> list[Prediction]:
        """Return the labels of the rows of a batch."""
        probability_BC = self.task.probabilities(self.task.predict(batch)[0]).cpu().numpy()
        return [
            # a view would keep its whole batch in memory
            Prediction(
                probability_C=each_C.copy(),
                label=self.task.sizes.labels[int(each_C.argmax())],
                **row,
            )
            for row, each_C in zip(batch.rows(), probability_BC, strict=True)
        ]

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `metrics.classification` over the rows that have labels."""
        known = [each for each in predictions if each.labels]
        if not known:
            return {"num_rows": 0}
        unknown = sum(self.task.class_ids.keys().isdisjoint(each.labels) for each in known)
        numbers = {"num_unknown": unknown} if unknown else {}
        if not self.task.settings.multilabel:
            true = [each.labels[0] for each in known]
            return (
                classification_metrics.summary(
                    [each.label == each.labels[0] for each in known], true
                )
                | numbers
            )
        is_true_RC = np.array(
            [[label in each.labels for label in self.task.sizes.labels] for each in known]
        )
        return (
            classification_metrics.ranking_summary(
                np.stack([each.probability_C for each in known]), is_true_RC
            )
            | numbers
        )

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return whether the most probable label of each row is one of its labels.

        Rows without labels are left out.
        """
        return {each.name: float(each.label in each.labels) for each in predictions if each.labels}

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return a JSON line for each row: label and probability.

        With several labels, all of probability 0.5 or more.
        """

        def line(each: Prediction) -> dict[str, object]:
            named = zip(self.task.sizes.labels, each.probability_C.tolist(), strict=True)
            likely: dict[str, object] = {
                "labels": {label: value for label, value in named if value >= 0.5}
            }
            most: dict[str, object] = {
                "label": each.label,
                "probability": float(each.probability_C.max()),
            }
            return most | likely if self.task.settings.multilabel else most

        return json_lines(predictions, line)

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add a sentence about labels that the run does not know."""
        found = super().warnings(numbers)
        if unknown := numbers.get("num_unknown"):
            of_rows = f"of {numbers['num_rows']} rows, {unknown}"
            found.append(
                f"{of_rows} have no label that the run knows ({self.task.labels_file}): always wrong"
            )
        return found
