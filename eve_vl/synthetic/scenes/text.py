"""Captions of scenes.

The wording varies by template, never by synonym, and every template mentions shapes in one fixed order. So a masked word
follows from the image and the other words. The words without the image say little: most of them are colours, kinds, sizes,
places and counts, sampled independently. Some captions speak as questions and statements do ("the image contains a red
circle", "there are two stars"), because a model that will answer questions should have read these words.

A caption is complete in what it lists: "red circle top left" means that nothing else is there. Hence a caption is true
of a scene exactly if it is one of `all_captions` of that scene.

Captions of hard scenes have two sentences. The first counts all shapes, or lists those of one row or column. The second
names the cell of a shape, or relates two adjacent shapes.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import combinations, groupby, permutations
from operator import attrgetter
from random import Random

from eve_vl.synthetic import pick, pick_distinct
from eve_vl.synthetic.scenes.world import NUMBERS, PLURALS, Scene, Shape, article

CAPTIONS_PER_SCENE = 4


def captions(scene: Scene) -> tuple[str, ...]:
    """Return CAPTIONS_PER_SCENE true captions of the scene.

    The scene's seed chooses different templates.
    """
    rng = Random(scene.seed)
    return tuple(pick(rng, wordings) for wordings in pick_distinct(rng, _by_template(scene), CAPTIONS_PER_SCENE))


def all_captions(scene: Scene) -> list[str]:
    """Return every caption that is true of the scene."""
    return [caption for wordings in _by_template(scene) for caption in wordings]


def _by_template(scene: Scene) -> list[list[str]]:
    """Return the true captions of each template that applies."""
    if scene.world.is_hard:
        seconds = [*_that_place_one(scene), *_that_relate_two(scene)]
        counts, lines = [[count] for count in _that_count(scene)], [_that_list("row", scene), _that_list("column", scene)]
        return [[f"{first}. {second}" for first in firsts for second in seconds] for firsts in (*counts, *lines)]
    captions = (*_that_list_shapes(scene), *_that_count(scene), *_that_compare_places(scene))
    kinds, colors = (frozenset(getattr(shape, name) for shape in scene.shapes) for name in ("kind", "color"))
    there_or_not = [*_with_missing(scene.world.kind, kinds, "a"), *_with_missing(scene.world.color, colors, "some")]
    return [*([caption] for caption in captions), there_or_not]


def _place(scene: Scene, shape: Shape) -> str:
    return scene.world.places[shape.row * len(scene.world.anchors) + shape.column]


def _full(shape: Shape) -> str:
    return f"{shape.size} {shape.color} {shape.kind}"


def _with_article(shape: Shape) -> str:
    return f"a {_full(shape)}"


def _short(shape: Shape) -> str:
    return f"{shape.color} {shape.kind}"


# Templates. They yield nothing for scenes that they do not fit.


def _that_list_shapes(scene: Scene) -> Iterator[str]:
    shapes, on = sorted(scene.shapes, key=attrgetter("row", "column")), f"on {scene.background}"  # in reading order
    name = _short if len(shapes) == scene.world.max_shapes else _full  # with sizes, unless the caption would become too long
    listed = " and ".join(f"{name(shape)} {_place(scene, shape)}" for shape in shapes)
    yield f"{listed} {on}" if len(shapes) == 1 else listed
    yield " ".join(f"at {_place(scene, shape)} {name(shape)}" for shape in shapes)
    yield f"{on} {' and '.join(map(_full, shapes))}"
    if len(shapes) == 1:
        yield f"one {_full(shapes[0])} at {_place(scene, shapes[0])} {on}"
    yield f"the picture contains {' and '.join(f'{article(shape.color)} {_short(shape)}' for shape in shapes)}"
    if len({shape.kind for shape in shapes}) == len(shapes) < scene.world.max_shapes:
        yield f"{on} {' and '.join(f'the {shape.kind} is {shape.color}' for shape in shapes)}"


def _that_count(scene: Scene) -> Iterator[str]:
    if len(scene.shapes) == 1:
        return
    colors, kinds = Counter(shape.color for shape in scene.shapes), Counter(shape.kind for shape in scene.shapes)
    of_colors = [
        f"{NUMBERS[num]} {color} {'shapes' if num > 1 else 'shape'}" for color in scene.world.color if (num := colors[color])
    ]
    of_kinds = [f"{NUMBERS[num]} {PLURALS[kind] if num > 1 else kind}" for kind in scene.world.kind if (num := kinds[kind])]
    for groups in (of_colors, of_kinds):
        yield f"there are {' and '.join(groups)} on {scene.background}"


def _that_compare_places(scene: Scene) -> Iterator[str]:
    """Compare two or three shapes that differ in column or row.

    Then compare the first and last shape if no other is in their line.
    """
    if len(scene.shapes) == 1:
        return
    sorted_by = {side: sorted(scene.shapes, key=attrgetter(side)) for side in ("column", "row")}
    lines = {side: [getattr(shape, side) for shape in shapes] for side, shapes in sorted_by.items()}
    distinct = [side for side, places in lines.items() if len(set(places)) == len(places)]
    for side in distinct:
        yield f"{'left to right' if side == 'column' else 'top down'} {' then '.join(map(_full, sorted_by[side]))}"
    for side in distinct:
        relation = " left of " if side == "column" else " above "
        yield f"{relation.join(map(_short, sorted_by[side]))} on {scene.background}"
    for side, first, last in (("column", "leftmost", "rightmost"), ("row", "highest is", "lowest is")):
        (one, *_, other), places = sorted_by[side], lines[side]
        if places[0] != places[1] and places[-1] != places[-2]:
            yield f"{first} {_full(one)} and {last} {_full(other)}"


def _that_list(line: str, scene: Scene) -> Iterator[str]:
    """List the shapes of one row or of one column."""
    shapes = sorted(scene.shapes, key=attrgetter(line, "row", "column"))
    for number, group in groupby(shapes, attrgetter(line)):
        yield f"{line} {NUMBERS[number + 1]} contains {' and '.join(map(_with_article, group))}"


def _that_place_one(scene: Scene) -> Iterator[str]:
    for shape in scene.shapes:
        yield f"{_with_article(shape)} is at {_place(scene, shape)}"


def _that_relate_two(scene: Scene) -> Iterator[str]:
    for one, other in permutations(scene.shapes, 2):
        for side, steps in (("left of", (0, 1)), ("above", (1, 0))):
            if (other.row - one.row, other.column - one.column) == steps:
                yield f"{_with_article(one)} is directly {side} {_with_article(other)}"


@cache
def _with_missing(values: tuple[str, ...], shown: frozenset[str], word: str) -> list[str]:
    """Name missing values, too.

    A masked word then requires checking the visible ones against the image. One or two missing values, from any start, so that
    neither number nor position reveals which are present.
    """
    missing = [value for value in values if value not in shown]
    captions = []
    for named in (*combinations(missing, 1), *combinations(missing, 2)):
        parts = [f"{word if value in shown else 'no'} {value}" for value in values if value in shown or value in named]
        captions += [" ".join(parts[start:] + parts[:start]) for start in range(len(parts))]
    return captions
