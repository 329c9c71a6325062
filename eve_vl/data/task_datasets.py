"""Datasets of the downstream tasks: captioned images to tell apart or search among, questions, statements, items, labels."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch.utils.data import BatchSampler, Subset

from eve_vl.config import ClassificationConfig, Config, PairConfig, RetrievalConfig
from eve_vl.data import batch
from eve_vl.data.batch import Sample
from eve_vl.data.dataset import (
    MASKED,
    Position,
    RowDataset,
    SampleSet,
    eval_positions,
    hash_of,
    image_key,
    row_name,
    unusable,
)
from eve_vl.data.records import ImageQuestion, ImagesStatement, ImageText, ItemPair, LabeledExample, Source
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode
from eve_vl.synthetic.base import HasDistractors, KnowsTruth, is_generated
from eve_vl.utils.errors import BadSampleError, UserError

IMAGE, TEXT = 0, 1  # the "source" in positions of a SearchSet
LABELED = {"image": batch.LabeledImages, "text": batch.LabeledTexts, "both": batch.LabeledPairs}  # by task.inputs


class CaptionedImages(RowDataset):
    """Images with one of their captions each."""

    kind = "captions"

    def sample(self, row: ImageText, rng: np.random.Generator) -> Sample:
        """Return one pair. Raises BadSampleError."""
        caption = row.captions[int(rng.integers(len(row.captions)))]
        image, image_id = self.load_image(row.image, row.where, rng, [caption]), image_key(row.image, row.where)
        words = {"caption": hash_of(caption.encode()), "ids_T": self.tokens(caption)}
        return Sample.of(batch.CaptionBatch, row, image=image, image_id=image_id, **words)


class SearchSet(SampleSet):
    """Every distinct image once and every distinct text once, of at most data.val_samples rows.

    What is searched among are images and captions: the first task.captions_per_image of each image, on whichever rows
    they stand (0: all). As COCO and Flickr30K are scored, each is a caption of its own, true of this image alone. With
    task.dedup_captions, the same words are one caption, true of each image that has it among all of its own, of generated
    scenes wherever it is true. Texts come longest first, so that batches hold little padding.

    images: (source, row) of each. captions: the words of each. texts: the distinct ones of these, then false captions that
    are not searched among. captions_in: the captions that each text stands for. captions_of: those that are true of each
    image. hard: of each image with false captions its own first text and theirs, else empty.
    """

    def __init__(self, sources: Sequence[Source[ImageText]], config: Config, tokenizer: Tokenizer):
        """Read the rows, not their images. Raises UserError for one that cannot be used."""
        super().__init__(config, tokenizer)
        self.sources = sources
        task = cast(RetrievalConfig, config.task)
        found: dict[int, tuple[tuple[int, int], list[str], set[str]]] = {}  # by image: where it stands first, captions, true
        for _, source, row in eval_positions([len(source) for source in sources], config.data.val_samples):
            try:
                pair = sources[source][row]
            except BadSampleError as error:
                if not config.data.skips_invalid_val:
                    raise UserError(f"{error}; repair or leave out rows to search among (eve data check lists them)") from None
                found[-len(found) - 1] = (source, row), [], set()  # evaluation meets it once more, and counts it
                continue
            _, captions, true = found.setdefault(image_key(pair.image, pair.where), ((source, row), [], set()))
            captions += pair.captions
            scenes = sources[source]
            true.update(scenes.true_captions(row) if isinstance(scenes, KnowsTruth) else pair.captions)
        self.images = [place for place, _, _ in found.values()]
        limit = task.captions_per_image or None
        own = [given for (number, _), given, _ in found.values() if not is_generated(sources[number])]
        self.num_own, self.num_searched = (sum(len(given[:most]) for given in own) for most in (None, limit))
        searched = [(image, text) for image, (_, given, _) in enumerate(found.values()) for text in given[:limit]]
        distinct = list(dict.fromkeys(text for _, text in searched))
        false = [
            source.distractors(row) if given and isinstance(source := sources[number], HasDistractors) else []
            for (number, row), given, _ in found.values()
        ]
        self.texts = list(dict.fromkeys([*distinct, *(text for each in false for text in each)]))
        self.ids = [self.tokens(text) for text in self.texts]
        index_of = {text: index for index, text in enumerate(self.texts)}
        self.hard = [
            tuple(index_of[text] for text in (given[0], *each)) if each else ()
            for each, (_, given, _) in zip(false, found.values(), strict=True)
        ]
        if task.dedup_captions:
            self.captions = distinct
            self.captions_in = [(text,) if text < len(distinct) else () for text in range(len(self.texts))]
            index_of = {text: index_of[text] for text in distinct}
            self.captions_of = [
                tuple(sorted(index_of[text] for text in true & index_of.keys())) for _, _, true in found.values()
            ]
        else:
            self.captions = [text for _, text in searched]
            self.captions_in = _grouped([index_of[text] for text in self.captions], len(self.texts))
            self.captions_of = _grouped([image for image, _ in searched], len(self.images))

    def notes(self) -> list[str]:
        """Say how many captions that are not generated are searched among, if not all are."""
        if self.num_searched == self.num_own:
            return []
        limit = cast(RetrievalConfig, self.config.task).captions_per_image
        first = "caption" if limit == 1 else f"{limit} captions"
        all_ = "eve evaluate … --captions-per-image 0 and eve finetune … --task.captions-per-image 0 search among all"
        return [f"searches are among the first {first} of each image, {self.num_searched:,} of {self.num_own:,}; {all_}"]

    @property
    def num_candidates(self) -> int:
        """The most candidates that a query has: captions for an image, images for a caption."""
        return max(len(self.captions), len(self.images))

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of all texts and of all images, never both in a batch."""
        texts = sorted(range(len(self.texts)), key=lambda text: -len(self.ids[text]))
        batches = []
        for which, indices in ((TEXT, texts), (IMAGE, range(len(self.images)))):
            positions: Any = [(0, which, index) for index in indices][rank::world]
            batches += BatchSampler(positions, batch_size, drop_last=False)
        return batches

    def __getitem__(self, position: Position) -> Sample:
        _, which, index = position
        if which == TEXT:
            captions = self.captions_in[index]
            return Sample(batch=batch.SearchTexts, ids_T=self.ids[index], index=index, captions=captions, where=f"text {index}")
        source, row = self.images[index]
        try:
            pair = self.sources[source][row]
            image = decode(pair.image, pair.where, crop=Crop(size=self.config.input.image_size))
        except BadSampleError as error:
            return unusable(error)
        names = {"where": pair.where, "name": row_name(pair), "labels": pair.labels}
        captions, hard = self.captions_of[index], self.hard[index]
        return Sample(batch=batch.SearchImages, index=index, captions=captions, hard=hard, image=image, **names)


def _grouped(group_of: Sequence[int], num_groups: int) -> list[tuple[int, ...]]:
    """Return the members of each group, given the group of each."""
    members: list[list[int]] = [[] for _ in range(num_groups)]
    for index, group in enumerate(group_of):
        members[group].append(index)
    return list(map(tuple, members))


class QuestionRows(RowDataset):
    """Questions about images."""

    kind, truth = "questions", "answers"

    def sample(self, row: ImageQuestion, rng: np.random.Generator) -> Sample:
        """Return one question. Raises BadSampleError."""
        image = self.load_image(row.image, row.where, rng, [row.question, *row.answers])
        image_id = image_key(row.image, row.where)
        return Sample.of(batch.QuestionBatch, row, image=image, image_id=image_id, ids_T=self.tokens(row.question))


class StatementRows(RowDataset):
    """Statements about two images. Their groups are known only where all rows are read: a part of them, or of a source,
    tears groups apart, and then there is no consistency."""

    kind, truth = "statements", "label"

    def __init__(self, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer, *, training: bool):
        super().__init__(sources, config, tokenizer, training=training)
        is_all = sum(map(len, sources)) <= config.data.val_samples
        self.has_groups = is_all and not any(isinstance(source, Subset) for source in sources)

    def sample(self, row: ImagesStatement, rng: np.random.Generator) -> Sample:
        """Return one statement. Raises BadSampleError."""
        left, right = (self.load_image(image, row.where, rng, row.texts) for image in row.images)
        ids_T, group = self.tokens(row.statement), row.group if self.has_groups else ""
        return Sample.of(batch.StatementBatch, row, image=left, right=right, ids_T=ids_T, group=group)


class ItemRows(RowDataset):
    """Pairs of items, of which training shows the images alone, the texts alone or both (task.modality_dropout)."""

    kind, truth = "items", "label"

    def sample(self, row: ItemPair, rng: np.random.Generator) -> Sample:
        """Return one pair of items. Raises BadSampleError."""
        drops = self.training and cast(PairConfig, self.config.task).modality_dropout
        shown = list(MASKED)[int(rng.integers(len(MASKED)))] if drops else "image_text"
        left, right = (self.load_image(image, row.where, rng, row.captions) for image in row.images)
        left_T, right_T = map(self.tokens, row.captions)
        return Sample.of(batch.ItemBatch, row, image=left, right=right, ids_T=left_T, right_ids_T=right_T, shown=shown)


class LabeledRows(RowDataset):
    """Images, texts or pairs of both, as task.inputs says, with the classes that they belong to."""

    kind, truth = "labels", "labels"

    @classmethod
    def require(cls, row: LabeledExample, config: Config, *, training: bool) -> None:
        """Raise BadSampleError if a row lacks what the task reads, in training also labels."""
        super().require(row, config, training=training)
        reads = cast(ClassificationConfig, config.task).inputs
        if reads != "text" and row.image is None:
            raise BadSampleError(row.where, f"no image, but task.inputs is {reads}; of texts alone give --task.inputs text")
        if reads != "image" and row.text is None:
            raise BadSampleError(row.where, f"no text, but task.inputs is {reads}")

    def sample(self, row: LabeledExample, rng: np.random.Generator) -> Sample:
        """Return one row. Raises BadSampleError."""
        reads = cast(ClassificationConfig, self.config.task).inputs
        sample = Sample.of(LABELED[reads], row)
        if reads != "text":
            sample.image = self.load_image(row.images[0], row.where, rng, [*row.texts, *row.labels])
        if reads != "image":
            sample.ids_T = self.tokens(row.texts[0])
        return sample
