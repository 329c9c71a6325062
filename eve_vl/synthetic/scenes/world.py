"""The world of scenes: what a scene is, and how one is sampled.

Sampling is free or under constraints.

Everything here is a pure function of (split, seed, index). Positions and sizes are fractions of the canvas, y grows
downwards. Shapes stand in distinct cells of a square grid with some jitter, so that "left of", "above" and the names of
cells always hold by a clear margin and no two shapes hide one another.

There are two worlds. EASY shows one to four shapes in 3 × 3 cells; HARD shows three to eight in 4 × 4, of more kinds and
colours. At 64 pixels the shapes of HARD are 10 or 15 pixels wide.
"""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted, stream
from eve_vl.utils.frozen import Frozen

SIZES = ("big", "small")
SIDES = ("left", "right")
KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
HARD_KINDS = (*KINDS, "diamond", "bar")
COLORS = {
    "red": (222, 32, 38),
    "orange": (248, 138, 18),
    "yellow": (250, 216, 30),
    "green": (34, 152, 66),
    "cyan": (50, 206, 222),
    "blue": (40, 92, 232),
    "purple": (138, 48, 190),
    "pink": (250, 128, 192),
}
HARD_COLORS = COLORS | {"brown": (130, 76, 32), "black": (38, 38, 42)}
BACKGROUNDS = {  # all light: a shape is darker than what it stands on, so that all are easy to see
    "white": (246, 246, 244),
    "gray": (196, 198, 202),
    "beige": (236, 214, 176),
    "mint": (190, 232, 206),
    "sky": (186, 214, 244),
}
PLURALS = {kind: "crosses" if kind == "cross" else kind + "s" for kind in HARD_KINDS}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")

# Pairs that training never shows, one per colour and one or two per kind: it has all words, but not these combinations.
HELD_OUT = tuple((KINDS[i % len(KINDS)], color) for i, color in enumerate(COLORS))
SEEN = tuple((kind, color) for kind in KINDS for color in COLORS if (kind, color) not in HELD_OUT)

_EXTENT_JITTER = 0.01
_PLACE_JITTER = {
    "big": 0.008,
    "small": 0.015,
}  # keeps adjacent shapes apart and everything on the canvas
_CHANNEL_JITTER = 10
_TONE_JITTER = 8
_MAX_SLOPE = 12
_MAX_MARKS = 4
_SHARE_DISSIMILAR = 0.1  # how often hard scenes keep a sampled look that shares neither kind nor colour with another
_MAX_TRIES = 1000  # only asserts that a draft is satisfiable; one to six tries are usual


class World(NamedTuple):
    """What the scenes of a split show, and where.

    pairs: of kind and colour. anchors: centres of rows and of columns. places: names of the cells, row by row.
    extents: of SIZES. num_shapes_weights: from the fewest shapes to the most.
    """

    kind: tuple[str, ...]
    color: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    anchors: tuple[float, ...]
    places: tuple[str, ...]
    extents: tuple[float, float]
    num_shapes_weights: tuple[float, ...]
    min_shapes: int
    max_shapes: int
    is_hard: bool = False
    size: tuple[str, ...] = SIZES


EASY = World(
    kind=KINDS,
    color=tuple(COLORS),
    pairs=SEEN,
    anchors=(0.18, 0.5, 0.82),
    places=(
        "top left",
        "top",
        "top right",
        "left",
        "middle",
        "right",
        "bottom left",
        "bottom",
        "bottom right",
    ),
    extents=(0.34, 0.24),  # 16 and 11.5 pixels at 48
    num_shapes_weights=(
        0.6,
        0.25,
        0.1,
        0.05,
    ),  # mostly easy ones: naming shapes is learnt before telling them apart
    min_shapes=1,
    max_shapes=4,
)
HARD = World(
    kind=HARD_KINDS,
    color=tuple(HARD_COLORS),
    pairs=tuple(
        (kind, color)
        for kind in HARD_KINDS
        for color in HARD_COLORS
        if (kind, color) not in HELD_OUT
    ),
    anchors=(0.125, 0.375, 0.625, 0.875),
    places=tuple(f"row {row} column {column}" for row in NUMBERS[1:5] for column in NUMBERS[1:5]),
    extents=(0.23, 0.15),
    num_shapes_weights=(0.1, 0.15, 0.2, 0.2, 0.2, 0.15),
    min_shapes=3,
    max_shapes=8,
    is_hard=True,
)
WORLDS = {
    **dict.fromkeys(("train", "val", "test"), EASY),
    "test_novel": EASY._replace(pairs=SEEN + HELD_OUT),
    **dict.fromkeys(("hard_train", "hard_val", "hard_test"), HARD),
}
"""By split."""
SPLITS = tuple(WORLDS)


class Shape(Frozen):
    """One shape: names, row and column from 0, colour, width and centre.

    Width and centre are fractions of the canvas.
    """

    kind: str
    color: str
    size: str
    row: int
    column: int
    rgb: tuple[int, int, int]
    extent: float
    center_y: float
    center_x: float


class Look(NamedTuple):
    """Kind, colour and size of a shape, or of several; "": any."""

    kind: str = ""
    color: str = ""
    size: str = ""

    def fits(self, other: "Look | Shape") -> bool:
        """Return whether a shape looks like this."""
        return (
            self.kind in ("", other.kind)
            and self.color in ("", other.color)
            and self.size in ("", other.size)
        )

    @property
    def singular(self) -> str:
        """The look in words: "red circle", "big star", "red shape"."""
        return " ".join(filter(None, (self.size, self.color, self.kind or "shape")))

    @property
    def plural(self) -> str:
        """The look in words: "red circles", "big stars", "red shapes"."""
        return " ".join(filter(None, (self.size, self.color, PLURALS.get(self.kind, "shapes"))))

    @property
    def with_article(self) -> str:
        """The look in words: "a red circle", "an orange star"."""
        return f"{article(self.singular.split()[0])} {self.singular}"


class Mark(NamedTuple):
    """Clutter: a muted line from centre − half to centre + half with round ends.

    It is a dot if half is zero.
    """

    center_y: float
    center_x: float
    half_y: float
    half_x: float
    radius: float


class Scene(Frozen):
    """One image before rendering.

    slope: by how many levels the bottom edge is lighter than the middle.
    """

    world: World
    shapes: tuple[Shape, ...]
    background: str
    background_rgb: tuple[int, int, int]
    slope: int
    clutter: tuple[Mark, ...]
    seed: int


class Draft(NamedTuple):
    """Constraints on a scene.

    One shape per wanted look is in it, the first ones in `cells`. No other shape has a look to avoid.
    """

    wanted: Sequence[Look] = ()
    avoid: Sequence[Look] = ()
    cells: Sequence[int] = ()
    num_shapes: int | None = None
    background: str | None = None


def article(word: str) -> str:
    """Return the article, "a" or "an", of a word of captions."""
    return "an" if word == "orange" else "a"


ANY = Look()


@cache
def pairs_of(split: str, look: Look = ANY) -> tuple[tuple[str, str], ...]:
    """Return the (kind, colour) pairs of a split, or those of a look."""
    return tuple(
        pair
        for pair in WORLDS[split].pairs
        if look.kind in ("", pair[0]) and look.color in ("", pair[1])
    )


def sample_scene(split: str, seed: int, index: int) -> Scene:
    """Sample scene `index` of a split, a pure function of the arguments."""
    rng, world = stream("scene", split, seed, index), WORLDS[split]
    num_shapes = world.min_shapes + pick_weighted(rng, world.num_shapes_weights)
    return compose(rng, world, sample_looks(rng, split, num_shapes))


def sample_looks(rng: Random, split: str, num_shapes: int) -> list[Look]:
    """Sample looks from the pairs of a split.

    In `test_novel` at least one is a held-out pair. In hard scenes most shapes share a kind or a colour with another.
    """
    pairs = pairs_of(split)
    if WORLDS[split].is_hard:
        return _sample_wanted(rng, split, Draft(num_shapes=num_shapes))
    looks = [Look(*pick(rng, pairs), pick(rng, SIZES)) for _ in range(num_shapes)]
    if split == "test_novel":
        looks[int(rng.random() * num_shapes)] = Look(*pick(rng, HELD_OUT), pick(rng, SIZES))
    return looks


def sample_pair(rng: Random, split: str) -> Look:
    """Sample a kind and colour to ask about; in `test_novel` a held-out pair."""
    return Look(*pick(rng, HELD_OUT if split == "test_novel" else pairs_of(split)))


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
    shift = _jitter(rng, _TONE_JITTER)
    return Scene(
        world=world,
        shapes=tuple(
            _place(rng, world, look, cell) for look, cell in zip(looks, cells, strict=True)
        ),
        background=background,
        background_rgb=_shifted(BACKGROUNDS[background], (shift, shift, shift)),
        slope=round(_jitter(rng, _MAX_SLOPE)),
        clutter=tuple(_mark(rng) for _ in range(int(rng.random() * (_MAX_MARKS + 1)))),
        seed=int(rng.random() * 2**32),
    )


def compose_draft(rng: Random, split: str, draft: Draft) -> Scene:
    """Sample a scene that satisfies the draft and the rules of its split.

    Callers draw the answer first and the scene after it, so that no wording makes one answer likelier than another.
    """
    world, looks = WORLDS[split], _sample_wanted(rng, split, draft)
    free = [cell for cell in range(len(world.places)) if cell not in draft.cells]
    cells = [*draft.cells, *pick_distinct(rng, free, len(looks) - len(draft.cells))]
    return compose(rng, world, looks, cells, draft.background)


def _sample_wanted(rng: Random, split: str, draft: Draft) -> list[Look]:
    world = WORLDS[split]
    for _ in range(_MAX_TRIES):
        others = pick_weighted(rng, world.num_shapes_weights)  # as in captions
        num_shapes = draft.num_shapes or min(
            max(world.min_shapes, len(draft.wanted)) + others, world.max_shapes
        )
        looks = [_sample_look(rng, split, wanted) for wanted in draft.wanted]
        while len(looks) < num_shapes:
            look = _sample_look(rng, split, ANY)
            is_avoided = any(avoided.fits(look) for avoided in draft.avoid)
            is_similar = any(
                look.kind == other.kind or look.color == other.color for other in looks
            )
            if not is_avoided and (
                not world.is_hard or is_similar or rng.random() < _SHARE_DISSIMILAR
            ):
                looks.append(look)
        if split != "test_novel" or any(look[:2] in HELD_OUT for look in looks):
            return looks
    raise AssertionError(f"no scene of {split} meets {draft}")


def _sample_look(rng: Random, split: str, wanted: Look) -> Look:
    return Look(*pick(rng, pairs_of(split, wanted)), wanted.size or pick(rng, SIZES))


def _jitter(rng: Random, limit: float) -> float:
    return (2 * rng.random() - 1) * limit


def _shifted(rgb: tuple[int, int, int], shift: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (
        min(255, max(0, round(level + by))) for level, by in zip(rgb, shift, strict=True)
    )
    return red, green, blue


def _place(rng: Random, world: World, look: Look, cell: int) -> Shape:
    row, column = divmod(cell, len(world.anchors))
    place_jitter = _PLACE_JITTER[look.size]
    shift = (
        _jitter(rng, _CHANNEL_JITTER),
        _jitter(rng, _CHANNEL_JITTER),
        _jitter(rng, _CHANNEL_JITTER),
    )
    return Shape(
        **look._asdict(),
        row=row,
        column=column,
        rgb=_shifted(HARD_COLORS[look.color], shift),
        extent=world.extents[SIZES.index(look.size)] + _jitter(rng, _EXTENT_JITTER),
        center_y=world.anchors[row] + _jitter(rng, place_jitter),
        center_x=world.anchors[column] + _jitter(rng, place_jitter),
    )


def _mark(rng: Random) -> Mark:
    is_dot = rng.random() < 0.5
    reach = 0.0 if is_dot else 0.15
    return Mark(
        center_y=rng.random(),
        center_x=rng.random(),
        half_y=_jitter(rng, reach),
        half_x=_jitter(rng, reach),
        radius=0.015 + 0.01 * rng.random() if is_dot else 0.006 + 0.006 * rng.random(),
    )
