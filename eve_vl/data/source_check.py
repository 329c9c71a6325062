"""Validation of a source (`eve data check`): broken rows, conversions, statistics."""

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from eve_vl.data.crops import to_tensor
from eve_vl.data.decoding import DecodedImage, decode_bytes, read_image
from eve_vl.data.image_refs import ImagePixels, ImageRef, Unencoded
from eve_vl.data.records import Fact, Record, Source, fetch_places
from eve_vl.data.row_hashes import hash_of
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.runtime import start_method

CHUNK = 64  # rows per message from a worker
NUM_SHOWN = 10  # frequent answers or labels
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
