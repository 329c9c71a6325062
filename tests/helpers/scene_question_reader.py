"""A reader of questions about scenes, which answers by centres and widths of shapes only."""

import re

from eve_vl.synthetic.scenes.world import Scene, Shape
from helpers.scene_lookup import (
    NUMBERS,
    Sentences,
    cell_of,
    find_shapes,
    is_next_to,
    place_of,
    size_of,
    the_shape,
)

QUESTIONS = Sentences()


def answer_of(scene: Scene, question: str) -> str:
    return QUESTIONS.read(question, scene)


def _yes_or_no(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _place_in_words(scene: Scene, shape: Shape) -> str:
    if not scene.world.is_hard:
        return place_of(shape)
    row, column = cell_of(shape, 4)
    return f"row {NUMBERS[row + 1]} column {NUMBERS[column + 1]}"


def _described_shape(scene: Scene, description: str) -> Shape:
    """Return the shape of "shape at top left", "shape directly above the star" or "red star"."""
    if description.startswith("shape at "):
        place = description.removeprefix("shape at ")
        (shape,) = [shape for shape in scene.shapes if _place_in_words(scene, shape) == place]
        return shape
    relation = re.fullmatch(r"shape directly (\w+(?: of)?) the (.+)", description)
    if relation:
        neighbor = the_shape(scene, relation[2])
        (shape,) = [shape for shape in scene.shapes if is_next_to(shape, relation[1], neighbor)]
        return shape
    return the_shape(scene, description)


def _direction(shape: Shape, reference: Shape, axis: str) -> str:
    """Return on which side of a reference a shape is, along the axis of a direction."""
    if axis in ("left", "right"):
        gap = reference.center_x - shape.center_x
        directions = ("left", "right")
    else:
        gap = reference.center_y - shape.center_y
        directions = ("above", "below")
    assert abs(gap) > 0.2, "too close to tell"
    return directions[gap < 0]


def _is_bigger(shape: Shape, reference: Shape) -> bool:
    assert abs(shape.extent - reference.extent) > 0.05, "too close to tell"
    return shape.extent > reference.extent


@QUESTIONS.pattern(r"(?:what|which) (color|kind|size) is the (.+)")
def _property(scene: Scene, name: str, description: str) -> str:
    shape = _described_shape(scene, description)
    if name == "size":
        return size_of(scene, shape)
    return getattr(shape, name)


@QUESTIONS.pattern(r"how many (.+) are there")
def _count(scene: Scene, description: str) -> str:
    return NUMBERS[len(find_shapes(scene, description))]


@QUESTIONS.pattern(r"is there an? (.+)")
def _existence(scene: Scene, description: str) -> str:
    return _yes_or_no(len(find_shapes(scene, description)) > 0)


@QUESTIONS.pattern(r"is the (.+) (left|above) or (?:right of|below) the (.+)")
def _which_side(scene: Scene, description: str, axis: str, reference: str) -> str:
    return _direction(the_shape(scene, description), the_shape(scene, reference), axis)


@QUESTIONS.pattern(r"is the (.+) (left|right|above|below)(?: of)? the (.+)")
def _is_on_side(scene: Scene, description: str, side: str, reference: str) -> str:
    return _yes_or_no(_which_side(scene, description, side, reference) == side)


@QUESTIONS.pattern(r"are there more (.+) than (.+)")
def _are_more(scene: Scene, description: str, reference: str) -> str:
    return _yes_or_no(len(find_shapes(scene, description)) > len(find_shapes(scene, reference)))


@QUESTIONS.pattern(r"is the (.+) bigger than the (.+)")
def _is_one_bigger(scene: Scene, description: str, reference: str) -> str:
    return _yes_or_no(_is_bigger(the_shape(scene, description), the_shape(scene, reference)))


@QUESTIONS.pattern(r"which is bigger the (.+) or the (.+)")
def _which_is_bigger(scene: Scene, first: str, second: str) -> str:
    return first if _is_bigger(the_shape(scene, first), the_shape(scene, second)) else second


@QUESTIONS.pattern(r"are the (.+) and the (.+) the same color")
def _is_same_color(scene: Scene, first: str, second: str) -> str:
    return _yes_or_no(the_shape(scene, first).color == the_shape(scene, second).color)
