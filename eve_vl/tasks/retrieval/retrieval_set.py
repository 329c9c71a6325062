"""Images and captions to search among, and pairs scored by the matching head.

Letters: B batch, I images, T captions, N distinct texts, P pairs, K best candidates of a query, d width of features, L text
tokens.
"""

from collections import ChainMap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler

from eve_vl.config import Config
from eve_vl.data.batches import (
    ImageBatch,
    RowBatch,
    Sample,
    TextBatch,
    batch_field,
    normalize,
    stack,
)
from eve_vl.data.caption_tags import TAG_ROWS, common_tags
from eve_vl.data.crops import eval_crop
from eve_vl.data.decoding import decode
from eve_vl.data.generated import GeneratedSource, is_generated
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.records import Place, Source, fetched
from eve_vl.data.row_dataset import eval_positions, unusable_sample
from eve_vl.data.row_hashes import image_key, row_name
from eve_vl.data.sample_set import Position, SampleSet
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics.retrieval import Relevance
from eve_vl.tasks.contrast.task import ContrastTask
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.train.evaluation_batches import unusable_row_error
from eve_vl.train.processes import gather_objects, rank
from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import BadSampleError, SharedError

IMAGE, TEXT = 0, 1  # the "source" in positions of a SearchSet


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
    """For each image with hard false captions: the text of its own caption, then theirs; else empty."""


class SearchTexts(SearchBatch, TextBatch):
    """Candidate texts."""

    tagged: tuple[tuple[int, ...], ...] = batch_field("tagged")
    """For each tag the images that it is true of; else empty."""


class SearchSet(SampleSet):
    """Images and captions of at most data.val_samples rows.

    They are searched in both directions. Candidates are the images and the first task.captions_per_image captions of each
    image, over all its rows (0: all). COCO and Flickr30K count each caption as its own, true of its image only. With
    task.dedup_captions equal captions are one, true of every image that has it among all of its captions; generated scenes know
    every true caption. Texts come longest first, so that batches hold little padding.

    images: (source, row) of each. captions: the words of each. texts: the distinct ones, then hard false captions, then tags
    (`common_tags`), both of which are no candidates. captions_in: the captions of each text. captions_of: the true captions of
    each image. hard: for each image with hard false captions its own first text and theirs, else empty. tagged: the images of
    each tag, by text.
    """

    def __init__(self, sources: Sequence[Source[ImageText]], config: Config, tokenizer: Tokenizer):
        """Read the rows but not their images. Raises UserError for an unusable row."""
        super().__init__(config, tokenizer)
        self.sources = sources
        task = cast(RetrievalConfig, config.task)
        found = self._read_rows()
        self.images = [place for place, _, _ in found.values()]
        limit = task.captions_per_image or None
        own = [
            given for (number, _), given, _ in found.values() if not is_generated(sources[number])
        ]
        self.num_own, self.num_searched = (
            sum(len(given[:most]) for given in own) for most in (None, limit)
        )
        searched = [
            (image, text)
            for image, (_, given, _) in enumerate(found.values())
            for text in given[:limit]
        ]
        distinct = list(dict.fromkeys(text for _, text in searched))
        false = [
            source.distractors(row)
            if given and isinstance(source := sources[number], GeneratedSource)
            else []
            for (number, row), given, _ in found.values()
        ]
        self.texts = list(dict.fromkeys([*distinct, *(text for texts in false for text in texts)]))
        self.num_before_tags = len(self.texts)
        tags = common_tags(
            [
                [] if is_generated(sources[number]) else given
                for (number, _), given, _ in found.values()
            ]
        )
        self.texts = list(dict.fromkeys([*self.texts, *tags]))
        self.ids = [self.tokens(text) for text in self.texts]
        index_of = {text: index for index, text in enumerate(self.texts)}
        self.tagged = {index_of[tag]: images for tag, images in tags.items()}
        self.hard = [
            tuple(index_of[text] for text in (given[0], *texts)) if texts else ()
            for texts, (_, given, _) in zip(false, found.values(), strict=True)
        ]
        if task.dedup_captions:
            self.captions = distinct
            self.captions_in = [
                (text,) if text < len(distinct) else () for text in range(len(self.texts))
            ]
            index_of = {text: index_of[text] for text in distinct}
            self.captions_of = [
                tuple(sorted(index_of[text] for text in true & index_of.keys()))
                for *_, true in found.values()
            ]
        else:
            self.captions = [text for _, text in searched]
            self.captions_in = _grouped([index_of[text] for text in self.captions], len(self.texts))
            self.captions_of = _grouped([image for image, _ in searched], len(self.images))

    def _read_rows(self) -> dict[int, tuple[tuple[int, int], list[str], set[str]]]:
        """Return the first (source, row) of each image, its captions and true captions."""
        found: dict[int, tuple[tuple[int, int], list[str], set[str]]] = {}
        positions = eval_positions(
            [len(source) for source in self.sources], self.config.data.val_samples
        )
        wanted = [
            [row for _, number, row in positions if number == at] for at in range(len(self.sources))
        ]
        for number, row in (
            (at, row) for at, rows in enumerate(wanted) for row in fetched(self.sources[at], rows)
        ):
            source = self.sources[number]
            try:
                pair = source[row]
            except BadSampleError as error:
                if not self.config.data.skips_invalid_val:
                    raise unusable_row_error(error) from None
                found[-len(found) - 1] = (
                    (number, row),
                    [],
                    set(),
                )  # evaluation reads it again and counts it
                continue
            _, captions, true = found.setdefault(
                image_key(pair.image, pair.where), ((number, row), [], set())
            )
            captions += pair.captions
            known = source.true_captions(row) if isinstance(source, GeneratedSource) else None
            true.update(pair.captions if known is None else known)
        return found

    def notes(self) -> list[str]:
        """Return a remark if not all captions that are not generated are candidates."""
        if self.num_searched == self.num_own:
            return []
        limit = cast(RetrievalConfig, self.config.task).captions_per_image
        first = "caption" if limit == 1 else f"{limit} captions"
        all_ = "eve evaluate … --captions-per-image 0 and eve finetune … --task.captions-per-image 0 search among all"
        return [
            f"searches are among the first {first} of each image, {self.num_searched:,} of {self.num_own:,}; {all_}"
        ]

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of all texts and images.

        No batch holds both.
        """
        texts, tags = (
            sorted(each, key=lambda text: -len(self.ids[text]))
            for each in (range(self.num_before_tags), range(self.num_before_tags, len(self.texts)))
        )
        batches = []
        for which, indices in ((TEXT, texts), (TEXT, tags), (IMAGE, range(len(self.images)))):
            positions: Any = [(0, which, index) for index in indices][rank::world]
            batches += BatchSampler(positions, batch_size, drop_last=False)
        return batches

    def places(self, position: Position) -> list[Place]:
        """Return the row of an image; texts are here."""
        _, which, index = position
        return [
            (self.sources[source], row)
            for source, row in self.images[index : index + 1]
            if which == IMAGE
        ]

    def __getitem__(self, position: Position) -> Sample:
        _, which, index = position
        if which == TEXT:
            known = {
                "index": index,
                "captions": self.captions_in[index],
                "tagged": self.tagged.get(index, ()),
            }
            return Sample(batch=SearchTexts, ids_T=self.ids[index], where=f"text {index}", **known)
        source, row = self.images[index]
        try:
            pair = self.sources[source][row]
            image = decode(pair.image, pair.where, crop=eval_crop(self.config.input))
        except BadSampleError as error:
            return unusable_sample(error)
        names = {"where": pair.where, "name": row_name(pair), "labels": pair.labels}
        captions, hard = self.captions_of[index], self.hard[index]
        return Sample(
            batch=SearchImages, index=index, captions=captions, hard=hard, image=image, **names
        )


def _grouped(group_of: Sequence[int], num_groups: int) -> list[tuple[int, ...]]:
    """Return the members of each group, given the group of each."""
    members: list[list[int]] = [[] for _ in range(num_groups)]
    for index, group in enumerate(group_of):
        members[group].append(index)
    return list(map(tuple, members))


PAIRS_AT_ONCE = 256
ONE_SIDE_AT_ONCE = 16  # images, and texts, matched with each other in one pass
MANY_PAIRS = 100_000  # takes minutes on a small machine
AnyTask = ContrastTask[Any]


@dataclass(kw_only=True, slots=True)
class RetrievalSet:
    """The images and captions of all processes, in order of index.

    A search compares the products of image_Id and text_Nd. These are features or, without contrast, each image's match logits
    with all texts (d = N) and unit vectors, whose products are the logits.
    """

    image_Id: Tensor
    text_Nd: Tensor
    text_T: Tensor
    """int64: the distinct text of each caption; equal captions share features and scores."""
    ids: list[Tensor]
    """Token ids of each distinct text, int64 (L,), on the CPU; with model.padded_text_length its padding too."""
    lengths: list[int]
    """Length of each distinct text in tokens, without padding."""
    owner_I: Tensor
    """The process that holds the pixels of each image."""
    pixels: dict[int, Tensor]
    """uint8 images of this process, by index."""
    relevance: Relevance
    names: list[str] = field(default_factory=list)
    """Name of each image's row."""
    labels: list[tuple[str, ...]] = field(default_factory=list)
    """Classes of each image."""
    hard: list[tuple[int, ...]] = field(default_factory=list)
    """For each image with false captions: its own text and the false ones."""
    tags: dict[int, list[int]] = field(default_factory=dict)
    """The images of each text that is a tag."""
    kept: list[int] = field(default_factory=list)
    """Number of each caption in the set; captions without a usable image are left out."""
    num_left_out: int = 0
    """The number of captions left out."""

    @property
    def caption_Td(self) -> Tensor:
        """Features of each caption."""
        return self.text_Nd[self.text_T.to(self.text_Nd.device)]

    def part(self, images: Tensor, captions: Tensor, relevance: Relevance) -> "RetrievalSet":
        """Return some images and captions, renumbered from 0."""
        return replace(
            self,
            image_Id=self.image_Id[images.to(self.image_Id.device)],
            text_T=self.text_T[captions],
            owner_I=self.owner_I[images],
            pixels={
                new: self.pixels[old]
                for new, old in enumerate(images.tolist())
                if old in self.pixels
            },
            relevance=relevance,
        )


def gathered(task: AnyTask, loader: Iterable[SearchBatch]) -> RetrievalSet:
    """Compute the features of each image and text once, and gather them.

    Without contrast, compute all match logits instead. Captions without a usable image are left out. Raises UserError if
    nothing is left.
    """
    images: dict[int, dict[str, Any]] = {}
    texts: dict[int, dict[str, Any]] = {}
    pixels: dict[int, Tensor] = {}
    for batch in loader:
        indices, rows = (
            batch.index_B.tolist(),
            zip(batch.rows(), _features(task, batch), strict=True),
        )
        found = [
            row | {"features": features_d.clone()} for row, features_d in rows
        ]  # a view would keep its batch in memory
        if isinstance(batch, SearchImages):
            images |= {
                index: row | {"owner": rank()} for index, row in zip(indices, found, strict=True)
            }
            pixels |= dict(zip(indices, batch.images_BCHW, strict=True))
        elif isinstance(batch, SearchTexts):
            lengths = (~batch.is_padding_BT).sum(1).tolist()
            for index, row, ids_T, num in zip(
                indices, found, batch.ids_BT.cpu(), lengths, strict=True
            ):
                texts[index] = row | {
                    "ids": ids_T[: task.config.input.padded_text_length or num].clone(),
                    "length": num,
                }
    images, texts = (dict(ChainMap(*gather_objects(part))) for part in (images, texts))
    order = sorted(images)  # unusable images are missing
    place = {old: new for new, old in enumerate(order)}
    all_images, all_texts = (
        [images[index] for index in order],
        [texts[index] for index in sorted(texts)],
    )
    text_of = {caption: text for text, row in enumerate(all_texts) for caption in row["captions"]}
    matches = [
        (image, caption) for image, row in enumerate(all_images) for caption in row["captions"]
    ]
    if not matches:
        how = "repair such rows or name other data (eve data check lists the broken rows)"
        raise SharedError(f"none of the images to search among can be used; {how}")
    kept, caption_P = torch.tensor([caption for _, caption in matches]).unique(return_inverse=True)
    text_T = torch.tensor([text_of[caption] for caption in kept.tolist()])
    device = next(task.parameters()).device
    tagged = (
        (text, [place[old] for old in row["tagged"] if old in place])
        for text, row in enumerate(all_texts)
    )
    gallery = RetrievalSet(
        image_Id=torch.stack([row["features"] for row in all_images]).to(device),
        text_Nd=torch.stack([row["features"] for row in all_texts]).to(device),
        text_T=text_T,
        ids=[row["ids"] for row in all_texts],
        lengths=[row["length"] for row in all_texts],
        owner_I=torch.tensor([row["owner"] for row in all_images]),
        pixels={new: pixels[old] for new, old in enumerate(order) if old in pixels},
        relevance=Relevance.from_pairs(
            [image for image, _ in matches], caption_P, len(all_images), len(text_T)
        ),
        names=[row["name"] for row in all_images],
        labels=[row["labels"] for row in all_images],
        hard=[row["hard"] for row in all_images],
        tags={text: usable for text, usable in tagged if len(usable) >= TAG_ROWS},
        kept=kept.tolist(),
        num_left_out=len(text_of) - len(text_T),
    )
    if task.is_comparable:
        return gallery
    every = torch.eye(len(gallery.ids), device=device)
    return replace(gallery, image_Id=every_score(task, gallery).to(device), text_Nd=every)


def _features(task: AnyTask, batch: SearchBatch) -> Tensor:
    """Return features on the CPU, of width 0 without contrast."""
    if not task.is_comparable:
        return torch.empty(len(batch.index_B), 0)
    if isinstance(batch, SearchImages):
        return task.image_features(batch.images_BCHW).cpu()
    assert isinstance(batch, SearchTexts)
    return task.text_features(batch.ids_BT, batch.is_padding_BT).cpu()


def every_score(task: AnyTask, gallery: RetrievalSet) -> Tensor:
    """Return the match logits of all images and searched texts.

    float32 (I, N) on the CPU, 0 for other texts. Each process computes those of its own images. An image passes its tower once.
    """
    own_I, searched_N = (gallery.owner_I == rank()).nonzero()[:, 0], gallery.text_T.unique()
    num_texts, device = len(searched_N), next(task.parameters()).device
    num_pairs = len(gallery.owner_I) * num_texts
    if num_pairs >= MANY_PAIRS:
        fewer = "fewer: --samples, or data.val_samples in training"
        print_line(
            f"{num_pairs:,} fusion passes: {len(gallery.owner_I):,} images with each of {num_texts:,} texts ({fewer})"
        )
    score_IN = torch.zeros(len(own_I), len(gallery.ids))
    by_length_N = searched_N[torch.tensor(gallery.lengths)[searched_N].argsort(stable=True)]
    chunks = own_I.split(ONE_SIDE_AT_ONCE) if len(own_I) else ()
    what = f"{ONE_SIDE_AT_ONCE} images with {num_texts:,} texts"
    for number, images in enumerate(progress(chunks, what, len(chunks))):
        image = task.encoder.image(
            normalize(torch.stack([gallery.pixels[image] for image in images.tolist()]))
        )
        rows = torch.arange(len(images))[:, None] + number * ONE_SIDE_AT_ONCE
        for texts in by_length_N.split(ONE_SIDE_AT_ONCE):
            score_IN[rows, texts] = (
                task.match_each(image, *_padded(gallery, texts, device))[:, :, 1].float().cpu()
            )
    parts = gather_objects((own_I, score_IN))
    return torch.cat([scores for _, scores in parts])[
        torch.cat([images for images, _ in parts]).argsort()
    ]


def _padded(
    gallery: RetrievalSet, texts: Tensor, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the ids of texts (N, L), and which are padding; None if none are."""
    ids_NL = pad_sequence([gallery.ids[text] for text in texts.tolist()], batch_first=True)
    is_padding_NL = torch.arange(ids_NL.shape[1]) >= torch.tensor(gallery.lengths)[texts, None]
    return ids_NL.to(device), is_padding_NL.to(device) if is_padding_NL.any() else None


def rerank_scores(
    task: AnyTask, gallery: RetrievalSet, captions_IK: Tensor, images_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the match logits of the candidates in both directions.

    They are of each image's captions (I, K) and of each caption's images (T, K).
    """
    num_texts = len(gallery.ids)
    pairs_IK = torch.arange(len(captions_IK))[:, None] * num_texts + gallery.text_T[captions_IK]
    score_IK, score_TK = pair_scores(
        task, gallery, pairs_IK, images_TK * num_texts + gallery.text_T[:, None]
    )
    return score_IK, score_TK


def pair_scores(task: AnyTask, gallery: RetrievalSet, *pairs: Tensor) -> list[Tensor]:
    """Return the scores of pairs in the same shapes.

    A pair is its image's index times the number of texts plus its text's. A pair is scored once, however often it occurs. Each
    process scores the pairs of its own images.
    """
    num_texts = len(gallery.ids)
    pair_P = torch.cat([each.flatten() for each in pairs]).unique()
    own_P = pair_P[gallery.owner_I[pair_P // num_texts] == rank()]
    parts = gather_objects(
        (own_P, match_scores(task, gallery, own_P // num_texts, own_P % num_texts))
    )
    all_P, order_P = torch.cat([pairs for pairs, _ in parts]).sort()
    score_P = torch.cat([scores for _, scores in parts])[order_P]
    return [score_P[torch.searchsorted(all_P, each)] for each in pairs]


def match_scores(task: AnyTask, gallery: RetrievalSet, image_P: Tensor, text_P: Tensor) -> Tensor:
    """Return the scores that pairs are ordered by (task.rerank_by).

    float32 (P,) on the CPU. Pairs with texts of similar length are scored together.
    """
    device = gallery.image_Id.device
    score_P = torch.empty(len(image_P))
    if not len(image_P):  # splitting nothing gives one empty part
        return score_P
    for chosen in torch.tensor(gallery.lengths)[text_P].argsort(stable=True).split(PAIRS_AT_ONCE):
        images, texts = image_P[chosen], text_P[chosen]
        similarity_B = (
            gallery.image_Id[images.to(device)] * gallery.text_Nd[texts.to(device)]
        ).sum(1)
        # what is in several pairs is embedded once: of towers that is most of the work
        (images, image_B), (texts, text_B) = (
            rows.unique(return_inverse=True) for rows in (images, texts)
        )
        pixels = torch.stack([gallery.pixels[image] for image in images.tolist()])
        ids_BL, padding = _padded(gallery, texts, device)
        pairs = image_B.to(device), text_B.to(device)
        score_P[chosen] = task.pair_scores(pixels, ids_BL, padding, similarity_B, pairs).cpu()
    return score_P
