"""Answer lists of questions: reading them, and leaving out the questions that they cannot answer."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.generated import GeneratedSource
from eve_vl.data.kinds.questions import (
    ImageQuestion,
)
from eve_vl.data.records import Source, usable_rows
from eve_vl.utils.errors import MISSING_FIELDS, UserError, explained
from eve_vl.utils.file_io import is_text, parse_json, read_text

NUM_SHOWN = 10  # answers in a message


def read_answers(path: Path) -> list[str]:
    """Read an answer list. Raises UserError.

    The file is a JSON list of texts, BEiT-3's answer2label.txt (one JSON object per line) or has plain lines.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    answers: list[Any] = lines
    with explained(f"{path}: not an answer list", MISSING_FIELDS):
        if text.lstrip().startswith("["):
            answers = parse_json(text)
        elif text.lstrip().startswith("{"):
            rows = [parse_json(line) for line in lines]
            answers = [row["answer"] for row in sorted(rows, key=lambda row: row["label"])]
    if not answers or not all(isinstance(each, str) and is_text(each) for each in answers):
        raise UserError(f"{path}: an answer list holds at least one text and nothing else")
    (most, count), *_ = Counter(answers).most_common(1)
    if count > 1:
        raise UserError(f"{path}: the answer {most!r} is listed {count} times")
    return answers


def closed_vocabulary(sources: Sequence[Source[ImageQuestion]]) -> list[str] | None:
    """Return the answers of sources with a closed vocabulary, else None.

    Generated questions have one.
    """
    closed = [source.answers if isinstance(source, GeneratedSource) else () for source in sources]
    return (
        list(dict.fromkeys(answer for answers in closed for answer in answers))
        if all(closed)
        else None
    )


def drop_unanswerable(
    sources: Sequence[Source[ImageQuestion]],
    answers: Sequence[str],
    normalize: Callable[[str], str],
) -> tuple[list[Source[ImageQuestion]], tuple[str, ...]]:
    """Return the sources without questions whose answers the vocabulary lacks.

    Also return a sentence about these, if any. Unusable rows stay, because training counts them. Raises UserError if no
    question of a source is left.
    """
    known = set(map(normalize, answers))
    closed = closed_vocabulary(sources)
    if closed is not None and known.issuperset(map(normalize, closed)):
        return list(sources), ()
    kept: list[Source[ImageQuestion]] = []
    lacking: Counter[str] = Counter()
    for source in sources:
        unknown = {
            index: row
            for index, row in usable_rows(source)
            if known.isdisjoint(map(normalize, row.answers))
        }
        if len(unknown) == len(source):
            problem = f"answers none of these {len(source)} training questions"
            raise UserError(
                f"{unknown[0].where} and all after it: the answer list, {', '.join(answers[:5])} …, {problem}"
            )
        lacking.update(row.answers[0] for row in unknown.values() if row.answers)
        left = np.setdiff1d(np.arange(len(source)), list(unknown))
        kept.append(Subset(source, left) if unknown else source)  # pyright: ignore
    total = sum(map(len, sources))
    count = total - sum(map(len, kept))
    first = [answer for answer, _ in lacking.most_common(NUM_SHOWN)]
    lacks = f"the answer list lacks the answers of {count} of {total} training questions ({count / total:.1%})"
    return kept, (
        f"{lacks}, which are left out; first {len(first)}: {', '.join(first)}",
    ) if count else ()
