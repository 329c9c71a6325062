"""Questions about one scene, each with an answer from a closed list.

For every wording the answer is drawn evenly from those that are plausible, so that none can be guessed without the
image: yes or no, zero to four, a colour, a kind, a size, a direction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.constraints import Draft, Trait, compose_draft, draw_pair, matching_pairs
from eve_vl.synthetic.scenes.text import NUMBERS, PLACES

YES_NO = ("yes", "no")
ANSWERS = (*YES_NO, *NUMBERS, *world.COLORS, *world.KINDS, *world.SIZES, "left", "right", "above", "below")
QUESTION_KINDS = ("attribute", "count", "existence", "relation", "comparison")

QuestionDraft = tuple[str, str, Draft]  # question, answer, constraints on the scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A scene, a question about it, and the answer (one of ANSWERS). `kind` is one of QUESTION_KINDS."""

    scene: world.Scene
    question: str
    answer: str
    kind: str


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments. Raises UserError for an unknown split."""
    rng = world.stream("question", split, seed, index)
    kind = world.pick(rng, QUESTION_KINDS)
    question, answer, draft = world.pick(rng, _TEMPLATES[kind])(rng, split)
    return Question(scene=compose_draft(rng, split, draft), question=question, answer=answer, kind=kind)


# Attribute


def _color_of_kind(rng: Random, split: str) -> QuestionDraft:
    kind = world.pick(rng, world.KINDS)
    color = world.pick(rng, matching_pairs(split, Trait(kind=kind)))[1]
    return f"what color is the {kind}", color, Draft([Trait(kind, color)], [Trait(kind)])


def _color_of_sized_kind(rng: Random, split: str) -> QuestionDraft:
    kind = world.pick(rng, world.KINDS)
    color = world.pick(rng, matching_pairs(split, Trait(kind=kind)))[1]
    size, other_size = world.pick_distinct(rng, world.SIZES, 2)
    draft = Draft([Trait(kind, color, size), Trait(kind, size=other_size)], [Trait(kind, size=size)])
    return f"what color is the {size} {kind}", color, draft


def _kind_of_color(rng: Random, split: str) -> QuestionDraft:
    color = world.pick(rng, tuple(world.COLORS))
    kind = world.pick(rng, matching_pairs(split, Trait(color=color)))[0]
    return f"which kind is the {color} shape", kind, Draft([Trait(kind, color)], [Trait(color=color)])


def _size_of_pair(rng: Random, split: str) -> QuestionDraft:
    pair, size = draw_pair(rng, split), world.pick(rng, world.SIZES)
    return f"which size is the {pair.singular}", size, Draft([pair._replace(size=size)], [pair])


def _color_at_place(rng: Random, split: str) -> QuestionDraft:
    cell, color = int(rng.random() * world.NUM_CELLS), world.pick(rng, tuple(world.COLORS))
    return f"what color is the shape at {PLACES[cell]}", color, Draft([Trait(color=color)], cells=[cell])


def _kind_at_place(rng: Random, split: str) -> QuestionDraft:
    cell, kind = int(rng.random() * world.NUM_CELLS), world.pick(rng, world.KINDS)
    return f"which kind is the shape at {PLACES[cell]}", kind, Draft([Trait(kind)], cells=[cell])


# Count


def _count_trait(rng: Random, split: str) -> QuestionDraft:
    trait = world.pick(rng, _COUNTED)
    count = int(rng.random() * (world.MAX_SHAPES + 1))
    return f"how many {trait.plural} are there", NUMBERS[count], Draft([trait] * count, [trait])


def _count_all(rng: Random, split: str) -> QuestionDraft:
    count = 1 + int(rng.random() * world.MAX_SHAPES)
    return "how many shapes are there", NUMBERS[count], Draft(num_shapes=count)


_COMPARED = (tuple(Trait(kind=kind) for kind in world.KINDS), tuple(Trait(color=color) for color in world.COLORS))
_COUNTED = (*_COMPARED[0], *_COMPARED[1], *(Trait(size=size) for size in world.SIZES))


# Existence


def _exists(rng: Random, split: str, trait: Trait) -> QuestionDraft:
    question = f"is there {trait.with_article}"
    if world.pick(rng, YES_NO) == "yes":
        return question, "yes", Draft([trait])
    return question, "no", Draft([_resembling(rng, split, trait)], [trait])


def _resembling(rng: Random, split: str, trait: Trait) -> Trait:
    """Return a trait that shares one feature, so that one feature does not decide the answer."""
    if trait.kind and trait.color:
        pairs = [pair for pair in world.pairs_of(split) if (pair[0] == trait.kind) != (pair[1] == trait.color)]
        return Trait(*world.pick(rng, pairs))
    if trait.kind and trait.size:
        other_size = world.SIZES[1 - world.SIZES.index(trait.size)]
        other_kind = world.pick(rng, [kind for kind in world.KINDS if kind != trait.kind])
        return world.pick(rng, [Trait(trait.kind, size=other_size), Trait(other_kind, size=trait.size)])
    return Trait(color=world.pick(rng, [color for color in world.COLORS if color != trait.color]))


def _pair_exists(rng: Random, split: str) -> QuestionDraft:
    return _exists(rng, split, draw_pair(rng, split))


def _sized_kind_exists(rng: Random, split: str) -> QuestionDraft:
    return _exists(rng, split, Trait(world.pick(rng, world.KINDS), size=world.pick(rng, world.SIZES)))


def _color_exists(rng: Random, split: str) -> QuestionDraft:
    return _exists(rng, split, Trait(color=world.pick(rng, tuple(world.COLORS))))


# Relation


def _is_related(rng: Random, split: str) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    direction = world.pick(rng, _DIRECTIONS)
    answer = world.pick(rng, YES_NO)
    actual = direction if answer == "yes" else _OPPOSITE[direction]
    words = f"{direction} of" if direction in ("left", "right") else direction
    question = f"is the {first.singular} {words} the {second.singular}"
    return question, answer, Draft([first, second], [first, second], _related_cells(rng, actual))


def _which_relation(rng: Random, split: str) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    answer = world.pick(rng, _DIRECTIONS)
    words = "left or right of" if answer in ("left", "right") else "above or below"
    question = f"is the {first.singular} {words} the {second.singular}"
    return question, answer, Draft([first, second], [first, second], _related_cells(rng, answer))


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_DIRECTIONS = tuple(_OPPOSITE)


def _two_pairs(rng: Random, split: str) -> list[Trait]:
    """Sample two different pairs; in `test_novel` at least one is a held-out pair."""
    pair = draw_pair(rng, split)
    other = Trait(*world.pick(rng, [other for other in world.pairs_of(split) if other != (pair.kind, pair.color)]))
    return world.pick_distinct(rng, (pair, other), 2)


def _related_cells(rng: Random, direction: str) -> list[int]:
    """Sample the cells of two shapes, the first of which lies in that direction from the second."""
    near, far = sorted(world.pick_distinct(rng, range(world.NUM_ROWS), 2))
    aside = [int(rng.random() * world.NUM_ROWS) for _ in range(2)]
    if direction in ("left", "right"):
        cells = [aside[0] * world.NUM_COLUMNS + near, aside[1] * world.NUM_COLUMNS + far]
    else:
        cells = [near * world.NUM_COLUMNS + aside[0], far * world.NUM_COLUMNS + aside[1]]
    return cells if direction in ("left", "above") else cells[::-1]


# Comparison


def _is_more(rng: Random, split: str) -> QuestionDraft:
    more, less = world.pick_distinct(rng, world.pick(rng, _COMPARED), 2)
    answer = world.pick(rng, YES_NO)
    high, low = world.pick(rng, _UNEQUAL_COUNTS)
    counts = (high, low) if answer == "yes" else world.pick(rng, [(low, high), world.pick(rng, _EQUAL_COUNTS)])
    wanted = [more] * counts[0] + [less] * counts[1]
    return f"are there more {more.plural} than {less.plural}", answer, Draft(wanted, [more, less])


def _is_bigger(rng: Random, split: str) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    answer = world.pick(rng, YES_NO)
    sizes = world.SIZES if answer == "yes" else world.SIZES[::-1]
    wanted = [first._replace(size=sizes[0]), second._replace(size=sizes[1])]
    return f"is the {first.singular} bigger than the {second.singular}", answer, Draft(wanted, [first, second])


def _which_is_bigger(rng: Random, split: str) -> QuestionDraft:
    kinds = world.pick_distinct(rng, world.KINDS, 2)
    big, small = world.pick_distinct(rng, kinds, 2)
    wanted = [Trait(big, size="big"), Trait(small, size="small")]
    question = f"which is bigger the {kinds[0]} or the {kinds[1]}"
    return question, big, Draft(wanted, [Trait(big), Trait(small)])


def _is_same_color(rng: Random, split: str) -> QuestionDraft:
    first, second = world.pick_distinct(rng, world.KINDS, 2)
    colors = [color for _, color in matching_pairs(split, Trait(first))]
    other_colors = [color for _, color in matching_pairs(split, Trait(second))]
    answer = world.pick(rng, YES_NO)
    color, other = world.pick(rng, [(one, two) for one in colors for two in other_colors if (one == two) == (answer == "yes")])
    wanted = [Trait(first, color), Trait(second, other)]
    question = f"are the {first} and the {second} the same color"
    return question, answer, Draft(wanted, [Trait(first), Trait(second)])


_UNEQUAL_COUNTS = ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1))
_EQUAL_COUNTS = ((0, 0), (1, 1), (2, 2))

_TEMPLATES: dict[str, tuple[Callable[[Random, str], QuestionDraft], ...]] = {
    "attribute": (_color_of_kind, _color_of_sized_kind, _kind_of_color, _size_of_pair, _color_at_place, _kind_at_place),
    "count": (_count_trait, _count_trait, _count_trait, _count_all),
    "existence": (_pair_exists, _pair_exists, _sized_kind_exists, _color_exists),
    "relation": (_is_related, _which_relation),
    "comparison": (_is_more, _is_bigger, _which_is_bigger, _is_same_color),
}
