"""The answer vocabulary of a VQA model: read from a file or built from training questions."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.records import GeneratedSource, Source, usable_rows
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import parse_json, read_text

NUM_SHOWN = 10


def read_answers(path: Path) -> list[str]:
    """Read a JSON list of texts, BEiT-3's answer2label.txt (one JSON object per line) or plain lines. Raises UserError."""
    text = read_text(path)
    answers: list[Any]
    try:
        if text.lstrip().startswith("["):
            answers = parse_json(text)
        elif text.lstrip().startswith("{"):
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
            answers = [row["answer"] for row in sorted(rows, key=lambda row: row["label"])]
        else:
            answers = [line.strip() for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an answer list ({type(error).__name__}: {error})") from None
    if not answers or not all(isinstance(each, str) and each.encode(errors="ignore").decode() == each for each in answers):
        raise UserError(f"{path}: an answer list holds at least one text and nothing else")
    (most, count), *_ = Counter(answers).most_common(1)
    if count > 1:
        raise UserError(f"{path}: the answer {most!r} is listed {count} times")
    return answers


def closed_answers(sources: Sequence[Source[ImageQuestion]]) -> list[str] | None:
    """Return all possible answers if the sources have a closed list, as generated questions do, else None."""
    closed = [source.ANSWERS if isinstance(source, GeneratedSource) else () for source in sources]
    return list(dict.fromkeys(answer for answers in closed for answer in answers)) if all(closed) else None


def drop_unanswerable(
    sources: Sequence[Source[ImageQuestion]], answers: Sequence[str], normalize: Callable[[str], str]
) -> tuple[list[Source[ImageQuestion]], tuple[str, ...]]:
    """Return the sources without questions whose answers the vocabulary lacks, and a sentence about these, if any.

    Unusable rows stay, because training counts them. Raises UserError if no question is left.
    """
    known = set(map(normalize, answers))
    closed = closed_answers(sources)
    if closed is not None and known.issuperset(map(normalize, closed)):
        return list(sources), ()
    dropped: list[list[int]] = []
    lacking: Counter[str] = Counter()
    for source in sources:
        unknown = {index: row.answers for index, row in usable_rows(source) if known.isdisjoint(map(normalize, row.answers))}
        dropped.append(list(unknown))
        lacking.update(first for first, *_ in filter(None, unknown.values()))
    count, total = sum(map(len, dropped)), sum(map(len, sources))
    if count == total:
        raise UserError(f"the answer list, {', '.join(answers[:5])} …, answers none of the {total} training questions")
    kept: list[Source[ImageQuestion]] = []
    for source, rows in zip(sources, dropped, strict=True):
        left = np.setdiff1d(np.arange(len(source)), rows)
        if not len(left):
            raise UserError(
                f"{source[0].where} and all after it: the answer list answers none of these {len(source)} training questions"
            )
        kept.append(Subset(source, left) if rows else source)  # pyright: ignore
    first = [answer for answer, _ in lacking.most_common(NUM_SHOWN)]
    lacks = f"the answer list lacks the answers of {count} of {total} training questions ({count / total:.1%})"
    return kept, (f"{lacks}, which are left out; first {len(first)}: {', '.join(first)}",) if count else ()
