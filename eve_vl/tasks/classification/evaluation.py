"""Metrics and prediction files of classification.

Letters: B rows of a batch, R rows with labels, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.metrics import classification as classification_metrics
from eve_vl.metrics.average_precision import ranking_summary
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.classification.task import Classification
from eve_vl.tasks.classifier.evaluation import (
    ABLATED,
    ABLATIONS,
    ClassifierEvaluator,
    Prediction,
    json_lines,
)


def _baseline(metric: str, baseline: str, than: str) -> Baseline:
    """Return a baseline of a metric, next to its ablations."""
    further = {f"{metric}_{how}": description for how, description in ABLATED.items()}
    return Baseline(metric, "row", baseline, than, further_baselines=further)


class ClassificationEvaluator(ClassifierEvaluator[Classification]):
    """Accuracy or average precision.

    Predictions have the `probability_C` of all labels and the most probable `label`.
    """

    section = ClassificationConfig
    score_name = "acc"
    baselines = (
        _baseline("acc", "acc_majority", "always giving the most frequent label"),
        _baseline("mean_ap", "mean_ap_chance", "a constant score"),
    )

    def __init__(self, task: Classification):
        super().__init__(task)
        self.main_metric = "mean_ap" if task.settings.multilabel else "balanced_acc"
        self.ablations = ABLATIONS[task.settings.inputs]

    def predict_batch(self, batch: LabelBatch) -> list[Prediction]:
        """Return the labels of the rows of a batch."""
        logits_BC, _ = self.task.predict(batch)
        probability_BC = self.task.probabilities(logits_BC).cpu().numpy()
        predictions = []
        for row, probability_C in zip(batch.rows(), probability_BC, strict=True):
            prediction = Prediction(
                probability_C=probability_C.copy(),  # a view would keep its whole batch in memory
                label=self.task.sizes.labels[int(probability_C.argmax())],
                **row,
            )
            predictions.append(prediction)
        return predictions

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `metrics.classification` over the rows that have labels."""
        labelled = [prediction for prediction in predictions if prediction.labels]
        if not labelled:
            return {"num_rows": 0}
        if self.task.settings.multilabel:
            numbers = self._ranking_metrics(labelled)
        else:
            true = [prediction.labels[0] for prediction in labelled]
            right = [prediction.label == prediction.labels[0] for prediction in labelled]
            numbers = classification_metrics.summary(right, true)

        num_unknown = 0
        for prediction in labelled:
            if self.task.class_ids.keys().isdisjoint(prediction.labels):
                num_unknown += 1
        if num_unknown:
            numbers["num_unknown"] = num_unknown
        return numbers

    def _ranking_metrics(self, labelled: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of rows with several labels each."""
        is_true = []
        for prediction in labelled:
            is_true.append([label in prediction.labels for label in self.task.sizes.labels])
        probability_RC = np.stack([prediction.probability_C for prediction in labelled])
        return ranking_summary(probability_RC, np.array(is_true))

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return whether the most probable label of each row is one of its labels.

        Rows without labels are left out.
        """
        scores = {}
        for prediction in predictions:
            if prediction.labels:
                scores[prediction.name] = float(prediction.label in prediction.labels)
        return scores

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return a JSON line for each row: label and probability.

        With several labels, all of probability 0.5 or more.
        """
        return json_lines(predictions, self._prediction_line)

    def _prediction_line(self, prediction: Prediction) -> dict[str, object]:
        line: dict[str, object] = {
            "label": prediction.label,
            "probability": float(prediction.probability_C.max()),
        }
        if self.task.settings.multilabel:
            probabilities = zip(
                self.task.sizes.labels, prediction.probability_C.tolist(), strict=True
            )
            line["labels"] = {label: value for label, value in probabilities if value >= 0.5}
        return line

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add sentences about labels that the rows lack, and labels that the run does not know."""
        sentences = super().warnings(numbers)
        num_labels = len(self.task.sizes.labels)
        num_present = int(numbers.get("num_classes", num_labels))
        if num_present < num_labels:
            sentences.append(
                f"the rows have {num_present} of the run's {num_labels} labels: "
                f"{self.main_metric} says nothing about the others"
            )
        num_unknown = numbers.get("num_unknown")
        if num_unknown:
            sentences.append(
                f"of {numbers['num_rows']} rows, {num_unknown} have no label that the run knows "
                f"({self.task.labels_file}): always wrong"
            )
        return sentences
