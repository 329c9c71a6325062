"""Metrics of pre-training by contrast and matching."""

from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.data.masked_batches import PairBatch
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.evaluation import MaskedSignalEvaluator
from eve_vl.tasks.masked_signal.sums import Sums


class ContrastMatchEvaluator(MaskedSignalEvaluator[Any]):
    """Masked signals, and wrong pairs recognised by contrast and matching."""

    section = ContrastMatchConfig
    baselines = (
        *MaskedSignalEvaluator.baselines,
        Baseline("itc_acc", "comparison", 0.5, "chance"),
        Baseline("itm_acc", "pair", 0.5, "chance"),
    )

    def add_batch(self, sums: Sums, batch: Any, names: Sequence[str]) -> None:
        """Add a batch: masked signals, `itc_acc` and `itm_acc`; chance is 0.5 for both."""
        super().add_batch(sums, batch, names)
        assert isinstance(batch, PairBatch) and batch.wrong is not None
        if self.task.is_comparable:
            self._add_comparisons(sums, batch, batch.wrong, names)
        if self.task.contrast.match_head is not None:
            self._add_matches(sums, batch, batch.wrong, names)

    def _add_comparisons(
        self, sums: Sums, batch: PairBatch, wrong: PairBatch, names: Sequence[str]
    ) -> None:
        """Add whether images and texts are more similar to their partner than to a wrong one."""
        task = self.task
        image_Bd = task.image_features(batch.images_BCHW)
        text_Bd = task.text_features(batch.ids_BT, batch.is_padding_BT)
        wrong_image_Bd = task.image_features(wrong.images_BCHW)
        wrong_text_Bd = task.text_features(wrong.ids_BT, wrong.is_padding_BT)
        row_B = torch.arange(len(batch.where))
        product_B = (image_Bd * text_Bd).sum(1)
        for wrong_product_B in (
            (wrong_image_Bd * text_Bd).sum(1),
            (image_Bd * wrong_text_Bd).sum(1),
        ):
            sums.add("itc_acc", names, row_B, product_B > wrong_product_B)

    def _add_matches(
        self, sums: Sums, batch: PairBatch, wrong: PairBatch, names: Sequence[str]
    ) -> None:
        """Add whether the matching head recognises true and wrong pairs."""
        row_B = torch.arange(len(batch.where))
        for pairs, is_match in ((batch, True), (batch.with_text_of(wrong), False)):
            logits_B2, _ = self.task.match(pairs.images_BCHW, pairs.ids_BT, pairs.is_padding_BT)
            sums.add("itm_acc", names, row_B, logits_B2.argmax(1) == int(is_match))
