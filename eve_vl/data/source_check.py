"""Validation of a source (`eve data check`): broken rows, conversions, statistics."""

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from eve_vl.data.crops import to_tensor
from eve_vl.data.decoding import DecodedImage, decode_bytes, read_image
from eve_vl.data.image_refs import ImagePixels, ImageRef, Unencoded
from eve_vl.data.near_duplicates import thumbprint
from eve_vl.data.records import Fact, Record, Source, fetch_places
from eve_vl.data.row_hashes import hash_of
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.worker_processes import start_method

CHUNK = 64  # rows per message from a worker
NUM_FREQUENT = 10  # answers and texts that are reported
# Equal captions may be noise if they are more than this number and share (LOG 2026-11-30).
MIN_NOISE = 20
NOISE_SHARE = 0.01
LONGEST_SHOWN = 80  # characters of a frequent text
ROWS_PER_WORKER = 5000  # fewer take less time than starting a worker

Require = Callable[[Record], None]


@dataclass(frozen=True)
class Spread:
    """The spread of some numbers."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class BrokenRow:
    """A row that training would skip, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class CheckedImage:
    """An image that could be decoded."""

    where: str
    hash: int
    """Of its bytes."""
    thumbprint: bytes
    """See near_duplicates.py."""


@dataclass(frozen=True)
class SourceReport:
    """What `eve data check` finds in a source.

    A text is a caption, question, statement or plain text. Sizes are in pixels, after EXIF
    rotation.
    """

    kind: str
    rows: int
    usable: int
    broken: list[BrokenRow]
    """In their order."""
    texts: int
    frequent_texts: dict[str, int]
    """Texts that are far more frequent than others, and their numbers."""
    distinct_answers: int
    top_answers: dict[str, int]
    width: Spread | None
    height: Spread | None
    texts_per_row: Spread | None
    text_words: Spread | None
    answers_per_question: Spread | None
    formats: dict[str, int]
    conversions: dict[str, int]
    """Number of images by kind of conversion."""
    answer_types: dict[str, int]
    labels: dict[str, int]
    """Rows without a label count as "kept back"."""
    duplicate_images: int
    """Images that are equal to an earlier one byte for byte."""
    duplicate_texts: int
    duplicate_ids: int
    images: list[CheckedImage]
    """In their order, if they were asked for."""


def check_source(
    source: Source,
    *,
    require: Require | None = None,
    num_workers: int | None = None,
    keeps_images: bool = False,
    num_samples: int | None = None,
) -> SourceReport:
    """Read every row, or some spread evenly over all, and decode their images.

    require: raises BadSampleError for rows that count as broken, too. num_workers: processes; None:
    by the number of rows. keeps_images: return `images`, 0.4 kB each, to compare splits.
    num_samples: number of rows; None: all.
    """
    rows_to_read = range(len(source))
    if num_samples is not None and num_samples < len(source):
        rows_to_read = [number * len(source) // num_samples for number in range(num_samples)]
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, len(rows_to_read) // ROWS_PER_WORKER)
    chunks = DataLoader(
        _RowFacts(source, require, keeps_images),
        CHUNK,
        sampler=rows_to_read,
        collate_fn=list,  # rows stay as they are
        num_workers=num_workers,
        multiprocessing_context=start_method(num_workers),
    )
    tally = _Tally()
    rows = itertools.chain.from_iterable(chunks)
    for facts in progress(rows, "reading", len(rows_to_read)):
        tally.add(facts)
    return tally.report()


class _Tally:
    """Counts of the facts of rows."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
        self._broken: list[BrokenRow] = []
        self._images: list[CheckedImage] = []
        self._frequent_texts: dict[int, str] = {}  # by hash; others are not kept in memory

    def add(self, facts: list[Fact] | BadSampleError) -> None:
        """Count the facts of a row."""
        if isinstance(facts, BadSampleError):
            self._broken.append(BrokenRow(facts.where, facts.reason))
            return
        for name, value in facts:
            if name == "text":
                self._add_text(*value)
            elif name == "checked image":
                self._images.append(value)
            else:
                self._counts[name][value] += 1

    def _add_text(self, key: int, words: str) -> None:
        counts = self._counts["text"]
        if counts[key] == MIN_NOISE:
            self._frequent_texts[key] = words
        counts[key] += 1

    def report(self) -> SourceReport:
        """Return the counts."""
        counts = self._counts
        usable = counts["kind"].total()
        return SourceReport(
            kind=next(iter(counts["kind"]), "captions"),
            rows=usable + len(self._broken),
            usable=usable,
            broken=self._broken,
            texts=counts["text"].total(),
            frequent_texts=self._noise(),
            distinct_answers=len(counts["answer"]),
            top_answers=dict(counts["answer"].most_common(NUM_FREQUENT)),
            width=_spread(counts["width"]),
            height=_spread(counts["height"]),
            texts_per_row=_spread(counts["texts_per_row"]),
            text_words=_spread(counts["text_words"]),
            answers_per_question=_spread(counts["answers_per_question"]),
            formats=dict(counts["formats"].most_common()),
            conversions=dict(counts["conversions"].most_common()),
            answer_types=dict(counts["answer_types"].most_common()),
            labels=dict(counts["labels"].most_common()),
            duplicate_images=_num_duplicates(counts["image"]),
            duplicate_texts=_num_duplicates(counts["text"]),
            duplicate_ids=_num_duplicates(counts["id"]),
            images=self._images,
        )

    def _noise(self) -> dict[str, int]:
        """Return texts that are far more frequent than others."""
        counts = self._counts["text"]
        max_usual = max(MIN_NOISE, NOISE_SHARE * counts.total())
        noise = {}
        for key, count in counts.most_common(NUM_FREQUENT):
            if count > max_usual:
                noise[self._frequent_texts[key]] = count
        return noise


def _spread(counts: Counter[int]) -> Spread | None:
    values = list(counts.elements())
    if not values:
        return None
    return Spread(min(values), float(np.median(values)), max(values))


def _num_duplicates(counts: Counter[Any]) -> int:
    return counts.total() - len(counts)


class _RowFacts(Dataset[list[Fact] | BadSampleError]):
    """The facts of each row, computed in loader workers."""

    def __init__(self, source: Source[Record], require: Require | None, keeps_images: bool):
        self.source = source
        self.require = require
        self.keeps_images = keeps_images

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Fact] | BadSampleError:
        try:
            row = self.source[index]
            if self.require is not None:
                self.require(row)
            facts: list[Fact] = [("kind", row.KIND)]
            for image in row.images:
                facts.extend(_facts_of_image(image, row.where, self.keeps_images))
        except BadSampleError as error:
            return error

        facts.append(("texts_per_row", len(row.texts)))
        for text in row.texts:
            facts.append(("text_words", len(text.split())))
            facts.append(("text", (hash_of(text.encode()), text[:LONGEST_SHOWN])))
        return facts + row.facts()

    def __getitems__(self, indices: Sequence[int]) -> list[list[Fact] | BadSampleError]:
        fetch_places((self.source, index) for index in indices)
        return [self[index] for index in indices]


def _facts_of_image(image: ImageRef, where: str, keeps_image: bool) -> Iterable[Fact]:
    if isinstance(image, Unencoded):
        drawn = ImagePixels(pixels=image.pixels)  # draw only once
        data = drawn.pixels.tobytes()
        decoded = DecodedImage(pixels=to_tensor(drawn), format="pixels", conversions=())
    else:
        data = read_image(image, where)
        decoded = decode_bytes(data, where)
    _, height, width = decoded.pixels.shape
    yield "width", width
    yield "height", height
    yield "formats", decoded.format
    image_hash = hash_of(data)
    yield "image", image_hash
    if keeps_image:
        yield "checked image", CheckedImage(where, image_hash, thumbprint(decoded.pixels))
    for conversion in decoded.conversions:
        yield "conversions", conversion
