"""Rows whose image or text was replaced, for baselines without it."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

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

NOISE = 6  # purpose of a random stream, next to those of data/dataset


MAX_OTHERS = 20  # tries to find a different image


class AblatedRows(SampleSet):
    """Evaluation rows of a dataset without their image, right image or text.

    `noise`: noise of equal histogram replaces the image. `wrong_image`: the image of another row replaces it. `image_only`: the
    text is empty. The other row is of the same group (such as one patient), else one with the same text (such as the same
    question), else any. Its image differs.
    """

    def __init__(self, rows: RowDataset, how: How):
        """Read the rows' groups and texts for `wrong_image`, but no images."""
        super().__init__(rows.config, rows.tokenizer)
        self.rows, self.how = rows, how
        self.positions: list[Position] = [
            position for batch in rows.eval_batches(1, 0, 1) for position in batch
        ]
        self.place = {position: place for place, position in enumerate(self.positions)}
        self.alike = [self._alike(number) for number in (0, 1)] if how == "wrong_image" else []

    def _alike(self, number: int) -> dict[Position, list[int]]:
        """Return the places of rows with the same group (0) or text (1), by row.

        Rows without one are left out.
        """
        members: dict[tuple[str, ...], list[int]] = defaultdict(list)
        keys: dict[Position, tuple[str, ...]] = {}
        for at, source in enumerate(self.rows.sources):
            for index, row in usable_rows(
                source, [row for _, each, row in self.positions if each == at]
            ):
                if any(key := (getattr(row, "group", ""),) if number == 0 else row.texts):
                    keys[0, at, index] = key
                    members[key].append(self.place[0, at, index])
        return {position: members[key] for position, key in keys.items()}

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return the batches of the rows."""
        return self.rows.eval_batches(batch_size, rank, world)

    def places(self, position: Position) -> list[Place]:
        """Return its row and, for a wrong image, the first other one."""
        others = itertools.islice(self._others(position), self.how == "wrong_image")
        return [place for each in (position, *others) for place in self.rows.places(each)]

    def __getitem__(self, position: Position) -> Sample:
        sample = self.rows[position]
        if sample.skipped:
            return sample
        if self.how == "image_only":
            sample.ids_T = self.tokens("")
        elif self.how == "noise":
            sample.image = noise_like(sample.image, sample.name)
        else:
            others = (self.rows[other] for other in self._others(position))
            images = (other.image for other in others if not other.skipped)
            sample.image = next(
                (image for image in images if not torch.equal(image, sample.image)), sample.image
            )
        return sample

    def _others(self, position: Position) -> Iterator[Position]:
        """Yield other rows whose image may replace a row's own."""
        lists: list[Sequence[int]] = [alike.get(position, ()) for alike in self.alike]
        for places in (*lists, range(len(self.positions))):
            here = places.index(self.place[position]) if places else 0
            for step in range(min(MAX_OTHERS, len(places) - 1)):
                yield self.positions[places[(here + len(places) // 2 + step) % len(places)]]


def noise_like(image_CHW: Tensor, name: str) -> Tensor:
    """Return the pixels of an image in random order, which depends only on a name."""
    rng = generator(EVAL_SEED, NOISE, hash_of(name.encode()) % 2**63)
    order = torch.from_numpy(rng.permutation(image_CHW[0].numel()).astype(np.int64)).to(
        image_CHW.device
    )
    return image_CHW.flatten(1)[:, order].view_as(image_CHW)
