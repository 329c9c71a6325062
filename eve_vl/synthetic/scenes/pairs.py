"""Rows of two scenes: statements, true or false, and pairs of items, the same or not.

Statements follow NLVR2 (Suhr et al. 2019). For every wording both labels are equally likely. Some statements are about one
scene, as in NLVR2. For most others, each scene has the same distribution under both labels, so that neither decides the
label. Exceptions are "both …" and "more …", where one scene is informative by nature.

Items follow the pairs of goods in MLIM. The image of an item shows one or two shapes; its text describes one more shape, so
each carries half of the evidence. The same item is sampled with other light and other words. A different item differs in
one attribute of one shape, half of the time of a visible one and half of the time of the described one. Among pairs
with equal images, and among pairs with equal texts, fewer than half are the same item.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.constraints import Draft, Trait, compose_draft, draw_pair, matching_pairs
from eve_vl.synthetic.scenes.text import NUMBERS, PLACES, article

_MAX_COUNT = 3  # of one trait in one scene
SIDES = ("left", "right")

StatementDraft = tuple[str, Draft, Draft]  # statement, constraints on the left and on the right scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """Two scenes, a statement about both, and whether it is true. `kind` is one of STATEMENT_KINDS."""

    left: world.Scene
    right: world.Scene
    statement: str
    label: bool
    kind: str


def sample_statement(split: str, seed: int, index: int) -> Statement:
    """Sample statement `index` of a split, a pure function of the arguments. Raises UserError for an unknown split."""
    rng = world.stream("statement", split, seed, index)
    kind = world.pick(rng, _DRAWN)
    label = rng.random() < 0.5
    statement, *drafts = _TEMPLATES[kind](rng, split, label)
    left, right = (compose_draft(rng, split, draft) for draft in drafts)
    return Statement(left=left, right=right, statement=statement, label=label, kind=kind)


def _counts(statement: str, trait: Trait, counts: tuple[int, int]) -> StatementDraft:
    left, right = (Draft([trait] * count, [trait]) for count in counts)
    return statement, left, right


def _one_of(rng: Random, split: str) -> Trait:
    """Sample a trait that an image may or may not have."""
    return world.pick(rng, (draw_pair(rng, split), *_simple(rng)))


def _countable(rng: Random) -> Trait:
    return world.pick(rng, _simple(rng))


def _simple(rng: Random) -> tuple[Trait, Trait]:
    return Trait(color=world.pick(rng, tuple(world.COLORS))), Trait(kind=world.pick(rng, world.KINDS))


def _shows(rng: Random, split: str, label: bool) -> StatementDraft:
    """State that a whole caption is true of either image; if false, all three are independent."""
    said, other, another = (_single(rng, split) for _ in range(3))
    in_words = f"one {said.wanted[0].singular} at {PLACES[said.cells[0]]} on {said.background}"
    images = world.pick_distinct(rng, (said if label else another, other), 2)
    if (said in images) != label:
        return _shows(rng, split, label)
    return f"one of the pictures shows {in_words}", images[0], images[1]


def _single(rng: Random, split: str) -> Draft:
    trait = draw_pair(rng, split)._replace(size=world.pick(rng, world.SIZES))
    cell, background = int(rng.random() * world.NUM_CELLS), world.pick(rng, tuple(world.BACKGROUNDS))
    return Draft([trait], cells=[cell], num_shapes=1, background=background)


def _side(rng: Random, split: str, label: bool) -> StatementDraft:
    trait, side = _one_of(rng, split), world.pick(rng, SIDES)
    there, elsewhere = int(label), int(rng.random() < 0.5)
    return _counts(f"the {side} picture contains {trait.with_article}", trait, _at(side, there, elsewhere))


def _side_number(rng: Random, split: str, label: bool) -> StatementDraft:
    trait, side = _countable(rng), world.pick(rng, SIDES)
    said, other = world.pick_distinct(rng, (1, 2, _MAX_COUNT), 2)
    name = trait.plural if said > 1 else trait.singular
    elsewhere = world.pick(rng, range(_MAX_COUNT + 1))
    return _counts(f"the {side} picture contains {NUMBERS[said]} {name}", trait, _at(side, said if label else other, elsewhere))


def _at(side: str, there: int, elsewhere: int) -> tuple[int, int]:
    return (there, elsewhere) if side == "left" else (elsewhere, there)


def _both(rng: Random, split: str, label: bool) -> StatementDraft:
    trait = _one_of(rng, split)
    counts = (1, 1) if label else world.pick(rng, ((0, 1), (1, 0)))
    return _counts(f"both pictures contain {trait.with_article}", trait, counts)


def _only_one(rng: Random, split: str, label: bool) -> StatementDraft:
    trait = _one_of(rng, split)
    counts = world.pick(rng, ((0, 1), (1, 0)) if label else ((0, 0), (1, 1)))
    return _counts(f"only one picture contains {trait.with_article}", trait, counts)


def _total(rng: Random, split: str, label: bool) -> StatementDraft:
    trait = _countable(rng)
    total = world.pick(rng, (2, 3, 4))
    ways = range(max(0, total - _MAX_COUNT), min(total, _MAX_COUNT) + 1)
    left, other = world.pick_distinct(rng, ways, 2)
    counts = (left, total - left if label else total - other)
    return _counts(f"there are {NUMBERS[total]} {trait.plural} in total", trait, counts)


def _same_number(rng: Random, split: str, label: bool) -> StatementDraft:
    trait = _countable(rng)
    left, other = world.pick_distinct(rng, range(_MAX_COUNT + 1), 2)
    return _counts(f"both pictures contain the same number of {trait.plural}", trait, (left, left if label else other))


def _more(rng: Random, split: str, label: bool) -> StatementDraft:
    trait = _countable(rng)
    first, second = world.pick_distinct(rng, SIDES, 2)
    low = int(rng.random() * _MAX_COUNT)
    is_left_more = label == (first == "left")
    counts = (low + 1, low) if is_left_more else (low, low + 1)
    return _counts(f"the {first} picture contains more {trait.plural} than the {second} picture", trait, counts)


def _same_color(rng: Random, split: str, label: bool) -> StatementDraft:
    kind = world.pick(rng, world.KINDS)
    color, other = (color for _, color in world.pick_distinct(rng, matching_pairs(split, Trait(kind)), 2))
    left, right = Trait(kind, color), Trait(kind, color if label else other)
    avoid = [Trait(kind)]
    return f"the {kind} has the same color in both pictures", Draft([left], avoid), Draft([right], avoid)


def _same_kind(rng: Random, split: str, label: bool) -> StatementDraft:
    color = world.pick(rng, tuple(world.COLORS))
    kind, other = (kind for kind, _ in world.pick_distinct(rng, matching_pairs(split, Trait(color=color)), 2))
    left, right = Trait(kind, color), Trait(kind if label else other, color)
    avoid = [Trait(color=color)]
    return f"the {color} shape is the same kind in both pictures", Draft([left], avoid), Draft([right], avoid)


def _same_background(rng: Random, split: str, label: bool) -> StatementDraft:
    left, other = world.pick_distinct(rng, tuple(world.BACKGROUNDS), 2)
    return "both pictures have the same background", Draft(background=left), Draft(background=left if label else other)


_ABOUT_NUMBERS = (_side, _side_number, _both, _only_one, _total, _same_number, _more)
_ABOUT_LOOKS = (_same_color, _same_kind, _same_background)
_TEMPLATES: dict[str, Callable[[Random, str, bool], StatementDraft]] = {
    template.__name__.removeprefix("_"): template for template in (_shows, *_ABOUT_NUMBERS, *_ABOUT_LOOKS)
}
STATEMENT_KINDS = tuple(_TEMPLATES)
_DRAWN = ("shows",) * 4 + STATEMENT_KINDS  # whole captions are a third of all


# Pairs of items
SHARE_SAME = 0.3
SHARE_TWO_SHAPES = 0.4
_WORDINGS: tuple[Callable[[world.Appearance], str], ...] = (
    lambda look: f"one {look.size} {look.color} {look.kind}",
    lambda look: f"{article(look.size)} {look.size} {look.kind} and it is {look.color}",
    lambda look: f"the {look.kind} is {look.size} and {look.color}",
    lambda look: f"there is {article(look.color)} {look.color} {look.kind} and it is {look.size}",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemPairDraft:
    """Two items, and whether they are the same item."""

    scenes: tuple[world.Scene, world.Scene]
    texts: tuple[str, str]
    label: bool


def sample_items(split: str, seed: int, index: int) -> ItemPairDraft:
    """Sample pair `index` of a split, a pure function of the arguments. Raises UserError for an unknown split."""
    rng = world.stream("items", split, seed, index)
    shown = world.sample_appearances(rng, split, 1 + (rng.random() < SHARE_TWO_SHAPES))
    (told,) = world.sample_appearances(rng, split, 1)
    label, differs_in_image = rng.random() < SHARE_SAME, rng.random() < 0.5
    others, other = [*shown], told
    if not label and differs_in_image:
        while sorted(others) == sorted(shown):
            others = [*shown]
            place = int(rng.random() * len(shown))
            others[place] = _another(rng, split, shown[place])
    elif not label:
        other = _another(rng, split, told)
    wordings = world.pick_distinct(rng, _WORDINGS, 2)
    cells = world.pick_distinct(rng, range(world.NUM_CELLS), len(shown))
    return ItemPairDraft(
        scenes=(world.compose(rng, shown, cells), world.compose(rng, others, cells)),
        texts=(wordings[0](told), wordings[1](other)),
        label=label,
    )


def _another(rng: Random, split: str, look: world.Appearance) -> world.Appearance:
    """Return an appearance that differs in kind, colour or size."""
    pairs = world.pairs_of(split)
    changed = {
        "kind": [kind for kind in world.KINDS if kind != look.kind and (kind, look.color) in pairs],
        "color": [color for color in world.COLORS if color != look.color and (look.kind, color) in pairs],
        "size": [size for size in world.SIZES if size != look.size],
    }
    name = world.pick(rng, tuple(changed))
    return look._replace(**{name: world.pick(rng, changed[name])})
