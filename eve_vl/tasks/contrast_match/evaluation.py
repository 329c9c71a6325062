"""Metrics of pre-training by contrast and matching."""

from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.data.masked_batches import PairBatch
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.evaluation import MaskedSignalEvaluator, Sums


class ContrastMatchEvaluator(MaskedSignalEvaluator[Any]):
    """Masked signals, and wrong pairs recognised by contrast and matching."""

    section = ContrastMatchConfig
    baselines = (
        *MaskedSignalEvaluator.baselines,
        Baseline("itc_acc", "comparison", 0.5, "chance"),
        Baseline("itm_acc", "pair", 0.5, "chance"),
    )

    def add_batch(self, sums: Sums, batch: Any, names: Sequence[str]) -> None:
        """Add a batch: masked signals, `itc_acc` and `itm_acc`; chance is 0.5 for both.

        `itc_acc` is the share of images and texts that are more similar to their own partner than to a wrong one, `itm_acc` the
        share of true and of wrong pairs that the matching head recognises.
        """
        super().add_batch(sums, batch, names)
        task = self.task
        assert isinstance(batch, PairBatch) and batch.wrong is not None
        rows = torch.arange(len(batch.where))
        if task.is_comparable:
            image_Bd, text_Bd = (
                task.image_features(batch.images_BCHW),
                task.text_features(batch.ids_BT, batch.is_padding_BT),
            )
            wrong_image_Bd = task.image_features(batch.wrong.images_BCHW)
            wrong_text_Bd = task.text_features(batch.wrong.ids_BT, batch.wrong.is_padding_BT)
            own_B = (image_Bd * text_Bd).sum(1)
            for other_B in ((wrong_image_Bd * text_Bd).sum(1), (image_Bd * wrong_text_Bd).sum(1)):
                sums.add("itc_acc", names, rows, own_B > other_B)
        if task.contrast.match_head is not None:
            for pairs, is_match in ((batch, True), (batch.with_text_of(batch.wrong), False)):
                logits_B2, _ = task.match(pairs.images_BCHW, pairs.ids_BT, pairs.is_padding_BT)
                sums.add("itm_acc", names, rows, logits_B2.argmax(1) == int(is_match))
