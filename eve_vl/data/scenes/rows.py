"""Rows of generated pictures, for every command that can run without files: captions, questions, statements."""

from dataclasses import dataclass

from eve_vl.data.records import ImagePixels, ImageQuestion, ImagesStatement, ImageText
from eve_vl.data.scenes.questions import sample_question
from eve_vl.data.scenes.render import check_image_size, render
from eve_vl.data.scenes.statements import sample_statement
from eve_vl.data.scenes.text import all_captions, captions
from eve_vl.data.scenes.world import Scene, check_split, sample_scene
from eve_vl.errors import UserError

DEFAULT_NUM_ROWS = {"train": 100_000, "val": 1_000, "test": 1_000, "test_novel": 1_000}


@dataclass(frozen=True, kw_only=True)
class _SceneRows:
    """What the row sets share. Row i depends on (split, seed, i) alone. Raises UserError for settings that cannot be.

    `image_size` is in pixels, `num_scenes` is the number of rows (None: DEFAULT_NUM_ROWS of the split).
    """

    split: str = "train"
    image_size: int = 48
    seed: int = 0
    num_scenes: int | None = None

    def __post_init__(self):
        check_split(self.split)
        check_image_size(self.image_size)
        if self.num_scenes is not None and self.num_scenes < 1:
            raise UserError(f"num_scenes is {self.num_scenes}, expected at least 1")

    def __len__(self) -> int:
        return DEFAULT_NUM_ROWS[self.split] if self.num_scenes is None else self.num_scenes

    def _where(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return f"scenes:{self.split}[{index}]"

    def _image(self, scene: Scene) -> ImagePixels:
        return ImagePixels(pixels=render(scene, self.image_size))


class ScenePairs(_SceneRows):
    """Generated pictures with true captions, a `records.Source`."""

    def __getitem__(self, index: int, /) -> ImageText:
        where = self._where(index)
        scene = sample_scene(self.split, self.seed, index)
        return ImageText(image=self._image(scene), captions=captions(scene), where=where)

    def true_captions(self, index: int) -> list[str]:
        """Return every caption that is true of a row's scene, its own among them."""
        return all_captions(sample_scene(self.split, self.seed, index))


class SceneQuestions(_SceneRows):
    """Generated pictures with a question and its answer (one of ANSWERS) each; answer_type is one of QUESTION_KINDS."""

    def __getitem__(self, index: int, /) -> ImageQuestion:
        where = self._where(index)
        asked = sample_question(self.split, self.seed, index)
        return ImageQuestion(
            image=self._image(asked.scene),
            question=asked.question,
            answers=(asked.answer,),
            question_id=index,
            answer_type=asked.kind,
            where=where,
        )


class SceneStatements(_SceneRows):
    """Two generated pictures each, with a statement that is true or false of them; statements in the same words are a group."""

    def __getitem__(self, index: int, /) -> ImagesStatement:
        where = self._where(index)
        claimed = sample_statement(self.split, self.seed, index)
        return ImagesStatement(
            left=self._image(claimed.left),
            right=self._image(claimed.right),
            statement=claimed.statement,
            label=claimed.label,
            identifier=str(index),
            group=claimed.statement,
            where=where,
        )
