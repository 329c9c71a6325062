"""Statements about two scenes, and pairs of items.

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

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from eve_vl.synthetic import pick, pick_distinct, pick_weighted, stream
from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.world import NUMBERS, SIDES, SIZES, WORLDS, Draft, Look, Scene, pairs_of, sample_pair

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
    kind = pick(rng, STATEMENT_KINDS[1:] if is_hard else ("shows",) * 4 + STATEMENT_KINDS)  # captions are a third of all
    label = rng.random() < 0.5
    statement, *drafts = _STATEMENTS[kind](rng, split, label)
    left, right = (world.compose_draft(rng, split, draft) for draft in drafts)
    return Statement(left, right, statement, label, kind)


def sample_items(split: str, seed: int, index: int) -> Items:
    """Sample pair `index` of a split, a pure function of the arguments."""
    rng = stream("items", split, seed, index)
    own = WORLDS[split]
    num_more = pick_weighted(rng, own.num_shapes_weights) if own.is_hard else rng.random() < SHARE_TWO_SHAPES
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
    cell, background = int(rng.random() * len(WORLDS[split].places)), pick(rng, tuple(world.BACKGROUNDS))
    return Draft([look], cells=[cell], num_shapes=1, background=background)


def _side(rng: Random, split: str, label: bool) -> StatementDraft:
    look, side = _one_of(rng, split), pick(rng, SIDES)
    counts = int(label), int(rng.random() < 0.5)
    return _counts(f"the {side} picture contains {look.with_article}", look, counts if side == "left" else counts[::-1])


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
    left, other = pick_distinct(rng, range(max(0, total - _MAX_COUNT), min(total, _MAX_COUNT) + 1), 2)
    counts = (left, total - left if label else total - other)
    return _counts(f"there are {NUMBERS[total]} {look.plural} in total", look, counts)


def _same_number(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _simple(rng, split))
    left, other = pick_distinct(rng, range(_MAX_COUNT + 1), 2)
    return _counts(f"both pictures contain the same number of {look.plural}", look, (left, left if label else other))


def _more(rng: Random, split: str, label: bool) -> StatementDraft:
    look = pick(rng, _simple(rng, split))
    first, second = pick_distinct(rng, SIDES, 2)
    low = int(rng.random() * _MAX_COUNT)
    counts = (low + 1, low) if label == (first == "left") else (low, low + 1)
    return _counts(f"the {first} picture contains more {look.plural} than the {second} picture", look, counts)


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
    name = pick(rng, ("kind", "color", "size"))
    others = [look._replace(**{name: value}) for value in getattr(WORLDS[split], name) if value != getattr(look, name)]
    return pick(rng, [other for other in others if other[:2] in pairs_of(split)])
