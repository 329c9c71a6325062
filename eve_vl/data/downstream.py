"""Datasets of the downstream tasks: captioned pictures to tell apart and to search among, questions, statements."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eve_vl.config import Config, RetrievalConfig
from eve_vl.data.batch import (
    CaptionBatch,
    CaptionSample,
    QuestionBatch,
    QuestionSample,
    SearchBatch,
    SearchSample,
    StatementBatch,
    StatementSample,
)
from eve_vl.data.dataset import SAMPLE, Position, RowDataset, Rows, chunks, eval_positions, picture_key
from eve_vl.data.masking import generator
from eve_vl.data.records import ImageText, Source
from eve_vl.data.scenes import ScenePairs
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.errors import BadSampleError, UserError

PICTURE, TEXT = 0, 1  # the "source" in positions of a SearchSet


class CaptionedPictures(RowDataset):
    """Pictures with one of their captions each."""

    kind = "captions"
    batch = CaptionBatch

    def load(self, epoch: int, source: int, row: int) -> CaptionSample:
        """Return one pair. Raises BadSampleError."""
        pair = self.sources[source][row]
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        caption = pair.captions[int(rng.integers(len(pair.captions)))]
        return CaptionSample(
            image=self.picture(pair.image, pair.where, rng, [caption]),
            ids_T=self.tokens(caption),
            picture=picture_key(pair.image, pair.where),
            where=pair.where,
        )


class SearchSet(RowDataset):
    """Every distinct picture once and every distinct text once, of at most data.val_samples rows.

    What is searched among are pictures and captions: the first task.captions_per_image of each picture, on whichever rows
    they stand (0: all). As COCO and Flickr30K are scored, each is a caption of its own, true of this picture alone. With
    task.merge_captions, the same words are one caption, true of each picture that has it among all of its own, of generated
    scenes wherever it is true. Texts come longest first, so that batches hold little padding.

    pictures: (source, row) of each. captions: the words of each. texts: the distinct ones of these. captions_in: the captions
    that each text stands for. captions_of: those that are true of each picture.
    """

    kind = "captions"
    batch = SearchBatch

    def __init__(self, sources: Sequence[Source[ImageText]], config: Config, tokenizer: Tokenizer):
        """Read the rows, not their pictures. Raises UserError for one that cannot be used."""
        super().__init__(sources, config, tokenizer, training=False)
        assert isinstance(config.task, RetrievalConfig)
        self.pictures: list[tuple[int, int]] = []
        picture_of: dict[int, int] = {}
        captions: list[list[str]] = []
        true_captions: list[set[str]] = []
        for _, source, row in eval_positions([len(source) for source in sources], config.data.val_samples):
            try:
                pair = sources[source][row]
            except BadSampleError as error:
                raise UserError(f"{error}; repair or leave out rows to search among (eve data check lists them)") from None
            picture = picture_of.setdefault(picture_key(pair.image, pair.where), len(self.pictures))
            if picture == len(self.pictures):
                self.pictures.append((source, row))
                captions.append([])
                true_captions.append(set())
            captions[picture] += pair.captions
            true_captions[picture] |= set(_true_captions(sources[source], row, pair))
        limit = config.task.captions_per_image or None
        searched = [(picture, text) for picture, given in enumerate(captions) for text in given[:limit]]
        self.texts = list(dict.fromkeys(text for _, text in searched))
        self.ids = [self.tokens(text) for text in self.texts]
        index_of = {text: index for index, text in enumerate(self.texts)}
        self.captions_in: list[tuple[int, ...]]
        self.captions_of: list[tuple[int, ...]]
        if config.task.merge_captions:
            self.captions = self.texts
            self.captions_in = [(text,) for text in range(len(self.texts))]
            self.captions_of = [tuple(sorted(index_of[text] for text in true if text in index_of)) for true in true_captions]
        else:
            self.captions = [text for _, text in searched]
            self.captions_in = _grouped([index_of[text] for text in self.captions], len(self.texts))
            self.captions_of = _grouped([picture for picture, _ in searched], len(self.pictures))
        self._no_picture = torch.empty(3, 0, 0, dtype=torch.uint8)

    @property
    def num_candidates(self) -> int:
        """The most candidates that a query has: captions for a picture, pictures for a caption."""
        return max(len(self.captions), len(self.pictures))

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of all texts and of all pictures, never both in a batch."""
        texts = sorted(range(len(self.texts)), key=lambda text: -len(self.ids[text]))
        pictures = range(len(self.pictures))
        return [
            batch
            for which, indices in ((TEXT, texts), (PICTURE, pictures))
            for batch in chunks([(0, which, index) for index in indices][rank::world], batch_size)
        ]

    def __getitem__(self, position: Position) -> SearchSample:
        _, which, index = position
        if which == TEXT:
            return SearchSample(
                image=self._no_picture,
                ids_T=self.ids[index],
                index=index,
                captions=self.captions_in[index],
                where=f"text {index}",
            )
        source, row = self.pictures[index]
        try:
            pair = self.sources[source][row]
            image = self.picture(pair.image, pair.where, generator(0), ())
        except BadSampleError as error:  # evaluation stops on it: every number would be off
            size, nothing = self.config.input.image_size, np.zeros(0, dtype=np.int64)
            blank = torch.zeros(3, size, size, dtype=torch.uint8)
            return SearchSample(image=blank, ids_T=nothing, index=index, where=error.where, skipped=(error,))
        return SearchSample(
            image=image, ids_T=np.zeros(0, dtype=np.int64), index=index, captions=self.captions_of[index], where=pair.where
        )


def _grouped(group_of: Sequence[int], num_groups: int) -> list[tuple[int, ...]]:
    """Return the members of each group, given the group of each."""
    members: list[list[int]] = [[] for _ in range(num_groups)]
    for index, group in enumerate(group_of):
        members[group].append(index)
    return list(map(tuple, members))


def _true_captions(source: Source[ImageText], row: int, pair: ImageText) -> Sequence[str]:
    return source.true_captions(row) if isinstance(source, ScenePairs) else pair.captions


class Questions(RowDataset):
    """Questions about pictures."""

    kind = "questions"
    batch = QuestionBatch

    def load(self, epoch: int, source: int, row: int) -> QuestionSample:
        """Return one question. Raises BadSampleError."""
        asked = self.sources[source][row]
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        return QuestionSample(
            image=self.picture(asked.image, asked.where, rng, [asked.question, *asked.answers]),
            ids_T=self.tokens(asked.question),
            question=asked.question,
            question_id=asked.question_id,
            answers=asked.answers,
            answer_type=asked.answer_type,
            where=asked.where,
        )


class Statements(RowDataset):
    """Statements about two pictures. Their groups are known only where all rows are gone through: a part of them, or of a
    source, tears groups apart, and then there is no consistency."""

    kind = "statements"
    batch = StatementBatch

    def __init__(self, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer, *, training: bool):
        super().__init__(sources, config, tokenizer, training=training)
        is_all = sum(map(len, sources)) <= config.data.val_samples
        self.has_groups = is_all and not any(isinstance(source, Rows) for source in sources)

    def load(self, epoch: int, source: int, row: int) -> StatementSample:
        """Return one statement. Raises BadSampleError, in training also where the label is kept back."""
        claimed = self.sources[source][row]
        if self.training and claimed.label is None:
            raise BadSampleError(claimed.where, "no label to train on")
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        left, right = (self.picture(image, claimed.where, rng, [claimed.statement]) for image in (claimed.left, claimed.right))
        return StatementSample(
            image=left,
            right=right,
            ids_T=self.tokens(claimed.statement),
            statement=claimed.statement,
            label=claimed.label,
            identifier=claimed.identifier,
            group=claimed.group if self.has_groups else "",
            where=claimed.where,
        )
