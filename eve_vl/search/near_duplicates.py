"""Images that are almost the same: another size, another compression, a small mark; whatever the run thinks of them.

An image's look is itself at 8 × 8 pixels, in colour. Two are almost the same if no number of these differs by more than
MAX_DIFFERENCE, nor by more than OF_RANGE of the range that either has, for pages of text are all of nearly one grey. Of 900
emoji and 2,000 icons that marks the very same drawings alone (LOG.md). All such pairs are found, without comparing all:
images are parted at a number in which they differ, those within reach of the cut go to both sides, and so on.

Letters: N all, R some of them, C numbers of a look.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 8  # pixels
SIZE = 3 * SIDE**2  # bytes of a look
MAX_DIFFERENCE, ROUNDING, OF_RANGE = 24, 2, 0.15  # of 255; what is always allowed; a share
AT_ONCE = 64  # images that are compared with others, of which there are about as many
OTHERS_AT_ONCE = 8192  # where there are more, for blank pages are alike in everything
TRIED = 256  # images by which a cut is chosen
FEWER = 0.9  # of all pairs, both sides together must have less
ALL = slice(None)
FIRST = slice(None, None, 7)  # numbers, from all over the image, that are compared before the others: most pairs fail there


def thumbprint(pixels: Tensor) -> bytes:
    """Return the look, of uint8 (C,), of an image, uint8 (3, H, W)."""
    return F.adaptive_avg_pool2d(pixels.float(), SIDE).round_().byte().numpy().tobytes()


def first_near_duplicate(looks_NC: np.ndarray, known_N: np.ndarray) -> np.ndarray:
    """Return of each image the number of the first that it is almost the same as, its own if there is none before it, int64.

    looks: uint8 (N, C). known: what this returned for those that were compared with one another before, of all others -1.
    """
    range_N = looks_NC.max(1, initial=0).astype(np.float32) - looks_NC.min(1, initial=255)
    limit_N = np.clip(OF_RANGE * range_N, ROUNDING, MAX_DIFFERENCE)
    is_new_N, first_N, parts = known_N < 0, known_N.copy(), [np.arange(len(looks_NC))]
    first_N[is_new_N] = np.flatnonzero(is_new_N)
    while parts:
        rows_R = parts.pop()
        if not is_new_N[rows_R].any():
            continue
        if sides := _cut(looks_NC, limit_N, rows_R):
            parts += sides
        else:
            _compare(looks_NC, limit_N, rows_R, first_N)
    return first_N


def _cut(looks_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return images in two parts, such that both of each pair that may be almost the same are in one of them; none if that
    leaves nearly as many pairs to compare. limit: how much each may differ from another."""
    if len(rows_R) <= AT_ONCE:
        return ()
    some_R = rows_R[:: -(-len(rows_R) // TRIED)]
    some_RC, reach_R1 = looks_NC[some_R], limit_N[some_R, None] / 2
    cut_C = some_RC.mean(0, dtype=np.float32)
    pairs_C = (some_RC <= cut_C + reach_R1).mean(0) ** 2 + (some_RC >= cut_C - reach_R1).mean(0) ** 2  # as a share of all
    column = int(pairs_C.argmin())
    values_R, reach_R, cut = looks_NC[rows_R, column], limit_N[rows_R] / 2, cut_C[column]
    sides = rows_R[values_R <= cut + reach_R], rows_R[values_R >= cut - reach_R]
    return sides if sum(len(side) ** 2 for side in sides) < FEWER * len(rows_R) ** 2 else ()


def _compare(looks_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray, first_N: np.ndarray) -> None:
    """Note of each of some images the first of them, which are in order, that it is almost the same as."""
    left = rows_R
    for start in range(0, len(rows_R), AT_ONCE):
        ones, found = rows_R[start : start + AT_ONCE], []
        left = left[left > ones[0]]
        for others in np.split(left, range(OTHERS_AT_ONCE, len(left), OTHERS_AT_ONCE)):
            others = others[_is_near(looks_NC, limit_N, ones, others, FIRST).any(0)]
            is_near = _is_near(looks_NC, limit_N, ones, others, ALL)
            is_found = is_near.any(0)
            found.append(others[is_found])
            np.minimum.at(first_N, found[-1], ones[is_near.argmax(0)[is_found]])
        left = left[~np.isin(left, np.concatenate(found))]


def _is_near(looks_NC: np.ndarray, limit_N: np.ndarray, ones: np.ndarray, others: np.ndarray, numbers: slice) -> np.ndarray:
    """Return which of some images each of others is almost the same as, by these numbers, and comes after."""
    one_RC, other_RC = (torch.from_numpy(looks_NC[rows, numbers]).float() for rows in (ones, others))
    apart = torch.cdist(one_RC, other_RC, p=torch.inf).numpy()
    return (apart <= np.minimum(limit_N[ones, None], limit_N[others])) & (ones[:, None] < others)
