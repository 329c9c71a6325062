"""Rows whose image or text was replaced, for baselines without it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.batches import Sample
from eve_vl.data.random_streams import generator
from eve_vl.data.records import Place, usable_rows
from eve_vl.data.row_dataset import EVAL_SEED, RowDataset
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.sample_set import Position, SampleSet
from eve_vl.tasks.evaluator import How

NOISE = 6  # purpose of a random stream, next to those of data/random_streams
MAX_TRIES = 20  # to find a different image


class AblatedRows(SampleSet):
    """Evaluation rows of a dataset without their image, right image or text.

    `noise`: noise of equal histogram replaces the image. `wrong_image`: the image of another row
    replaces it. `image_only`: the text is empty. The other row is of the same group (such as one
    patient), else one with the same text (such as the same question), else any. Its image differs.
    """

    def __init__(self, rows: RowDataset, how: How):
        """Read the rows' groups and texts for `wrong_image`, but no images."""
        super().__init__(rows.config, rows.tokenizer)
        self.rows = rows
        self.how = how
        self.positions: list[Position] = []
        for batch in rows.eval_batches(1, 0, 1):
            self.positions.extend(batch)
        self.place = {position: place for place, position in enumerate(self.positions)}
        self.same_group: dict[Position, list[int]] = {}
        """Places of the rows of a row's group; rows without a group are left out."""
        self.same_text: dict[Position, list[int]] = {}
        """Places of the rows with a row's text; rows without a text are left out."""
        if how == "wrong_image":
            self._read_groups_and_texts()

    def _read_groups_and_texts(self) -> None:
        """Find the rows of one group, and those with one text."""
        places_of_group: dict[str, list[int]] = defaultdict(list)
        places_of_text: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for position, row in self._read_rows():
            place = self.place[position]
            group = getattr(row, "group", "")
            if group:
                places_of_group[group].append(place)
                self.same_group[position] = places_of_group[group]
            if any(row.texts):
                places_of_text[row.texts].append(place)
                self.same_text[position] = places_of_text[row.texts]

    def _read_rows(self) -> Iterator[tuple[Position, Any]]:
        """Yield the usable rows, without their images."""
        for number, source in enumerate(self.rows.sources):
            row_numbers = [row for _, at, row in self.positions if at == number]
            for index, row in usable_rows(source, row_numbers):
                yield (0, number, index), row

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return the batches of the rows."""
        return self.rows.eval_batches(batch_size, rank, world)

    def places(self, position: Position) -> list[Place]:
        """Return its row and, for a wrong image, the first one that may replace it."""
        places = list(self.rows.places(position))
        if self.how == "wrong_image":
            replacement = next(self._replacements(position), None)
            if replacement is not None:
                places += self.rows.places(replacement)
        return places

    def __getitem__(self, position: Position) -> Sample:
        sample = self.rows[position]
        if sample.skipped:
            return sample
        if self.how == "image_only":
            sample.ids_T = self.tokens("")
        elif self.how == "noise":
            sample.image = noise_like(sample.image, sample.name)
        else:
            sample.image = self._wrong_image(position, sample.image)
        return sample

    def _wrong_image(self, position: Position, image_CHW: Tensor) -> Tensor:
        """Return the first different image of a replacement, else the image itself."""
        for replacement in self._replacements(position):
            sample = self.rows[replacement]
            if not sample.skipped and not torch.equal(sample.image, image_CHW):
                return sample.image
        return image_CHW

    def _replacements(self, position: Position) -> Iterator[Position]:
        """Yield rows whose image may replace a row's own, the most similar ones first.

        Of each kind, they begin half the rows away.
        """
        same_group: Sequence[int] = self.same_group.get(position, ())
        same_text: Sequence[int] = self.same_text.get(position, ())
        for places in (same_group, same_text, range(len(self.positions))):
            start = len(places) // 2
            if places:
                start += places.index(self.place[position])
            for step in range(min(MAX_TRIES, len(places) - 1)):
                yield self.positions[places[(start + step) % len(places)]]


def noise_like(image_CHW: Tensor, name: str) -> Tensor:
    """Return the pixels of an image in random order, which depends only on a name."""
    rng = generator(EVAL_SEED, NOISE, hash_of(name.encode()) % 2**63)
    num_pixels = image_CHW[0].numel()
    order = torch.from_numpy(rng.permutation(num_pixels).astype(np.int64)).to(image_CHW.device)
    return image_CHW.flatten(1)[:, order].view_as(image_CHW)
