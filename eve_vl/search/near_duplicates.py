"""Find near-duplicate images: saved at another size, with another compression or with a small mark.

A thumbprint is the image at 8 × 8 pixels in colour. Two images are near-duplicates if no number of their thumbprints differs by
more than MAX_DIFFERENCE, nor by more than MAX_OF_RANGE of either's range (pages of text are all nearly one grey). Among 900
emoji and 2,000 icons this marks only identical drawings (LOG.md). The search finds all pairs without comparing all: it splits
the images at a number in which they differ, puts images near the cut on both sides, and repeats.

Letters: N all, R some of them, C numbers of a thumbprint.
"""

import sqlite3

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 8  # pixels
SIZE = 3 * SIDE**2  # bytes of a thumbprint
MAX_DIFFERENCE, ROUNDING, MAX_OF_RANGE = 24, 2, 0.15  # of 255; always allowed; a share
AT_ONCE = 64  # images that are compared with about as many others
OTHERS_AT_ONCE = 8192  # bound on the others: blank pages resemble each other in every number
SAMPLE = 256  # images by which a cut is chosen
MAX_PAIRS = 0.9  # share of all pairs that both sides of a cut may leave
ALL = slice(None)
FIRST = slice(None, None, 7)  # numbers from all over the image, compared first: most pairs already differ in these


def mark(db: sqlite3.Connection) -> None:
    """Store the first near-duplicate of images that are new, or whose first one is gone."""
    if db.execute("SELECT 1 FROM feature WHERE near IS NULL").fetchone() is None:
        return
    # arrays, because lists of rows cost 0.1 kB more per image at the peak
    rows = db.execute("SELECT slot, coalesce(near, -1) FROM feature ORDER BY slot")
    both = np.fromiter(rows, np.dtype([("slot", "i8"), ("first", "i8")]))
    slots, before = both["slot"], both["first"]
    each = (data for (data,) in db.execute("SELECT thumbprint FROM feature ORDER BY slot"))
    prints_NC = np.fromiter(each, f"S{SIZE}", len(slots)).view(np.uint8).reshape(len(slots), -1)
    known = np.where(before < 0, -1, np.searchsorted(slots, before))
    marks = slots[first_near_duplicates(prints_NC, known)]
    is_other = marks != before
    changed = zip(marks[is_other].tolist(), slots[is_other].tolist(), strict=True)
    db.executemany("UPDATE feature SET near = ? WHERE slot = ?", changed)


def thumbprint(pixels: Tensor) -> bytes:
    """Return the thumbprint, uint8 (C,), of an image, uint8 (3, H, W)."""
    return F.adaptive_avg_pool2d(pixels.float(), SIDE).round_().byte().numpy().tobytes()


def first_near_duplicates(prints_NC: np.ndarray, known_N: np.ndarray) -> np.ndarray:
    """Return the number of each image's first near-duplicate, its own if there is none before it, int64 (N,).

    prints: uint8 (N, C). known: results of an earlier call for images compared with each other then, -1 for the others.
    """
    range_N = prints_NC.max(1, initial=0).astype(np.float32) - prints_NC.min(1, initial=255)
    limit_N = np.clip(MAX_OF_RANGE * range_N, ROUNDING, MAX_DIFFERENCE)
    is_new_N, first_N, parts = known_N < 0, known_N.copy(), [np.arange(len(prints_NC))]
    first_N[is_new_N] = np.flatnonzero(is_new_N)
    while parts:
        rows_R = parts.pop()
        if not is_new_N[rows_R].any():
            continue
        if sides := _cut(prints_NC, limit_N, rows_R):
            parts += sides
        else:
            _compare(prints_NC, limit_N, rows_R, first_N)
    return first_N


def _cut(prints_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return two groups of images; each possible pair of near-duplicates is whole in one of them.

    Return no groups if they would leave nearly as many pairs to compare. limit: how much each image may differ from another.
    """
    if len(rows_R) <= AT_ONCE:
        return ()
    some_R = rows_R[:: -(-len(rows_R) // SAMPLE)]
    some_RC, reach_R1 = prints_NC[some_R], limit_N[some_R, None] / 2
    cut_C = some_RC.mean(0, dtype=np.float32)
    pairs_C = (some_RC <= cut_C + reach_R1).mean(0) ** 2 + (some_RC >= cut_C - reach_R1).mean(0) ** 2  # as a share of all
    column = int(pairs_C.argmin())
    values_R, reach_R, cut = prints_NC[rows_R, column], limit_N[rows_R] / 2, cut_C[column]
    sides = rows_R[values_R <= cut + reach_R], rows_R[values_R >= cut - reach_R]
    return sides if sum(len(side) ** 2 for side in sides) < MAX_PAIRS * len(rows_R) ** 2 else ()


def _compare(prints_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray, first_N: np.ndarray) -> None:
    """Write the first near-duplicate of each of some images, given in order, into `first`."""
    left = rows_R
    for start in range(0, len(rows_R), AT_ONCE):
        ones, found = rows_R[start : start + AT_ONCE], []
        left = left[left > ones[0]]
        for others in np.split(left, range(OTHERS_AT_ONCE, len(left), OTHERS_AT_ONCE)):
            others = others[_is_near(prints_NC, limit_N, ones, others, FIRST).any(0)]
            is_near = _is_near(prints_NC, limit_N, ones, others, ALL)
            is_found = is_near.any(0)
            found.append(others[is_found])
            np.minimum.at(first_N, found[-1], ones[is_near.argmax(0)[is_found]])
        left = left[~np.isin(left, np.concatenate(found))]


def _is_near(prints_NC: np.ndarray, limit_N: np.ndarray, ones: np.ndarray, others: np.ndarray, numbers: slice) -> np.ndarray:
    """Return, for each pair, whether the other comes later and is a near-duplicate by some of the numbers."""
    one_RC, other_RC = (torch.from_numpy(prints_NC[rows, numbers]).float() for rows in (ones, others))
    distance = torch.cdist(one_RC, other_RC, p=torch.inf).numpy()
    return (distance <= np.minimum(limit_N[ones, None], limit_N[others])) & (ones[:, None] < others)
