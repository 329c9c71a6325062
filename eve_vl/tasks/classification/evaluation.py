"""Metrics and prediction files of classification."""

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
            ranking_summary(np.stack([each.probability_C for each in known]), is_true_RC) | numbers
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
