"""Metrics and prediction files of statements about two images."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.metrics.intervals import GROUP
from eve_vl.metrics.nlvr2 import nlvr2_summary
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classifier.evaluation import ClassifierEvaluator, Prediction
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.vqa.evaluation import _columns


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
        return nlvr2_summary(*_columns(predictions, "is_true label group"))

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
