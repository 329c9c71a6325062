"""Rows of noise images with short texts, and a tokenizer that knows these texts."""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.kinds.statements import ImagesStatement
from eve_vl.data.records import Record
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import BadSampleError

Row = TypeVar("Row", bound=Record)
ANSWERS = ("red", "2", "yes", "left", "ring")
CAPTIONS = (
    "a red circle",
    "two small blue squares on gray",
    "a big green star left of a tiny white ring",
    "one yellow cross at the top",
    "purple triangle, orange heart",
    "a circle",
)


class ListSource(Generic[Row]):
    """Rows at hand; a None is a row that cannot be used."""

    def __init__(self, rows: Sequence[Row | None], name: str = "list"):
        self.rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Row:
        row = self.rows[index]
        if row is None:
            raise BadSampleError(f"{self.name}:{index}", "made to be broken")
        return row

    def __iter__(self) -> Iterator[Row]:
        for index in range(len(self)):
            yield self[index]


def noise(*key: int, height: int = 20, width: int = 20) -> ImagePixels:
    """Return an image that no other key gives."""
    rng = np.random.default_rng(key)
    return ImagePixels(pixels=rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def caption_of(row: int) -> str:
    return CAPTIONS[row % len(CAPTIONS)]


def pairs(
    count: int,
    *,
    bad: Sequence[int] = (),
    size: int = 20,
    name: str = "list",
    captions: int = 2,
) -> ListSource[ImageText]:
    """Return noise images of different shapes, with captions that name their row.

    Rows in `bad` cannot be used.
    """
    rows: list[ImageText | None] = []
    for row in range(count):
        image = noise(count, row, height=size + row % 3, width=size)
        texts = [f"{caption_of(row + turn)} {row}" for turn in range(captions)]
        rows.append(
            ImageText(
                image=image,
                captions=tuple(texts),
                where=f"{name}:{row}",
            )
        )
    for row in bad:
        rows[row] = None
    return ListSource(rows, name)


def questions(count: int, *, name: str = "asked") -> ListSource[ImageQuestion]:
    """Return noise images with questions of different lengths.

    Of every seven, one has ten answers, one none, the others one.
    """
    rows = []
    for row in range(count):
        answer = ANSWERS[row % len(ANSWERS)]
        answers = (answer,)
        if row % 7 == 5:
            answers = (answer, answer, *["no idea"] * 3, *ANSWERS)
        elif row % 7 == 6:
            answers = ()
        question = ImageQuestion(
            image=noise(count, row),
            question=f"is it {caption_of(row)} {row}",
            answers=answers,
            question_id=row,
            answer_type="colour" if row % 3 else "number",
            where=f"{name}:{row}",
        )
        rows.append(question)
    return ListSource(rows, name)


def statements(count: int, *, name: str = "said") -> ListSource[ImagesStatement]:
    """Return two noise images each, with statements of different lengths in groups of two.

    Every seventh has no label.
    """
    rows = []
    for row in range(count):
        statement = ImagesStatement(
            left=noise(count, row, 0),
            right=noise(count, row, 1),
            statement=f"both show {caption_of(row)} {row}",
            label=None if row % 7 == 6 else row % 3 > 0,
            identifier=f"x-{row // 2}-{row % 2}-0",
            group=f"x-{row // 2}--0",
            where=f"{name}:{row}",
        )
        rows.append(statement)
    return ListSource(rows, name)


def tiny_tokenizer() -> Tokenizer:
    """Return a byte-level BPE that knows CAPTIONS."""
    return Tokenizer.train(CAPTIONS * 3, 300)
