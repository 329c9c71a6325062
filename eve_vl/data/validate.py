"""Validation of a source before a run depends on it: broken rows, conversions, statistics (`eve data check`)."""

import dataclasses
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from eve_vl.data.dataset import decode, hash_of
from eve_vl.data.decoding import DecodedImage, decode_bytes, read_image
from eve_vl.data.records import Fact, ImagePixels, ImageRef, Record, Source, Unencoded
from eve_vl.utils import console
from eve_vl.utils.errors import BadSampleError

CHUNK = 64  # rows per message from a worker
CAPTIONS, QUESTIONS, STATEMENTS = "captions", "questions", "statements"
NUM_SHOWN = 10  # frequent answers or labels
ROWS_PER_WORKER = 5000  # fewer take less time than starting a worker

SPREADS = ("width", "height", "texts_per_row", "text_words", "answers_per_question")
TALLIES = ("formats", "conversions", "answer_types", "labels")

Require = Callable[[Record], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Minimum, median and maximum of some counts."""

    min: int
    median: float
    max: int

    def __str__(self) -> str:
        return f"{self.min} / {self.median:g} / {self.max}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The result of `check_source`. Spreads are None if there is nothing to count.

    A text is a caption, question, statement or plain text. Fields that a kind of rows lacks are 0, None or empty.
    """

    kind: str
    rows: int
    usable: int
    broken: tuple[BadSampleError, ...]
    """Rows that training would skip, and the reasons."""
    width: Spread | None
    height: Spread | None
    """In pixels, after EXIF rotation."""
    formats: dict[str, int]
    conversions: dict[str, int]
    """Number of images by kind of conversion."""
    texts: int
    texts_per_row: Spread | None
    text_words: Spread | None
    duplicate_images: int
    """Images equal to an earlier one byte for byte."""
    duplicate_texts: int
    duplicate_ids: int
    """Questions or statements with the id of an earlier one."""
    answers_per_question: Spread | None
    answer_types: dict[str, int]
    """Number of questions by type; "": none."""
    distinct_answers: int
    top_answers: dict[str, int]
    """The most frequent answers as given."""
    labels: dict[str, int]
    """Number of rows by label (True, False) or class; rows without one count as "kept back"."""
    notes: tuple[str, ...] = ()
    """Remarks on content that is in no row, such as captions without an image."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dataclasses.asdict(self) | {"broken": [{"where": row.where, "reason": row.reason} for row in self.broken]}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        texts = self.kind if self.kind in (CAPTIONS, QUESTIONS, STATEMENTS) else "texts"
        has_images, has_texts = (found or not self.usable for found in (self.formats, self.texts))
        is_of_questions = self.kind == QUESTIONS
        table = [
            (True, "rows", self.rows),
            (True, "usable", self.usable),
            (True, "broken", len(self.broken)),
            (has_images, "width in pixels", f"{self.width or '-'}   (min / median / max)"),
            (has_images, "height in pixels", self.height or "-"),
            (has_images, "formats", _shown(self.formats)),
            (has_images, "converted", _shown(self.conversions)),
            (has_images, "repeated images", self.duplicate_images),
            (has_texts, texts, self.texts),
            (has_texts, f"words per {texts[:-1]}", self.text_words or "-"),
            (has_texts, f"repeated {texts}", self.duplicate_texts),
            (self.kind == CAPTIONS, "captions per image", self.texts_per_row or "-"),
            (is_of_questions, "answers each", self.answers_per_question or "-"),
            (is_of_questions, "answer types", _shown({name or "none": count for name, count in self.answer_types.items()})),
            (is_of_questions, "distinct answers", self.distinct_answers),
            (is_of_questions, "frequent answers", _shown(self.top_answers)),
            (self.kind in (QUESTIONS, STATEMENTS), "repeated ids", self.duplicate_ids),
            (self.labels, "labels", _shown(self.labels)),
        ]
        broken = [f"broken: {row}" for row in self.broken]
        return [f"{name:<20}{value}" for is_shown, name, value in table if is_shown] + broken + [*self.notes]


class _Facts(Dataset[list[Fact] | BadSampleError]):
    """The facts of each row, computed in loader workers."""

    def __init__(self, source: Source[Record], require: Require | None):
        self.source, self.require = source, require

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Fact] | BadSampleError:
        try:
            row = self.source[index]
            if self.require is not None:
                self.require(row)
            of_images = [fact for image in row.images for fact in _facts_of(image, row.where)]
        except BadSampleError as error:
            return error
        facts: list[Fact] = [("kind", row.KIND), *of_images, ("texts_per_row", len(row.texts))]
        for text in row.texts:
            facts += [("text_words", len(text.split())), ("text", hash_of(text.encode()))]
        return [*facts, *row.facts()]


def _facts_of(image: ImageRef, where: str) -> list[Fact]:
    if isinstance(image, Unencoded):
        drawn = ImagePixels(pixels=image.pixels)  # draw only once
        data, decoded = drawn.pixels.tobytes(), DecodedImage(pixels=decode(drawn, where), format="pixels", conversions=())
    else:
        data = read_image(image, where)
        decoded = decode_bytes(data, where)
    _, height, width = decoded.pixels.shape
    facts: list[Fact] = [("width", width), ("height", height), ("formats", decoded.format), ("image", hash_of(data))]
    return facts + [("conversions", conversion) for conversion in decoded.conversions]


def check_source(source: Source, *, require: Require | None = None, num_workers: int | None = None) -> Report:
    """Read every row, decode its images, and return a report.

    require: raises BadSampleError for rows that count as broken, too. num_workers: processes; None: by the number of
    rows. `Report.broken` keeps the order of rows. A terminal shows a progress bar.
    """
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, len(source) // ROWS_PER_WORKER)
    # collate_fn=list: rows stay as they are
    chunks = DataLoader(_Facts(source, require), CHUNK, num_workers=num_workers, collate_fn=list)
    rows = itertools.chain.from_iterable(chunks)
    counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
    broken: list[BadSampleError] = []
    is_hidden = not console.CONSOLE.is_terminal
    for row in track(rows, "reading", total=len(source), console=console.CONSOLE, transient=True, disable=is_hidden):
        if isinstance(row, BadSampleError):
            broken.append(row)
        else:
            for name, value in row:
                counts[name][value] += 1
    usable = counts["kind"].total()
    of_facts: dict[str, Any] = {name: _spread(counts[name]) for name in SPREADS}
    of_facts |= {name: dict(counts[name].most_common()) for name in TALLIES}
    of_facts |= {f"duplicate_{name}s": counts[name].total() - len(counts[name]) for name in ("image", "text", "id")}
    return Report(
        kind=next(iter(counts["kind"]), CAPTIONS),
        rows=usable + len(broken),
        usable=usable,
        broken=tuple(broken),
        texts=counts["text"].total(),
        distinct_answers=len(counts["answer"]),
        top_answers=dict(counts["answer"].most_common(NUM_SHOWN)),
        notes=tuple(getattr(source, "notes", ())),
        **of_facts,
    )


def _spread(counts: Counter[int]) -> Spread | None:
    values = list(counts.elements())
    return Spread(min=min(values), median=float(np.median(values)), max=max(values)) if values else None


def _shown(counts: dict[str, int]) -> str:
    """Return the first counts as text, and their number if not all are shown."""
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:NUM_SHOWN]) or "-"
    return f"{shown}, … ({len(counts)} in all)" if len(counts) > NUM_SHOWN else shown
