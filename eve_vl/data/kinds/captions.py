"""Images with captions, images only, texts only, images to index."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from eve_vl.config import Config
from eve_vl.data.dataset import Batch, RowDataset, Sample, each, stack
from eve_vl.data.records import ImageRef, Record, hash_of, image_key
from eve_vl.data.table import (
    IMAGE_COLUMNS,
    TEXT_COLUMNS,
    Fields,
    RowColumns,
    Table,
    field,
    first_of,
    to_some_texts,
    to_texts,
)

WORD_DROP = 0.2  # probability
PHRASE_END = re.compile(r",(?!\d)|;|:\s")  # not in 1,000 or 10:30
TAG_ROWS, TAG_SHARE, MAX_TAGS = (
    4,
    0.15,
    100,
)  # a tag's images: at least, at most as a share; most tags
MAX_COLUMN_LETTERS = 200  # longer values are no names or numbers to filter by


class ImageOnly(Record):
    """An image without text."""

    KIND: ClassVar[str] = "images"
    image: ImageRef


class ImageColumns(RowColumns):
    """One image; other columns are ignored."""

    DESCRIPTION = "images only"
    USUAL: ClassVar = {"image": IMAGE_COLUMNS}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageOnly:
        """Return an image. Raises ValueError."""
        return ImageOnly(image=self.image(fields, root), where=where)


class TextOnly(Record):
    """A text without image."""

    KIND: ClassVar[str] = "texts"
    text: str


class TextColumns(RowColumns):
    """One text, perhaps as a list of one item; other columns are ignored."""

    DESCRIPTION = "texts only"
    USUAL: ClassVar = {"text": ("text", *TEXT_COLUMNS, "sentence")}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> TextOnly:
        """Return a text. Raises ValueError."""
        texts = to_some_texts(field(fields, self.texts[0]), self.TEXT_ROLE)
        if len(texts) != 1:
            raise ValueError(f"{self.texts[0]} lists {len(texts)} texts, expected one a row")
        return TextOnly(text=texts[0], where=where)


class ImageText(Record):
    """One image with its captions.

    labels: its classes, if the data have them; a search that finds another image of these classes may be right.
    absent: classes that it is known not to have; nothing is known about all others.
    """

    KIND: ClassVar[str] = "captions"
    TEXT: ClassVar[str] = "captions"
    image: ImageRef
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


class CaptionColumns(RowColumns):
    """One image, one or several captions, perhaps its classes and absent classes."""

    DESCRIPTION = "images with captions"
    TEXT_ROLE = "caption"
    USUAL: ClassVar = {"image": IMAGE_COLUMNS, "text": TEXT_COLUMNS}
    OTHERS = ("labels", "label", "absent_labels")

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageText:
        """Return an image with its captions. Raises ValueError."""
        image = self.image(fields, root)
        captions = to_some_texts(field(fields, self.texts[0]), self.TEXT_ROLE)
        given = first_of(fields, self.OTHERS[:2]), fields.get("absent_labels")
        lists = (value if isinstance(value, list) else [value] for value in given)
        labels, absent = (
            tuple(str(label) for label in each if isinstance(label, int | str)) for each in lists
        )
        return ImageText(image=image, captions=captions, labels=labels, absent=absent, where=where)


class CaptionBatch(Batch):
    """Image–text pairs, for contrast and matching."""

    image_id_B: Tensor = each("image_id", stack)
    """int64, equal for captions of one image."""
    caption_B: Tensor = each("caption", stack)
    """int64, equal for captions with the same words; see `caption_key`."""
    contrast: Any = None
    """The contrastive state over all micro-batches of a step (tasks/contrastive.py); None: contrast within this one."""


def augmented_caption(caption: str, how: str, rng: np.random.Generator) -> str:
    """Return a caption with fewer words or phrases, or in another order.

    how: data.caption_augment.
    """
    words = caption.split()
    if how == "none" or not words:
        return caption
    if how == "phrases":
        parts = phrases_of(caption)
        kept = rng.permutation(len(parts))[: 1 if rng.random() < 0.5 else None]
        return ", ".join(parts[place] for place in kept) or caption
    kept = np.flatnonzero(rng.random(len(words)) >= WORD_DROP)
    kept = kept if len(kept) else rng.integers(len(words), size=1)
    return " ".join(
        words[place] for place in (rng.permutation(kept) if rng.random() < 0.5 else kept)
    )


def phrases_of(caption: str) -> list[str]:
    """Return the parts of a caption, as of a list such as `map, folded; paper`."""
    return [part for part in map(str.strip, PHRASE_END.split(caption)) if part]


def common_tags(captions: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Return words and phrases that people may search for, with their images.

    captions: of each image. A tag stands in the captions of TAG_ROWS images or more, and of at most TAG_SHARE of all, which
    leaves out words such as `the`, and gives none for few images. Of more than MAX_TAGS tags some are chosen, evenly in
    alphabetical order.
    """
    words_of = [[re.findall(r"\w+", caption.casefold()) for caption in given] for given in captions]
    images_of: defaultdict[str, set[int]] = defaultdict(set)
    for image, (given, lists) in enumerate(zip(captions, words_of, strict=True)):
        parts = (
            re.findall(r"\w+", part.casefold()) for caption in given for part in phrases_of(caption)
        )
        for tag in {
            *(" ".join(part) for part in parts),
            *(word for words in lists for word in words),
        }:
            images_of[tag].add(image)
    most = TAG_SHARE * len(captions)
    tags = sorted(
        tag for tag, images in images_of.items() if TAG_ROWS <= len(images) <= most and len(tag) > 1
    )
    tags = [
        tags[place]
        for place in np.unique(np.linspace(0, len(tags) - 1, min(MAX_TAGS, len(tags))).astype(int))
    ]
    spaced = [" ".join(f" {' '.join(words)} " for words in lists) for lists in words_of]
    return {
        tag: tuple(image for image, text in enumerate(spaced) if f" {tag} " in text) for tag in tags
    }


def caption_key(row: ImageText, caption: str, config: Config) -> int:
    """Return a hash of a caption's words.

    With data.pair_captions, it is of all captions of its row.
    """
    return hash_of("\n".join(row.captions if config.data.pair_captions else (caption,)).encode())


class CaptionedImages(RowDataset):
    """Images with one of their captions each."""

    kind = "captions"

    def sample(self, row: ImageText, rng: np.random.Generator) -> Sample:
        """Return one pair. Raises BadSampleError."""
        caption = row.captions[int(rng.integers(len(row.captions)))]
        image, image_id = (
            self.load_image(row.image, row.where, rng, [caption]),
            image_key(row.image, row.where),
        )
        shown = (
            augmented_caption(caption, self.config.data.caption_augment, rng)
            if self.training
            else caption
        )
        text = {"caption": caption_key(row, caption, self.config), "ids_T": self.tokens(shown)}
        return Sample.of(CaptionBatch, row, image=image, image_id=image_id, **text)


class IndexableImage(Record):
    """One image to index, with its captions, if any, and its short columns.

    problem: why its captions are unusable, if they are.
    """

    KIND: ClassVar[str] = "images to find"
    TEXT: ClassVar[str] = "captions"
    image: ImageRef
    captions: tuple[str, ...]
    columns: Mapping[str, str]
    problem: str | None = None


class FindableColumns(RowColumns):
    """One image, captions, if any, and other columns of short texts and numbers."""

    DESCRIPTION = "images to find"
    TEXT_ROLE = "caption"
    USUAL: ClassVar = CaptionColumns.USUAL
    OPTIONAL = ("text",)

    @classmethod
    def pick(cls, table: Table, given: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table. Raises UserError."""
        columns = super().pick(table, given)
        return replace(
            columns, optional=tuple(name for name in table.names if name not in columns.images)
        )

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> IndexableImage:
        """Return an image with captions and columns. Raises ValueError for the image only."""
        image = self.image(fields, root)
        value, problem, captions = fields.get(self.texts[0]) if self.texts else None, None, ()
        try:
            if isinstance(value, Exception):
                raise value
            captions = to_texts(value, self.TEXT_ROLE)
        except ValueError as error:
            problem = str(error)
        shown = {
            name: _short_text(value)
            for name, value in fields.items()
            if name not in (*self.images, *self.texts)
        }
        columns = {
            name: text for name, text in shown.items() if text is not None and name.isprintable()
        }
        return IndexableImage(
            image=image, captions=captions, columns=columns, problem=problem, where=where
        )


def _short_text(value: object) -> str | None:
    """Return a short text or number as text, else None; booleans as in JSON."""
    if not isinstance(value, str | int | float):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= MAX_COLUMN_LETTERS and text.isprintable() else None
