"""Pairs with MLIM's masks, and their batches."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from eve_vl.data.batches import RowBatch, Sample
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.records import Record
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs


class BatchByMask(RowBatch):
    """Pairs by masked side: the image, the text or both; None: no rows.

    Within a part, each row has the same number of masked patches.
    """

    image: PairBatch | None = None
    text: PairBatch | None = None
    both: PairBatch | None = None
    num_tokens: Tensor | None = None
    """Denominator of the masked-token loss, float32 scalar; None: the number of masked tokens in
    this batch."""
    num_patches: Tensor | None = None
    """Denominator of the loss of patches, likewise."""

    @property
    def parts(self) -> list[PairBatch]:
        """The parts that have rows."""
        return [part for part in (self.image, self.text, self.both) if part is not None]


class AwareMasks(MaskedPairs):
    """Pairs with MLIM's masks.

    Training masks most of the image, most of the text, or little of both, a third each. Evaluation
    always masks little of both.
    """

    by_mask = BatchByMask
    """Batch of training, by which FLOPs are counted."""

    def sample(self, row: Record, rng: np.random.Generator) -> Sample:
        """Return one pair with its masks. Raises BadSampleError."""
        shares = cast(MlimConfig, self.config.task).hidden_shares()
        hides = "both"
        if self.training:
            hides = list(shares)[int(rng.integers(len(shares)))]
        sample = self.masked(row, "image_text", *shares[hides], rng)
        sample.hides = hides
        return sample

    def collate(self, samples: Sequence[Sample]) -> RowBatch:
        """Return the batch of some samples; in training, split by which side is masked."""
        if not self.training:
            return super().collate(samples)
        samples_of_part: dict[str, list[Sample]] = {}
        for sample in samples:
            samples_of_part.setdefault(sample.hides, []).append(sample)
        parts: dict[str, Any] = {}
        for hides, part_samples in samples_of_part.items():
            parts[hides] = super().collate(part_samples)
        where = tuple(sample.where for sample in samples)
        skipped = sum((sample.skipped for sample in samples), ())
        return BatchByMask(where=where, skipped=skipped, **parts)
