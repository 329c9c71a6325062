"""The evaluation set of retrieval: every distinct image once and every distinct caption once."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.utils.data import BatchSampler

from eve_vl.config import Config, RetrievalConfig
from eve_vl.data.batch import ImageBatch, RowBatch, Sample, TextBatch, each, stack
from eve_vl.data.dataset import Position, SampleSet, eval_positions, image_key, row_name, unusable
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.records import HasDistractors, KnowsTruth, Source, is_generated
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode
from eve_vl.utils.errors import BadSampleError, UserError

IMAGE, TEXT = 0, 1  # the "source" in positions of a SearchSet


class SearchBatch(RowBatch):
    """Candidates of a search: SearchImages or SearchTexts."""

    index_B: Tensor = each("index", stack)
    captions: tuple[tuple[int, ...], ...] = each("captions")
    """For each image its true captions; for each text the captions with these words."""


class SearchImages(SearchBatch, ImageBatch):
    """Candidate images."""

    labels: tuple[tuple[str, ...], ...] = each("labels")
    """The classes of each; empty if the data have none."""
    hard: tuple[tuple[int, ...], ...] = each("hard")
    """For each image with hard false captions: the text of its own caption, then theirs; else empty."""


class SearchTexts(SearchBatch, TextBatch):
    """Candidate texts."""


class SearchSet(SampleSet):
    """The images and captions of at most data.val_samples rows, to be searched in both directions.

    Candidates are the images and the first task.captions_per_image captions of each image, over all its rows (0: all).
    COCO and Flickr30K count each caption as its own, true of its image only. With task.dedup_captions equal captions are
    one, true of every image that has it among all of its captions; generated scenes know every true caption. Texts come
    longest first, so that batches hold little padding.

    images: (source, row) of each. captions: the words of each. texts: the distinct ones, then hard false captions, which
    are no candidates. captions_in: the captions of each text. captions_of: the true captions of each image. hard: for
    each image with hard false captions its own first text and theirs, else empty.
    """

    def __init__(self, sources: Sequence[Source[ImageText]], config: Config, tokenizer: Tokenizer):
        """Read the rows but not their images. Raises UserError for an unusable row."""
        super().__init__(config, tokenizer)
        self.sources = sources
        task = cast(RetrievalConfig, config.task)
        found = self._read_rows()
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
        self.texts = list(dict.fromkeys([*distinct, *(text for texts in false for text in texts)]))
        self.ids = [self.tokens(text) for text in self.texts]
        index_of = {text: index for index, text in enumerate(self.texts)}
        self.hard = [
            tuple(index_of[text] for text in (given[0], *texts)) if texts else ()
            for texts, (_, given, _) in zip(false, found.values(), strict=True)
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

    def _read_rows(self) -> dict[int, tuple[tuple[int, int], list[str], set[str]]]:
        """Return by image: its first (source, row), its captions, and all captions that are true of it."""
        found: dict[int, tuple[tuple[int, int], list[str], set[str]]] = {}
        for _, number, row in eval_positions([len(source) for source in self.sources], self.config.data.val_samples):
            source = self.sources[number]
            try:
                pair = source[row]
            except BadSampleError as error:
                if not self.config.data.skips_invalid_val:
                    raise UserError(f"{error}; repair or leave out rows to search among (eve data check lists them)") from None
                found[-len(found) - 1] = (number, row), [], set()  # evaluation reads it again and counts it
                continue
            _, captions, true = found.setdefault(image_key(pair.image, pair.where), ((number, row), [], set()))
            captions += pair.captions
            true.update(source.true_captions(row) if isinstance(source, KnowsTruth) else pair.captions)
        return found

    def notes(self) -> list[str]:
        """Return a remark if not all captions that are not generated are candidates."""
        if self.num_searched == self.num_own:
            return []
        limit = cast(RetrievalConfig, self.config.task).captions_per_image
        first = "caption" if limit == 1 else f"{limit} captions"
        all_ = "eve evaluate … --captions-per-image 0 and eve finetune … --task.captions-per-image 0 search among all"
        return [f"searches are among the first {first} of each image, {self.num_searched:,} of {self.num_own:,}; {all_}"]

    @property
    def num_candidates(self) -> int:
        """The most candidates of a query: captions for an image, images for a caption."""
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
            return Sample(batch=SearchTexts, ids_T=self.ids[index], index=index, captions=captions, where=f"text {index}")
        source, row = self.images[index]
        try:
            pair = self.sources[source][row]
            image = decode(pair.image, pair.where, crop=Crop(size=self.config.input.image_size))
        except BadSampleError as error:
            return unusable(error)
        names = {"where": pair.where, "name": row_name(pair), "labels": pair.labels}
        captions, hard = self.captions_of[index], self.hard[index]
        return Sample(batch=SearchImages, index=index, captions=captions, hard=hard, image=image, **names)


def _grouped(group_of: Sequence[int], num_groups: int) -> list[tuple[int, ...]]:
    """Return the members of each group, given the group of each."""
    members: list[list[int]] = [[] for _ in range(num_groups)]
    for index, group in enumerate(group_of):
        members[group].append(index)
    return list(map(tuple, members))
