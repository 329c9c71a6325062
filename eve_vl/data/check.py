"""Read a source from end to end before a run depends on it: what is broken, what is odd, what is in it."""

import dataclasses
import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from eve_vl.data.readers.common import pictures
from eve_vl.data.records import ImagePixels, ImageQuestion, ImageRef, ImagesStatement, ImageText, Record, Source
from eve_vl.data.transforms import MAX_PIXELS, decode, decode_bytes, read_image
from eve_vl.errors import BadSampleError

CHUNK = 64  # rows per message from a worker
CAPTIONS, QUESTIONS, STATEMENTS = "captions", "questions", "statements"
KEPT_BACK = "kept back"
NUM_TOP_ANSWERS = 10
ROWS_PER_WORKER = 5000  # fewer are read sooner than a worker has started


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRow:
    """A row that training would skip, and why."""

    where: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Smallest, median and largest of some counts."""

    min: int
    median: float
    max: int

    def __str__(self) -> str:
        return f"{self.min} / {self.median:g} / {self.max}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `check_source` found. Spreads are None if there is nothing to count.

    A text is a caption, a question or a statement, as `kind` says; what another kind of data has is 0, None or empty.
    """

    kind: str
    rows: int
    usable: int
    broken: tuple[BrokenRow, ...]
    width: Spread | None
    height: Spread | None
    """In pixels, after turning upright."""
    formats: dict[str, int]
    conversions: dict[str, int]
    """How many pictures had to be converted, by kind of conversion."""
    texts: int
    texts_per_row: Spread | None
    text_words: Spread | None
    duplicate_images: int
    """Pictures that are, byte for byte, an earlier one."""
    duplicate_texts: int
    duplicate_ids: int
    """Rows that share the id of an earlier question or statement."""
    answers_per_question: Spread | None
    answer_types: dict[str, int]
    """Questions by type; "" is none."""
    distinct_answers: int
    top_answers: dict[str, int]
    """The most frequent, as they were given."""
    labels: dict[str, int]
    """Statements by label: True, False, kept back."""

    @property
    def exit_code(self) -> int:
        """0 if every row can be used, else 1."""
        return 1 if self.broken else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)

    def render(self, console: Console, *, max_broken: int | None = None) -> None:
        """Print the lines for people."""
        console.print("\n".join(self.lines(max_broken)), highlight=False, markup=False, soft_wrap=True)

    def lines(self, max_broken: int | None = None) -> list[str]:
        """Return lines for people; at most `max_broken` broken rows are listed, None for all."""
        table = [
            ("rows", f"{self.rows}"),
            ("usable", f"{self.usable}"),
            ("broken", f"{len(self.broken)}"),
            ("width in pixels", f"{self.width or '-'}   (min / median / max)"),
            ("height in pixels", f"{self.height or '-'}"),
            ("formats", _counts(self.formats)),
            ("converted", _counts(self.conversions)),
            *self._text_lines(),
            ("repeated images", f"{self.duplicate_images}"),
            (f"repeated {self.kind}", f"{self.duplicate_texts}"),
        ]
        if self.kind != CAPTIONS:
            table.append(("repeated ids", f"{self.duplicate_ids}"))
        lines = [f"{name:<20}{value}" for name, value in table]
        lines += [f"broken: {row.where}: {row.reason}" for row in self.broken[:max_broken]]
        if max_broken is not None and len(self.broken) > max_broken:
            lines.append(f"… and {len(self.broken) - max_broken} more broken rows")
        return lines

    def _text_lines(self) -> list[tuple[str, str]]:
        lines = [(self.kind, f"{self.texts}"), (f"words per {self.kind[:-1]}", f"{self.text_words or '-'}")]
        if self.kind == CAPTIONS:
            lines.insert(1, ("captions per image", f"{self.texts_per_row or '-'}"))
        elif self.kind == QUESTIONS:
            lines += [
                ("answers each", f"{self.answers_per_question or '-'}"),
                ("answer types", _counts({name or "none": count for name, count in self.answer_types.items()})),
                ("distinct answers", f"{self.distinct_answers}"),
                ("frequent answers", _counts(self.top_answers)),
            ]
        else:
            lines.append(("labels", _counts(self.labels)))
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Image:
    """What is kept of a picture."""

    width: int
    height: int
    format: str
    conversions: tuple[str, ...]
    hash: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """What is kept of a usable row."""

    kind: str
    images: tuple[_Image, ...]
    texts: tuple[str, ...]
    key: int | str | None = None
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    label: str = ""


class _Rows(Dataset[_Row | BrokenRow]):
    """Map style, for loader workers."""

    def __init__(self, source: Source[Record], max_pixels: int):
        self.source, self.max_pixels = source, max_pixels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Row | BrokenRow:
        try:
            return self._check(index)
        except BadSampleError as error:
            return BrokenRow(where=error.where, reason=error.reason)

    def _check(self, index: int) -> _Row:
        row = self.source[index]
        images = tuple(self._check_image(image, row.where) for image in pictures(row))
        match row:
            case ImageText(captions=captions):
                return _Row(kind=CAPTIONS, images=images, texts=captions)
            case ImageQuestion(question=question, question_id=key, answers=answers, answer_type=name):
                return _Row(kind=QUESTIONS, images=images, texts=(question,), key=key, answers=answers, answer_type=name)
            case ImagesStatement(statement=statement, identifier=key, label=truth):
                label = KEPT_BACK if truth is None else str(truth)
                return _Row(kind=STATEMENTS, images=images, texts=(statement,), key=key, label=label)

    def _check_image(self, image: ImageRef, where: str) -> _Image:
        if isinstance(image, ImagePixels):
            data = image.pixels.tobytes()
            pixels = decode(image, where, max_pixels=self.max_pixels)
            name, conversions = "pixels", ()
        else:
            data = read_image(image, where)
            picture = decode_bytes(data, where, max_pixels=self.max_pixels)
            pixels, name, conversions = picture.pixels, picture.format, picture.conversions
        _, height, width = pixels.shape
        return _Image(width=width, height=height, format=name, conversions=conversions, hash=_hash(data))


def _numbers() -> array:
    return array("q")


@dataclass(kw_only=True, slots=True)
class _Tally:
    kind: str = CAPTIONS
    usable: int = 0
    broken: list[BrokenRow] = field(default_factory=list)
    widths: array = field(default_factory=_numbers)
    heights: array = field(default_factory=_numbers)
    words: array = field(default_factory=_numbers)
    texts_per_row: array = field(default_factory=_numbers)
    answers_per_row: array = field(default_factory=_numbers)
    formats: Counter[str] = field(default_factory=Counter)
    conversions: Counter[str] = field(default_factory=Counter)
    image_hashes: set[int] = field(default_factory=set)
    text_hashes: set[int] = field(default_factory=set)
    keys: set[int | str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    answer_types: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, row: _Row | BrokenRow) -> None:
        if isinstance(row, BrokenRow):
            self.broken.append(row)
            return
        self.kind = row.kind
        self.usable += 1
        for image in row.images:
            self.widths.append(image.width)
            self.heights.append(image.height)
            self.formats[image.format] += 1
            self.conversions.update(image.conversions)
            self.image_hashes.add(image.hash)
        self.words.extend(len(text.split()) for text in row.texts)
        self.texts_per_row.append(len(row.texts))
        self.text_hashes.update(_hash(text.encode()) for text in row.texts)
        if row.kind == QUESTIONS:
            self.answers_per_row.append(len(row.answers))
            self.answers.update(row.answers)
            self.answer_types[row.answer_type] += 1
        elif row.kind == STATEMENTS:
            self.labels[row.label] += 1
        if row.key is not None:
            self.keys.add(row.key)

    def report(self) -> Report:
        return Report(
            kind=self.kind,
            rows=self.usable + len(self.broken),
            usable=self.usable,
            broken=tuple(self.broken),
            width=_spread(self.widths),
            height=_spread(self.heights),
            formats=dict(self.formats.most_common()),
            conversions=dict(self.conversions.most_common()),
            texts=len(self.words),
            texts_per_row=_spread(self.texts_per_row),
            text_words=_spread(self.words),
            duplicate_images=len(self.widths) - len(self.image_hashes),
            duplicate_texts=len(self.words) - len(self.text_hashes),
            duplicate_ids=0 if self.kind == CAPTIONS else self.usable - len(self.keys),
            answers_per_question=_spread(self.answers_per_row),
            answer_types=dict(self.answer_types.most_common()),
            distinct_answers=len(self.answers),
            top_answers=dict(self.answers.most_common(NUM_TOP_ANSWERS)),
            labels=dict(self.labels.most_common()),
        )


def check_source(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    num_workers: int | None = None,
    console: Console | None = None,
) -> Report:
    """Read every row once, decode its picture, and report.

    `max_pixels` is that of `decode`. `num_workers` None starts as many processes as pay. A progress
    bar is shown if `console` is a terminal. Rows keep their order in `Report.broken`.
    """
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, len(source) // ROWS_PER_WORKER)
    chunks = DataLoader(
        _Rows(source, max_pixels),
        batch_size=CHUNK,
        num_workers=num_workers,
        collate_fn=list,  # rows as they are, not tensors
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = console is not None and console.is_terminal
    tally = _Tally()
    with Progress(*columns, console=console, disable=not is_shown, transient=True) as progress:
        bar = progress.add_task("reading", total=len(source))
        for chunk in chunks:
            for row in chunk:
                tally.add(row)
            progress.update(bar, advance=len(chunk))
    return tally.report()


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _spread(values: Sequence[int]) -> Spread | None:
    if not values:
        return None
    return Spread(min=min(values), median=float(np.median(values)), max=max(values))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"
