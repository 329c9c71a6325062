"""Captions of scenes.

The wording varies by template, never by synonym, and every template mentions shapes in one fixed
order. So a masked word follows from the image and the other words. The words without the image say
little: most of them are colours, kinds, sizes, places and counts, sampled independently. Some
captions speak as questions and statements do ("the image contains a red circle", "there are two
stars"), because a model that will answer questions should have read these words.

A caption is complete in what it lists: "red circle top left" means that nothing else is there.
Hence a caption is true of a scene exactly if it is one of `all_captions` of that scene.

Captions of hard scenes have two sentences. The first counts all shapes, or lists those of one row
or column. The second names the cell of a shape, or relates two adjacent shapes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, groupby, permutations
from operator import attrgetter
from random import Random

from eve_vl.synthetic.random_choices import pick, pick_distinct
from eve_vl.synthetic.scenes.world import NUMBERS, PLURALS, Scene, Shape, article

CAPTIONS_PER_SCENE = 4


def captions(scene: Scene) -> tuple[str, ...]:
    """Return CAPTIONS_PER_SCENE true captions of the scene.

    The scene's seed chooses different templates.
    """
    rng = Random(scene.seed)
    templates = pick_distinct(rng, _captions_by_template(scene), CAPTIONS_PER_SCENE)
    return tuple(pick(rng, wordings) for wordings in templates)


def all_captions(scene: Scene) -> list[str]:
    """Return every caption that is true of the scene."""
    return [caption for wordings in _captions_by_template(scene) for caption in wordings]


def _captions_by_template(scene: Scene) -> list[list[str]]:
    """Return the true captions of each template that applies."""
    if scene.world.is_hard:
        return _hard_captions(scene)
    captions = [*_shape_lists(scene), *_counts(scene), *_comparisons(scene)]
    kinds = frozenset(shape.kind for shape in scene.shapes)
    colors = frozenset(shape.color for shape in scene.shapes)
    present_and_missing = [
        *_with_missing(scene.world.kinds, kinds, "a"),
        *_with_missing(scene.world.colors, colors, "some"),
    ]
    return [*([caption] for caption in captions), present_and_missing]


def _hard_captions(scene: Scene) -> list[list[str]]:
    """Return the captions of two sentences, by the template of the first one."""
    first_sentences = [[count] for count in _counts(scene)]
    first_sentences.append(list(_line_lists("row", scene)))
    first_sentences.append(list(_line_lists("column", scene)))
    second_sentences = [*_places(scene), *_relations(scene)]

    captions = []
    for firsts in first_sentences:
        wordings = [f"{first}. {second}" for first in firsts for second in second_sentences]
        captions.append(wordings)
    return captions


# Words


def _place(scene: Scene, shape: Shape) -> str:
    return scene.world.places[shape.row * len(scene.world.anchors) + shape.column]


def _full_name(shape: Shape) -> str:
    return f"{shape.size} {shape.color} {shape.kind}"


def _short_name(shape: Shape) -> str:
    return f"{shape.color} {shape.kind}"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(words)


# Templates. They yield nothing for scenes that they do not fit.


def _shape_lists(scene: Scene) -> Iterator[str]:
    """List all shapes in reading order."""
    shapes = sorted(scene.shapes, key=attrgetter("row", "column"))
    is_full = len(shapes) == scene.world.max_shapes
    is_single = len(shapes) == 1
    background = f"on {scene.background}"
    full_names = [_full_name(shape) for shape in shapes]
    short_names = [_short_name(shape) for shape in shapes]
    places = [_place(scene, shape) for shape in shapes]
    names = short_names if is_full else full_names  # the longest captions leave out sizes

    named_at_places = list(zip(names, places, strict=True))
    placed = _joined([f"{name} {place}" for name, place in named_at_places])
    yield f"{placed} {background}" if is_single else placed
    yield " ".join(f"at {place} {name}" for name, place in named_at_places)
    yield f"{background} {_joined(full_names)}"
    if is_single:
        yield f"one {full_names[0]} at {places[0]} {background}"
    with_articles = [f"{article(shape.color)} {_short_name(shape)}" for shape in shapes]
    yield f"the picture contains {_joined(with_articles)}"
    has_distinct_kinds = len({shape.kind for shape in shapes}) == len(shapes)
    if has_distinct_kinds and not is_full:
        colors = [f"the {shape.kind} is {shape.color}" for shape in shapes]
        yield f"{background} {_joined(colors)}"


def _counts(scene: Scene) -> Iterator[str]:
    """Count the shapes of each colour and of each kind."""
    if len(scene.shapes) == 1:
        return
    num_of_color = Counter(shape.color for shape in scene.shapes)
    colors = []
    for color in scene.world.colors:
        if color in num_of_color:
            noun = "shapes" if num_of_color[color] > 1 else "shape"
            colors.append(f"{NUMBERS[num_of_color[color]]} {color} {noun}")

    num_of_kind = Counter(shape.kind for shape in scene.shapes)
    kinds = []
    for kind in scene.world.kinds:
        if kind in num_of_kind:
            noun = PLURALS[kind] if num_of_kind[kind] > 1 else kind
            kinds.append(f"{NUMBERS[num_of_kind[kind]]} {noun}")

    for groups in (colors, kinds):
        yield f"there are {_joined(groups)} on {scene.background}"


def _comparisons(scene: Scene) -> Iterator[str]:
    """Compare all shapes that differ in column or row.

    Then compare the first and the last shape if no other shape is in their line.
    """
    if len(scene.shapes) == 1:
        return
    by_column = sorted(scene.shapes, key=attrgetter("column"))
    by_row = sorted(scene.shapes, key=attrgetter("row"))
    columns = [shape.column for shape in by_column]
    rows = [shape.row for shape in by_row]
    are_columns_distinct = len(set(columns)) == len(columns)
    are_rows_distinct = len(set(rows)) == len(rows)

    if are_columns_distinct:
        yield f"left to right {' then '.join(map(_full_name, by_column))}"
    if are_rows_distinct:
        yield f"top down {' then '.join(map(_full_name, by_row))}"
    if are_columns_distinct:
        yield f"{' left of '.join(map(_short_name, by_column))} on {scene.background}"
    if are_rows_distinct:
        yield f"{' above '.join(map(_short_name, by_row))} on {scene.background}"
    if _has_single_ends(columns):
        yield f"leftmost {_full_name(by_column[0])} and rightmost {_full_name(by_column[-1])}"
    if _has_single_ends(rows):
        yield f"highest is {_full_name(by_row[0])} and lowest is {_full_name(by_row[-1])}"


def _has_single_ends(sorted_lines: Sequence[int]) -> bool:
    """Return whether the first and the last of sorted lines occur once."""
    return sorted_lines[0] != sorted_lines[1] and sorted_lines[-1] != sorted_lines[-2]


def _line_lists(line: str, scene: Scene) -> Iterator[str]:
    """List the shapes of one row or of one column."""
    shapes = sorted(scene.shapes, key=attrgetter(line, "row", "column"))
    for number, group in groupby(shapes, attrgetter(line)):
        names = [f"a {_full_name(shape)}" for shape in group]
        yield f"{line} {NUMBERS[number + 1]} contains {_joined(names)}"


def _places(scene: Scene) -> Iterator[str]:
    """Name the cell of one shape."""
    for shape in scene.shapes:
        yield f"a {_full_name(shape)} is at {_place(scene, shape)}"


def _relations(scene: Scene) -> Iterator[str]:
    """Relate two adjacent shapes."""
    for first, second in permutations(scene.shapes, 2):
        steps = (second.row - first.row, second.column - first.column)
        if steps == (0, 1):
            yield f"a {_full_name(first)} is directly left of a {_full_name(second)}"
        elif steps == (1, 0):
            yield f"a {_full_name(first)} is directly above a {_full_name(second)}"


@cache
def _with_missing(values: tuple[str, ...], present: frozenset[str], word: str) -> list[str]:
    """Name the present values, and one or two missing ones, from any start.

    A masked word then requires checking the visible ones against the image, and neither number nor
    position reveals which are present.
    """
    missing = [value for value in values if value not in present]
    captions = []
    for absent in (*combinations(missing, 1), *combinations(missing, 2)):
        parts = []
        for value in values:
            if value in present:
                parts.append(f"{word} {value}")
            elif value in absent:
                parts.append(f"no {value}")
        for start in range(len(parts)):
            captions.append(" ".join(parts[start:] + parts[:start]))
    return captions
