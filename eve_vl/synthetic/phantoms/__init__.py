"""Phantoms: schematic chest radiographs with reports, labels and questions that are true by construction.

Pure functions of (split, seed, index), no files. They prove code and protocols, and say nothing about medicine. In
`test_shift` a shortcut of the training data is broken. `test_novel` combines findings with sides, zones and grades in
wordings that training never showed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from eve_vl.config import HELD_OUT, generated
from eve_vl.data.kinds.captions import ImageOnly, ImageText, TextOnly
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers import parse_spec
from eve_vl.data.records import ImageDrawing
from eve_vl.data.table import is_file
from eve_vl.synthetic import GeneratedRows
from eve_vl.synthetic.phantoms.questions import ANSWERS, sample_question
from eve_vl.synthetic.phantoms.render import MIN_IMAGE_SIZE, render
from eve_vl.synthetic.phantoms.reports import ABSENT, NORMAL, Report, class_prompts, distractors, sample_report
from eve_vl.synthetic.phantoms.world import Phantom, sample_phantom
from eve_vl.utils.errors import UserError

NO_MEDICINE = (
    "Phantoms are schematic drawings: what is learnt from them proves code and protocols, and says nothing about medicine."
)
MARKER = "PHANTOMS.txt"
_FOLDERS_BELOW = 3  # at most, from the marker's folder to a file that a source may name: train/radiology/captions.txt


def source_note(sources: Iterable[str]) -> str:
    """Return the disclaimer of pages about phantoms, recognised by name or by MARKER; "" for other data."""
    return NO_MEDICINE if any(map(_are_phantoms, sources)) else ""


def _are_phantoms(source: str) -> bool:
    if (named := generated(source)) is not None:
        return named[0] == "phantoms"
    if source == HELD_OUT:
        return False
    try:
        path = parse_spec(source).path
    except UserError:  # the run may come from another machine
        return False
    return any(is_file(folder / MARKER) for folder in (path, *path.parents[:_FOLDERS_BELOW]))


@dataclass(frozen=True, kw_only=True)
class PhantomRows(GeneratedRows):
    """Base class of the sources."""

    NAME: ClassVar = "phantoms"
    NUM_ROWS: ClassVar = {"train": 100_000, "val": 1_000, "test": 1_000, "test_shift": 1_000, "test_novel": 1_000}
    MIN_IMAGE_SIZE: ClassVar = MIN_IMAGE_SIZE
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
        phantom, report = self.phantom(index), self.report(index)
        denied = tuple(mention.finding.kind for mention in report.mentions if mention.state == ABSENT)
        said = {"captions": (report.text,), "labels": labels_of(phantom), "absent": denied}
        return ImageText(image=self.image(phantom), where=self.where(index), **said)

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
    """Phantoms and their reports with the findings, or NORMAL, in the order of FINDINGS."""

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
            question_id=int(index),  # subsets give numpy integers, which JSON cannot write
            answer_type=example.answer_type,
            content_type=example.content_type,
            group=f"{self.split} {index // 2}",
            where=where,
        )


def labels_of(phantom: Phantom) -> tuple[str, ...]:
    """Return the findings of a phantom, or NORMAL."""
    return tuple(finding.kind for finding in phantom.findings) or (NORMAL,)


ROWS: dict[str, type[PhantomRows]] = {
    "captions": PhantomPairs,
    "questions": PhantomQuestions,
    "images": PhantomImages,
    "texts": PhantomTexts,
    "labels": PhantomLabels,
}
"""The sources by kind of row."""

__all__ = ["ROWS", "class_prompts", "source_note"]  # class_prompts: built-in prompts, see evaluation/zero_shot.py
