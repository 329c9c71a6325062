"""Metrics of MLIM's tasks.

Letters: B batch, 2 not the same and the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.data.masked_batches import PairBatch
from eve_vl.metrics.same_items import PR_AUC, same_item_summary
from eve_vl.systems.mlim.config import MlimConfig, PairConfig
from eve_vl.systems.mlim.item_rows import ItemBatch
from eve_vl.systems.mlim.task import ItemPairs, Mlim
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classifier.evaluation import ClassifierEvaluator, Prediction, json_lines
from eve_vl.tasks.masked_signal.evaluation import MaskedSignalEvaluator, Sums

SHOWN = {"pr_auc": "image_text", "pr_auc_images": "image", "pr_auc_texts": "text"}
"""The modalities that evaluation shows of the items, by metric."""


class MlimEvaluator(MaskedSignalEvaluator[Mlim]):
    """Masked signals and RECON."""

    section = MlimConfig
    baselines = (
        *MaskedSignalEvaluator.baselines,
        Baseline(
            "recon",
            "image",
            "recon_wrong_caption",
            "with a wrong caption",
            "uses the caption",
            True,
            "mim_mse",
        ),
    )

    def add_batch(self, sums: Sums, batch: Any, names: Sequence[str]) -> None:
        """Add a batch with little of image and text masked."""
        super().add_batch(sums, batch, names)
        assert isinstance(batch, PairBatch) and batch.wrong is not None
        for name, pairs in (
            ("recon", batch),
            ("recon_wrong_caption", batch.with_text_of(batch.wrong)),
        ):
            error_B = self.task.squared_errors(
                self.task.encode(pairs, keep=True, mask=True), batch
            ).mean(1)
            sums.add(name, names, torch.arange(len(error_B)), error_B)


class PairEvaluator(ClassifierEvaluator[ItemPairs]):
    """PR-AUC of item pairs.

    A prediction holds the probability of being the same by metric (SHOWN).
    """

    section = PairConfig
    main_metric, score_name = PR_AUC, "pair_acc"
    baselines = (
        Baseline("pr_auc", "pair", "pr_auc_chance", "chance"),
        Baseline("pr_auc", "pair", "pr_auc_images", "of the images only", "uses the texts"),
        Baseline("pr_auc", "pair", "pr_auc_texts", "of the texts only", "uses the images"),
    )

    def predict_batch(self, batch: ItemBatch) -> list[Prediction]:
        """Compare the items of a batch, whole and by images or texts only."""
        found: dict[str, list[float]] = {}
        for name, shown in SHOWN.items():
            logits_B2, _ = self.task.predict(
                dataclasses.replace(batch, shown=(shown,) * len(batch.where))
            )
            found[name] = logits_B2.float().softmax(1)[:, 1].tolist()
        rows = zip(batch.rows(), *found.values(), strict=True)
        return [Prediction(**dict(zip(found, values, strict=True)), **row) for row, *values in rows]

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of `metrics.classification`."""
        probabilities = {name: [getattr(each, name) for each in predictions] for name in SHOWN}
        return same_item_summary(probabilities, [each.label for each in predictions])

    def per_row_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return whether the verdict on each labelled pair is right."""
        return {
            each.name: float((each.pr_auc > 0.5) == each.label)
            for each in predictions
            if each.label is not None
        }

    def prediction_file(self, predictions: Sequence[Prediction]) -> str:
        """Return a JSON line for each pair: the verdict and its probability."""
        return json_lines(
            predictions, lambda each: {"same": each.pr_auc > 0.5, "probability": each.pr_auc}
        )
