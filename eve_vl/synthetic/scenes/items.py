"""Pairs of items that are the same or not, after the pairs of goods that MLIM was made for.

An item is what its image shows, one or two shapes, and one more shape that only its text tells of: each carries one half of
the evidence. The same item is drawn anew in another light, and told of in other words. Another one differs in one
attribute of one shape, in half of the cases of a shown one and in half of the told one: of pairs whose images agree, and of
those whose texts do, fewer than half are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.text import article

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
    """Two items, and whether they are the same."""

    scenes: tuple[world.Scene, world.Scene]
    texts: tuple[str, str]
    label: bool


def sample_items(split: str, seed: int, index: int) -> ItemPairDraft:
    """Draw pair `index` of a split; it depends on the arguments alone. Raises UserError for an unknown split."""
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
    """Return a look that differs in its kind, its colour or its size."""
    pairs = world.pairs_of(split)
    changed = {
        "kind": [kind for kind in world.KINDS if kind != look.kind and (kind, look.color) in pairs],
        "color": [color for color in world.COLORS if color != look.color and (look.kind, color) in pairs],
        "size": [size for size in world.SIZES if size != look.size],
    }
    name = world.pick(rng, tuple(changed))
    return look._replace(**{name: world.pick(rng, changed[name])})
