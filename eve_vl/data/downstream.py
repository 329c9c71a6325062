"""Datasets of the downstream tasks: captioned pictures to tell apart and to search among, questions, statements, labels."""

from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.config import Config, RetrievalConfig
from eve_vl.data import batch
from eve_vl.data.dataset import (
    SAMPLE,
    Position,
    RowDataset,
    SampleSet,
    Subset,
    chunks,
    eval_positions,
    picture_key,
)
from eve_vl.data.masking import generator
from eve_vl.data.records import ImageText, Labelled, Source
from eve_vl.data.scenes import ScenePairs
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode
from eve_vl.errors import BadSampleError, UserError

PICTURE, TEXT = 0, 1  # the "source" in positions of a SearchSet
LABELLED: dict[tuple[bool, bool], type[batch.LabelledSample]] = {  # by what a row has: a picture, a text
    (True, False): batch.LabelledPictureSample,
    (False, True): batch.LabelledTextSample,
    (True, True): batch.LabelledPairSample,
}


class CaptionedPictures(RowDataset):
    """Pictures with one of their captions each."""

    kind = "captions"

    def load(self, epoch: int, source: int, row: int) -> batch.CaptionSample:
        """Return one pair. Raises BadSampleError."""
        pair = self.sources[source][row]
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        caption = pair.captions[int(rng.integers(len(pair.captions)))]
        return batch.CaptionSample(
            image=self.picture(pair.image, pair.where, rng, [caption]),
            ids_T=self.tokens(caption),
            picture=picture_key(pair.image, pair.where),
            where=pair.where,
        )


class SearchSet(SampleSet):
    """Every distinct picture once and every distinct text once, of at most data.val_samples rows.

    What is searched among are pictures and captions: the first task.captions_per_image of each picture, on whichever rows
    they stand (0: all). As COCO and Flickr30K are scored, each is a caption of its own, true of this picture alone. With
    task.merge_captions, the same words are one caption, true of each picture that has it among all of its own, of generated
    scenes wherever it is true. Texts come longest first, so that batches hold little padding.

    pictures: (source, row) of each. captions: the words of each. texts: the distinct ones of these. captions_in: the captions
    that each text stands for. captions_of: those that are true of each picture.
    """

    def __init__(self, sources: Sequence[Source[ImageText]], config: Config, tokenizer: Tokenizer):
        """Read the rows, not their pictures. Raises UserError for one that cannot be used."""
        super().__init__(config, tokenizer)
        self.sources = sources
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

    def __getitem__(self, position: Position) -> batch.SearchPictureSample | batch.SearchTextSample:
        _, which, index = position
        if which == TEXT:
            return batch.SearchTextSample(
                ids_T=self.ids[index], index=index, captions=self.captions_in[index], where=f"text {index}"
            )
        source, row = self.pictures[index]
        size = self.config.input.image_size
        try:
            pair = self.sources[source][row]
            image = decode(pair.image, pair.where, crop=Crop(size=size))
        except BadSampleError as error:  # evaluation stops on it: every number would be off
            blank = torch.zeros(3, size, size, dtype=torch.uint8)
            return batch.SearchPictureSample(image=blank, index=index, where=error.where, skipped=(error,))
        return batch.SearchPictureSample(image=image, index=index, captions=self.captions_of[index], where=pair.where)


def _grouped(group_of: Sequence[int], num_groups: int) -> list[tuple[int, ...]]:
    """Return the members of each group, given the group of each."""
    members: list[list[int]] = [[] for _ in range(num_groups)]
    for index, group in enumerate(group_of):
        members[group].append(index)
    return list(map(tuple, members))


def _true_captions(source: Source[ImageText], row: int, pair: ImageText) -> Sequence[str]:
    return source.true_captions(row) if isinstance(source, ScenePairs) else pair.captions


class QuestionRows(RowDataset):
    """Questions about pictures."""

    kind = "questions"

    def load(self, epoch: int, source: int, row: int) -> batch.QuestionSample:
        """Return one question. Raises BadSampleError."""
        record = self.sources[source][row]
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        return batch.QuestionSample(
            image=self.picture(record.image, record.where, rng, [record.question, *record.answers]),
            ids_T=self.tokens(record.question),
            question=record.question,
            question_id=record.question_id,
            answers=record.answers,
            answer_type=record.answer_type,
            where=record.where,
        )


class StatementRows(RowDataset):
    """Statements about two pictures. Their groups are known only where all rows are read: a part of them, or of a source,
    tears groups apart, and then there is no consistency."""

    kind = "statements"

    def __init__(self, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer, *, training: bool):
        super().__init__(sources, config, tokenizer, training=training)
        is_all = sum(map(len, sources)) <= config.data.val_samples
        self.has_groups = is_all and not any(isinstance(source, Subset) for source in sources)

    def load(self, epoch: int, source: int, row: int) -> batch.StatementSample:
        """Return one statement. Raises BadSampleError, in training also where the label is kept back."""
        record = self.sources[source][row]
        if self.training and record.label is None:
            raise BadSampleError(record.where, "no label to train on")
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        left, right = (self.picture(image, record.where, rng, record.texts) for image in record.images)
        return batch.StatementSample(
            image=left,
            right=right,
            ids_T=self.tokens(record.statement),
            statement=record.statement,
            label=record.label,
            identifier=record.identifier,
            group=record.group if self.has_groups else "",
            where=record.where,
        )


class LabelledRows(RowDataset):
    """Pictures, texts or pairs of both, as task.reads says, with the classes that they belong to."""

    kind = "labels"

    def load(self, epoch: int, source: int, row: int) -> batch.LabelledSample:
        """Return one row. Raises BadSampleError, in training also where the labels are kept back."""
        record: Labelled = self.sources[source][row]
        if self.training and not record.labels:
            raise BadSampleError(record.where, "no label to train on")
        reads: str = self.config.task.reads  # pyright: ignore[reportAttributeAccessIssue]
        fields: dict[str, Any] = {"labels": record.labels, "where": record.where}
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        if reads != "text":
            if record.image is None:
                raise BadSampleError(record.where, f"no picture, but task.reads is {reads}")
            fields["image"] = self.picture(record.image, record.where, rng, [*record.texts, *record.labels])
        if reads != "picture":
            if record.text is None:
                raise BadSampleError(record.where, f"no text, but task.reads is {reads}")
            fields["ids_T"] = self.tokens(record.text)
        return LABELLED[reads != "text", reads != "picture"](**fields)
