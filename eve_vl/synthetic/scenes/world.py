"""The world of scenes: which shapes, colours, sizes and places there are, and what a scene is.

Positions and sizes are fractions of the canvas, y grows downwards. Shapes stand in distinct cells
of a square grid with some jitter, so that "left of", "above" and the names of cells always hold by
a clear margin, and no two shapes hide one another.

There are two worlds. EASY shows one to four shapes in 3 × 3 cells. HARD shows three to eight in 4 ×
4 cells, of more kinds and colours. At 64 pixels the shapes of HARD are 10 or 15 pixels wide.
"""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

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
BACKGROUNDS = {
    "white": (246, 246, 244),
    "gray": (196, 198, 202),
    "beige": (236, 214, 176),
    "mint": (190, 232, 206),
    "sky": (186, 214, 244),
}
"""All are light: a shape is darker than what it stands on, so that every shape is easy to see."""
PLURALS = {kind: f"{kind}s" for kind in HARD_KINDS} | {"cross": "crosses"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")

Pair = tuple[str, str]
"""Kind and colour."""
HELD_OUT: tuple[Pair, ...] = tuple((KINDS[i % len(KINDS)], color) for i, color in enumerate(COLORS))
"""Pairs that training never shows, one per colour and one or two per kind: it has all words, but
not these combinations."""


def _seen_pairs(kinds: tuple[str, ...], colors: tuple[str, ...]) -> tuple[Pair, ...]:
    """Return all pairs of kind and colour outside the split of novel pairs."""
    pairs = [(kind, color) for kind in kinds for color in colors]
    return tuple(pair for pair in pairs if pair not in HELD_OUT)


class World(Frozen):
    """What the scenes of a split show, and where."""

    kinds: tuple[str, ...]
    colors: tuple[str, ...]
    pairs: tuple[Pair, ...]
    """Pairs of kind and colour that shapes may have."""
    anchors: tuple[float, ...]
    """Centres of rows and of columns."""
    places: tuple[str, ...]
    """Names of the cells, row by row."""
    big_extent: float
    """Width of a big shape."""
    small_extent: float
    num_shapes_weights: tuple[float, ...]
    """Shares of the numbers of shapes, from the fewest to the most."""
    min_shapes: int
    max_shapes: int
    is_hard: bool = False

    def values(self, feature: str) -> tuple[str, ...]:
        """Return the values of a feature: kind, color or size."""
        return {"kind": self.kinds, "color": self.colors, "size": SIZES}[feature]

    def extent(self, size: str) -> float:
        """Return the width of a shape of this size, without jitter."""
        return self.big_extent if size == "big" else self.small_extent


EASY = World(
    kinds=KINDS,
    colors=tuple(COLORS),
    pairs=_seen_pairs(KINDS, tuple(COLORS)),
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
    big_extent=0.34,  # 16 pixels at 48
    small_extent=0.24,
    # mostly few shapes: naming shapes is learnt before telling them apart
    num_shapes_weights=(0.6, 0.25, 0.1, 0.05),
    min_shapes=1,
    max_shapes=4,
)
HARD = World(
    kinds=HARD_KINDS,
    colors=tuple(HARD_COLORS),
    pairs=_seen_pairs(HARD_KINDS, tuple(HARD_COLORS)),
    anchors=(0.125, 0.375, 0.625, 0.875),
    places=tuple(f"row {row} column {column}" for row in NUMBERS[1:5] for column in NUMBERS[1:5]),
    big_extent=0.23,
    small_extent=0.15,
    num_shapes_weights=(0.1, 0.15, 0.2, 0.2, 0.2, 0.15),
    min_shapes=3,
    max_shapes=8,
    is_hard=True,
)
WORLDS = {
    "train": EASY,
    "val": EASY,
    "test": EASY,
    "test_novel": replace(EASY, pairs=EASY.pairs + HELD_OUT),
    "hard_train": HARD,
    "hard_val": HARD,
    "hard_test": HARD,
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

    @property
    def pair(self) -> Pair:
        """Kind and colour."""
        return self.kind, self.color

    def fits(self, shape: "Look | Shape") -> bool:
        """Return whether a shape looks like this."""
        return (
            self.kind in ("", shape.kind)
            and self.color in ("", shape.color)
            and self.size in ("", shape.size)
        )

    @property
    def singular(self) -> str:
        """The look in words: "red circle", "big star", "red shape"."""
        return self._in_words(self.kind or "shape")

    @property
    def plural(self) -> str:
        """The look in words: "red circles", "big stars", "red shapes"."""
        return self._in_words(PLURALS.get(self.kind, "shapes"))

    @property
    def with_article(self) -> str:
        """The look in words: "a red circle", "an orange star"."""
        first_word = self.singular.split()[0]
        return f"{article(first_word)} {self.singular}"

    def _in_words(self, noun: str) -> str:
        return " ".join(filter(None, (self.size, self.color, noun)))


ANY = Look()


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


def article(word: str) -> str:
    """Return the article, "a" or "an", of a word of captions."""
    return "an" if word == "orange" else "a"


@cache
def pairs_of(split: str, look: Look = ANY) -> tuple[Pair, ...]:
    """Return the pairs of kind and colour of a split, or those of a look."""
    return tuple(pair for pair in WORLDS[split].pairs if look._replace(size="").fits(Look(*pair)))
