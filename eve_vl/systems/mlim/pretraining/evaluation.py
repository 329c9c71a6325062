"""Metrics of MLIM's pre-training.

Letters: B batch, P patches.
"""

from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.data.masked_batches import PairBatch
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.systems.mlim.pretraining.task import Mlim
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.masked_signal.evaluation import MaskedSignalEvaluator, Sums

WRONG_CAPTION = Baseline(
    "recon",
    "image",
    "recon_wrong_caption",
    "with a wrong caption",
    "uses the caption",
    True,
    "mim_mse",
)


class MlimEvaluator(MaskedSignalEvaluator[Mlim]):
    """Masked signals and RECON."""

    section = MlimConfig
    baselines = (*MaskedSignalEvaluator.baselines, WRONG_CAPTION)

    def add_batch(self, sums: Sums, batch: Any, names: Sequence[str]) -> None:
        """Add a batch with little of image and text masked."""
        super().add_batch(sums, batch, names)
        assert isinstance(batch, PairBatch) and batch.wrong is not None
        with_wrong_caption = batch.with_text_of(batch.wrong)
        for name, pairs in (("recon", batch), ("recon_wrong_caption", with_wrong_caption)):
            encoded = self.task.encode(pairs, keep=True, mask=True)
            error_B = self.task.squared_errors(encoded, batch).mean(1)
            sums.add(name, names, torch.arange(len(error_B)), error_B)
