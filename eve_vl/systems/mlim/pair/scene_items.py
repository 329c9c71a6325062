"""Pairs of items made of scenes, the same or not, after the pairs of goods in MLIM.

The image of an item shows one or two shapes; its text describes one more shape, so each carries
half of the evidence. The same item is sampled with other light and other words. A different item
differs in one attribute of one shape, half of the time of a visible one and half of the time of the
described one. Among pairs with equal images, and among pairs with equal texts, fewer than half are
the same item. In hard splits, the image shows as many shapes as any hard scene.
"""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted, stream
from eve_vl.synthetic.scenes.rows import SceneRows
from eve_vl.synthetic.scenes.sampling import compose, sample_looks
from eve_vl.synthetic.scenes.world import WORLDS, Look, Scene, article, pairs_of
from eve_vl.systems.mlim.pair.item_rows import ItemPair

SHARE_SAME = 0.3
SHARE_TWO_SHAPES = 0.4


class Items(NamedTuple):
    """Two items, and whether they are the same item."""

    scenes: tuple[Scene, Scene]
    texts: tuple[str, str]
    label: bool


class SceneItems(SceneRows):
    """Two items each, the same or not.

    Image and text of an item describe different shapes.
    """

    def __getitem__(self, index: int, /) -> ItemPair:
        where = self.where(index)
        items = sample_items(self.split, self.seed, index)
        left_scene, right_scene = items.scenes
        return ItemPair(
            left=self.image(left_scene),
            right=self.image(right_scene),
            captions=items.texts,
            label=items.label,
            where=where,
        )


def sample_items(split: str, seed: int, index: int) -> Items:
    """Sample pair `index` of a split, a pure function of the arguments."""
    rng = stream("items", split, seed, index)
    world = WORLDS[split]
    left_looks = sample_looks(rng, split, _sample_num_shapes(rng, split))
    (left_described,) = sample_looks(rng, split, 1)
    label = rng.random() < SHARE_SAME
    differs_in_image = rng.random() < 0.5

    right_looks = left_looks
    right_described = left_described
    if not label and differs_in_image:
        right_looks = _with_one_changed(rng, split, left_looks)
    elif not label:
        right_described = _changed(rng, split, left_described)

    first, second = pick_distinct(rng, range(4), 2)
    texts = (_wordings(left_described)[first], _wordings(right_described)[second])
    cells = pick_distinct(rng, range(len(world.places)), len(left_looks))
    left = compose(rng, world, left_looks, cells)
    right = compose(rng, world, right_looks, cells)
    return Items((left, right), texts, label)


def _sample_num_shapes(rng: Random, split: str) -> int:
    """Sample the number of shapes in the images of a pair."""
    world = WORLDS[split]
    if world.is_hard:
        return world.min_shapes + pick_weighted(rng, world.num_shapes_weights)
    return world.min_shapes + int(rng.random() < SHARE_TWO_SHAPES)


def _with_one_changed(rng: Random, split: str, looks: Sequence[Look]) -> list[Look]:
    """Return looks of which one differs, so that the looks are not the same in another order."""
    changed = list(looks)
    while Counter(changed) == Counter(looks):
        changed = list(looks)
        place = int(rng.random() * len(looks))
        changed[place] = _changed(rng, split, looks[place])
    return changed


def _changed(rng: Random, split: str, look: Look) -> Look:
    """Return a look that differs in kind, colour or size."""
    feature = pick(rng, ("kind", "color", "size"))
    values = [value for value in WORLDS[split].values(feature) if value != getattr(look, feature)]
    looks = [look._replace(**{feature: value}) for value in values]
    return pick(rng, [changed for changed in looks if changed.pair in pairs_of(split)])


def _wordings(look: Look) -> tuple[str, str, str, str]:
    """Return the texts that may describe a look."""
    kind, color, size = look
    return (
        f"one {size} {color} {kind}",
        f"{article(size)} {size} {kind} and it is {color}",
        f"the {kind} is {size} and {color}",
        f"there is {article(color)} {color} {kind} and it is {size}",
    )
