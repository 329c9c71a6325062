"""Captions of scenes.

The wording varies by template, never by synonym, and every template mentions shapes in one fixed order. So what a
hidden word was follows from the picture and the other words, while the words alone say little: most of them are
colours, kinds, sizes, places and counts, drawn independently. Some speak as questions and statements do ("the picture
contains a red circle", "there are two stars"): a model that will answer questions should have read such words.

A caption is complete in what it lists ("red circle top left" means that nothing else is there). Hence a caption is true
of a scene exactly if it is one of `all_captions` of that scene.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from operator import attrgetter
from random import Random

from eve_vl.data.scenes.world import COLORS, KINDS, MAX_SHAPES, Scene, Shape, pick, pick_distinct

CAPTIONS_PER_SCENE = 4
NUMBERS = ("zero", "one", "two", "three", "four")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
PLURALS = {kind: "crosses" if kind == "cross" else kind + "s" for kind in KINDS}


def captions(scene: Scene) -> tuple[str, ...]:
    """Return CAPTIONS_PER_SCENE true captions of the scene, each of another template, chosen by its seed."""
    rng = Random(scene.seed)
    return tuple(pick(rng, wordings) for wordings in pick_distinct(rng, _by_template(scene), CAPTIONS_PER_SCENE))


def all_captions(scene: Scene) -> list[str]:
    """Return every caption that is true of the scene."""
    return [caption for wordings in _by_template(scene) for caption in wordings]


def _by_template(scene: Scene) -> list[list[str]]:
    """Return the true captions of each template that applies."""
    captions = [[caption] for template in TEMPLATES if (caption := template(scene)) is not None]
    return [*captions, _there_or_not(scene)]


def caption_is_true(scene: Scene, caption: str) -> bool:
    """Whether a caption, perhaps of another scene, is true of this one."""
    return caption in all_captions(scene)


def article(word: str) -> str:
    """Return "a" or "an", whichever stands before a word of these captions."""
    return "an" if word == "orange" else "a"


def place_words(shape: Shape) -> str:
    """Return where a shape stands: "top left", "top", …, "middle", …, "bottom right"."""
    return PLACES[shape.row][shape.column]


def _full(shape: Shape) -> str:
    return f"{shape.size} {shape.color} {shape.kind}"


def _short(shape: Shape) -> str:
    return f"{shape.color} {shape.kind}"


def _name_for(scene: Scene) -> Callable[[Shape], str]:
    """How to name shapes: with sizes, unless the caption would become too long."""
    return _short if len(scene.shapes) == MAX_SHAPES else _full


def _on(scene: Scene) -> str:
    return f"on {scene.background}"


# Templates: the caption, or None where the template does not apply.


def _name_then_place(scene: Scene) -> str:
    name = _name_for(scene)
    listed = " and ".join(f"{name(shape)} {place_words(shape)}" for shape in scene.reading_order)
    return f"{listed} {_on(scene)}" if len(scene.shapes) == 1 else listed


def _place_then_name(scene: Scene) -> str:
    name = _name_for(scene)
    return " ".join(f"at {place_words(shape)} {name(shape)}" for shape in scene.reading_order)


def _background_first(scene: Scene) -> str:
    return f"{_on(scene)} {' and '.join(_full(shape) for shape in scene.reading_order)}"


def _one(scene: Scene) -> str | None:
    if len(scene.shapes) != 1:
        return None
    shape = scene.shapes[0]
    return f"one {_full(shape)} at {place_words(shape)} {_on(scene)}"


def _contains(scene: Scene) -> str:
    listed = (f"{article(shape.color)} {_short(shape)}" for shape in scene.reading_order)
    return f"the picture contains {' and '.join(listed)}"


def _kinds_are(scene: Scene) -> str | None:
    if len(scene.shapes) == MAX_SHAPES or len({shape.kind for shape in scene.shapes}) < len(scene.shapes):
        return None
    return f"{_on(scene)} {' and '.join(f'the {shape.kind} is {shape.color}' for shape in scene.reading_order)}"


def _color_counts(scene: Scene) -> str | None:
    counts = _counts(scene, (shape.color for shape in scene.shapes), COLORS)
    groups = (f"{NUMBERS[count]} {color} {'shapes' if count > 1 else 'shape'}" for color, count in counts)
    return f"there are {' and '.join(groups)} {_on(scene)}" if counts else None


def _kind_counts(scene: Scene) -> str | None:
    counts = _counts(scene, (shape.kind for shape in scene.shapes), KINDS)
    groups = (f"{NUMBERS[count]} {PLURALS[kind] if count > 1 else kind}" for kind, count in counts)
    return f"there are {' and '.join(groups)} {_on(scene)}" if counts else None


def _counts(scene: Scene, values: Iterable[str], order: Iterable[str]) -> list[tuple[str, int]]:
    """Return each value that occurs and how often, in the given order; nothing for a single shape."""
    count_of = Counter(values)
    return [(value, count) for value in order if (count := count_of[value])] if len(scene.shapes) > 1 else []


def _in_line(scene: Scene, side: str) -> list[Shape]:
    """The shapes in order of their column or row if there are two or three, each in one of its own; otherwise none."""
    shapes = sorted(scene.shapes, key=attrgetter(side))
    distinct = len({getattr(shape, side) for shape in shapes}) == len(shapes)
    return shapes if distinct and len(shapes) > 1 else []


def _left_to_right(scene: Scene) -> str | None:
    shapes = _in_line(scene, "column")
    return f"left to right {' then '.join(_full(shape) for shape in shapes)}" if shapes else None


def _top_to_bottom(scene: Scene) -> str | None:
    shapes = _in_line(scene, "row")
    return f"top down {' then '.join(_full(shape) for shape in shapes)}" if shapes else None


def _left_of(scene: Scene) -> str | None:
    shapes = _in_line(scene, "column")
    return f"{' left of '.join(_short(shape) for shape in shapes)} {_on(scene)}" if shapes else None


def _above(scene: Scene) -> str | None:
    shapes = _in_line(scene, "row")
    return f"{' above '.join(_short(shape) for shape in shapes)} {_on(scene)}" if shapes else None


def _outermost(scene: Scene, side: str) -> tuple[Shape, Shape] | None:
    """The first and the last shape by column or row, unless one shares its column or row with the next."""
    shapes = sorted(scene.shapes, key=attrgetter(side))
    places = [getattr(shape, side) for shape in shapes]
    return None if len(shapes) == 1 or places[0] == places[1] or places[-1] == places[-2] else (shapes[0], shapes[-1])


def _leftmost_rightmost(scene: Scene) -> str | None:
    ends = _outermost(scene, "column")
    return f"leftmost {_full(ends[0])} and rightmost {_full(ends[1])}" if ends else None


def _highest_lowest(scene: Scene) -> str | None:
    ends = _outermost(scene, "row")
    return f"highest is {_full(ends[0])} and lowest is {_full(ends[1])}" if ends else None


def _there_or_not(scene: Scene) -> list[str]:
    """What is not there is named as well, so that hidden words ask to check visible ones against the picture.

    One or two values that are missing, from any start: neither number nor place tells what is there.
    """
    kinds, colors = {shape.kind for shape in scene.shapes}, {shape.color for shape in scene.shapes}
    return [*_with_missing(KINDS, kinds, "a"), *_with_missing(tuple(COLORS), colors, "some")]


def _with_missing(values: Sequence[str], shown: set[str], word: str) -> list[str]:
    missing = [value for value in values if value not in shown]
    captions = []
    for named in (*combinations(missing, 1), *combinations(missing, 2)):
        parts = [f"{word if value in shown else 'no'} {value}" for value in values if value in shown or value in named]
        captions += [" ".join(parts[start:] + parts[:start]) for start in range(len(parts))]
    return captions


TEMPLATES: tuple[Callable[[Scene], str | None], ...] = (
    _name_then_place,
    _place_then_name,
    _background_first,
    _one,
    _contains,
    _kinds_are,
    _color_counts,
    _kind_counts,
    _left_to_right,
    _top_to_bottom,
    _left_of,
    _above,
    _leftmost_rightmost,
    _highest_lowest,
)
