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


class NLVR2Evaluator(ClassifierEvaluator[NLVR2]):
    """NLVR2 accuracy and consistency.

    Predictions have `is_true` and the `probability` of being true.
    """

    section = NLVR2Config
    main_metric = "nlvr2_acc"
    baselines = (Baseline("nlvr2_acc", "pair", 0.5, "chance"),)

    def predict_batch(self, batch: StatementBatch) -> list[Prediction]:
        """Return whether the statements of a batch are true."""
        logits_B2, _ = self.task.predict(batch)
        probability_B = self.task.probabilities(logits_B2)[:, 1]
        predictions = []
        for row, probability in zip(batch.rows(), probability_B.tolist(), strict=True):
            is_true = probability > 0.5
            predictions.append(Prediction(is_true=is_true, probability=probability, **row))
        return predictions

    def order(self, prediction: Prediction) -> Any:
        """Sort by identifier."""
        return prediction.identifier, prediction.where

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `metrics.nlvr2`."""
        return nlvr2_summary(
            [prediction.is_true for prediction in predictions],
            [prediction.label for prediction in predictions],
            [prediction.group for prediction in predictions],
        )

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return whether each labelled pair is judged right.

        Pairs of one statement belong together.
        """
        scores = {}
        for prediction in predictions:
            if prediction.label is not None:
                name = f"{prediction.name}{GROUP}{prediction.group or prediction.name}"
                scores[name] = float(prediction.is_true == prediction.label)
        return scores

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return the CSV that NLVR2's evaluation takes.

        Each line holds the identifier and True or False. There is no header.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for prediction in predictions:
            writer.writerow((prediction.identifier, prediction.is_true))
        return text.getvalue()
