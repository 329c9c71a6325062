"""The dataset of pre-training: pairs with masks, images only or texts only."""

import contextlib
from collections.abc import Iterator
from typing import cast

import numpy as np

from eve_vl.config import Config
from eve_vl.data.batches import Sample
from eve_vl.data.caption_augmentation import augmented_caption
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.masked_batches import MASKED, PairBatch
from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import PARTNER, generator
from eve_vl.data.records import Place, Record
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.row_hashes import hash_of, image_key
from eve_vl.data.sample_set import Position
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.utils.errors import BadSampleError, UserError

MAX_LABELS = 32  # of a row, present or known to be absent
MAX_PARTNERS = 200  # attempts to find a pair with another caption
KINDS = {"image_text": "captions", "image": "images", "text": "texts"}  # of rows, by data.modality


class MaskedPairs(RowDataset):
    """Pairs with masks or, by data.modality, images only or texts only.

    Evaluation uses the first caption. There each pair comes with a wrong partner: the pair half the
    data away or, if that shares a caption with it, a random one.
    """

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Return the kind of rows that the sources of a run must have."""
        return KINDS[config.data.modality]

    def places(self, position: Position) -> list[Place]:
        """Return the row of a sample; in the evaluation of pairs also its usual partner."""
        _, source, row = position
        places = [(self.sources[source], row)]
        if not self.training and self.config.data.modality == "image_text":
            places.append((self.sources[source], self._opposite_row(source, row)))
        return places

    def load(self, epoch: int, source: int, row: int) -> Sample:
        """Return one pair, image or text. Raises BadSampleError.

        In evaluation a pair comes with its wrong partner.
        """
        sample = super().load(epoch, source, row)
        if not self.training and sample.batch is PairBatch:
            sample.wrong = self._wrong_partner(epoch, source, row)
        return sample

    def sample(self, row: Record, rng: np.random.Generator) -> Sample:
        """Return one pair, image or text with its masks. Raises BadSampleError."""
        task = cast(MaskedSignalConfig, self.config.task)
        modality = self.config.data.modality
        return self.masked(row, modality, task.image_mask_ratio, task.text_mask_ratio, rng)

    def masked(
        self,
        row: Record,
        shown: str,
        image_ratio: float,
        text_ratio: float,
        rng: np.random.Generator,
    ) -> Sample:
        """Return a row, masked by these ratios. Raises BadSampleError.

        shown: the part of the row to return, one of MASKED.
        """
        sample = Sample(batch=MASKED[shown], where=row.where)
        text = None
        if row.texts:
            place = int(rng.integers(len(row.texts))) if self.training else 0
            text = row.texts[place]

        if row.images and shown != "text":
            texts = [] if text is None else [text]
            sample.image = self.load_image(row.images[0], row.where, rng, texts)
            num_patches = self.config.input.num_patches
            sample.keep_K, sample.hidden_M = mask_patches(num_patches, image_ratio, rng)
        if text is not None and shown != "image":
            self._add_masked_text(sample, row, text, text_ratio, rng)
        if isinstance(row, ImageText):
            sample.image_id = image_key(row.image, row.where)
            sample.caption = hash_of(cast(str, text).encode())
            sample.draw = rng.random(3, dtype=np.float32)
            if self.training and getattr(self.config.task, "itc_targets", "") == "semantic":
                sample.label_L = label_hashes(row)
        return sample

    def _add_masked_text(
        self, sample: Sample, row: Record, text: str, ratio: float, rng: np.random.Generator
    ) -> None:
        if self.training and isinstance(row, ImageText):
            text = augmented_caption(text, self.config.data.caption_augment, rng)
        max_tokens = self.config.input.max_text_tokens
        sample.ids_T, is_special_T = self.tokenizer.encode(text, max_tokens)
        word_T = None
        if cast(MaskedSignalConfig, self.config.task).whole_word_masking:
            word_T = self.tokenizer.words(text, max_tokens)
        sample.is_masked_T = mask_tokens(is_special_T, ratio, rng, word_T)

    def _opposite_row(self, source: int, row: int) -> int:
        num_rows = len(self.sources[source])
        return (row + num_rows // 2) % num_rows

    def _wrong_partner(self, epoch: int, source: int, row: int) -> Sample:
        """Return another pair without a caption of this row. Raises UserError if there is none."""
        captions = set(self.sources[source][row].captions)
        for partner_source, partner_row in self._partner_candidates(source, row):
            with contextlib.suppress(BadSampleError):
                partner = self.sources[partner_source][partner_row]
                if captions.isdisjoint(partner.captions):
                    return super().load(epoch, partner_source, partner_row)

        where = self.sources[source][row].where
        total = sum(map(len, self.sources))
        raise UserError(
            f"{where}: none of the {total} validation pairs is usable and has another caption; "
            "give more pairs, or name other ones with --data.val"
        )

    def _partner_candidates(self, source: int, row: int) -> Iterator[tuple[int, int]]:
        """Yield source and row of the usual partner, then of random pairs."""
        yield source, self._opposite_row(source, row)
        rng = generator(self.seed, PARTNER, source, row)
        for partner_source in rng.integers(len(self.sources), size=MAX_PARTNERS).tolist():
            yield partner_source, int(rng.integers(len(self.sources[partner_source])))


def label_hashes(row: ImageText) -> np.ndarray:
    """Return hashes of a row's labels, negative if absent, int64 (MAX_LABELS,).

    They are padded with 0. Raises BadSampleError for none or too many.
    """
    number = len(row.labels) + len(row.absent)
    if not 0 < number <= MAX_LABELS:
        raise BadSampleError(
            row.where,
            f"{number or 'no'} labels, but task.itc_targets semantic needs 1 to {MAX_LABELS}",
        )
    hashes = np.zeros(MAX_LABELS, dtype=np.int64)
    for place, name in enumerate(row.labels):
        hashes[place] = _label_hash(name)
    for place, name in enumerate(row.absent, start=len(row.labels)):
        hashes[place] = -_label_hash(name)
    return hashes


def _label_hash(name: str) -> int:
    """Return a positive hash, so that its negative stands for the absent label."""
    return hash_of(name.encode()) & 2**62 - 1
