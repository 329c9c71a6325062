"""Captions of scenes, statements about two, and pairs of items.

The wording varies by template, never by synonym, and every template mentions shapes in one fixed order. So a masked word
follows from the image and the other words. The words without the image say little: most of them are colours, kinds, sizes,
places and counts, sampled independently. Some captions speak as questions and statements do ("the image contains a red
circle", "there are two stars"), because a model that will answer questions should have read these words.

A caption is complete in what it lists: "red circle top left" means that nothing else is there. Hence a caption is true
of a scene exactly if it is one of `all_captions` of that scene.

Captions of hard scenes have two sentences. The first counts all shapes, or lists those of one row or column. The second
names the cell of a shape, or relates two adjacent shapes.

Statements are true or false; items are the same or not.

Statements follow NLVR2 (Suhr et al. 2019). For every wording both labels are equally likely. Some statements are about one
scene, as in NLVR2. For most others, each scene has the same distribution under both labels, so that neither decides the
label. Exceptions are "both …" and "more …", where one scene is informative by nature.

Items follow the pairs of goods in MLIM. The image of an item shows one or two shapes; its text describes one more shape, so
each carries half of the evidence. The same item is sampled with other light and other words. A different item differs in
one attribute of one shape, half of the time of a visible one and half of the time of the described one. Among pairs
with equal images, and among pairs with equal texts, fewer than half are the same item. In hard splits, the image shows as
many shapes as any hard scene.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, groupby, permutations
from operator import attrgetter
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted, stream
from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.world import (
    NUMBERS,
    SIDES,
    SIZES,
    WORLDS,
    Draft,
    Look,
    Scene,
    Shape,
    pairs_of,
    sample_pair,
)

SHARE_SAME = 0.3
SHARE_TWO_SHAPES = 0.4
_MAX_COUNT = 3  # of one look in one scene

StatementDraft = tuple[str, Draft, Draft]
"""Statement, constraints on the left and on the right scene."""


class Statement(NamedTuple):
    """Two scenes, a statement about both, and whether it is true.

    `kind` is one of STATEMENT_KINDS.
    """

    left: Scene
    right: Scene
    statement: str
    label: bool
    kind: str


class Items(NamedTuple):
    """Two items, and whether they are the same item."""

    scenes: tuple[Scene, Scene]
    texts: tuple[str, str]
    label: bool


def sample_statement(split: str, seed: int, index: int) -> Statement:
    """Sample statement `index` of a split, a pure function of the arguments."""
    rng = stream("statement", split, seed, index)
    is_hard = WORLDS[split].is_hard  # without "shows": a caption of one shape is too easy
    kind = pick(
        rng, STATEMENT_KINDS[1:] if is_hard else ("shows",) * 4 + STATEMENT_KINDS
    )  # captions are a third of all
    label = rng.random() < 0.5
    statement, *drafts = _STATEMENTS[kind](rng, split, label)
    left, right = (world.compose_draft(rng, split, draft) for draft in drafts)
    return Statement(left, right, statement, label, kind)


def sample_items(split: str, seed: int, index: int) -> Items:
    """Sample pair `index` of a split, a pure function of the arguments."""
    rng = stream("items", split, seed, index)
    own = WORLDS[split]
    num_more = (
        pick_weighted(rng, own.num_shapes_weights)
        if own.is_hard
        else rng.random() < SHARE_TWO_SHAPES
    )
    shown = world.sample_looks(rng, split, own.min_shapes + num_more)
    (described,) = world.sample_looks(rng, split, 1)
    label, differs_in_image = rng.random() < SHARE_SAME, rng.random() < 0.5
    others, other = [*shown], described
    if not label and differs_in_image:
        while sorted(others) == sorted(shown):
            others = [*shown]
            place = int(rng.random() * len(shown))
            others[place] = _changed(rng, split, shown[place])
    elif not label:
        other = _changed(rng, split, described)
    first, second = pick_distinct(rng, range(4), 2)
    cells = pick_distinct(rng, range(len(own.places)), len(shown))
    scenes = world.compose(rng, own, shown, cells), world.compose(rng, own, others, cells)
    return Items(scenes, (_wordings(described)[first], _wordings(other)[second]), label)


# Statements


def _counts(statement: str, look: Look, counts: Sequence[int]) -> StatementDraft:
    left, right = (Draft([look] * count, [look]) for count in counts)
    return statement, left, right


def _simple(rng: Random, split: str) -> tuple[Look, Look]:
    return Look(color=pick(rng, WORLDS[split].color)), Look(kind=pick(rng, WORLDS[split].kind))


def _one_of(rng: Random, split: str) -> Look:
    """Sample a look that an image may or may not have."""
    return pick(rng, (sample_pair(rng, split), *_simple(rng, split)))


def _shows(rng: Random, split: str, label: bool) -> StatementDraft:
    """State that a whole caption is true of either image.

    If the statement is false, all three are independent.
    """
    claimed, other, another = (_single(rng, split) for _ in range(3))
    in_words = f"one {claimed.wanted[0].singular} at {WORLDS[split].places[claimed.cells[0]]} on {claimed.background}"
    images = pick_distinct(rng, (claimed if label else another, other), 2)
    if (claimed in images) != label:
        return _shows(rng, split, label)
    return f"one of the pictures shows {in_words}", images[0], images[1]


def _single(rng: Random, split: str) -> Draft:
    look = sample_pair(rng, split)._replace(size=pick(rng, SIZES))
    cell, background = (
        int(rng.random() * len(WORLDS[split].places)),
        pick(rng, tuple(world.BACKGROUNDS)),
    )
    return Draft([look], cells=[cell], num_shapes=1, background=background)


def _side(rng: Random, split: str, label: bool) -> StatementDraft:
    look, side = _one_of(rng, split), pick(rng, SIDES)
    counts = int(label), int(rng.random() < 0.5)
    return _counts(
        f"the {side} picture contains {look.with_article}",
        look,
        counts if side == "left" else counts[::-1],
    )


def _side_number(rng: Random, split: str, label: bool) -> StatementDraft:
    look, side = pick(rng, _simple(rng, split)), pick(rng, SIDES)
    claimed, other = pick_distinct(rng, (1, 2, _MAX_COUNT), 2)
    name = look.plural if claimed > 1 else look.singular
    counts = claimed if label else other, pick(rng, range(_MAX_COUNT + 1))
    statement = f"the {side} picture contains {NUMBERS[claimed]} {name}"
    return _counts(statement, look, counts if side == "left" else counts[::-1])


def _both(rng: Random, split: str, label: bool) -> StatementDraft:
    look = _one_of(rng, split)
    counts = (1, 1) if label else pick(rng, ((0, 1), (1, 0)))
    return _counts(f"both pictures contain {look.with_article}", look, counts)


def _only_one(rng: Random, split: str, label: bool) -> StatementDraft:
    look = _one_of(rng, split)
    counts = pick(rng, ((0, 1), (1, 0)) if label else ((0, 0), (1, 1)))
    return _counts(f"only one picture contains {look.with_article}", look, counts)


def _total(rng: Random, split: str, label: bool) -> StatementDraft:
    look, total = pick(rng, _simple(rng, split)), pick(rng, (2, 3, 4))
    left, other = pick_distinct(
        rng, range(max(0, total - _MAX_COUNT), min(total, _MAX_COUNT) + 1), 2
    )
    counts = (left, total - left if label else total - other)
    return _counts(f"there are {NUMBERS[total]} {look.plural} in total", look, counts)


def _same_number(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _simple(rng, split))
    left, other = pick_distinct(rng, range(_MAX_COUNT + 1), 2)
    return _counts(
        f"both pictures contain the same number of {look.plural}",
        look,
        (left, left if label else other),
    )


def _more(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _simple(rng, split))
    first, second = pick_distinct(rng, SIDES, 2)
    low = int(rng.random() * _MAX_COUNT)
    counts = (low + 1, low) if label == (first == "left") else (low, low + 1)
    return _counts(
        f"the {first} picture contains more {look.plural} than the {second} picture", look, counts
    )


def _same_color(rng: Random, split: str, label: bool) -> StatementDraft:
    avoid = Look(kind=pick(rng, WORLDS[split].kind))
    left, other = pick_distinct(rng, pairs_of(split, avoid), 2)
    drafts = Draft([Look(*left)], [avoid]), Draft([Look(*(left if label else other))], [avoid])
    return f"the {avoid.kind} has the same color in both pictures", *drafts


def _same_kind(rng: Random, split: str, label: bool) -> StatementDraft:
    avoid = Look(color=pick(rng, WORLDS[split].color))
    left, other = pick_distinct(rng, pairs_of(split, avoid), 2)
    drafts = Draft([Look(*left)], [avoid]), Draft([Look(*(left if label else other))], [avoid])
    return f"the {avoid.color} shape is the same kind in both pictures", *drafts


def _same_background(rng: Random, split: str, label: bool) -> StatementDraft:
    left, other = pick_distinct(rng, tuple(world.BACKGROUNDS), 2)
    return (
        "both pictures have the same background",
        Draft(background=left),
        Draft(background=left if label else other),
    )


_ABOUT_NUMBERS = (_side, _side_number, _both, _only_one, _total, _same_number, _more)
_STATEMENTS = {
    template.__name__.removeprefix("_"): template
    for template in (_shows, *_ABOUT_NUMBERS, _same_color, _same_kind, _same_background)
}
STATEMENT_KINDS = tuple(_STATEMENTS)


# Items


def _wordings(look: Look) -> tuple[str, str, str, str]:
    size, color, kind = look.size, look.color, look.kind
    return (
        f"one {size} {color} {kind}",
        f"{world.article(size)} {size} {kind} and it is {color}",
        f"the {kind} is {size} and {color}",
        f"there is {world.article(color)} {color} {kind} and it is {size}",
    )


def _changed(rng: Random, split: str, look: Look) -> Look:
    """Return a look that differs in kind, colour or size."""
    name = pick(rng, ("kind", "color", "size"))
    others = [
        look._replace(**{name: value})
        for value in getattr(WORLDS[split], name)
        if value != getattr(look, name)
    ]
    return pick(rng, [other for other in others if other[:2] in pairs_of(split)])


# Captions

CAPTIONS_PER_SCENE = 4


def captions(scene: Scene) -> tuple[str, ...]:
    """Return CAPTIONS_PER_SCENE true captions of the scene.

    The scene's seed chooses different templates.
    """
    rng = Random(scene.seed)
    return tuple(
        pick(rng, wordings)
        for wordings in pick_distinct(rng, _by_template(scene), CAPTIONS_PER_SCENE)
    )


def all_captions(scene: Scene) -> list[str]:
    """Return every caption that is true of the scene."""
    return [caption for wordings in _by_template(scene) for caption in wordings]


def _by_template(scene: Scene) -> list[list[str]]:
    """Return the true captions of each template that applies."""
    if scene.world.is_hard:
        seconds = [*_that_place_one(scene), *_that_relate_two(scene)]
        counts, lines = (
            [[count] for count in _that_count(scene)],
            [_that_list("row", scene), _that_list("column", scene)],
        )
        return [
            [f"{first}. {second}" for first in firsts for second in seconds]
            for firsts in (*counts, *lines)
        ]
    captions = (*_that_list_shapes(scene), *_that_count(scene), *_that_compare_places(scene))
    kinds, colors = (
        frozenset(getattr(shape, name) for shape in scene.shapes) for name in ("kind", "color")
    )
    there_or_not = [
        *_with_missing(scene.world.kind, kinds, "a"),
        *_with_missing(scene.world.color, colors, "some"),
    ]
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
    shapes, on = (
        sorted(scene.shapes, key=attrgetter("row", "column")),
        f"on {scene.background}",
    )  # in reading order
    name = (
        _short if len(shapes) == scene.world.max_shapes else _full
    )  # with sizes, unless the caption would become too long
    listed = " and ".join(f"{name(shape)} {_place(scene, shape)}" for shape in shapes)
    yield f"{listed} {on}" if len(shapes) == 1 else listed
    yield " ".join(f"at {_place(scene, shape)} {name(shape)}" for shape in shapes)
    yield f"{on} {' and '.join(map(_full, shapes))}"
    if len(shapes) == 1:
        yield f"one {_full(shapes[0])} at {_place(scene, shapes[0])} {on}"
    yield f"the picture contains {' and '.join(f'{world.article(shape.color)} {_short(shape)}' for shape in shapes)}"
    if len({shape.kind for shape in shapes}) == len(shapes) < scene.world.max_shapes:
        yield f"{on} {' and '.join(f'the {shape.kind} is {shape.color}' for shape in shapes)}"


def _that_count(scene: Scene) -> Iterator[str]:
    if len(scene.shapes) == 1:
        return
    colors, kinds = (
        Counter(shape.color for shape in scene.shapes),
        Counter(shape.kind for shape in scene.shapes),
    )
    of_colors = [
        f"{NUMBERS[num]} {color} shape{'s' * (num > 1)}"
        for color in scene.world.color
        if (num := colors[color])
    ]
    names = {kind: world.PLURALS[kind] if kinds[kind] > 1 else kind for kind in scene.world.kind}
    of_kinds = [f"{NUMBERS[kinds[kind]]} {name}" for kind, name in names.items() if kinds[kind]]
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
    for side, first, last in (
        ("column", "leftmost", "rightmost"),
        ("row", "highest is", "lowest is"),
    ):
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
        parts = [
            f"{word if value in shown else 'no'} {value}"
            for value in values
            if value in shown or value in named
        ]
        captions += [" ".join(parts[start:] + parts[:start]) for start in range(len(parts))]
    return captions
