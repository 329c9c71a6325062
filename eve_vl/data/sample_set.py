"""What loaders and evaluation need of every dataset."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from eve_vl.config import Config
from eve_vl.data.batches import RowBatch, Sample
from eve_vl.data.records import Place, fetch_places
from eve_vl.data.tokenizer import Tokenizer

Position = tuple[int, int, int]
"""Epoch, number of a source, row there."""


class SampleSet(Dataset[Sample], ABC):
    """Base class of all datasets."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self.config = config
        self.tokenizer = tokenizer

    @abstractmethod
    def __getitem__(self, position: Position) -> Sample: ...

    def __getitems__(self, positions: Sequence[Position]) -> list[Sample]:
        """Return the samples of a batch, whose remote bytes are read in one call."""
        fetch_places(place for position in positions for place in self.places(position))
        return [self[position] for position in positions]

    @abstractmethod
    def places(self, position: Position) -> Sequence[Place]:
        """Return the rows that a sample is made of."""

    @abstractmethod
    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of the evaluation, each position once."""

    def notes(self) -> list[str]:
        """Return remarks on what is evaluated, a sentence each."""
        return []

    def collate(self, samples: Sequence[Sample]) -> RowBatch:
        """Return the batch of some samples; unusable rows leave only their errors in it."""
        usable = [sample for sample in samples if sample.batch is not RowBatch]
        batch_class = usable[0].batch if usable else RowBatch
        pad_id = self.tokenizer.pad_id
        batch = batch_class.collate(usable, pad_id, self.config.input.padded_text_length)
        skipped = sum((sample.skipped for sample in samples), ())
        return dataclasses.replace(batch, skipped=skipped)

    def tokens(self, text: str) -> np.ndarray:
        """Return token ids, int64 (T,), [CLS] first, cut to input.max_text_tokens."""
        return self.tokenizer.encode(text, self.config.input.max_text_tokens)[0]
