"""A reader of captions of scenes, which judges by centres and widths of shapes only."""

import re
from collections import Counter
from itertools import pairwise, product

from eve_vl.synthetic.scenes.world import COLORS, KINDS, Scene, Shape
from helpers.scene_lookup import NUMBERS, cell_of, is_next_to, place_of, singular, size_of

CLEAR_GAP = 0.2
"""Distance of two centres above which one is said to be left of the other, or above it."""
ORDERED_LISTS = (
    ("left to right ", " then ", "center_x"),
    ("top down ", " then ", "center_y"),
    ("", " left of ", "center_x"),
    ("", " above ", "center_y"),
)
"""Beginning, joint and coordinate of the captions that list shapes along an axis."""
ENDS = (
    (r"leftmost (.+) and rightmost (.+)", "center_x"),
    (r"highest is (.+) and lowest is (.+)", "center_y"),
)


def is_caption_true(scene: Scene, caption: str) -> bool:
    if not scene.world.is_hard:
        return _is_easy_caption_true(scene, caption)
    first, second = caption.split(". ")
    return _is_list_or_count_true(scene, first) and _is_place_or_relation_true(scene, second)


def _is_easy_caption_true(scene: Scene, caption: str) -> bool:
    background = re.search(r"\bon (\w+)", caption)
    if background and background[1] != scene.background:
        return False
    text = re.sub(r" ?\bon \w+ ?", "", caption)
    if " no " in f" {text}":
        return _names_present_and_missing(scene, text.split())
    if text.startswith("there are "):
        return _counts_all(scene, text.removeprefix("there are "))
    for pattern, coordinate in ENDS:
        names = re.fullmatch(pattern, text)
        if names:
            return _names_ends(scene, names[1], names[2], coordinate)
    for beginning, joint, coordinate in ORDERED_LISTS:
        if text.startswith(beginning) and joint in text:
            descriptions = text.removeprefix(beginning).split(joint)
            return _lists_along(scene, descriptions, coordinate)
    if text.startswith("one "):
        text = text.removeprefix("one ").replace(" at ", " ")
        return _lists_in_reading_order(scene, [text])
    text = re.sub(r"\b(the picture contains|an?|the|is) ", "", text)
    return _lists_in_reading_order(scene, re.split(" and | at ", text.removeprefix("at ")))


def _fits(scene: Scene, shape: Shape, description: str) -> bool:
    """Return whether every word is true of the shape, and a place is named in full."""
    words = set(description.split())
    look = {size_of(scene, shape), shape.color, shape.kind}
    place = words - look
    names_shape = {shape.color, shape.kind} <= words
    return names_shape and (not place or place == set(place_of(shape).split()))


def _fit_one_by_one(scene: Scene, shapes: list[Shape], descriptions: list[str]) -> bool:
    if len(shapes) != len(descriptions):
        return False
    pairs = zip(shapes, descriptions, strict=True)
    return all(_fits(scene, shape, description) for shape, description in pairs)


def _lists_along(scene: Scene, descriptions: list[str], coordinate: str) -> bool:
    """Return whether all shapes are listed along an axis, each clear of the one before it."""
    shapes = sorted(scene.shapes, key=lambda shape: getattr(shape, coordinate))
    centers = [getattr(shape, coordinate) for shape in shapes]
    is_clear = all(after - before > CLEAR_GAP for before, after in pairwise(centers))
    return is_clear and _fit_one_by_one(scene, shapes, descriptions)


def _lists_in_reading_order(scene: Scene, descriptions: list[str]) -> bool:
    shapes = sorted(scene.shapes, key=lambda shape: cell_of(shape, 3))
    return _fit_one_by_one(scene, shapes, descriptions)


def _names_ends(scene: Scene, first: str, last: str, coordinate: str) -> bool:
    shapes = sorted(scene.shapes, key=lambda shape: getattr(shape, coordinate))
    if len(shapes) < 2:
        return False
    centers = [getattr(shape, coordinate) for shape in shapes]
    is_first_clear = centers[1] - centers[0] > CLEAR_GAP
    is_last_clear = centers[-1] - centers[-2] > CLEAR_GAP
    are_named = _fits(scene, shapes[0], first) and _fits(scene, shapes[-1], last)
    return is_first_clear and is_last_clear and are_named


def _counts_all(scene: Scene, text: str) -> bool:
    """Return whether "two circles and one star", or "two red shapes", counts all shapes."""
    counts = {}
    for part in text.split(" and "):
        number, *words = singular(part).split()
        counts[words[0]] = NUMBERS.index(number)
    of_kind = Counter(shape.kind for shape in scene.shapes)
    of_color = Counter(shape.color for shape in scene.shapes)
    return counts in (of_kind, of_color)


def _names_present_and_missing(scene: Scene, words: list[str]) -> bool:
    """Return whether "a circle no star" names all present values and one or two missing ones.

    The values stand in the order of the world, from any start.
    """
    verdicts = dict(zip(words[1::2], words[::2], strict=True))
    if words[1] in KINDS:
        order = KINDS
        present = dict.fromkeys([shape.kind for shape in scene.shapes], "a")
    else:
        order = tuple(COLORS)
        present = dict.fromkeys([shape.color for shape in scene.shapes], "some")
    missing = dict.fromkeys(set(verdicts) - set(present), "no")
    places = [order.index(value) for value in words[1::2]]
    num_falls = sum(after <= before for before, after in pairwise([*places, places[0]]))
    return verdicts == present | missing and len(missing) in (1, 2) and num_falls == 1


def _hard_look(scene: Scene, shape: Shape) -> str:
    return f"a {size_of(scene, shape)} {shape.color} {shape.kind}"


def _is_list_or_count_true(scene: Scene, sentence: str) -> bool:
    """Read the first sentence about a hard scene."""
    counts = re.fullmatch(r"there are (.+) on (\w+)", sentence)
    if counts:
        return counts[2] == scene.background and _counts_all(scene, counts[1])
    line, number, looks = re.fullmatch(r"(row|column) (\w+) contains (.+)", sentence).groups()  # pyright: ignore[reportOptionalMemberAccess]
    axis = ("row", "column").index(line)
    shapes = [
        shape for shape in scene.shapes if cell_of(shape, 4)[axis] + 1 == NUMBERS.index(number)
    ]
    shapes.sort(key=lambda shape: cell_of(shape, 4))
    return looks.split(" and ") == [_hard_look(scene, shape) for shape in shapes]


def _is_place_or_relation_true(scene: Scene, sentence: str) -> bool:
    """Read the second sentence about a hard scene."""
    look, relation = re.fullmatch(r"(a .+) is (at .+|directly .+)", sentence).groups()  # pyright: ignore[reportOptionalMemberAccess]
    shapes = [shape for shape in scene.shapes if _hard_look(scene, shape) == look]
    place = re.fullmatch(r"at row (\w+) column (\w+)", relation)
    if place:
        cell = (NUMBERS.index(place[1]) - 1, NUMBERS.index(place[2]) - 1)
        return cell in [cell_of(shape, 4) for shape in shapes]
    side, neighbor_look = re.fullmatch(r"directly (above|left of) (a .+)", relation).groups()  # pyright: ignore[reportOptionalMemberAccess]
    neighbors = [shape for shape in scene.shapes if _hard_look(scene, shape) == neighbor_look]
    return any(is_next_to(*pair) for pair in product(shapes, [side], neighbors))
