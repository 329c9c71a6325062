"""Scenes under constraints: what must be in a scene for a question or statement, what must not, and where.

The answer is drawn first and the scene after it, so that no wording makes one answer likelier than another.
"""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.scenes import world
from eve_vl.synthetic.scenes.text import PLURALS, article

_MAX_TRIES = 1000  # only asserts that a draft is satisfiable; one to six tries are usual


class Trait(NamedTuple):
    """A common trait of shapes; None: any value."""

    kind: str | None = None
    color: str | None = None
    size: str | None = None

    def fits(self, look: world.Appearance | world.Shape) -> bool:
        """Return whether a shape has this trait."""
        return self.kind in (None, look.kind) and self.color in (None, look.color) and self.size in (None, look.size)

    @property
    def singular(self) -> str:
        """The trait in words: "red circle", "big star", "red shape"."""
        return self._words(self.kind or "shape")

    @property
    def plural(self) -> str:
        """The trait in words: "red circles", "big stars", "red shapes"."""
        return self._words(PLURALS[self.kind] if self.kind else "shapes")

    @property
    def with_article(self) -> str:
        """The trait in words: "a red circle", "an orange star"."""
        return f"{article(self.singular.split()[0])} {self.singular}"

    def _words(self, noun: str) -> str:
        return " ".join(word for word in (self.size, self.color, noun) if word)


class Draft(NamedTuple):
    """Constraints on a scene: one shape per wanted trait, the first ones in `cells`; no other shape with a trait to avoid."""

    wanted: Sequence[Trait] = ()
    avoid: Sequence[Trait] = ()
    cells: Sequence[int] = ()
    num_shapes: int | None = None
    background: str | None = None


def compose_draft(rng: Random, split: str, draft: Draft) -> world.Scene:
    """Sample a scene that satisfies the draft and the rules of its split, random otherwise."""
    looks = _draw_appearances(rng, split, draft)
    free = [cell for cell in range(world.NUM_CELLS) if cell not in draft.cells]
    cells = [*draft.cells, *world.pick_distinct(rng, free, len(looks) - len(draft.cells))]
    return world.compose(rng, looks, cells, draft.background)


def draw_pair(rng: Random, split: str) -> Trait:
    """Sample a kind and colour to ask about; in `test_novel` a held-out pair."""
    return Trait(*world.pick(rng, world.HELD_OUT if split == "test_novel" else world.pairs_of(split)))


@cache
def matching_pairs(split: str, trait: Trait) -> tuple[tuple[str, str], ...]:
    """Return the (kind, colour) pairs of a split that have a trait."""
    return tuple(pair for pair in world.pairs_of(split) if trait.kind in (None, pair[0]) and trait.color in (None, pair[1]))


def _draw_appearances(rng: Random, split: str, draft: Draft) -> list[world.Appearance]:
    fewest = max(1, len(draft.wanted))
    for _ in range(_MAX_TRIES):
        others = world.sample_num_shapes(rng) - 1  # as in captions: mostly none
        num_shapes = draft.num_shapes or min(fewest + others, world.MAX_SHAPES)
        looks = [_draw_appearance(rng, split, trait) for trait in draft.wanted]
        looks += [_draw_other(rng, split, draft.avoid) for _ in range(num_shapes - len(looks))]
        if split != "test_novel" or any((look.kind, look.color) in world.HELD_OUT for look in looks):
            return looks
    raise AssertionError(f"no scene of {split} meets {draft}")


def _draw_appearance(rng: Random, split: str, trait: Trait) -> world.Appearance:
    kind, color = world.pick(rng, matching_pairs(split, trait))
    return world.Appearance(kind, color, trait.size or world.pick(rng, world.SIZES))


def _draw_other(rng: Random, split: str, avoid: Sequence[Trait]) -> world.Appearance:
    for _ in range(_MAX_TRIES):
        look = _draw_appearance(rng, split, Trait())
        if not any(trait.fits(look) for trait in avoid):
            return look
    raise AssertionError(f"every shape of {split} is one of {avoid}")
