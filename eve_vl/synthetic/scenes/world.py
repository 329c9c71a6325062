"""The world of scenes: what a scene is, and how one is sampled.

Everything here is a pure function of (split, seed, index). Positions and sizes are fractions of the canvas, y grows
downwards. Shapes stand in distinct cells of a 3 × 3 grid with some jitter, so that "left of", "above" and the nine
places always hold by a clear margin and no two shapes hide one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from eve_vl import synthetic
from eve_vl.synthetic import check_split, pick, pick_distinct, pick_weighted

SPLITS = ("train", "val", "test", "test_novel")
SIZES = ("big", "small")
KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
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
BACKGROUNDS = {  # all light: a shape is darker than what it stands on, so that all are easy to see
    "white": (246, 246, 244),
    "gray": (196, 198, 202),
    "beige": (236, 214, 176),
    "mint": (190, 232, 206),
    "sky": (186, 214, 244),
}
NUM_ROWS = NUM_COLUMNS = 3
NUM_CELLS = NUM_ROWS * NUM_COLUMNS
MAX_SHAPES = 4

# One kind is held out per colour, every kind once or twice: training has all words, but never these pairs.
HELD_OUT = tuple((KINDS[i % len(KINDS)], color) for i, color in enumerate(COLORS))
SEEN = tuple((kind, color) for kind in KINDS for color in COLORS if (kind, color) not in HELD_OUT)

_ANCHORS = (0.18, 0.5, 0.82)  # centre of a row or column
_EXTENT = {"big": 0.34, "small": 0.24}  # 16 and 11.5 pixels at 48
_EXTENT_JITTER = 0.01
_PLACE_JITTER = {"big": 0.008, "small": 0.015}  # keeps neighbours apart and everything on the canvas
_CHANNEL_JITTER = 10
_TONE_JITTER = 8
_MAX_SLOPE = 12
_NUM_SHAPES_WEIGHTS = (
    0.6,
    0.25,
    0.1,
    0.05,
)  # mostly easy ones: naming shapes is learnt before telling them apart
_MAX_MARKS = 4


class Appearance(NamedTuple):
    """Kind, colour and size of a shape, without its position."""

    kind: str
    color: str
    size: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One shape: names, exact colour, width and centre (fractions of the canvas)."""

    kind: str
    color: str
    size: str
    rgb: tuple[int, int, int]
    extent: float
    center_y: float
    center_x: float

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom third of the canvas."""
        return int(self.center_y * 3)

    @property
    def column(self) -> int:
        """0 left, 1 middle, 2 right third of the canvas."""
        return int(self.center_x * 3)


class Mark(NamedTuple):
    """Clutter: a muted line from centre − half to centre + half with round ends; a dot if half is zero."""

    center_y: float
    center_x: float
    half_y: float
    half_x: float
    radius: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One image before rendering. slope: by how many levels the bottom edge is lighter than the middle."""

    shapes: tuple[Shape, ...]
    background: str
    background_rgb: tuple[int, int, int]
    slope: int
    clutter: tuple[Mark, ...]
    seed: int


def stream(purpose: str, split: str, seed: int, index: int) -> Random:
    """Return the random stream of one row. Raises UserError for an unknown split."""
    check_split(split, SPLITS)
    return synthetic.stream(purpose, split, seed, index)


def pairs_of(split: str) -> tuple[tuple[str, str], ...]:
    """Return the (kind, colour) pairs that may be shown in a split."""
    return SEEN + HELD_OUT if split == "test_novel" else SEEN


def sample_scene(split: str, seed: int, index: int) -> Scene:
    """Sample scene `index` of a split, a pure function of the arguments. Raises UserError for an unknown split."""
    rng = stream("scene", split, seed, index)
    return compose(rng, sample_appearances(rng, split, sample_num_shapes(rng)))


def sample_num_shapes(rng: Random) -> int:
    """Sample the number of shapes of a scene, 1 to MAX_SHAPES."""
    return 1 + pick_weighted(rng, _NUM_SHAPES_WEIGHTS)


def sample_appearances(rng: Random, split: str, num_shapes: int) -> list[Appearance]:
    """Sample appearances from the pairs of a split; in `test_novel` at least one is a held-out pair."""
    pairs = pairs_of(split)
    looks = [Appearance(*pick(rng, pairs), pick(rng, SIZES)) for _ in range(num_shapes)]
    if split == "test_novel":
        looks[int(rng.random() * num_shapes)] = Appearance(*pick(rng, HELD_OUT), pick(rng, SIZES))
    return looks


def compose(
    rng: Random, looks: Sequence[Appearance], cells: Sequence[int] | None = None, background: str | None = None
) -> Scene:
    """Place appearances in distinct cells (0 to 8, row by row) and sample everything else, cells and background if None."""
    if cells is None:
        cells = pick_distinct(rng, range(NUM_CELLS), len(looks))
    if background is None:
        background = pick(rng, tuple(BACKGROUNDS))
    shift = _jitter(rng, _TONE_JITTER)
    return Scene(
        shapes=tuple(_place(rng, look, cell) for look, cell in zip(looks, cells, strict=True)),
        background=background,
        background_rgb=_shifted(BACKGROUNDS[background], (shift, shift, shift)),
        slope=round(_jitter(rng, _MAX_SLOPE)),
        clutter=tuple(_mark(rng) for _ in range(int(rng.random() * (_MAX_MARKS + 1)))),
        seed=int(rng.random() * 2**32),
    )


def _jitter(rng: Random, limit: float) -> float:
    return (2 * rng.random() - 1) * limit


def _shifted(rgb: tuple[int, int, int], shift: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(level + by))) for level, by in zip(rgb, shift, strict=True))
    return red, green, blue


def _place(rng: Random, look: Appearance, cell: int) -> Shape:
    row, column = divmod(cell, NUM_COLUMNS)
    place_jitter = _PLACE_JITTER[look.size]
    shift = (_jitter(rng, _CHANNEL_JITTER), _jitter(rng, _CHANNEL_JITTER), _jitter(rng, _CHANNEL_JITTER))
    return Shape(
        **look._asdict(),
        rgb=_shifted(COLORS[look.color], shift),
        extent=_EXTENT[look.size] + _jitter(rng, _EXTENT_JITTER),
        center_y=_ANCHORS[row] + _jitter(rng, place_jitter),
        center_x=_ANCHORS[column] + _jitter(rng, place_jitter),
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
