"""Answer lists of questions: reading them, and leaving out questions that they cannot answer."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.generated import GeneratedSource
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.records import Source, usable_rows
from eve_vl.utils.errors import MISSING_FIELDS, UserError, explained
from eve_vl.utils.file_io import is_text, parse_json, read_text

NUM_SHOWN = 10  # answers in a message


def read_answers(path: Path) -> list[str]:
    """Read an answer list. Raises UserError.

    The file is a JSON list of texts, BEiT-3's answer2label.txt (one JSON object per line) or has
    plain lines.
    """
    text = read_text(path)
    with explained(f"{path}: not an answer list", MISSING_FIELDS):
        answers = _parse_answers(text)
    is_valid = all(isinstance(answer, str) and is_text(answer) for answer in answers)
    if not answers or not is_valid:
        raise UserError(f"{path}: an answer list holds at least one text and nothing else")
    answer, count = Counter(answers).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: the answer {answer!r} is listed {count} times")
    return answers


def _parse_answers(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        return parse_json(text)
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if text.lstrip().startswith("{"):
        rows = [parse_json(line) for line in lines]
        rows.sort(key=lambda row: row["label"])
        return [row["answer"] for row in rows]
    return lines


def closed_vocabulary(sources: Sequence[Source[ImageQuestion]]) -> list[str] | None:
    """Return the answers of sources with a closed vocabulary, else None.

    Generated questions have one.
    """
    answers: dict[str, None] = {}  # in order, each once
    for source in sources:
        if not isinstance(source, GeneratedSource) or not source.answers:
            return None
        answers.update(dict.fromkeys(source.answers))
    return list(answers)


def drop_unanswerable(
    sources: Sequence[Source[ImageQuestion]],
    answers: Sequence[str],
    normalize: Callable[[str], str],
    advice: str = "",
) -> tuple[list[Source[ImageQuestion]], tuple[str, ...]]:
    """Return the sources without questions whose answers the vocabulary lacks.

    Also return a sentence about these, if any. It ends with the advice, which says how an answer
    list would have all answers, unless an answer is empty in its normal form, which no list has.
    Unusable rows stay, because training counts them. Raises UserError if no question of a source is
    left.
    """
    vocabulary = set(map(normalize, answers))
    closed_answers = closed_vocabulary(sources)
    if closed_answers is not None and vocabulary.issuperset(map(normalize, closed_answers)):
        return list(sources), ()

    answerable: list[Source[ImageQuestion]] = []
    missing_answers: Counter[str] = Counter()
    num_dropped = 0
    for source in sources:
        unanswerable = _unanswerable_rows(source, answers, vocabulary, normalize)
        missing_answers.update(row.answers[0] for row in unanswerable.values() if row.answers)
        num_dropped += len(unanswerable)
        if unanswerable:
            rows = np.setdiff1d(np.arange(len(source)), list(unanswerable))
            subset = Subset(cast(Any, source), cast(Sequence[int], rows))
            answerable.append(cast(Source[ImageQuestion], subset))
        else:
            answerable.append(source)
    if not num_dropped:
        return answerable, ()

    total = sum(map(len, sources))
    frequent = [answer for answer, _ in missing_answers.most_common(NUM_SHOWN)]
    note = (
        f"the answer list lacks the answers of {num_dropped} of {total} training questions "
        f"({num_dropped / total:.1%}), which are left out; "
        f"first {len(frequent)}: {', '.join(frequent)}"
    )
    if all(map(normalize, missing_answers)):
        note += advice
    return answerable, (note,)


def _unanswerable_rows(
    source: Source[ImageQuestion],
    answers: Sequence[str],
    vocabulary: set[str],
    normalize: Callable[[str], str],
) -> dict[int, ImageQuestion]:
    """Return the questions, by row, none of whose answers is in the vocabulary.

    Raises UserError if these are all usable questions of the source.
    """
    unanswerable = {}
    has_answerable = False
    for index, row in usable_rows(source):
        if vocabulary.isdisjoint(map(normalize, row.answers)):
            unanswerable[index] = row
        else:
            has_answerable = True
    if unanswerable and not has_answerable:
        first = next(iter(unanswerable.values()))
        raise UserError(
            f"{first.where} and all after it: the answer list, {', '.join(answers[:5])} …, "
            f"answers none of these {len(unanswerable)} training questions"
        )
    return unanswerable
