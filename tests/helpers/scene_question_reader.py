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


def yes_or_no(is_so: bool) -> str:
    return "yes" if is_so else "no"


def described_shape(scene: Scene, description: str) -> Shape:
    """Return the shape of "shape at top left", "shape directly above the star" or "red star"."""
    relation = re.fullmatch(r"shape directly (\w+(?: of)?) the (.+)", description)
    if description.startswith("shape at "):
        place = description.removeprefix("shape at ")
        shapes = [shape for shape in scene.shapes if place_in_words(scene, shape) == place]
    elif relation:
        neighbor = the_shape(scene, relation[2])
        shapes = [shape for shape in scene.shapes if is_next_to(shape, relation[1], neighbor)]
    else:
        shapes = find_shapes(scene, description)
    (shape,) = shapes
    return shape


def place_in_words(scene: Scene, shape: Shape) -> str:
    if not scene.world.is_hard:
        return place_of(shape)
    row, column = cell_of(shape, 4)
    return f"row {NUMBERS[row + 1]} column {NUMBERS[column + 1]}"


def is_bigger(scene: Scene, description: str, reference: str) -> bool:
    difference = the_shape(scene, description).extent - the_shape(scene, reference).extent
    assert abs(difference) > 0.05, "too close to tell"
    return difference > 0


@QUESTIONS.pattern(r"(?:what|which) (color|kind|size) is the (.+)")
def property_of(scene: Scene, name: str, description: str) -> str:
    shape = described_shape(scene, description)
    if name == "size":
        return size_of(scene, shape)
    return getattr(shape, name)


@QUESTIONS.pattern(r"how many (.+) are there")
def count_of(scene: Scene, description: str) -> str:
    return NUMBERS[len(find_shapes(scene, description))]


@QUESTIONS.pattern(r"is there an? (.+)")
def existence_of(scene: Scene, description: str) -> str:
    return yes_or_no(len(find_shapes(scene, description)) > 0)


@QUESTIONS.pattern(r"is the (.+) (left|above) or (?:right of|below) the (.+)")
def side_of(
    scene: Scene,
    description: str,
    axis: str,
    reference: str,
) -> str:
    """Return on which side of a reference a shape is, along the axis of a direction."""
    shape = the_shape(scene, description)
    reference_shape = the_shape(scene, reference)
    if axis in ("left", "right"):
        gap = reference_shape.center_x - shape.center_x
        directions = ("left", "right")
    else:
        gap = reference_shape.center_y - shape.center_y
        directions = ("above", "below")
    assert abs(gap) > 0.2, "too close to tell"
    return directions[gap < 0]


@QUESTIONS.pattern(r"is the (.+) (left|right|above|below)(?: of)? the (.+)")
def is_on_side(
    scene: Scene,
    description: str,
    side: str,
    reference: str,
) -> str:
    return yes_or_no(side_of(scene, description, side, reference) == side)


@QUESTIONS.pattern(r"are there more (.+) than (.+)")
def are_more(scene: Scene, description: str, reference: str) -> str:
    num_shapes = len(find_shapes(scene, description))
    return yes_or_no(num_shapes > len(find_shapes(scene, reference)))


@QUESTIONS.pattern(r"is the (.+) bigger than the (.+)")
def is_one_bigger(scene: Scene, description: str, reference: str) -> str:
    return yes_or_no(is_bigger(scene, description, reference))


@QUESTIONS.pattern(r"which is bigger the (.+) or the (.+)")
def which_is_bigger(scene: Scene, first: str, second: str) -> str:
    return first if is_bigger(scene, first, second) else second


@QUESTIONS.pattern(r"are the (.+) and the (.+) the same color")
def have_same_color(scene: Scene, first: str, second: str) -> str:
    return yes_or_no(the_shape(scene, first).color == the_shape(scene, second).color)
