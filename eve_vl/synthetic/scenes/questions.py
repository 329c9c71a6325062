"""Questions about one scene, statements about two, and pairs of items.

Statements are true or false; items are the same or not.

For every wording of a question the answer is sampled evenly from those that are plausible, so that none can be guessed
without the image: yes or no, zero to four, a colour, a kind, a size, a direction.

Statements follow NLVR2 (Suhr et al. 2019). For every wording both labels are equally likely. Some statements are about one
scene, as in NLVR2. For most others, each scene has the same distribution under both labels, so that neither decides the
label. Exceptions are "both …" and "more …", where one scene is informative by nature.

Items follow the pairs of goods in MLIM. The image of an item shows one or two shapes; its text describes one more shape, so
each carries half of the evidence. The same item is sampled with other light and other words. A different item differs in
one attribute of one shape, half of the time of a visible one and half of the time of the described one. Among pairs
with equal images, and among pairs with equal texts, fewer than half are the same item.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from eve_vl.synthetic import pick, pick_distinct, stream
from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.text import NUMBERS, PLACES
from eve_vl.synthetic.scenes.world import (
    COLORS,
    KINDS,
    NUM_CELLS,
    NUM_COLUMNS,
    SIZES,
    Draft,
    Look,
    Scene,
    pairs_of,
    sample_pair,
)

YES_NO = ("yes", "no")
ANSWERS = (*YES_NO, *NUMBERS, *COLORS, *KINDS, *SIZES, "left", "right", "above", "below")
QUESTION_KINDS = ("attribute", "count", "existence", "relation", "comparison")
SIDES = ("left", "right")
SHARE_SAME = 0.3
SHARE_TWO_SHAPES = 0.4

_ASKS = {"kind": "which kind", "color": "what color"}
_VALUES = {"kind": KINDS, "color": tuple(COLORS), "size": SIZES}
_COMPARED = (tuple(Look(kind=kind) for kind in KINDS), tuple(Look(color=color) for color in COLORS))
_COUNTED = (*_COMPARED[0], *_COMPARED[1], *(Look(size=size) for size in SIZES))
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_UNEQUAL_COUNTS = ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1))
_EQUAL_COUNTS = ((0, 0), (1, 1), (2, 2))
_MAX_COUNT = 3  # of one look in one scene of a statement

QuestionDraft = tuple[str, str, Draft]
"""Question, answer, constraints on the scene."""
StatementDraft = tuple[str, Draft, Draft]
"""Statement, constraints on the left and on the right scene."""


class Question(NamedTuple):
    """A scene, a question about it, and the answer (one of ANSWERS).

    `kind` is one of QUESTION_KINDS.
    """

    scene: Scene
    question: str
    answer: str
    kind: str


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


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments."""
    rng = stream("question", split, seed, index)
    kind = pick(rng, QUESTION_KINDS)
    template, *values = pick(rng, _QUESTIONS[kind])
    question, answer, draft = template(rng, split, *values)
    return Question(world.compose_draft(rng, split, draft), question, answer, kind)


def sample_statement(split: str, seed: int, index: int) -> Statement:
    """Sample statement `index` of a split, a pure function of the arguments."""
    rng = stream("statement", split, seed, index)
    kind = pick(rng, ("shows",) * 4 + STATEMENT_KINDS)  # whole captions are a third of all
    label = rng.random() < 0.5
    statement, *drafts = _STATEMENTS[kind](rng, split, label)
    left, right = (world.compose_draft(rng, split, draft) for draft in drafts)
    return Statement(left, right, statement, label, kind)


def sample_items(split: str, seed: int, index: int) -> Items:
    """Sample pair `index` of a split, a pure function of the arguments."""
    rng = stream("items", split, seed, index)
    shown = world.sample_looks(rng, split, 1 + (rng.random() < SHARE_TWO_SHAPES))
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
    cells = pick_distinct(rng, range(NUM_CELLS), len(shown))
    scenes = world.compose(rng, shown, cells), world.compose(rng, others, cells)
    return Items(scenes, (_wordings(described)[first], _wordings(other)[second]), label)


# Attribute


def _feature(rng: Random, split: str, given: str) -> QuestionDraft:
    look = Look(**{given: pick(rng, _VALUES[given])})
    kind, color = pick(rng, pairs_of(split, look))
    draft = Draft([Look(kind, color)], [look])
    return (f"what color is the {kind}", color, draft) if given == "kind" else (f"which kind is the {color} shape", kind, draft)


def _of_size(rng: Random, split: str) -> QuestionDraft:
    kind, color = pick(rng, pairs_of(split, Look(pick(rng, KINDS))))
    size, other_size = pick_distinct(rng, SIZES, 2)
    draft = Draft([Look(kind, color, size), Look(kind, size=other_size)], [Look(kind, size=size)])
    return f"what color is the {size} {kind}", color, draft


def _size(rng: Random, split: str) -> QuestionDraft:
    pair, size = sample_pair(rng, split), pick(rng, SIZES)
    return f"which size is the {pair.singular}", size, Draft([pair._replace(size=size)], [pair])


def _at_place(rng: Random, split: str, asked: str) -> QuestionDraft:
    cell, value = int(rng.random() * NUM_CELLS), pick(rng, _VALUES[asked])
    return f"{_ASKS[asked]} is the shape at {PLACES[cell]}", value, Draft([Look(**{asked: value})], cells=[cell])


# Count, existence


def _count(rng: Random, split: str) -> QuestionDraft:
    look, count = pick(rng, _COUNTED), int(rng.random() * (world.MAX_SHAPES + 1))
    return f"how many {look.plural} are there", NUMBERS[count], Draft([look] * count, [look])


def _count_all(rng: Random, split: str) -> QuestionDraft:
    count = 1 + int(rng.random() * world.MAX_SHAPES)
    return "how many shapes are there", NUMBERS[count], Draft(num_shapes=count)


def _exists(rng: Random, split: str, *features: str) -> QuestionDraft:
    """Ask for a look with these features; without any, for a pair of kind and colour."""
    look = Look(**{name: pick(rng, _VALUES[name]) for name in features}) if features else sample_pair(rng, split)
    question, answer = f"is there {look.with_article}", pick(rng, YES_NO)
    return question, answer, Draft([look]) if answer == "yes" else Draft([_resembling(rng, split, look)], [look])


def _resembling(rng: Random, split: str, look: Look) -> Look:
    """Return a look that shares one feature.

    So one feature does not decide the answer.
    """
    if look.kind and look.color:
        return Look(*pick(rng, [pair for pair in pairs_of(split) if (pair[0] == look.kind) != (pair[1] == look.color)]))
    if look.kind:
        other_size = SIZES[1 - SIZES.index(look.size)]
        other_kind = pick(rng, [kind for kind in KINDS if kind != look.kind])
        return pick(rng, [look._replace(size=other_size), look._replace(kind=other_kind)])
    return Look(color=pick(rng, [color for color in COLORS if color != look.color]))


# Relation


def _relation(rng: Random, split: str, is_open: bool) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    direction = pick(rng, tuple(_OPPOSITE))
    answer = direction if is_open else pick(rng, YES_NO)
    if direction in SIDES:
        words = "left or right of" if is_open else f"{direction} of"
    else:
        words = "above or below" if is_open else direction
    cells = _related_cells(rng, _OPPOSITE[direction] if answer == "no" else direction)
    question = f"is the {first.singular} {words} the {second.singular}"
    return question, answer, Draft([first, second], [first, second], cells)


def _two_pairs(rng: Random, split: str) -> list[Look]:
    """Sample two different pairs; in `test_novel` at least one is a held-out pair."""
    pair = sample_pair(rng, split)
    other = Look(*pick(rng, [other for other in pairs_of(split) if other != pair[:2]]))
    return pick_distinct(rng, (pair, other), 2)


def _related_cells(rng: Random, direction: str) -> list[int]:
    """Sample the cells of two shapes.

    The first lies in that direction from the second.
    """
    along = sorted(pick_distinct(rng, range(NUM_COLUMNS), 2))
    across = [int(rng.random() * NUM_COLUMNS) for _ in range(2)]
    rows, columns = (across, along) if direction in SIDES else (along, across)
    cells = [row * NUM_COLUMNS + column for row, column in zip(rows, columns, strict=True)]
    return cells if direction in ("left", "above") else cells[::-1]


# Comparison


def _is_more(rng: Random, split: str) -> QuestionDraft:
    more, less = pick_distinct(rng, pick(rng, _COMPARED), 2)
    answer, (high, low) = pick(rng, YES_NO), pick(rng, _UNEQUAL_COUNTS)
    counts = (high, low) if answer == "yes" else pick(rng, [(low, high), pick(rng, _EQUAL_COUNTS)])
    wanted = [more] * counts[0] + [less] * counts[1]
    return f"are there more {more.plural} than {less.plural}", answer, Draft(wanted, [more, less])


def _is_bigger(rng: Random, split: str) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    answer = pick(rng, YES_NO)
    sizes = SIZES if answer == "yes" else SIZES[::-1]
    wanted = [first._replace(size=sizes[0]), second._replace(size=sizes[1])]
    return f"is the {first.singular} bigger than the {second.singular}", answer, Draft(wanted, [first, second])


def _which_is_bigger(rng: Random, split: str) -> QuestionDraft:
    kinds = pick_distinct(rng, KINDS, 2)
    big, small = pick_distinct(rng, kinds, 2)
    draft = Draft([Look(big, size="big"), Look(small, size="small")], [Look(big), Look(small)])
    return f"which is bigger the {kinds[0]} or the {kinds[1]}", big, draft


def _is_same_color(rng: Random, split: str) -> QuestionDraft:
    first, second = pick_distinct(rng, KINDS, 2)
    answer = pick(rng, YES_NO)
    pairs = [(one, two) for one in pairs_of(split, Look(first)) for two in pairs_of(split, Look(second))]
    wanted = pick(rng, [(one, two) for one, two in pairs if (one[1] == two[1]) == (answer == "yes")])
    draft = Draft([Look(*pair) for pair in wanted], [Look(first), Look(second)])
    return f"are the {first} and the {second} the same color", answer, draft


_QUESTIONS: dict[str, tuple[Any, ...]] = {  # kind → templates, each with its arguments
    "attribute": ((_feature, "kind"), (_of_size,), (_feature, "color"), (_size,), (_at_place, "color"), (_at_place, "kind")),
    "count": ((_count,), (_count,), (_count,), (_count_all,)),
    "existence": ((_exists,), (_exists,), (_exists, "kind", "size"), (_exists, "color")),
    "relation": ((_relation, False), (_relation, True)),
    "comparison": ((_is_more,), (_is_bigger,), (_which_is_bigger,), (_is_same_color,)),
}


# Statements


def _counts(statement: str, look: Look, counts: Sequence[int]) -> StatementDraft:
    left, right = (Draft([look] * count, [look]) for count in counts)
    return statement, left, right


def _simple(rng: Random) -> tuple[Look, Look]:
    return Look(color=pick(rng, tuple(COLORS))), Look(kind=pick(rng, KINDS))


def _one_of(rng: Random, split: str) -> Look:
    """Sample a look that an image may or may not have."""
    return pick(rng, (sample_pair(rng, split), *_simple(rng)))


def _shows(rng: Random, split: str, label: bool) -> StatementDraft:
    """State that a whole caption is true of either image.

    If the statement is false, all three are independent.
    """
    claimed, other, another = (_single(rng, split) for _ in range(3))
    in_words = f"one {claimed.wanted[0].singular} at {PLACES[claimed.cells[0]]} on {claimed.background}"
    images = pick_distinct(rng, (claimed if label else another, other), 2)
    if (claimed in images) != label:
        return _shows(rng, split, label)
    return f"one of the pictures shows {in_words}", images[0], images[1]


def _single(rng: Random, split: str) -> Draft:
    look = sample_pair(rng, split)._replace(size=pick(rng, SIZES))
    cell, background = int(rng.random() * NUM_CELLS), pick(rng, tuple(world.BACKGROUNDS))
    return Draft([look], cells=[cell], num_shapes=1, background=background)


def _side(rng: Random, split: str, label: bool) -> StatementDraft:
    look, side = _one_of(rng, split), pick(rng, SIDES)
    counts = int(label), int(rng.random() < 0.5)
    return _counts(f"the {side} picture contains {look.with_article}", look, counts if side == "left" else counts[::-1])


def _side_number(rng: Random, split: str, label: bool) -> StatementDraft:
    look, side = pick(rng, _simple(rng)), pick(rng, SIDES)
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
    look, total = pick(rng, _simple(rng)), pick(rng, (2, 3, 4))
    left, other = pick_distinct(rng, range(max(0, total - _MAX_COUNT), min(total, _MAX_COUNT) + 1), 2)
    counts = (left, total - left if label else total - other)
    return _counts(f"there are {NUMBERS[total]} {look.plural} in total", look, counts)


def _same_number(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _simple(rng))
    left, other = pick_distinct(rng, range(_MAX_COUNT + 1), 2)
    return _counts(f"both pictures contain the same number of {look.plural}", look, (left, left if label else other))


def _more(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _simple(rng))
    first, second = pick_distinct(rng, SIDES, 2)
    low = int(rng.random() * _MAX_COUNT)
    counts = (low + 1, low) if label == (first == "left") else (low, low + 1)
    return _counts(f"the {first} picture contains more {look.plural} than the {second} picture", look, counts)


def _same_color(rng: Random, split: str, label: bool) -> StatementDraft:
    avoid = Look(kind=pick(rng, KINDS))
    left, other = pick_distinct(rng, pairs_of(split, avoid), 2)
    drafts = Draft([Look(*left)], [avoid]), Draft([Look(*(left if label else other))], [avoid])
    return f"the {avoid.kind} has the same color in both pictures", *drafts


def _same_kind(rng: Random, split: str, label: bool) -> StatementDraft:
    avoid = Look(color=pick(rng, tuple(COLORS)))
    left, other = pick_distinct(rng, pairs_of(split, avoid), 2)
    drafts = Draft([Look(*left)], [avoid]), Draft([Look(*(left if label else other))], [avoid])
    return f"the {avoid.color} shape is the same kind in both pictures", *drafts


def _same_background(rng: Random, split: str, label: bool) -> StatementDraft:
    left, other = pick_distinct(rng, tuple(world.BACKGROUNDS), 2)
    return "both pictures have the same background", Draft(background=left), Draft(background=left if label else other)


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
    name = pick(rng, tuple(_VALUES))
    others = [look._replace(**{name: value}) for value in _VALUES[name] if value != getattr(look, name)]
    return pick(rng, [other for other in others if other[:2] in pairs_of(split)])
