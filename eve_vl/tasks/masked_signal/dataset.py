"""The dataset of pre-training: pairs with masks, images only or texts only."""

import contextlib
from typing import cast

import numpy as np

from eve_vl.config import Config
from eve_vl.data.batches import Sample
from eve_vl.data.caption_augmentation import augmented_caption
from eve_vl.data.kinds.captions import ImageText, caption_key
from eve_vl.data.masked_batches import (
    MASKED,
    PairBatch,
)
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

    Evaluation uses the first caption. There each pair comes with a wrong partner: the pair half the data away or, if that
    shares a caption with it, a random one.
    """

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Return the kind of rows that the sources of a run must have."""
        return KINDS[config.data.modality]

    def places(self, position: Position) -> list[Place]:
        """Return the row of a sample; in the evaluation of pairs also its usual partner."""
        _, source, row = position
        has_partner = not self.training and self.config.data.modality == "image_text"
        return [
            (self.sources[source], each)
            for each in (row, self._opposite(source, row))[: 1 + has_partner]
        ]

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
        return self.masked(
            row, self.config.data.modality, task.image_mask_ratio, task.text_mask_ratio, rng
        )

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
        sizes, task = self.config.input, cast(MaskedSignalConfig, self.config.task)
        sample = Sample(batch=MASKED[shown], where=row.where)
        number = int(rng.integers(len(row.texts))) if self.training and row.texts else 0
        texts = row.texts[number : number + 1]
        for image in row.images if shown != "text" else ():
            sample.image = self.load_image(image, row.where, rng, texts)
            sample.keep_K, sample.hidden_M = mask_patches(sizes.num_patches, image_ratio, rng)
        for text in texts if shown != "image" else ():
            if self.training and isinstance(row, ImageText):
                text = augmented_caption(text, self.config.data.caption_augment, rng)
            sample.ids_T, is_special_T = self.tokenizer.encode(text, sizes.max_text_tokens)
            word_T = (
                self.tokenizer.words(text, sizes.max_text_tokens)
                if task.whole_word_masking
                else None
            )
            sample.is_masked_T = mask_tokens(is_special_T, text_ratio, rng, word_T)
        if isinstance(row, ImageText):
            sample.image_id, sample.caption = (
                image_key(row.image, row.where),
                caption_key(row, texts[0], self.config),
            )
            sample.draw = rng.random(3, dtype=np.float32)
            if self.training and getattr(task, "itc_targets", "") == "semantic":
                sample.label_L = label_hashes(row)
        return sample

    def _opposite(self, source: int, row: int) -> int:
        return (row + (num := len(self.sources[source])) // 2) % num

    def _wrong_partner(self, epoch: int, source: int, row: int) -> Sample:
        captions = set(self.sources[source][row].captions)
        rng = generator(self.seed, PARTNER, source, row)
        picks = rng.integers(len(self.sources), size=MAX_PARTNERS).tolist()
        random_rows = ((other, int(rng.integers(len(self.sources[other])))) for other in picks)
        for other, other_row in ((source, self._opposite(source, row)), *random_rows):
            with contextlib.suppress(BadSampleError):
                if captions.isdisjoint(self.sources[other][other_row].captions):
                    return super().load(epoch, other, other_row)
        where, total = self.sources[source][row].where, sum(map(len, self.sources))
        problem = f"none of the {total} validation pairs is usable and has another caption"
        raise UserError(f"{where}: {problem}; give more pairs, or name other ones with --data.val")


def label_hashes(row: ImageText) -> np.ndarray:
    """Return hashes of a row's labels, negative if absent, int64 (MAX_LABELS,).

    They are padded with 0. Raises BadSampleError for none or too many.
    """
    if not 0 < (number := len(row.labels) + len(row.absent)) <= MAX_LABELS:
        raise BadSampleError(
            row.where,
            f"{number or 'no'} labels, but task.itc_targets semantic needs 1 to {MAX_LABELS}",
        )
    present, absent = (
        [hash_of(name.encode()) & 2**62 - 1 for name in names] for names in (row.labels, row.absent)
    )
    return np.array(
        [*present, *(-label for label in absent), *[0] * (MAX_LABELS - number)], dtype=np.int64
    )
