"""A reader of captions of scenes, which judges by centres and widths of shapes only."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from eve_vl.synthetic.scenes.world import COLORS, KINDS, Scene, Shape
from helpers.scene_lookup import (
    NUMBERS,
    Sentences,
    cell_of,
    is_next_to,
    look_of,
    place_of,
    singular,
    size_of,
)

CLEAR_GAP = 0.2
"""Distance of two centres above which one is said to be left of the other, or above it."""
AXES = {
    "left of": "center_x",
    "left to right": "center_x",
    "above": "center_y",
    "top down": "center_y",
}
"""The coordinate along which captions list shapes, by the words that name it."""
EASY = Sentences()
"""Captions of easy scenes, without the words about the background."""
LINE_OR_COUNT = Sentences()
"""First sentences about hard scenes."""
PLACE_OR_RELATION = Sentences()
"""Second sentences about hard scenes."""


def is_caption_true(scene: Scene, caption: str) -> bool:
    if scene.world.is_hard:
        first, second = caption.split(". ")
        return LINE_OR_COUNT.read(first, scene) and PLACE_OR_RELATION.read(second, scene)
    background = re.search(r"\bon (\w+)", caption)
    if background and background[1] != scene.background:
        return False
    return EASY.read(re.sub(r" ?\bon \w+ ?", "", caption), scene)


# Easy scenes


@EASY.pattern(r"((?:.* )?no .+)")
def names_present_and_missing(scene: Scene, text: str) -> bool:
    """Return whether "a circle no star" names all present values and one or two missing ones.

    The values stand in the order of the world, from any start.
    """
    words = text.split()
    verdicts = words[::2]
    values = words[1::2]
    if values[0] in KINDS:
        order = KINDS
        word_if_present = "a"
        present = {shape.kind for shape in scene.shapes}
    else:
        order = tuple(COLORS)
        word_if_present = "some"
        present = {shape.color for shape in scene.shapes}
    for verdict, value in zip(verdicts, values, strict=True):
        if verdict != (word_if_present if value in present else "no"):
            return False
    places = [order.index(value) for value in values]
    num_falls = sum(after <= before for before, after in pairwise([*places, places[0]]))
    num_missing = len(set(values) - present)
    return present <= set(values) and num_missing in (1, 2) and num_falls == 1


@EASY.pattern(r"there are (.+)")
def counts_all(scene: Scene, text: str) -> bool:
    """Return whether "two circles and one star", or "two red shapes", counts all shapes."""
    counts = {}
    for part in text.split(" and "):
        number, *words = singular(part).split()
        counts[words[0]] = NUMBERS.index(number)
    of_kind = Counter(shape.kind for shape in scene.shapes)
    of_color = Counter(shape.color for shape in scene.shapes)
    return counts in (of_kind, of_color)


@EASY.pattern(r"leftmost (.+) and rightmost (.+)")
def names_left_and_right(scene: Scene, first: str, last: str) -> bool:
    return names_ends(scene, first, last, "center_x")


@EASY.pattern(r"highest is (.+) and lowest is (.+)")
def names_top_and_bottom(scene: Scene, first: str, last: str) -> bool:
    return names_ends(scene, first, last, "center_y")


def names_ends(
    scene: Scene,
    first: str,
    last: str,
    coordinate: str,
) -> bool:
    """Return whether two shapes are the ends along an axis, clear of those between them."""
    shapes = sorted(scene.shapes, key=lambda shape: getattr(shape, coordinate))
    if len(shapes) < 2:
        return False
    centers = [getattr(shape, coordinate) for shape in shapes]
    is_first_clear = centers[1] - centers[0] > CLEAR_GAP
    is_last_clear = centers[-1] - centers[-2] > CLEAR_GAP
    are_named = fits(scene, shapes[0], first) and fits(scene, shapes[-1], last)
    return is_first_clear and is_last_clear and are_named


@EASY.pattern(r"(left to right|top down) (.+ then .+)")
def lists_in_turn(scene: Scene, axis: str, text: str) -> bool:
    return lists_along(scene, text.split(" then "), AXES[axis])


@EASY.pattern(r"(.+ (left of|above) .+)")
def relates_all(scene: Scene, text: str, axis: str) -> bool:
    return lists_along(scene, text.split(f" {axis} "), AXES[axis])


def lists_along(scene: Scene, descriptions: Sequence[str], coordinate: str) -> bool:
    """Return whether all shapes are listed along an axis, each clear of the one before it."""
    shapes = sorted(scene.shapes, key=lambda shape: getattr(shape, coordinate))
    centers = [getattr(shape, coordinate) for shape in shapes]
    for before, after in pairwise(centers):
        if after - before <= CLEAR_GAP:
            return False
    return fit_one_by_one(scene, shapes, descriptions)


@EASY.pattern(r"one (.+) at (.+)")
def names_the_only_one(scene: Scene, look: str, place: str) -> bool:
    return fit_one_by_one(scene, scene.shapes, [f"{look} {place}"])


@EASY.pattern(r"(.+)")
def lists_in_reading_order(scene: Scene, text: str) -> bool:
    """Return whether all shapes are listed row by row, from the left."""
    text = re.sub(r"\b(the picture contains|an?|the|is) ", "", text)
    descriptions = re.split(" and | at ", text.removeprefix("at "))
    shapes = sorted(scene.shapes, key=lambda shape: cell_of(shape, 3))
    return fit_one_by_one(scene, shapes, descriptions)


def fit_one_by_one(scene: Scene, shapes: Sequence[Shape], descriptions: Sequence[str]) -> bool:
    if len(shapes) != len(descriptions):
        return False
    for shape, description in zip(shapes, descriptions, strict=True):
        if not fits(scene, shape, description):
            return False
    return True


def fits(scene: Scene, shape: Shape, description: str) -> bool:
    """Return whether every word is true of the shape, and a place is named in full."""
    words = set(description.split())
    look = {size_of(scene, shape), shape.color, shape.kind}
    place = words - look
    names_shape = {shape.color, shape.kind} <= words
    return names_shape and (not place or place == set(place_of(shape).split()))


# Hard scenes


@LINE_OR_COUNT.pattern(r"there are (.+) on (\w+)")
def counts_all_on_background(scene: Scene, text: str, background: str) -> bool:
    return background == scene.background and counts_all(scene, text)


@LINE_OR_COUNT.pattern(r"(row|column) (\w+) contains (.+)")
def lists_a_line(
    scene: Scene,
    line: str,
    number: str,
    looks: str,
) -> bool:
    """Return whether all shapes of a row or column are listed in their order."""
    axis = ("row", "column").index(line)
    expected = []
    for shape in sorted(scene.shapes, key=lambda shape: cell_of(shape, 4)):
        if cell_of(shape, 4)[axis] + 1 == NUMBERS.index(number):
            expected.append(f"a {look_of(scene, shape)}")
    return looks.split(" and ") == expected


@PLACE_OR_RELATION.pattern(r"a (.+) is at row (\w+) column (\w+)")
def names_a_cell(
    scene: Scene,
    look: str,
    row: str,
    column: str,
) -> bool:
    cell = (NUMBERS.index(row) - 1, NUMBERS.index(column) - 1)
    return cell in [cell_of(shape, 4) for shape in shapes_that_look(scene, look)]


@PLACE_OR_RELATION.pattern(r"a (.+) is directly (above|left of) a (.+)")
def names_a_neighbor(
    scene: Scene,
    look: str,
    side: str,
    neighbor_look: str,
) -> bool:
    for shape in shapes_that_look(scene, look):
        for neighbor in shapes_that_look(scene, neighbor_look):
            if is_next_to(shape, side, neighbor):
                return True
    return False


def shapes_that_look(scene: Scene, look: str) -> list[Shape]:
    return [shape for shape in scene.shapes if look_of(scene, shape) == look]
