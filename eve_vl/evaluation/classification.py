"""Evaluation of classification: accuracy of one label, or average precision of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eve_vl.config import ClassificationConfig
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.ablations import How
from eve_vl.evaluation.evaluator import ClassifierEvaluator, json_lines
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import classification as metrics
from eve_vl.tasks.classification import Classification

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
            return metrics.summary([each.label == each.labels[0] for each in known], true) | numbers
        is_true_RC = np.array([[label in each.labels for label in self.task.sizes.labels] for each in known])
        return metrics.ranking_summary(np.stack([each.probability_C for each in known]), is_true_RC) | numbers

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
