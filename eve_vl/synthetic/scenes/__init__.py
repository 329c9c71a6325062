"""Scenes of coloured shapes, with captions, questions, statements and labels that are true by construction.

Pure functions of (split, seed, index), no files. `test_novel` shows (kind, colour) pairs that no other split shows.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from eve_vl.data.kinds.captions import ImageOnly, ImageText, TextOnly
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.pairs import ImagesStatement, ItemPair
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.records import ImageDrawing
from eve_vl.synthetic import GeneratedRows
from eve_vl.synthetic.scenes.pairs import sample_items, sample_statement
from eve_vl.synthetic.scenes.questions import ANSWERS, sample_question
from eve_vl.synthetic.scenes.render import MIN_IMAGE_SIZE, render
from eve_vl.synthetic.scenes.text import all_captions, captions
from eve_vl.synthetic.scenes.world import KINDS, Scene, sample_scene


@dataclass(frozen=True, kw_only=True)
class _SceneRows(GeneratedRows):
    """Base class of the sources."""

    NAME: ClassVar = "scenes"
    NUM_ROWS: ClassVar = {"train": 100_000, "val": 1_000, "test": 1_000, "test_novel": 1_000}
    MIN_IMAGE_SIZE: ClassVar = MIN_IMAGE_SIZE
    image_size: int = 48

    def _scene(self, index: int) -> Scene:
        return sample_scene(self.split, self.seed, index)

    def _image(self, scene: Scene) -> ImageDrawing:
        return ImageDrawing(draw=partial(render, scene, self.image_size))


class ScenePairs(_SceneRows):
    """Scenes with true captions."""

    def __getitem__(self, index: int, /) -> ImageText:
        where, scene = self.where(index), self._scene(index)
        return ImageText(image=self._image(scene), captions=captions(scene), where=where)

    def true_captions(self, index: int) -> list[str]:
        """Return every true caption of a row's scene, its own included."""
        return all_captions(self._scene(index))


class SceneImages(_SceneRows):
    """Scenes without captions."""

    def __getitem__(self, index: int, /) -> ImageOnly:
        return ImageOnly(where=self.where(index), image=self._image(self._scene(index)))


class SceneTexts(_SceneRows):
    """The first caption of each scene, without the image."""

    def __getitem__(self, index: int, /) -> TextOnly:
        return TextOnly(where=self.where(index), text=captions(self._scene(index))[0])


class SceneLabels(_SceneRows):
    """Scenes with the kinds of their shapes, each once, in the order of KINDS."""

    def __getitem__(self, index: int, /) -> LabeledExample:
        where, scene = self.where(index), self._scene(index)
        labels = sorted({shape.kind for shape in scene.shapes}, key=KINDS.index)
        return LabeledExample(image=self._image(scene), text=None, labels=tuple(labels), where=where)


class SceneQuestions(_SceneRows):
    """Scenes with a question and its answer (one of ANSWERS) each; answer_type is one of QUESTION_KINDS."""

    ANSWERS: ClassVar = ANSWERS

    def __getitem__(self, index: int, /) -> ImageQuestion:
        example = sample_question(self.split, self.seed, index)
        return ImageQuestion(
            image=self._image(example.scene),
            question=example.question,
            answers=(example.answer,),
            question_id=int(index),  # subsets give numpy integers, which JSON cannot write
            answer_type=example.kind,
            where=self.where(index),
        )


class SceneStatements(_SceneRows):
    """Two scenes each, with a true or false statement about both; equal statements form a group."""

    def __getitem__(self, index: int, /) -> ImagesStatement:
        example = sample_statement(self.split, self.seed, index)
        return ImagesStatement(
            left=self._image(example.left),
            right=self._image(example.right),
            statement=example.statement,
            label=example.label,
            identifier=str(index),
            group=example.statement,
            where=self.where(index),
        )


class SceneItems(_SceneRows):
    """Two items each, the same or not; image and text of an item describe different shapes."""

    def __getitem__(self, index: int, /) -> ItemPair:
        example, where = sample_items(self.split, self.seed, index), self.where(index)
        left, right = map(self._image, example.scenes)
        return ItemPair(left=left, right=right, captions=example.texts, label=example.label, where=where)


ROWS: dict[str, type[_SceneRows]] = {
    "captions": ScenePairs,
    "questions": SceneQuestions,
    "statements": SceneStatements,
    "items": SceneItems,
    "images": SceneImages,
    "texts": SceneTexts,
    "labels": SceneLabels,
}
"""The sources by kind of row."""
