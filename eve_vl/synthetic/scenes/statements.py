"""Statements about two scenes, true or false, after NLVR2 (Suhr et al. 2019).

For every wording both labels are equally likely. Some statements are about one scene, as in NLVR2.
For most others, each scene has the same distribution under both labels, so that neither decides the
label. Exceptions are "both …" and "more …", where one scene is informative by nature.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, stream
from eve_vl.synthetic.scenes.sampling import Draft, compose_draft, sample_pair
from eve_vl.synthetic.scenes.world import (
    BACKGROUNDS,
    NUMBERS,
    SIDES,
    SIZES,
    WORLDS,
    Look,
    Scene,
    pairs_of,
)

_MAX_COUNT = 3  # of one look in one scene


class Statement(NamedTuple):
    """Two scenes, a statement about both, and whether it is true.

    `kind` is one of STATEMENT_KINDS.
    """

    left: Scene
    right: Scene
    statement: str
    label: bool
    kind: str


class StatementDraft(NamedTuple):
    """A statement, and the constraints on both scenes that make it true or false."""

    statement: str
    left: Draft
    right: Draft


def sample_statement(split: str, seed: int, index: int) -> Statement:
    """Sample statement `index` of a split, a pure function of the arguments."""
    rng = stream("statement", split, seed, index)
    kind = pick(rng, _HARD_KINDS if WORLDS[split].is_hard else _EASY_KINDS)
    label = rng.random() < 0.5
    draft = _TEMPLATES[kind](rng, split, label)
    left = compose_draft(rng, split, draft.left)
    right = compose_draft(rng, split, draft.right)
    return Statement(left, right, draft.statement, label, kind)


def _about_counts(statement: str, look: Look, counts: Sequence[int]) -> StatementDraft:
    """Return a statement whose truth follows from how often a look is in either scene."""
    left, right = (Draft([look] * count, [look]) for count in counts)
    return StatementDraft(statement, left, right)


def _sample_simple(rng: Random, split: str) -> tuple[Look, Look]:
    """Sample a colour and a kind."""
    color = Look(color=pick(rng, WORLDS[split].colors))
    kind = Look(kind=pick(rng, WORLDS[split].kinds))
    return color, kind


def _sample_look(rng: Random, split: str) -> Look:
    """Sample a look that an image may or may not have."""
    pair = sample_pair(rng, split)
    return pick(rng, (pair, *_sample_simple(rng, split)))


# Templates: each returns a statement with this label.


def _shows(rng: Random, split: str, label: bool) -> StatementDraft:
    """State that a whole caption is true of either image.

    If the statement is false, all three are independent.
    """
    while True:
        claimed, second, third = (_sample_single(rng, split) for _ in range(3))
        first = claimed if label else third
        left, right = pick_distinct(rng, (first, second), 2)
        if (claimed in (left, right)) == label:
            break
    place = WORLDS[split].places[claimed.cells[0]]
    caption = f"one {claimed.wanted[0].singular} at {place} on {claimed.background}"
    return StatementDraft(f"one of the pictures shows {caption}", left, right)


def _sample_single(rng: Random, split: str) -> Draft:
    """Sample constraints that leave nothing open but light: one shape, its cell, a background."""
    pair = sample_pair(rng, split)
    look = pair._replace(size=pick(rng, SIZES))
    cell = int(rng.random() * len(WORLDS[split].places))
    background = pick(rng, tuple(BACKGROUNDS))
    return Draft([look], cells=[cell], num_shapes=1, background=background)


def _side(rng: Random, split: str, label: bool) -> StatementDraft:
    look = _sample_look(rng, split)
    side = pick(rng, SIDES)
    counts = (int(label), int(rng.random() < 0.5))
    if side == "right":
        counts = counts[::-1]
    return _about_counts(f"the {side} picture contains {look.with_article}", look, counts)


def _side_number(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _sample_simple(rng, split))
    side = pick(rng, SIDES)
    claimed, false_count = pick_distinct(rng, (1, 2, _MAX_COUNT), 2)
    counts = (claimed if label else false_count, pick(rng, range(_MAX_COUNT + 1)))
    if side == "right":
        counts = counts[::-1]
    name = look.plural if claimed > 1 else look.singular
    return _about_counts(f"the {side} picture contains {NUMBERS[claimed]} {name}", look, counts)


def _both(rng: Random, split: str, label: bool) -> StatementDraft:
    look = _sample_look(rng, split)
    counts = (1, 1) if label else pick(rng, ((0, 1), (1, 0)))
    return _about_counts(f"both pictures contain {look.with_article}", look, counts)


def _only_one(rng: Random, split: str, label: bool) -> StatementDraft:
    look = _sample_look(rng, split)
    counts = pick(rng, ((0, 1), (1, 0)) if label else ((0, 0), (1, 1)))
    return _about_counts(f"only one picture contains {look.with_article}", look, counts)


def _total(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _sample_simple(rng, split))
    total = pick(rng, (2, 3, 4))
    possible = range(max(0, total - _MAX_COUNT), min(total, _MAX_COUNT) + 1)
    left, false_left = pick_distinct(rng, possible, 2)
    right = total - left if label else total - false_left
    return _about_counts(f"there are {NUMBERS[total]} {look.plural} in total", look, (left, right))


def _same_number(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _sample_simple(rng, split))
    left, false_right = pick_distinct(rng, range(_MAX_COUNT + 1), 2)
    right = left if label else false_right
    statement = f"both pictures contain the same number of {look.plural}"
    return _about_counts(statement, look, (left, right))


def _more(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _sample_simple(rng, split))
    first, second = pick_distinct(rng, SIDES, 2)
    low = int(rng.random() * _MAX_COUNT)
    has_left_more = label == (first == "left")
    counts = (low + 1, low) if has_left_more else (low, low + 1)
    statement = f"the {first} picture contains more {look.plural} than the {second} picture"
    return _about_counts(statement, look, counts)


def _same_color(rng: Random, split: str, label: bool) -> StatementDraft:
    look = Look(kind=pick(rng, WORLDS[split].kinds))
    left, right = _equal_or_different_pairs(rng, split, look, label)
    return StatementDraft(f"the {look.kind} has the same color in both pictures", left, right)


def _same_kind(rng: Random, split: str, label: bool) -> StatementDraft:
    look = Look(color=pick(rng, WORLDS[split].colors))
    left, right = _equal_or_different_pairs(rng, split, look, label)
    return StatementDraft(f"the {look.color} shape is the same kind in both pictures", left, right)


def _equal_or_different_pairs(
    rng: Random, split: str, look: Look, label: bool
) -> tuple[Draft, Draft]:
    """Return scenes with one shape of a look each, which are of the same pair if label."""
    left, false_right = pick_distinct(rng, pairs_of(split, look), 2)
    right = left if label else false_right
    return Draft([Look(*left)], [look]), Draft([Look(*right)], [look])


def _same_background(rng: Random, split: str, label: bool) -> StatementDraft:
    left, false_right = pick_distinct(rng, tuple(BACKGROUNDS), 2)
    right = left if label else false_right
    statement = "both pictures have the same background"
    return StatementDraft(statement, Draft(background=left), Draft(background=right))


_TEMPLATES = {
    "shows": _shows,
    "side": _side,
    "side_number": _side_number,
    "both": _both,
    "only_one": _only_one,
    "total": _total,
    "same_number": _same_number,
    "more": _more,
    "same_color": _same_color,
    "same_kind": _same_kind,
    "same_background": _same_background,
}
STATEMENT_KINDS = tuple(_TEMPLATES)
_EASY_KINDS = ("shows",) * 4 + STATEMENT_KINDS  # captions are a third of all
_HARD_KINDS = STATEMENT_KINDS[1:]  # without "shows": a caption of one shape is too easy
