"""The rows of phantoms, one source for each kind of row."""

from functools import partial
from typing import ClassVar

from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.synthetic.generated_rows import GeneratedRows
from eve_vl.systems.medical.phantoms.distractors import distractors
from eve_vl.systems.medical.phantoms.film import render
from eve_vl.systems.medical.phantoms.questions import ANSWERS, sample_question
from eve_vl.systems.medical.phantoms.reports import ABSENT, NORMAL, Report, sample_report
from eve_vl.systems.medical.phantoms.sampling import sample_phantom
from eve_vl.systems.medical.phantoms.world import Phantom


class PhantomRows(GeneratedRows):
    """Base class of the sources."""

    NAME: ClassVar = "phantoms"
    NUM_ROWS: ClassVar = {
        "train": 100_000,
        "val": 1_000,
        "test": 1_000,
        "test_shift": 1_000,
        "test_novel": 1_000,
    }
    image_size: int = 64

    def phantom(self, index: int) -> Phantom:
        """Return the phantom of row `index`."""
        return sample_phantom(self.split, self.seed, index)

    def report(self, index: int) -> Report:
        """Return the report of row `index`."""
        return sample_report(self.split, self.phantom(index))

    def image(self, phantom: Phantom) -> ImageDrawing:
        """Return the image of a phantom, which must not be mirrored."""
        return ImageDrawing(draw=partial(render, phantom, self.image_size), has_sides=True)


class PhantomPairs(PhantomRows):
    """Phantoms with a report each; `absent` are the findings that it denies."""

    def __getitem__(self, index: int, /) -> ImageText:
        where = self.where(index)
        phantom = self.phantom(index)
        report = self.report(index)
        absent = [mention.finding.kind for mention in report.mentions if mention.state == ABSENT]
        return ImageText(
            image=self.image(phantom),
            captions=(report.text,),
            labels=labels_of(phantom),
            absent=tuple(absent),
            where=where,
        )

    def distractors(self, index: int) -> list[str]:
        """Return three false reports of a row's phantom, each with one change to the true one."""
        return distractors(self.split, self.phantom(index))


class PhantomImages(PhantomRows):
    """Phantoms without reports."""

    def __getitem__(self, index: int, /) -> ImageOnly:
        return ImageOnly(where=self.where(index), image=self.image(self.phantom(index)))


class PhantomTexts(PhantomRows):
    """Reports without images."""

    def __getitem__(self, index: int, /) -> TextOnly:
        return TextOnly(where=self.where(index), text=self.report(index).text)


class PhantomLabels(PhantomRows):
    """Phantoms and their reports, labelled with the findings or NORMAL.

    Findings are in the order of FINDINGS.
    """

    def __getitem__(self, index: int, /) -> LabeledExample:
        where = self.where(index)
        phantom = self.phantom(index)
        return LabeledExample(
            image=self.image(phantom),
            text=self.report(index).text,
            labels=labels_of(phantom),
            where=where,
        )


class PhantomQuestions(PhantomRows):
    """Phantoms with a question and its answer (one of ANSWERS) each.

    Rows 2k and 2k + 1 are a minimal pair. answer_type is CLOSED or OPEN, content_type one of
    CONTENT_TYPES.
    """

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer."""
        return ANSWERS

    def __getitem__(self, index: int, /) -> ImageQuestion:
        asked = sample_question(self.split, self.seed, index)
        return ImageQuestion(
            image=self.image(asked.phantom),
            question=asked.question,
            answers=(asked.answer,),
            question_id=int(index),  # subsets give NumPy integers, which JSON cannot write
            answer_type=asked.answer_type,
            content_type=asked.content_type,
            group=f"{self.split} {index // 2}",
            where=self.where(index),
        )


def labels_of(phantom: Phantom) -> tuple[str, ...]:
    """Return the findings of a phantom, or NORMAL."""
    kinds = tuple(finding.kind for finding in phantom.findings)
    return kinds or (NORMAL,)
