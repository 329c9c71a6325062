"""Scenes of coloured shapes.

Captions, questions, statements and labels are true by construction.

Pure functions of (split, seed, index), no files. `test_novel` shows (kind, colour) pairs that no other split shows. Splits
named `hard_…` show more and smaller shapes, described by two sentences. Images are anti-aliased by signed distance, each
shape computed only inside its bounding box.

Letters: H height and W width of a bounding box; S side of the image.
"""

import math
from functools import cache, partial
from typing import ClassVar

import numpy as np

from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.kinds.items import ItemPair
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.kinds.statements import ImagesStatement
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.synthetic.generated_rows import GeneratedRows
from eve_vl.synthetic.scenes.questions import answers_of, sample_question
from eve_vl.synthetic.scenes.texts import all_captions, captions, sample_items, sample_statement
from eve_vl.synthetic.scenes.world import SPLITS, Mark, Scene, Shape, sample_scene

MARK_TONE = 30  # levels by which clutter darkens every channel of the background

_STAR_INNER = 0.46  # radius of the notches relative to the tips; a true pentagram (0.38) is too thin at 10 pixels
_COS_36, _SIN_36 = math.cos(math.pi / 5), math.sin(math.pi / 5)


class _SceneRows(GeneratedRows):
    """Base class of the sources."""

    NAME: ClassVar = "scenes"
    NUM_ROWS: ClassVar = {
        split: 100_000 if split in ("train", "hard_train") else 1_000 for split in SPLITS
    }
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
    """Scenes with the kinds of their shapes, each once."""

    def __getitem__(self, index: int, /) -> LabeledExample:
        where, scene = self.where(index), self._scene(index)
        labels = sorted({shape.kind for shape in scene.shapes}, key=scene.world.kind.index)
        return LabeledExample(
            image=self._image(scene), text=None, labels=tuple(labels), where=where
        )


class SceneQuestions(_SceneRows):
    """Scenes with a question and its answer (one of `answers`) each.

    answer_type is one of QUESTION_KINDS.
    """

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers of the split."""
        return answers_of(self.split)

    def __getitem__(self, index: int, /) -> ImageQuestion:
        scene, question, answer, kind = sample_question(self.split, self.seed, index)
        number, where = (
            int(index),
            self.where(index),
        )  # subsets give numpy integers, which JSON cannot write
        return ImageQuestion(
            image=self._image(scene),
            question=question,
            answers=(answer,),
            question_id=number,
            answer_type=kind,
            where=where,
        )


class SceneStatements(_SceneRows):
    """Two scenes each, with a true or false statement about both.

    Equal statements form a group.
    """

    def __getitem__(self, index: int, /) -> ImagesStatement:
        left, right, claim, label, _ = sample_statement(self.split, self.seed, index)
        left, right, name = self._image(left), self._image(right), str(index)
        return ImagesStatement(
            left=left,
            right=right,
            statement=claim,
            label=label,
            identifier=name,
            group=claim,
            where=self.where(index),
        )


class SceneItems(_SceneRows):
    """Two items each, the same or not.

    Image and text of an item describe different shapes.
    """

    def __getitem__(self, index: int, /) -> ItemPair:
        where, (scenes, texts, label) = (
            self.where(index),
            sample_items(self.split, self.seed, index),
        )
        left, right = map(self._image, scenes)
        return ItemPair(left=left, right=right, captions=texts, label=label, where=where)


def render(scene: Scene, image_size: int) -> np.ndarray:
    """Render a scene: uint8, shape (image_size, image_size, 3), RGB."""
    canvas_3SS = np.empty(
        (3, image_size, image_size), np.float32
    )  # channels first: long rows are faster to blend
    canvas_3SS[:] = np.asarray(scene.background_rgb, np.float32)[:, None, None]
    canvas_3SS += (2 * _centers(image_size) - 1)[:, None] * scene.slope
    for mark in scene.clutter:
        _draw_mark(canvas_3SS, mark)
    for shape in scene.shapes:
        _draw_shape(canvas_3SS, shape)
    canvas_3SS += 0.5
    return np.ascontiguousarray(np.clip(canvas_3SS, 0, 255).astype(np.uint8).transpose(1, 2, 0))


@cache
def _centers(image_size: int) -> np.ndarray:
    """Return pixel centres as fractions of the canvas, shape (S,)."""
    return ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)


def _span(center: float, reach: float, image_size: int) -> slice:
    """Return the pixels within `reach` of a centre, plus one for the soft edge."""
    first = int((center - reach) * image_size) - 1
    last = int((center + reach) * image_size) + 2
    return slice(max(0, first), max(0, min(image_size, last)))


def _draw_shape(canvas_3SS: np.ndarray, shape: Shape) -> None:
    image_size = canvas_3SS.shape[1]
    radius = shape.extent / 2
    rows, columns = (
        _span(shape.center_y, radius, image_size),
        _span(shape.center_x, radius, image_size),
    )
    y_H1 = (_centers(image_size)[rows, None] - shape.center_y) / radius
    x_1W = (
        np.abs(_centers(image_size)[None, columns] - shape.center_x) / radius
    )  # every kind is symmetric
    cover_HW = _coverage(_depth(shape.kind, y_H1, x_1W), radius * image_size)
    box_3HW = canvas_3SS[:, rows, columns]
    box_3HW += cover_HW * (np.asarray(shape.rgb, np.float32)[:, None, None] - box_3HW)


def _draw_mark(canvas_3SS: np.ndarray, mark: Mark) -> None:
    image_size = canvas_3SS.shape[1]
    rows = _span(mark.center_y, abs(mark.half_y) + mark.radius, image_size)
    columns = _span(mark.center_x, abs(mark.half_x) + mark.radius, image_size)
    y_H1 = _centers(image_size)[rows, None] - mark.center_y
    x_1W = _centers(image_size)[None, columns] - mark.center_x
    length_squared = mark.half_y**2 + mark.half_x**2 or 1.0  # a dot has none
    along_HW = np.clip((y_H1 * mark.half_y + x_1W * mark.half_x) / length_squared, -1, 1)
    distance_HW = np.hypot(y_H1 - along_HW * mark.half_y, x_1W - along_HW * mark.half_x)
    canvas_3SS[:, rows, columns] -= _coverage(mark.radius - distance_HW, image_size) * MARK_TONE


def _coverage(depth_HW: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Return the covered share of each pixel.

    It is a ramp one pixel wide over the depth of the centre below the outline.
    """
    return (depth_HW * pixels_per_unit + 0.5).clip(0, 1)


def _depth(kind: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return depths below a shape's outline, negative outside.

    The offsets y (H, 1) and |x| (1, W) and the depths (H, W) are in units of the shape's radius.
    """
    match kind:
        case "circle":
            return 1 - np.sqrt(y * y + x * x)
        case "square":
            return 0.9 - np.maximum(np.abs(y), x)
        case "diamond":
            return (1 - np.abs(y) - x) * math.sqrt(0.5)
        case "bar":
            return np.minimum(0.4 - np.abs(y), 1 - x)
        case "ring":
            return 0.24 - np.abs(np.sqrt(y * y + x * x) - 0.76)
        case "cross":
            y = np.abs(y)
            return np.minimum(0.36 - np.minimum(y, x), 1 - np.maximum(y, x))
        case "triangle":
            base, height = 1.0, 1.85  # apex at y = −1
            return np.minimum(
                ((y + 1) * base - x * height) / math.hypot(base, height), height - 1 - y
            )
        case _:  # a star: fold five arms onto one, tip up
            y = -y
            for sign in (1, -1):
                beyond = 2 * np.maximum(sign * _COS_36 * x - _SIN_36 * y, 0)
                x, y = x - beyond * sign * _COS_36, y + beyond * _SIN_36
            notch_x, notch_y = _STAR_INNER * _SIN_36, _STAR_INNER * _COS_36 - 1
            return (np.abs(x) * notch_y - (y - 1) * notch_x) / math.hypot(notch_x, notch_y)
