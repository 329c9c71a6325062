"""Rows of phantoms of every kind, for every command that can run without files."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from eve_vl.data.records import ImageDrawing, ImageOnly, ImageQuestion, ImageText, LabeledExample, TextOnly
from eve_vl.synthetic.base import GeneratedRows
from eve_vl.synthetic.phantoms.questions import ANSWERS, sample_question
from eve_vl.synthetic.phantoms.render import MIN_IMAGE_SIZE, render
from eve_vl.synthetic.phantoms.reports import ABSENT, NORMAL, Report, distractors, sample_report
from eve_vl.synthetic.phantoms.world import Phantom, sample_phantom


@dataclass(frozen=True, kw_only=True)
class PhantomRows(GeneratedRows):
    """What the row sets share."""

    NAME: ClassVar = "phantoms"
    NUM_ROWS: ClassVar = {"train": 100_000, "val": 1_000, "test": 1_000, "test_shift": 1_000, "test_novel": 1_000}
    MIN_IMAGE_SIZE: ClassVar = MIN_IMAGE_SIZE
    image_size: int = 64

    def phantom(self, index: int) -> Phantom:
        """Return what row `index` shows."""
        return sample_phantom(self.split, self.seed, index)

    def report(self, index: int) -> Report:
        """Return what is said of row `index`."""
        return sample_report(self.split, self.phantom(index))

    def image(self, phantom: Phantom) -> ImageDrawing:
        """Return the image of a phantom; mirrored it would be false."""
        return ImageDrawing(draw=partial(render, phantom, self.image_size), has_sides=True)


class PhantomPairs(PhantomRows):
    """Phantoms with a report each, a `records.Source`; absent are the findings that it denies."""

    def __getitem__(self, index: int, /) -> ImageText:
        phantom, report = self.phantom(index), self.report(index)
        denied = tuple(mention.finding.kind for mention in report.mentions if mention.state == ABSENT)
        said = {"captions": (report.text,), "labels": labels_of(phantom), "absent": denied}
        return ImageText(image=self.image(phantom), where=self.where(index), **said)

    def distractors(self, index: int) -> list[str]:
        """Return three false reports of a row's phantom that differ from the true one in one place."""
        return distractors(self.split, self.phantom(index))


class PhantomImages(PhantomRows):
    """Phantoms alone."""

    def __getitem__(self, index: int, /) -> ImageOnly:
        return ImageOnly(where=self.where(index), image=self.image(self.phantom(index)))


class PhantomTexts(PhantomRows):
    """Reports alone."""

    def __getitem__(self, index: int, /) -> TextOnly:
        return TextOnly(where=self.where(index), text=self.report(index).text)


class PhantomLabels(PhantomRows):
    """Phantoms and their reports with the findings that are there, or NORMAL, in the order of FINDINGS."""

    def __getitem__(self, index: int, /) -> LabeledExample:
        where, phantom = self.where(index), self.phantom(index)
        return LabeledExample(image=self.image(phantom), text=self.report(index).text, labels=labels_of(phantom), where=where)


class PhantomQuestions(PhantomRows):
    """Phantoms with a question and its answer (one of ANSWERS) each; rows 2k and 2k + 1 are a minimal pair.

    answer_type is CLOSED or OPEN, content_type one of CONTENT_TYPES.
    """

    ANSWERS: ClassVar = ANSWERS

    def __getitem__(self, index: int, /) -> ImageQuestion:
        where, example = self.where(index), sample_question(self.split, self.seed, index)
        return ImageQuestion(
            image=self.image(example.phantom),
            question=example.question,
            answers=(example.answer,),
            question_id=int(index),  # of a subset a numpy one, which JSON does not take
            answer_type=example.answer_type,
            content_type=example.content_type,
            group=f"{self.split} {index // 2}",
            where=where,
        )


def labels_of(phantom: Phantom) -> tuple[str, ...]:
    """Return the findings that are there, or NORMAL."""
    return tuple(finding.kind for finding in phantom.findings) or (NORMAL,)


PHANTOMS: dict[str, type[PhantomRows]] = {
    "captions": PhantomPairs,
    "questions": PhantomQuestions,
    "images": PhantomImages,
    "texts": PhantomTexts,
    "labels": PhantomLabels,
}
"""The row sets by kind of row."""
