"""Evaluation of NLVR2: accuracy, and consistency over the image pairs of a statement."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eve_vl.config import NLVR2Config
from eve_vl.data.kinds.pairs import StatementBatch
from eve_vl.evaluation.evaluator import ClassifierEvaluator
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import pairs as metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.tasks.nlvr2 import NLVR2


@dataclass(frozen=True, kw_only=True)
class NLVR2Example:
    """A statement with the model's verdict and the true label (None where it is kept back)."""

    statement: str
    identifier: str
    verdict: bool
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
            NLVR2Example(verdict=probability > 0.5, probability=probability, **row)
            for row, probability in zip(batch.rows(), probability_B.tolist(), strict=True)
        ]

    def order(self, prediction: NLVR2Example) -> Any:
        """Sort by identifier."""
        return prediction.identifier, prediction.where

    def metrics(self, predictions: Sequence[NLVR2Example]) -> dict[str, float]:
        """Return the metrics of `metrics.pairs`."""
        return metrics.nlvr2_summary(
            [each.verdict for each in predictions], [each.label for each in predictions], [each.group for each in predictions]
        )

    def per_row_scores(self, predictions: Sequence[NLVR2Example]) -> dict[str, float]:
        """Return whether the verdict on each labelled pair is right; pairs of one statement belong together."""
        known = [each for each in predictions if each.label is not None]
        return {f"{each.name}{GROUP}{each.group or each.name}": float(each.verdict == each.label) for each in known}

    def prediction_file(self, predictions: Sequence[NLVR2Example]) -> str:
        """Return the CSV that NLVR2's evaluation takes: identifier and True or False, no header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((each.identifier, each.verdict) for each in predictions)
        return text.getvalue()
