"""Questions about scenes.

For every wording of a question the answer is sampled evenly from those that are plausible, so that none can be guessed
without the image: yes or no, zero to four, a colour, a kind, a size, a direction.
"""

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
    SIDES,
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

_ASKS = {"kind": "which kind", "color": "what color"}
_VALUES = {"kind": KINDS, "color": tuple(COLORS), "size": SIZES}
_COMPARED = (tuple(Look(kind=kind) for kind in KINDS), tuple(Look(color=color) for color in COLORS))
_COUNTED = (*_COMPARED[0], *_COMPARED[1], *(Look(size=size) for size in SIZES))
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_UNEQUAL_COUNTS = ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1))
_EQUAL_COUNTS = ((0, 0), (1, 1), (2, 2))

QuestionDraft = tuple[str, str, Draft]
"""Question, answer, constraints on the scene."""


class Question(NamedTuple):
    """A scene, a question about it, and the answer (one of ANSWERS).

    `kind` is one of QUESTION_KINDS.
    """

    scene: Scene
    question: str
    answer: str
    kind: str


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments."""
    rng = stream("question", split, seed, index)
    kind = pick(rng, QUESTION_KINDS)
    template, *values = pick(rng, _QUESTIONS[kind])
    question, answer, draft = template(rng, split, *values)
    return Question(world.compose_draft(rng, split, draft), question, answer, kind)


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
