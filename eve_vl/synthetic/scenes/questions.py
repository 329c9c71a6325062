"""Questions about scenes.

For every wording of a question the answer is sampled evenly from those that are plausible, so that
none can be guessed without the image: yes or no, zero to four, a colour, a kind, a size, a
direction.

Hard splits ask the same and more: how many shapes have both a kind and a colour while others have
one of them, and which shape is adjacent to another.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, stream
from eve_vl.synthetic.scenes.sampling import Draft, compose_draft, sample_pair
from eve_vl.synthetic.scenes.world import NUMBERS, SIDES, SIZES, WORLDS, Look, Scene, pairs_of

YES_NO = ("yes", "no")
QUESTION_KINDS = ("attribute", "count", "existence", "relation", "comparison")

_ASKS_FOR = {"kind": "which kind", "color": "what color"}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


class QuestionDraft(NamedTuple):
    """A question, its answer, and the constraints on the scene that make it right."""

    question: str
    answer: str
    draft: Draft


class Question(NamedTuple):
    """A scene, a question about it, and the answer (one of `answers_of` its split).

    `kind` is one of QUESTION_KINDS.
    """

    scene: Scene
    question: str
    answer: str
    kind: str


Template = Callable[[Random, str], QuestionDraft]


@cache
def answers_of(split: str) -> tuple[str, ...]:
    """Return all answers to questions of a split."""
    world = WORLDS[split]
    counts = NUMBERS[: world.max_shapes + 1]
    return (*YES_NO, *counts, *world.colors, *world.kinds, *SIZES, *_OPPOSITE)


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments."""
    rng = stream("question", split, seed, index)
    kind = pick(rng, QUESTION_KINDS)
    templates = _HARD_TEMPLATES if WORLDS[split].is_hard else _TEMPLATES
    asked = pick(rng, templates[kind])(rng, split)
    scene = compose_draft(rng, split, asked.draft)
    return Question(scene, asked.question, asked.answer, kind)


# Attribute


def _color_of_kind(rng: Random, split: str) -> QuestionDraft:
    look = Look(kind=pick(rng, WORLDS[split].kinds))
    kind, color = pick(rng, pairs_of(split, look))
    return QuestionDraft(f"what color is the {kind}", color, Draft([Look(kind, color)], [look]))


def _kind_of_color(rng: Random, split: str) -> QuestionDraft:
    look = Look(color=pick(rng, WORLDS[split].colors))
    kind, color = pick(rng, pairs_of(split, look))
    draft = Draft([Look(kind, color)], [look])
    return QuestionDraft(f"which kind is the {color} shape", kind, draft)


def _color_of_size(rng: Random, split: str) -> QuestionDraft:
    """Ask for the colour of a big or small shape, next to one of its kind in the other size."""
    kind, color = pick(rng, pairs_of(split, Look(pick(rng, WORLDS[split].kinds))))
    size, opposite_size = pick_distinct(rng, SIZES, 2)
    wanted = [Look(kind, color, size), Look(kind, size=opposite_size)]
    draft = Draft(wanted, [Look(kind, size=size)])
    return QuestionDraft(f"what color is the {size} {kind}", color, draft)


def _size(rng: Random, split: str) -> QuestionDraft:
    pair = sample_pair(rng, split)
    size = pick(rng, SIZES)
    draft = Draft([pair._replace(size=size)], [pair])
    return QuestionDraft(f"which size is the {pair.singular}", size, draft)


def _at_place(rng: Random, split: str, feature: str) -> QuestionDraft:
    """Ask for the kind or colour of the shape in a cell."""
    places = WORLDS[split].places
    cell = int(rng.random() * len(places))
    value = pick(rng, WORLDS[split].values(feature))
    draft = Draft([Look(**{feature: value})], cells=[cell])
    return QuestionDraft(f"{_ASKS_FOR[feature]} is the shape at {places[cell]}", value, draft)


# Count


@cache
def _looks_of(split: str, *features: str) -> tuple[Look, ...]:
    """Return the looks that have one of these features only."""
    looks = []
    for feature in features:
        looks += [Look(**{feature: value}) for value in WORLDS[split].values(feature)]
    return tuple(looks)


def _count(rng: Random, split: str) -> QuestionDraft:
    look = pick(rng, _looks_of(split, "kind", "color", "size"))
    count = int(rng.random() * (WORLDS[split].max_shapes + 1))
    draft = Draft([look] * count, [look])
    return QuestionDraft(f"how many {look.plural} are there", NUMBERS[count], draft)


def _count_all(rng: Random, split: str) -> QuestionDraft:
    fewest = WORLDS[split].min_shapes
    most = WORLDS[split].max_shapes
    count = fewest + int(rng.random() * (most - fewest + 1))
    return QuestionDraft("how many shapes are there", NUMBERS[count], Draft(num_shapes=count))


def _count_pairs(rng: Random, split: str) -> QuestionDraft:
    """Count a pair among shapes that share its kind or its colour."""
    look = sample_pair(rng, split)
    count = pick(rng, range(WORLDS[split].max_shapes // 2 + 1))
    num_resembling = pick(rng, (1, 2, 3))
    resembling = [_resembling(rng, split, look) for _ in range(num_resembling)]
    draft = Draft([look] * count + resembling, [look])
    return QuestionDraft(f"how many {look.plural} are there", NUMBERS[count], draft)


# Existence


def _pair_exists(rng: Random, split: str) -> QuestionDraft:
    return _exists(rng, split, sample_pair(rng, split))


def _sized_kind_exists(rng: Random, split: str) -> QuestionDraft:
    kind = pick(rng, WORLDS[split].kinds)
    return _exists(rng, split, Look(kind=kind, size=pick(rng, SIZES)))


def _color_exists(rng: Random, split: str) -> QuestionDraft:
    return _exists(rng, split, Look(color=pick(rng, WORLDS[split].colors)))


def _exists(rng: Random, split: str, look: Look) -> QuestionDraft:
    question = f"is there {look.with_article}"
    answer = pick(rng, YES_NO)
    if answer == "yes":
        return QuestionDraft(question, answer, Draft([look]))
    return QuestionDraft(question, answer, Draft([_resembling(rng, split, look)], [look]))


def _resembling(rng: Random, split: str, look: Look) -> Look:
    """Return a look that shares one feature, so that one feature does not decide the answer."""
    if look.kind and look.color:
        pairs = []
        for kind, color in pairs_of(split):
            if (kind == look.kind) != (color == look.color):
                pairs.append((kind, color))
        return Look(*pick(rng, pairs))
    if look.kind:
        opposite_size = SIZES[1 - SIZES.index(look.size)]
        kinds = [kind for kind in WORLDS[split].kinds if kind != look.kind]
        different_kind = pick(rng, kinds)
        return pick(rng, [look._replace(size=opposite_size), look._replace(kind=different_kind)])
    return Look(color=pick(rng, [color for color in WORLDS[split].colors if color != look.color]))


# Relation


def _relation(rng: Random, split: str, is_open: bool) -> QuestionDraft:
    """Ask how two shapes lie, or whether they lie in a direction."""
    first, second = _two_pairs(rng, split)
    direction = pick(rng, tuple(_OPPOSITE))
    if is_open:
        answer = direction
        words = "left or right of" if direction in SIDES else "above or below"
    else:
        answer = pick(rng, YES_NO)
        words = f"{direction} of" if direction in SIDES else direction
    true_direction = _OPPOSITE[direction] if answer == "no" else direction
    cells = _related_cells(rng, split, true_direction)
    draft = Draft([first, second], [first, second], cells)
    return QuestionDraft(f"is the {first.singular} {words} the {second.singular}", answer, draft)


def _adjacent(rng: Random, split: str, feature: str) -> QuestionDraft:
    """Ask for the kind or colour of the shape in the cell next to another shape."""
    look = sample_pair(rng, split)
    direction = pick(rng, tuple(_OPPOSITE))
    value = pick(rng, WORLDS[split].values(feature))
    pairs = [pair for pair in pairs_of(split, Look(**{feature: value})) if pair != look.pair]
    adjacent = Look(*pick(rng, pairs))
    cells = _adjacent_cells(rng, split, direction)
    side = f"{direction} of" if direction in SIDES else direction
    question = f"{_ASKS_FOR[feature]} is the shape directly {side} the {look.singular}"
    return QuestionDraft(question, value, Draft([adjacent, look], [look], cells))


def _two_pairs(rng: Random, split: str) -> list[Look]:
    """Sample two different pairs; in `test_novel` at least one is a held-out pair."""
    first = sample_pair(rng, split)
    second = Look(*pick(rng, [pair for pair in pairs_of(split) if pair != first.pair]))
    return pick_distinct(rng, (first, second), 2)


def _related_cells(rng: Random, split: str, direction: str) -> list[int]:
    """Sample the cells of two shapes. The first lies in that direction from the second."""
    num_lines = len(WORLDS[split].anchors)
    along = sorted(pick_distinct(rng, range(num_lines), 2))
    across = [int(rng.random() * num_lines) for _ in range(2)]
    return _cells_in_direction(num_lines, direction, along, across)


def _adjacent_cells(rng: Random, split: str, direction: str) -> list[int]:
    """Sample two cells side by side. The first lies in that direction from the second."""
    num_lines = len(WORLDS[split].anchors)
    along = pick(rng, list(pairwise(range(num_lines))))
    line = pick(rng, range(num_lines))
    return _cells_in_direction(num_lines, direction, along, (line, line))


def _cells_in_direction(
    num_lines: int, direction: str, along: Sequence[int], across: Sequence[int]
) -> list[int]:
    """Return two cells, given their ascending lines along a direction and those across it."""
    rows, columns = (across, along) if direction in SIDES else (along, across)
    cells = [row * num_lines + column for row, column in zip(rows, columns, strict=True)]
    if direction in ("right", "below"):
        cells.reverse()
    return cells


# Comparison


def _is_more(rng: Random, split: str) -> QuestionDraft:
    feature = pick(rng, ("kind", "color"))
    first, second = pick_distinct(rng, _looks_of(split, feature), 2)
    most = WORLDS[split].max_shapes
    unequal = []
    for low in range(most // 2):
        unequal += [(high, low) for high in range(low + 1, low + 4) if high + low <= most]
    answer = pick(rng, YES_NO)
    high, low = pick(rng, unequal)
    if answer == "yes":
        counts = (high, low)
    else:
        equal = pick(rng, [(count, count) for count in range(most // 2 + 1)])
        counts = pick(rng, [(low, high), equal])
    draft = Draft([first] * counts[0] + [second] * counts[1], [first, second])
    return QuestionDraft(f"are there more {first.plural} than {second.plural}", answer, draft)


def _is_bigger(rng: Random, split: str) -> QuestionDraft:
    first, second = _two_pairs(rng, split)
    answer = pick(rng, YES_NO)
    first_size, second_size = SIZES if answer == "yes" else SIZES[::-1]
    wanted = [first._replace(size=first_size), second._replace(size=second_size)]
    question = f"is the {first.singular} bigger than the {second.singular}"
    return QuestionDraft(question, answer, Draft(wanted, [first, second]))


def _which_is_bigger(rng: Random, split: str) -> QuestionDraft:
    kinds = pick_distinct(rng, WORLDS[split].kinds, 2)
    big, small = pick_distinct(rng, kinds, 2)
    draft = Draft([Look(big, size="big"), Look(small, size="small")], [Look(big), Look(small)])
    return QuestionDraft(f"which is bigger the {kinds[0]} or the {kinds[1]}", big, draft)


def _is_same_color(rng: Random, split: str) -> QuestionDraft:
    first, second = pick_distinct(rng, WORLDS[split].kinds, 2)
    answer = pick(rng, YES_NO)
    candidates = []
    for first_pair in pairs_of(split, Look(first)):
        for second_pair in pairs_of(split, Look(second)):
            if (first_pair[1] == second_pair[1]) == (answer == "yes"):
                candidates.append((first_pair, second_pair))
    wanted = [Look(*pair) for pair in pick(rng, candidates)]
    draft = Draft(wanted, [Look(first), Look(second)])
    return QuestionDraft(f"are the {first} and the {second} the same color", answer, draft)


_TEMPLATES: dict[str, tuple[Template, ...]] = {
    "attribute": (
        _color_of_kind,
        _color_of_size,
        _kind_of_color,
        _size,
        partial(_at_place, feature="color"),
        partial(_at_place, feature="kind"),
    ),
    "count": (_count, _count, _count, _count_all),
    "existence": (_pair_exists, _pair_exists, _sized_kind_exists, _color_exists),
    "relation": (partial(_relation, is_open=False), partial(_relation, is_open=True)),
    "comparison": (_is_more, _is_bigger, _which_is_bigger, _is_same_color),
}
"""By kind of question."""
_HARD_TEMPLATES = _TEMPLATES | {
    "count": (*_TEMPLATES["count"], *[_count_pairs] * 4),
    "relation": (
        *_TEMPLATES["relation"],
        partial(_adjacent, feature="color"),
        partial(_adjacent, feature="kind"),
    ),
    "comparison": (*_TEMPLATES["comparison"], _is_more, _is_more),
}
