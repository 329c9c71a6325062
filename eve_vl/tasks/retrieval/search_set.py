"""The dataset of a search: images and texts as rows of evaluation batches.

Letters: B batch.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor
from torch.utils.data import BatchSampler

from eve_vl.config import Config
from eve_vl.data.batches import ImageBatch, RowBatch, Sample, TextBatch, batch_field, stack
from eve_vl.data.caption_tags import common_tags
from eve_vl.data.crops import eval_crop
from eve_vl.data.decoding import decode
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.records import Place, Source
from eve_vl.data.row_dataset import unusable_sample
from eve_vl.data.row_hashes import row_name
from eve_vl.data.sample_set import Position, SampleSet
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.tasks.retrieval.candidates import read_candidate_images
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.errors import BadSampleError

# the "source" in positions of a SearchSet
IMAGE = 0
TEXT = 1


class SearchBatch(RowBatch):
    """Candidates of a search: SearchImages or SearchTexts."""

    index_B: Tensor = batch_field("index", stack)
    captions: tuple[tuple[int, ...], ...] = batch_field("captions")
    """For each image its true captions; for each text the captions with these words."""


class SearchImages(SearchBatch, ImageBatch):
    """Candidate images."""

    labels: tuple[tuple[str, ...], ...] = batch_field("labels")
    """The classes of each; empty if the data have none."""
    hard: tuple[tuple[int, ...], ...] = batch_field("hard")
    """For each image with hard false captions: the text of its own caption, then theirs; else
    empty."""


class SearchTexts(SearchBatch, TextBatch):
    """Candidate texts."""

    tagged: tuple[tuple[int, ...], ...] = batch_field("tagged")
    """For each tag the images that it is true of; else empty."""


class SearchSet(SampleSet):
    """Images and captions of at most data.val_samples rows, searched in both directions.

    Candidates are the images and the first `task.captions_per_image` captions of each image, over
    all its rows (0: all). COCO and Flickr30K count each caption as its own, true of its image only.
    With `task.dedup_captions` equal captions are one, true of every image that has it among all of
    its captions; generated scenes know every true caption.

    images: the candidates.
    captions: the words of each candidate caption.
    texts: the distinct captions, then hard false captions, then tags (`common_tags`); the last two
        are no candidates.
    captions_in: the captions with the words of each text.
    captions_of: the true captions of each image.
    hard: for each image with hard false captions its own first text and theirs, else empty.
    tagged: the images of each tag, by text.
    """

    def __init__(self, sources: Sequence[Source[ImageText]], config: Config, tokenizer: Tokenizer):
        """Read the rows but not their images. Raises UserError for an unusable row."""
        super().__init__(config, tokenizer)
        self.settings = cast(RetrievalConfig, config.task)
        self.images = read_candidate_images(sources, config.data)
        # None: all of them
        self.caption_limit = self.settings.captions_per_image or None

        false_captions = [image.false_captions() for image in self.images]
        tags = self._tags()
        self.texts = self._searched_texts()
        self.num_searched_texts = len(self.texts)
        self.texts = unique([*self.texts, *(text for texts in false_captions for text in texts)])
        self.num_before_tags = len(self.texts)
        self.texts = unique([*self.texts, *tags])
        self.ids = [self.tokens(text) for text in self.texts]

        text_index = {text: index for index, text in enumerate(self.texts)}
        self.tagged = {text_index[tag]: images for tag, images in tags.items()}
        self.hard: list[tuple[int, ...]] = []
        for image, texts in zip(self.images, false_captions, strict=True):
            choices = [image.captions[0], *texts] if texts else []
            self.hard.append(tuple(text_index[text] for text in choices))

        if self.settings.dedup_captions:
            self._merge_equal_captions(text_index)
        else:
            self._count_each_caption(text_index)

    def _searched_texts(self) -> list[str]:
        """Return the distinct texts of the captions to search among."""
        texts = []
        for image in self.images:
            texts.extend(image.captions[: self.caption_limit])
        return unique(texts)

    def _tags(self) -> dict[str, tuple[int, ...]]:
        """Return the tags in captions, except those of generated scenes, with their images."""
        captions_of_image = []
        for image in self.images:
            captions_of_image.append([] if image.is_generated else image.captions)
        return common_tags(captions_of_image)

    def _merge_equal_captions(self, text_index: dict[str, int]) -> None:
        """Let each searched text be one caption, true of every image that knows it."""
        num_captions = self.num_searched_texts
        self.captions = self.texts[:num_captions]
        self.captions_in: list[tuple[int, ...]] = [(text,) for text in range(num_captions)]
        self.captions_in += [()] * (len(self.texts) - num_captions)
        searched = set(self.captions)
        self.captions_of: list[tuple[int, ...]] = []
        for image in self.images:
            captions = [text_index[text] for text in image.true_captions & searched]
            self.captions_of.append(tuple(sorted(captions)))

    def _count_each_caption(self, text_index: dict[str, int]) -> None:
        """Let each caption be true of its image only, also if another has the same words."""
        self.captions = []
        self.captions_of = []
        captions_in: list[list[int]] = [[] for _ in self.texts]
        for image in self.images:
            first = len(self.captions)
            for text in image.captions[: self.caption_limit]:
                captions_in[text_index[text]].append(len(self.captions))
                self.captions.append(text)
            self.captions_of.append(tuple(range(first, len(self.captions))))
        self.captions_in = [tuple(captions) for captions in captions_in]

    def notes(self) -> list[str]:
        """Return a remark if not all captions that are not generated are candidates."""
        num_captions = 0
        num_searched = 0
        for image in self.images:
            if not image.is_generated:
                num_captions += len(image.captions)
                num_searched += len(image.captions[: self.caption_limit])
        if num_searched == num_captions:
            return []
        first = "caption"
        if self.caption_limit != 1:
            first = f"{self.caption_limit} captions"
        return [
            f"searches are among the first {first} of each image, {num_searched:,} of "
            f"{num_captions:,}; eve evaluate … --captions-per-image 0 and eve finetune … "
            "--task.captions-per-image 0 search among all"
        ]

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of all texts and images; no batch holds both.

        Texts come longest first, so that batches hold little padding.
        """

        def longest_first(texts: range) -> list[int]:
            return sorted(texts, key=lambda text: -len(self.ids[text]))

        groups = (
            (TEXT, longest_first(range(self.num_before_tags))),
            (TEXT, longest_first(range(self.num_before_tags, len(self.texts)))),
            (IMAGE, range(len(self.images))),
        )
        batches: list[list[Position]] = []
        for modality, indices in groups:
            positions: list[Position] = [(0, modality, index) for index in indices]
            sampler = BatchSampler(positions[rank::world], batch_size, drop_last=False)  # pyright: ignore[reportArgumentType]
            batches.extend(sampler)  # pyright: ignore[reportArgumentType]
        return batches

    def places(self, position: Position) -> list[Place]:
        """Return the row of an image; texts are here."""
        _, modality, index = position
        if modality == TEXT:
            return []
        image = self.images[index]
        return [(image.source, image.row)]

    def __getitem__(self, position: Position) -> Sample:
        _, modality, index = position
        return self._text(index) if modality == TEXT else self._image(index)

    def _text(self, index: int) -> Sample:
        return Sample(
            batch=SearchTexts,
            ids_T=self.ids[index],
            where=f"text {index}",
            index=index,
            captions=self.captions_in[index],
            tagged=self.tagged.get(index, ()),
        )

    def _image(self, index: int) -> Sample:
        candidate = self.images[index]
        try:
            pair = candidate.source[candidate.row]
            image = decode(pair.image, pair.where, crop=eval_crop(self.config.input))
        except BadSampleError as error:
            return unusable_sample(error)
        return Sample(
            batch=SearchImages,
            index=index,
            captions=self.captions_of[index],
            hard=self.hard[index],
            image=image,
            where=pair.where,
            name=row_name(pair),
            labels=pair.labels,
        )


def unique(texts: Sequence[str]) -> list[str]:
    """Return the distinct texts in order of their first occurrence."""
    return list(dict.fromkeys(texts))
