"""The rows of scenes, one source for each kind of row."""

from functools import partial
from typing import ClassVar

from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.kinds.statements import ImagesStatement
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.synthetic.generated_rows import GeneratedRows
from eve_vl.synthetic.scenes.captions import all_captions, captions
from eve_vl.synthetic.scenes.drawing import render
from eve_vl.synthetic.scenes.questions import answers_of, sample_question
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.synthetic.scenes.statements import sample_statement
from eve_vl.synthetic.scenes.world import SPLITS, Scene


class SceneRows(GeneratedRows):
    """Base class of the sources."""

    NAME: ClassVar = "scenes"
    NUM_ROWS: ClassVar = {
        split: 100_000 if split in ("train", "hard_train") else 1_000 for split in SPLITS
    }
    image_size: int = 48

    def scene(self, index: int) -> Scene:
        """Return the scene of row `index`."""
        return sample_scene(self.split, self.seed, index)

    def image(self, scene: Scene) -> ImageDrawing:
        """Return the image of a scene."""
        return ImageDrawing(draw=partial(render, scene, self.image_size))


class ScenePairs(SceneRows):
    """Scenes with true captions."""

    def __getitem__(self, index: int, /) -> ImageText:
        where = self.where(index)
        scene = self.scene(index)
        return ImageText(image=self.image(scene), captions=captions(scene), where=where)

    def true_captions(self, index: int) -> list[str]:
        """Return every true caption of a row's scene, its own included."""
        return all_captions(self.scene(index))


class SceneImages(SceneRows):
    """Scenes without captions."""

    def __getitem__(self, index: int, /) -> ImageOnly:
        return ImageOnly(where=self.where(index), image=self.image(self.scene(index)))


class SceneTexts(SceneRows):
    """The first caption of each scene, without the image."""

    def __getitem__(self, index: int, /) -> TextOnly:
        return TextOnly(where=self.where(index), text=captions(self.scene(index))[0])


class SceneLabels(SceneRows):
    """Scenes with the kinds of their shapes, each once."""

    def __getitem__(self, index: int, /) -> LabeledExample:
        where = self.where(index)
        scene = self.scene(index)
        kinds = {shape.kind for shape in scene.shapes}
        labels = tuple(kind for kind in scene.world.kinds if kind in kinds)
        return LabeledExample(image=self.image(scene), text=None, labels=labels, where=where)


class SceneQuestions(SceneRows):
    """Scenes with a question and its answer (one of `answers`) each.

    answer_type is one of QUESTION_KINDS.
    """

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers of the split."""
        return answers_of(self.split)

    def __getitem__(self, index: int, /) -> ImageQuestion:
        asked = sample_question(self.split, self.seed, index)
        return ImageQuestion(
            image=self.image(asked.scene),
            question=asked.question,
            answers=(asked.answer,),
            question_id=int(index),  # subsets give NumPy integers, which JSON cannot write
            answer_type=asked.kind,
            where=self.where(index),
        )


class SceneStatements(SceneRows):
    """Two scenes each, with a true or false statement about both.

    Equal statements form a group.
    """

    def __getitem__(self, index: int, /) -> ImagesStatement:
        claim = sample_statement(self.split, self.seed, index)
        return ImagesStatement(
            left=self.image(claim.left),
            right=self.image(claim.right),
            statement=claim.statement,
            label=claim.label,
            identifier=str(index),
            group=claim.statement,
            where=self.where(index),
        )
