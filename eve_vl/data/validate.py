"""Validation of a source (`eve data check`): broken rows, conversions, statistics."""

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from eve_vl.data.decoding import DecodedImage, decode_bytes, read_image
from eve_vl.data.records import (
    Fact,
    ImagePixels,
    ImageRef,
    Record,
    Source,
    Unencoded,
    fetch_places,
    hash_of,
)
from eve_vl.data.transforms import to_tensor
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.runtime import start_method

CHUNK = 64  # rows per message from a worker
NUM_SHOWN = 10  # frequent answers or labels
MOST_BROKEN = 20  # lines on broken rows
MIN_NOISE, NOISE_SHARE = (
    20,
    0.01,
)  # equal captions that may be noise: more than this number and share (LOG.md, 2026-11-30)
LONGEST_SHOWN = 80  # characters of a frequent text
ROWS_PER_WORKER = 5000  # fewer take less time than starting a worker

SPREADS = ("width", "height", "texts_per_row", "text_words", "answers_per_question")
TALLIES = ("formats", "conversions", "answer_types", "labels")

Require = Callable[[Record], None]
Report = dict[str, Any]


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
            facts += [
                ("text_words", len(text.split())),
                ("text", (hash_of(text.encode()), text[:LONGEST_SHOWN])),
            ]
        return [*facts, *row.facts()]

    def __getitems__(self, indices: Sequence[int]) -> list[list[Fact] | BadSampleError]:
        fetch_places((self.source, index) for index in indices)
        return [self[index] for index in indices]


def _facts_of(image: ImageRef, where: str) -> list[Fact]:
    if isinstance(image, Unencoded):
        drawn = ImagePixels(pixels=image.pixels)  # draw only once
        data, decoded = (
            drawn.pixels.tobytes(),
            DecodedImage(pixels=to_tensor(drawn), format="pixels", conversions=()),
        )
    else:
        data = read_image(image, where)
        decoded = decode_bytes(data, where)
    _, height, width = decoded.pixels.shape
    facts: list[Fact] = [
        ("width", width),
        ("height", height),
        ("formats", decoded.format),
        ("image", hash_of(data)),
    ]
    return facts + [("conversions", conversion) for conversion in decoded.conversions]


def check_source(
    source: Source, *, require: Require | None = None, num_workers: int | None = None
) -> Report:
    """Read every row, decode its images, and return counts as JSON values, by name.

    A text is a caption, question, statement or plain text. `width` and `height` are in pixels, after EXIF rotation, and
    have min, median and max, or are None; `broken` has the rows that training would skip, in their order, with the
    reasons; `conversions` is the number of images by kind of conversion; `duplicate_images` are equal to an earlier one
    byte for byte; `frequent_texts` are far more frequent than others; `labels` counts rows without one as "kept back".

    require: raises BadSampleError for rows that count as broken, too. num_workers: processes; None: by the number of
    rows."""
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, len(source) // ROWS_PER_WORKER)
    workers: dict[str, Any] = {
        "num_workers": num_workers,
        "multiprocessing_context": start_method(num_workers),
    }
    chunks = DataLoader(
        _Facts(source, require), CHUNK, collate_fn=list, **workers
    )  # list: rows stay as they are
    rows = itertools.chain.from_iterable(chunks)
    counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
    broken: list[BadSampleError] = []
    frequent: dict[int, str] = {}
    for row in progress(rows, "reading", len(source)):
        if isinstance(row, BadSampleError):
            broken.append(row)
        else:
            for name, value in row:
                if name == "text":  # memory holds the words of frequent ones only
                    value, words = value
                    if counts[name][value] == MIN_NOISE:
                        frequent[value] = words
                counts[name][value] += 1
    usable, most = counts["kind"].total(), max(MIN_NOISE, NOISE_SHARE * counts["text"].total())
    return {
        "kind": next(iter(counts["kind"]), "captions"),
        "rows": usable + len(broken),
        "usable": usable,
        "broken": [{"where": row.where, "reason": row.reason} for row in broken],
        "texts": counts["text"].total(),
        "frequent_texts": {
            frequent[text]: num for text, num in counts["text"].most_common(NUM_SHOWN) if num > most
        },
        "distinct_answers": len(counts["answer"]),
        "top_answers": dict(counts["answer"].most_common(NUM_SHOWN)),
        **{name: _spread(counts[name]) for name in SPREADS},
        **{name: dict(counts[name].most_common()) for name in TALLIES},
        **{
            f"duplicate_{name}s": counts[name].total() - len(counts[name])
            for name in ("image", "text", "id")
        },
    }


def _spread(counts: Counter[int]) -> dict[str, float] | None:
    values = list(counts.elements())
    return (
        {"min": min(values), "median": float(np.median(values)), "max": max(values)}
        if values
        else None
    )


def report_lines(report: Report) -> list[str]:
    """Return the result of `check_source` as lines of text."""
    kind, found = report["kind"], {name: report[name] for name in SPREADS}
    spreads = {
        name: f"{s['min']} / {s['median']:g} / {s['max']}" if s else "-"
        for name, s in found.items()
    }
    texts = kind if kind in ("captions", "questions", "statements") else "texts"
    has_images, has_texts = (
        bool(report[name]) or not report["usable"] for name in ("formats", "texts")
    )
    answer_types = {name or "none": count for name, count in report["answer_types"].items()}
    table = [
        (True, "rows", report["rows"]),
        (True, "usable", report["usable"]),
        (True, "broken", len(report["broken"])),
        (has_images, "width in pixels", f"{spreads['width']}   (min / median / max)"),
        (has_images, "height in pixels", spreads["height"]),
        (has_images, "formats", _shown(report["formats"])),
        (has_images, "converted", _shown(report["conversions"])),
        (has_images, "repeated images", report["duplicate_images"]),
        (has_texts, texts, report["texts"]),
        (has_texts, f"words per {texts[:-1]}", spreads["text_words"]),
        (has_texts, f"repeated {texts}", report["duplicate_texts"]),
        (kind == "captions", "captions per image", spreads["texts_per_row"]),
        (kind == "questions", "answers each", spreads["answers_per_question"]),
        (kind == "questions", "answer types", _shown(answer_types)),
        (kind == "questions", "distinct answers", report["distinct_answers"]),
        (kind == "questions", "frequent answers", _shown(report["top_answers"])),
        (kind in ("questions", "statements"), "repeated ids", report["duplicate_ids"]),
        (report["labels"], "labels", _shown(report["labels"])),
    ]
    broken = [f"broken: {row['where']}: {row['reason']}" for row in report["broken"][:MOST_BROKEN]]
    if (more := len(report["broken"]) - MOST_BROKEN) > 0:
        broken.append(f"broken: {more:,} more; --json FILE lists all")
    frequent = report["frequent_texts"] if kind == "captions" else {}
    tells_little = "such a caption tells little about each image"
    noise = [
        f"note: {num:,} captions are {text!r}; {tells_little}" for text, num in frequent.items()
    ]
    return [f"{name:<20}{value}" for is_shown, name, value in table if is_shown] + noise + broken


def _shown(counts: dict[str, int]) -> str:
    """Return the first counts as text, and their number if not all are shown."""
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:NUM_SHOWN]) or "-"
    return f"{shown}, … ({len(counts)} in all)" if len(counts) > NUM_SHOWN else shown
