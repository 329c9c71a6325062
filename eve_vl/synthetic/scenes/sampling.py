"""Sampling of scenes, free or under constraints.

Everything here is a pure function of its arguments and of the random stream.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted, stream
from eve_vl.synthetic.scenes.world import (
    ANY,
    BACKGROUNDS,
    HARD_COLORS,
    HELD_OUT,
    SIZES,
    WORLDS,
    Look,
    Mark,
    Scene,
    Shape,
    World,
    pairs_of,
)

Rgb = tuple[int, int, int]

_EXTENT_JITTER = 0.01
# keeps adjacent shapes apart and everything on the canvas
_PLACE_JITTER = {"big": 0.008, "small": 0.015}
_CHANNEL_JITTER = 10
_TONE_JITTER = 8
_MAX_SLOPE = 12
_MAX_MARKS = 4
# how often hard scenes keep a sampled look that shares neither kind nor colour with another one
_SHARE_DISSIMILAR = 0.1
_MAX_TRIES = 1000  # only asserts that a draft is satisfiable; one to six tries are usual


class Draft(NamedTuple):
    """Constraints on a scene.

    It has one shape per wanted look, the first ones in `cells`. No other shape has a look to avoid.
    """

    wanted: Sequence[Look] = ()
    avoid: Sequence[Look] = ()
    cells: Sequence[int] = ()
    num_shapes: int | None = None
    background: str | None = None


def sample_scene(split: str, seed: int, index: int) -> Scene:
    """Sample scene `index` of a split, a pure function of the arguments."""
    rng = stream("scene", split, seed, index)
    world = WORLDS[split]
    num_shapes = world.min_shapes + pick_weighted(rng, world.num_shapes_weights)
    return compose(rng, world, sample_looks(rng, split, num_shapes))


def sample_looks(rng: Random, split: str, num_shapes: int) -> list[Look]:
    """Sample looks from the pairs of a split.

    In `test_novel` at least one is a held-out pair. In hard scenes most shapes share a kind or a
    colour with another one.
    """
    if WORLDS[split].is_hard:
        return _looks_of_draft(rng, split, Draft(num_shapes=num_shapes))

    looks = [_sample_look(rng, split, ANY) for _ in range(num_shapes)]
    if split == "test_novel":
        novel = Look(*pick(rng, HELD_OUT), pick(rng, SIZES))
        looks[int(rng.random() * num_shapes)] = novel
    return looks


def sample_pair(rng: Random, split: str) -> Look:
    """Sample a kind and colour to ask about; in `test_novel` a held-out pair."""
    pairs = HELD_OUT if split == "test_novel" else pairs_of(split)
    return Look(*pick(rng, pairs))


def compose(
    rng: Random,
    world: World,
    looks: Sequence[Look],
    cells: Sequence[int] | None = None,
    background: str | None = None,
) -> Scene:
    """Place looks in distinct cells and sample everything else.

    Cells (from 0, row by row) and background are sampled if None.
    """
    if cells is None:
        cells = pick_distinct(rng, range(len(world.places)), len(looks))
    if background is None:
        background = pick(rng, tuple(BACKGROUNDS))
    tone = _jitter(rng, _TONE_JITTER)
    shapes = [_place(rng, world, look, cell) for look, cell in zip(looks, cells, strict=True)]
    slope = round(_jitter(rng, _MAX_SLOPE))
    num_marks = int(rng.random() * (_MAX_MARKS + 1))
    clutter = [_sample_mark(rng) for _ in range(num_marks)]
    return Scene(
        world=world,
        shapes=tuple(shapes),
        background=background,
        background_rgb=_shifted(BACKGROUNDS[background], (tone, tone, tone)),
        slope=slope,
        clutter=tuple(clutter),
        seed=int(rng.random() * 2**32),
    )


def compose_draft(rng: Random, split: str, draft: Draft) -> Scene:
    """Sample a scene that satisfies the draft and the rules of its split.

    Callers draw the answer first and the scene after it, so that no wording makes one answer
    likelier than another.
    """
    world = WORLDS[split]
    looks = _looks_of_draft(rng, split, draft)
    free_cells = [cell for cell in range(len(world.places)) if cell not in draft.cells]
    sampled_cells = pick_distinct(rng, free_cells, len(looks) - len(draft.cells))
    return compose(rng, world, looks, [*draft.cells, *sampled_cells], draft.background)


def _looks_of_draft(rng: Random, split: str, draft: Draft) -> list[Look]:
    """Sample looks that satisfy a draft and the rules of its split."""
    world = WORLDS[split]
    fewest = max(world.min_shapes, len(draft.wanted))
    for _ in range(_MAX_TRIES):
        num_additional = pick_weighted(rng, world.num_shapes_weights)  # as in captions
        num_shapes = draft.num_shapes or min(fewest + num_additional, world.max_shapes)
        looks = [_sample_look(rng, split, wanted) for wanted in draft.wanted]
        while len(looks) < num_shapes:
            look = _sample_look(rng, split, ANY)
            if _may_join(rng, world, look, looks, draft.avoid):
                looks.append(look)
        if split != "test_novel" or any(look.pair in HELD_OUT for look in looks):
            return looks
    raise AssertionError(f"no scene of {split} meets {draft}")


def _may_join(
    rng: Random, world: World, look: Look, looks: Sequence[Look], avoid: Sequence[Look]
) -> bool:
    """Return whether a sampled look may be shown next to others."""
    if any(avoided.fits(look) for avoided in avoid):
        return False
    if not world.is_hard:
        return True
    if any(look.kind == shape.kind or look.color == shape.color for shape in looks):
        return True
    return rng.random() < _SHARE_DISSIMILAR


def _sample_look(rng: Random, split: str, wanted: Look) -> Look:
    """Sample what a wanted look leaves open."""
    kind, color = pick(rng, pairs_of(split, wanted))
    size = wanted.size or pick(rng, SIZES)
    return Look(kind, color, size)


def _place(rng: Random, world: World, look: Look, cell: int) -> Shape:
    """Sample a shape of this look in a cell."""
    row, column = divmod(cell, len(world.anchors))
    place_jitter = _PLACE_JITTER[look.size]
    red = _jitter(rng, _CHANNEL_JITTER)
    green = _jitter(rng, _CHANNEL_JITTER)
    blue = _jitter(rng, _CHANNEL_JITTER)
    return Shape(
        kind=look.kind,
        color=look.color,
        size=look.size,
        row=row,
        column=column,
        rgb=_shifted(HARD_COLORS[look.color], (red, green, blue)),
        extent=world.extent(look.size) + _jitter(rng, _EXTENT_JITTER),
        center_y=world.anchors[row] + _jitter(rng, place_jitter),
        center_x=world.anchors[column] + _jitter(rng, place_jitter),
    )


def _sample_mark(rng: Random) -> Mark:
    """Sample a dot or a line."""
    is_dot = rng.random() < 0.5
    reach = 0.0 if is_dot else 0.15
    return Mark(
        center_y=rng.random(),
        center_x=rng.random(),
        half_y=_jitter(rng, reach),
        half_x=_jitter(rng, reach),
        radius=0.015 + 0.01 * rng.random() if is_dot else 0.006 + 0.006 * rng.random(),
    )


def _jitter(rng: Random, limit: float) -> float:
    return (2 * rng.random() - 1) * limit


def _shifted(rgb: Rgb, shift: tuple[float, float, float]) -> Rgb:
    """Return a colour with each channel shifted by some levels."""
    levels = [round(level + by) for level, by in zip(rgb, shift, strict=True)]
    red, green, blue = (min(255, max(0, level)) for level in levels)
    return red, green, blue
