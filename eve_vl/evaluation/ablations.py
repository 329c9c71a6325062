"""Evaluation rows with a part taken away: the image, the right image or the text."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.batch import Sample
from eve_vl.data.dataset import EVAL_SEED, Position, RowDataset, SampleSet, generator, hash_of
from eve_vl.data.records import usable_rows

How = Literal["noise", "wrong_image", "image_only"]
NOISE = 6  # purpose of a random stream, next to those of data/dataset
MAX_OTHERS = 20  # tries to find a different image


class AblatedRows(SampleSet):
    """The evaluation rows of a dataset, each without its image (`noise`: noise of equal histogram), with the image of another
    row (`wrong_image`), or without its text (`image_only`).

    The other row is of the same group (such as one patient), else one with the same text (such as the same question), else any.
    Its image differs.
    """

    def __init__(self, rows: RowDataset, how: How):
        """Read the rows' groups and texts for `wrong_image`, but no images."""
        super().__init__(rows.config, rows.tokenizer)
        self.rows, self.how = rows, how
        self.positions: list[Position] = [position for batch in rows.eval_batches(1, 0, 1) for position in batch]
        self.place = {position: place for place, position in enumerate(self.positions)}
        self.alike = [self._alike(number) for number in (0, 1)] if how == "wrong_image" else []

    def _alike(self, number: int) -> dict[Position, list[int]]:
        """Return the places of all rows with the same group (0) or the same text (1), by row; rows without one are left out."""
        members: dict[tuple[str, ...], list[int]] = defaultdict(list)
        keys: dict[Position, tuple[str, ...]] = {}
        for at, source in enumerate(self.rows.sources):
            chosen = [row for _, each, row in self.positions if each == at]
            for index, row in usable_rows(source, chosen):
                if any(key := (getattr(row, "group", ""),) if number == 0 else row.texts):
                    keys[0, at, index] = key
                    members[key].append(self.place[0, at, index])
        return {position: members[key] for position, key in keys.items()}

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return the batches of the rows."""
        return self.rows.eval_batches(batch_size, rank, world)

    def __getitem__(self, position: Position) -> Sample:
        sample = self.rows[position]
        if sample.skipped:
            return sample
        if self.how == "image_only":
            sample.ids_T = self.tokens("")
        elif self.how == "noise":
            sample.image = noise_like(sample.image, sample.name)
        else:
            sample.image = self._other(position, sample.image)
        return sample

    def _other(self, position: Position, image_CHW: Tensor) -> Tensor:
        """Return the image of another row; the row's own if all are equal."""
        lists: list[Sequence[int]] = [alike.get(position, ()) for alike in self.alike]
        for places in (*lists, range(len(self.positions))):
            here = places.index(self.place[position]) if places else 0
            for step in range(min(MAX_OTHERS, len(places) - 1)):
                other = self.rows[self.positions[places[(here + len(places) // 2 + step) % len(places)]]]
                if not other.skipped and not torch.equal(other.image, image_CHW):
                    return other.image
        return image_CHW


def noise_like(image_CHW: Tensor, name: str) -> Tensor:
    """Return the pixels of an image in random order, which depends only on a name."""
    rng = generator(EVAL_SEED, NOISE, hash_of(name.encode()) % 2**63)
    order = torch.from_numpy(rng.permutation(image_CHW[0].numel()).astype(np.int64)).to(image_CHW.device)
    return image_CHW.flatten(1)[:, order].view_as(image_CHW)
