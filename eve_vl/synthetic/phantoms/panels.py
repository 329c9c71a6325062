"""Panels of figures with captions, after MELINDA: bars, curves, blots or dots, and the method used.

A label consists of the kind of panel, visible only in the image, and of the verb, named only in the caption.

Letters: S side of the image.
"""

from dataclasses import dataclass
from itertools import product
from random import Random

import numpy as np

from eve_vl.synthetic import pick
from eve_vl.synthetic.phantoms import world

KINDS = ("bars", "curves", "blots", "dots")
VERBS = ("measured", "stained", "counted")
LABELS = tuple(f"{verb} {kind}" for verb, kind in product(VERBS, KINDS))
_SIZE = 64
_WHAT = ("growth", "uptake", "binding", "expression", "survival")
_WHERE = ("treated cells", "control cells", "young mice", "old mice", "cultured tissue")


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A panel: uint8 (64, 64, 3), its caption, and its fine label (of LABELS) and coarse label (of KINDS)."""

    pixels: np.ndarray
    caption: str
    label: str
    coarse: str


def sample_panel(split: str, seed: int, index: int) -> Panel:
    """Sample panel `index` of a split, a pure function of the arguments."""
    rng = world.stream("panel", split, seed, index)
    kind, verb = pick(rng, KINDS), pick(rng, VERBS)
    caption = f"{pick(rng, _WHAT)} in {pick(rng, _WHERE)} was {verb} {1 + int(rng.random() * 9)} times"
    grey_SS = np.clip(_DRAWN[kind](rng), 0, 1)
    pixels = np.repeat((255 * grey_SS).astype(np.uint8)[:, :, None], 3, axis=2)
    return Panel(pixels=pixels, caption=caption, label=f"{verb} {kind}", coarse=kind)


def _axes() -> np.ndarray:
    """Return a white panel with two axes."""
    grey_SS = np.ones((_SIZE, _SIZE))
    grey_SS[4:-6, 6:8] = grey_SS[-8:-6, 6:-4] = 0
    return grey_SS


def _bars(rng: Random) -> np.ndarray:
    grey_SS, count = _axes(), 3 + int(rng.random() * 3)
    width = 48 // count
    for bar in range(count):
        left, height = 10 + bar * width, 8 + int(rng.random() * 40)
        grey_SS[-8 - height : -8, left : left + width - 3] = 0.3 + 0.4 * rng.random()
    return grey_SS


def _curves(rng: Random) -> np.ndarray:
    grey_SS, x = _axes(), np.arange(9, 60)
    for _ in range(2):
        middle, slope, low = 20 + 25 * rng.random(), 0.08 + 0.2 * rng.random(), 6 * rng.random()
        y = (52 - low - (20 + 20 * rng.random()) / (1 + np.exp(-slope * (x - middle)))).astype(int)
        grey_SS[y, x] = grey_SS[y + 1, x] = 0.5 * rng.random()
    return grey_SS


def _blots(rng: Random) -> np.ndarray:
    grey_SS = np.full((_SIZE, _SIZE), 0.8)
    y, x = np.mgrid[:_SIZE, :_SIZE]
    for row in range(2):
        for lane in range(5):
            spread = ((x - 8 - 12 * lane) / 4) ** 2 + ((y - 20 - 24 * row) / 2.5) ** 2
            grey_SS -= 0.7 * rng.random() * np.exp(-spread)
    return grey_SS


def _dots(rng: Random) -> np.ndarray:
    grey_SS = _axes()
    for _ in range(12 + int(rng.random() * 12)):
        y, x = 6 + int(rng.random() * 46), 11 + int(rng.random() * 48)
        grey_SS[y : y + 2, x : x + 2] = 0.2
    return grey_SS


_DRAWN = {"bars": _bars, "curves": _curves, "blots": _blots, "dots": _dots}
