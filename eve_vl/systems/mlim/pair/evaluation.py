"""Metrics of the comparison of two items.

Letters: B batch, 2 not the same and the same.
"""

import dataclasses
from collections.abc import Sequence

from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.systems.mlim.pair.item_rows import ItemBatch
from eve_vl.systems.mlim.pair.metrics import PR_AUC, same_item_summary
from eve_vl.systems.mlim.pair.task import ItemPairs
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classifier.evaluation import ClassifierEvaluator, Prediction, json_lines

SHOWN = {"pr_auc": "image_text", "pr_auc_images": "image", "pr_auc_texts": "text"}
"""The modalities that evaluation shows of the items, by metric."""


class PairEvaluator(ClassifierEvaluator[ItemPairs]):
    """PR-AUC of item pairs.

    A prediction holds the probability of being the same by metric (SHOWN).
    """

    section = PairConfig
    main_metric = PR_AUC
    score_name = "pair_acc"
    baselines = (
        Baseline("pr_auc", "pair", "pr_auc_chance", "chance"),
        Baseline("pr_auc", "pair", "pr_auc_images", "of the images only", "uses the texts"),
        Baseline("pr_auc", "pair", "pr_auc_texts", "of the texts only", "uses the images"),
    )

    def predict_batch(self, batch: ItemBatch) -> list[Prediction]:
        """Compare the items of a batch, whole and by images or texts only."""
        probabilities: dict[str, list[float]] = {}
        for metric, modality in SHOWN.items():
            shown = dataclasses.replace(batch, shown=(modality,) * len(batch.where))
            logits_B2, _ = self.task.predict(shown)
            probabilities[metric] = logits_B2.float().softmax(1)[:, 1].tolist()
        predictions = []
        for number, row in enumerate(batch.rows()):
            of_row = {metric: values[number] for metric, values in probabilities.items()}
            predictions.append(Prediction(**of_row, **row))
        return predictions

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `same_item_summary`."""
        probabilities = {}
        for metric in SHOWN:
            probabilities[metric] = [getattr(prediction, metric) for prediction in predictions]
        labels = [prediction.label for prediction in predictions]
        return same_item_summary(probabilities, labels)

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return whether the verdict on each labelled pair is right."""
        scores = {}
        for prediction in predictions:
            if prediction.label is not None:
                scores[prediction.name] = float((prediction.pr_auc > 0.5) == prediction.label)
        return scores

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return a JSON line for each pair: the verdict and its probability."""

        def line(prediction: Prediction) -> dict[str, object]:
            probability = prediction.pr_auc
            return {"same": probability > 0.5, "probability": probability}

        return json_lines(predictions, line)
