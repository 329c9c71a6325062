"""Random masked pairs, and a tiny task of masked signals."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import Config
from eve_vl.data.batches import Sample
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.model.patches import patchify, unpatchify
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from helpers.random_weights import randomize

VOCAB = 30
MASK = 2
PAD = 0
LENGTHS = (8, 3, 6, 5)


def masked_samples(lengths: Sequence[int] = LENGTHS) -> list[Sample]:
    """Return pairs with texts of these lengths: 4 of 16 patches are kept, half the tokens."""
    samples = []
    for row, length in enumerate(lengths):
        rng = generator(7, row)
        keep_K, hidden_M = mask_patches(16, 0.75, rng)
        ids_T = rng.integers(3, VOCAB, length)
        image = rng.integers(0, 256, (3, 16, 16), dtype=np.uint8)
        is_special_T = np.arange(length) == 0
        sample = Sample(
            batch=PairBatch,
            image=torch.from_numpy(image),
            ids_T=ids_T,
            is_masked_T=mask_tokens(is_special_T, 0.5, rng),
            keep_K=keep_K,
            hidden_M=hidden_M,
            image_id=row,
            caption=row,
            where=f"row {row}",
        )
        samples.append(sample)
    return samples


def masked_batch(lengths: Sequence[int] = LENGTHS) -> PairBatch:
    return PairBatch.collate(masked_samples(lengths), PAD)


def masked_signal(config: Config, vocab_size: int = VOCAB, mask_id: int = MASK) -> MaskedSignal:
    """Return a task in evaluation mode whose every weight matters."""
    task = MaskedSignal(config, Sizes(vocab_size=vocab_size, mask_id=mask_id))
    randomize(task, 1, std=0.35)
    return task.eval()


def patches_of(batch: PairBatch) -> Tensor:
    return patchify(batch.images_BCHW.float() / 127.5 - 1, 4)


def with_patches(batch: PairBatch, patches: Tensor) -> PairBatch:
    """Return the same pairs with other patches, (B, 16, 48), of normalised pixels."""
    return replace(batch, images_BCHW=unpatchify(patches, 4))


def with_changed_masked_tokens(batch: PairBatch) -> PairBatch:
    """Return the same pairs with other words where tokens are masked."""
    ids_BT = torch.where(batch.is_masked_BT, batch.ids_BT % 20 + 5, batch.ids_BT)
    assert not torch.equal(ids_BT, batch.ids_BT)
    return replace(batch, ids_BT=ids_BT)
