"""Evaluation of MLIM's tasks: RECON with the right and a wrong caption, and PR-AUC of item pairs, also by one modality."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eve_vl.data.kinds.pairs import ItemBatch
from eve_vl.data.masking import PairBatch
from eve_vl.evaluation.evaluator import ClassifierEvaluator, json_lines
from eve_vl.evaluation.masked_signal import MaskedSignalEvaluator
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import pairs as metrics
from eve_vl.metrics.masked_signal import Sums
from eve_vl.systems.mlim.config import MlimConfig, PairConfig
from eve_vl.systems.mlim.tasks import ItemPairs, Mlim

SHOWN = {"pr_auc": "image_text", "pr_auc_images": "image", "pr_auc_texts": "text"}
"""The modalities that evaluation shows of the items, by metric."""


class MlimEvaluator(MaskedSignalEvaluator[Mlim]):
    """Masked signals and RECON."""

    section = MlimConfig
    baselines = (
        *MaskedSignalEvaluator.baselines,
        Baseline(
            *("recon", "image", "recon_wrong_caption", "with a wrong caption", "uses the caption"),
            lower=True,
            after="mim_mse",
        ),
    )

    def add_batch(self, sums: Sums, batch: Any, names: Sequence[str]) -> None:
        """Add a batch with little of image and text masked."""
        super().add_batch(sums, batch, names)
        assert isinstance(batch, PairBatch) and batch.wrong is not None
        for name, pairs in (("recon", batch), ("recon_wrong_caption", batch.with_text_of(batch.wrong))):
            error_B = self.task.squared_errors(self.task.encode(pairs, keep=True, mask=True), batch).mean(1)
            sums.add(name, names, torch.arange(len(error_B)), error_B)


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """A pair of items with the probabilities of being the same, by metric (SHOWN), and the true label (None if kept back)."""

    probabilities: Mapping[str, float]
    captions: tuple[str, str]
    label: bool | None
    where: str
    name: str = ""
    position: tuple[int, int] = (0, 0)

    @property
    def probability(self) -> float:
        """The probability given whole items."""
        return self.probabilities[metrics.MAIN]

    @property
    def is_same(self) -> bool:
        """The model's verdict."""
        return self.probability > 0.5


class PairEvaluator(ClassifierEvaluator[ItemPairs]):
    """PR-AUC of item pairs."""

    section = PairConfig
    main_metric, score_name = metrics.MAIN, "pair_acc"
    baselines = (
        Baseline("pr_auc", "pair", "pr_auc_chance", "chance"),
        Baseline("pr_auc", "pair", "pr_auc_images", "of the images only", "uses the texts"),
        Baseline("pr_auc", "pair", "pr_auc_texts", "of the texts only", "uses the images"),
    )
    has_prediction_file = True

    def predict_batch(self, batch: ItemBatch) -> list[PairExample]:
        """Compare the items of a batch, whole and by images or texts only."""
        found: dict[str, list[float]] = {}
        for name, shown in SHOWN.items():
            logits_B2, _ = self.task.predict(dataclasses.replace(batch, shown=(shown,) * len(batch.where)))
            found[name] = logits_B2.float().softmax(1)[:, 1].tolist()
        rows = zip(batch.rows(), *found.values(), strict=True)
        return [PairExample(probabilities=dict(zip(found, values, strict=True)), **row) for row, *values in rows]

    def metrics(self, predictions: Sequence[PairExample]) -> dict[str, float]:
        """Return the metrics of `metrics.pairs`."""
        probabilities = {name: [each.probabilities[name] for each in predictions] for name in SHOWN}
        return metrics.same_item_summary(probabilities, [each.label for each in predictions])

    def per_row_scores(self, predictions: Sequence[PairExample]) -> dict[str, float]:
        """Return whether the verdict on each labelled pair is right."""
        return {each.name: float(each.is_same == each.label) for each in predictions if each.label is not None}

    def prediction_file(self, predictions: Sequence[PairExample]) -> str:
        """Return a JSON line for each pair: the verdict and its probability."""
        return json_lines(predictions, lambda each: {"same": each.is_same, "probability": each.probability})
