"""Questions about scenes.

For every wording of a question the answer is sampled evenly from those that are plausible, so that none can be guessed
without the image: yes or no, zero to four, a colour, a kind, a size, a direction.

Hard splits ask the same and more: how many shapes have both a kind and a colour while others have one of them, and which
shape is adjacent to another.
"""

from functools import cache
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, stream
from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.world import (
    NUMBERS,
    SIDES,
    SIZES,
    WORLDS,
    Draft,
    Look,
    Scene,
    pairs_of,
    sample_pair,
)

YES_NO = ("yes", "no")
QUESTION_KINDS = ("attribute", "count", "existence", "relation", "comparison")

_ASKS = {"kind": "which kind", "color": "what color"}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

QuestionDraft = tuple[str, str, Draft]
"""Question, answer, constraints on the scene."""


class Question(NamedTuple):
    """A scene, a question about it, and the answer (one of `answers_of` its split).

    `kind` is one of QUESTION_KINDS.
    """

    scene: Scene
    question: str
    answer: str
    kind: str


@cache
def answers_of(split: str) -> tuple[str, ...]:
    """Return all answers to questions of a split."""
    own = WORLDS[split]
    return (*YES_NO, *NUMBERS[: own.max_shapes + 1], *own.color, *own.kind, *SIZES, *_OPPOSITE)


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments."""
    rng = stream("question", split, seed, index)
    kind = pick(rng, QUESTION_KINDS)
    template, *values = pick(rng, (_HARD_QUESTIONS if WORLDS[split].is_hard else _QUESTIONS)[kind])
    question, answer, draft = template(rng, split, *values)
    return Question(world.compose_draft(rng, split, draft), question, answer, kind)


# Attribute


def _feature(rng: Random, split: str, given: str) -> QuestionDraft:
    look = Look(**{given: pick(rng, getattr(WORLDS[split], given))})
    kind, color = pick(rng, pairs_of(split, look))
    draft = Draft([Look(kind, color)], [look])
    return (
        (f"what color is the {kind}", color, draft)
        if given == "kind"
        else (f"which kind is the {color} shape", kind, draft)
    )


def _of_size(rng: Random, split: str) -> QuestionDraft:
    kind, color = pick(rng, pairs_of(split, Look(pick(rng, WORLDS[split].kind))))
    size, other_size = pick_distinct(rng, SIZES, 2)
    draft = Draft([Look(kind, color, size), Look(kind, size=other_size)], [Look(kind, size=size)])
    return f"what color is the {size} {kind}", color, draft


def _size(rng: Random, split: str) -> QuestionDraft:
    pair, size = sample_pair(rng, split), pick(rng, SIZES)
    return f"which size is the {pair.singular}", size, Draft([pair._replace(size=size)], [pair])


def _at_place(rng: Random, split: str, asked: str) -> QuestionDraft:
    places = WORLDS[split].places
    cell, value = int(rng.random() * len(places)), pick(rng, getattr(WORLDS[split], asked))
    return (
        f"{_ASKS[asked]} is the shape at {places[cell]}",
        value,
        Draft([Look(**{asked: value})], cells=[cell]),
    )


# Count, existence


@cache
def _looks(split: str, *features: str) -> tuple[Look, ...]:
    return tuple(
        Look(**{name: value}) for name in features for value in getattr(WORLDS[split], name)
    )


def _count(rng: Random, split: str) -> QuestionDraft:
    look, count = (
        pick(rng, _looks(split, "kind", "color", "size")),
        int(rng.random() * (WORLDS[split].max_shapes + 1)),
    )
    return f"how many {look.plural} are there", NUMBERS[count], Draft([look] * count, [look])


def _count_all(rng: Random, split: str) -> QuestionDraft:
    least, most = WORLDS[split].min_shapes, WORLDS[split].max_shapes
    count = least + int(rng.random() * (most - least + 1))
    return "how many shapes are there", NUMBERS[count], Draft(num_shapes=count)


def _count_pairs(rng: Random, split: str) -> QuestionDraft:
    """Count a pair among shapes that share its kind or its colour."""
    look, count = sample_pair(rng, split), pick(rng, range(WORLDS[split].max_shapes // 2 + 1))
    others = [_resembling(rng, split, look) for _ in range(pick(rng, (1, 2, 3)))]
    return (
        f"how many {look.plural} are there",
        NUMBERS[count],
        Draft([look] * count + others, [look]),
    )


def _exists(rng: Random, split: str, *features: str) -> QuestionDraft:
    """Ask for a look with these features; without any, for a pair of kind and colour."""
    look = (
        Look(**{name: pick(rng, getattr(WORLDS[split], name)) for name in features})
        if features
        else sample_pair(rng, split)
    )
    question, answer = f"is there {look.with_article}", pick(rng, YES_NO)
    return (
        question,
        answer,
        Draft([look]) if answer == "yes" else Draft([_resembling(rng, split, look)], [look]),
    )


def _resembling(rng: Random, split: str, look: Look) -> Look:
    """Return a look that shares one feature.

    So one feature does not decide the answer.
    """
    if look.kind and look.color:
        return Look(
            *pick(
                rng,
                [
                    pair
                    for pair in pairs_of(split)
                    if (pair[0] == look.kind) != (pair[1] == look.color)
                ],
            )
        )
    if look.kind:
        other_size = SIZES[1 - SIZES.index(look.size)]
        other_kind = pick(rng, [kind for kind in WORLDS[split].kind if kind != look.kind])
        return pick(rng, [look._replace(size=other_size), look._replace(kind=other_kind)])
    return Look(color=pick(rng, [color for color in WORLDS[split].color if color != look.color]))


# Relation


def _relation(rng: Random, split: str, is_open: bool) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    direction = pick(rng, tuple(_OPPOSITE))
    answer = direction if is_open else pick(rng, YES_NO)
    if direction in SIDES:
        words = "left or right of" if is_open else f"{direction} of"
    else:
        words = "above or below" if is_open else direction
    cells = _related_cells(rng, split, _OPPOSITE[direction] if answer == "no" else direction)
    question = f"is the {first.singular} {words} the {second.singular}"
    return question, answer, Draft([first, second], [first, second], cells)


def _adjacent(rng: Random, split: str, asked: str) -> QuestionDraft:
    """Ask for the kind or colour of the shape in the cell next to another shape."""
    look, direction = sample_pair(rng, split), pick(rng, tuple(_OPPOSITE))
    given = Look(**{asked: pick(rng, getattr(WORLDS[split], asked))})
    found = Look(*pick(rng, [pair for pair in pairs_of(split, given) if pair != look[:2]]))
    cells = _related_cells(rng, split, direction, are_adjacent=True)
    side = f"{direction} of" if direction in SIDES else direction
    question = f"{_ASKS[asked]} is the shape directly {side} the {look.singular}"
    return question, getattr(given, asked), Draft([found, look], [look], cells)


def _two_pairs(rng: Random, split: str) -> list[Look]:
    """Sample two different pairs; in `test_novel` at least one is a held-out pair."""
    pair = sample_pair(rng, split)
    other = Look(*pick(rng, [other for other in pairs_of(split) if other != pair[:2]]))
    return pick_distinct(rng, (pair, other), 2)


def _related_cells(
    rng: Random, split: str, direction: str, *, are_adjacent: bool = False
) -> list[int]:
    """Sample the cells of two shapes.

    The first lies in that direction from the second.
    """
    lines = len(WORLDS[split].anchors)
    if are_adjacent:
        along, across = pick(rng, [*pairwise(range(lines))]), [pick(rng, range(lines))] * 2
    else:
        along = sorted(pick_distinct(rng, range(lines), 2))
        across = [int(rng.random() * lines) for _ in range(2)]
    rows, columns = (across, along) if direction in SIDES else (along, across)
    cells = [row * lines + column for row, column in zip(rows, columns, strict=True)]
    return cells if direction in ("left", "above") else cells[::-1]


# Comparison


def _is_more(rng: Random, split: str) -> QuestionDraft:
    more, less = pick_distinct(rng, _looks(split, pick(rng, ("kind", "color"))), 2)
    most = WORLDS[split].max_shapes
    unequal = [
        (high, low)
        for low in range(most // 2)
        for high in range(low + 1, low + 4)
        if high + low <= most
    ]
    answer, (high, low) = pick(rng, YES_NO), pick(rng, unequal)
    counts = (
        (high, low)
        if answer == "yes"
        else pick(rng, [(low, high), pick(rng, [(n, n) for n in range(most // 2 + 1)])])
    )
    wanted = [more] * counts[0] + [less] * counts[1]
    return f"are there more {more.plural} than {less.plural}", answer, Draft(wanted, [more, less])


def _is_bigger(rng: Random, split: str) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    answer = pick(rng, YES_NO)
    sizes = SIZES if answer == "yes" else SIZES[::-1]
    wanted = [first._replace(size=sizes[0]), second._replace(size=sizes[1])]
    return (
        f"is the {first.singular} bigger than the {second.singular}",
        answer,
        Draft(wanted, [first, second]),
    )


def _which_is_bigger(rng: Random, split: str) -> QuestionDraft:
    kinds = pick_distinct(rng, WORLDS[split].kind, 2)
    big, small = pick_distinct(rng, kinds, 2)
    draft = Draft([Look(big, size="big"), Look(small, size="small")], [Look(big), Look(small)])
    return f"which is bigger the {kinds[0]} or the {kinds[1]}", big, draft


def _is_same_color(rng: Random, split: str) -> QuestionDraft:
    first, second = pick_distinct(rng, WORLDS[split].kind, 2)
    answer = pick(rng, YES_NO)
    pairs = [
        (one, two) for one in pairs_of(split, Look(first)) for two in pairs_of(split, Look(second))
    ]
    wanted = pick(
        rng, [(one, two) for one, two in pairs if (one[1] == two[1]) == (answer == "yes")]
    )
    draft = Draft([Look(*pair) for pair in wanted], [Look(first), Look(second)])
    return f"are the {first} and the {second} the same color", answer, draft


_QUESTIONS: dict[str, tuple[Any, ...]] = {  # kind → templates, each with its arguments
    "attribute": (
        (_feature, "kind"),
        (_of_size,),
        (_feature, "color"),
        (_size,),
        (_at_place, "color"),
        (_at_place, "kind"),
    ),
    "count": ((_count,), (_count,), (_count,), (_count_all,)),
    "existence": ((_exists,), (_exists,), (_exists, "kind", "size"), (_exists, "color")),
    "relation": ((_relation, False), (_relation, True)),
    "comparison": ((_is_more,), (_is_bigger,), (_which_is_bigger,), (_is_same_color,)),
}
_HARD_QUESTIONS = _QUESTIONS | {
    "count": (*_QUESTIONS["count"], *[(_count_pairs,)] * 4),
    "relation": (*_QUESTIONS["relation"], (_adjacent, "color"), (_adjacent, "kind")),
    "comparison": (*_QUESTIONS["comparison"], *[(_is_more,)] * 2),
}
