"""Evaluation of MLIM's pre-training: masked signals, and the loss RECON with the right and with a wrong caption."""

from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.config import MlimConfig
from eve_vl.data.masking import PairBatch
from eve_vl.evaluation.masked_signal import MaskedSignalEvaluator
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics.masked_signal import Sums
from eve_vl.tasks.mlim import Mlim


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
