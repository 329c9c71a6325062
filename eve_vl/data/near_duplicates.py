"""Near-duplicates: images saved at another size, with another compression or with a small mark.

A thumbprint is the image at 8 × 8 pixels in colour. Two images are near-duplicates if no number of
their thumbprints differs by more than MAX_DIFFERENCE, nor by more than MAX_SHARE_OF_RANGE of
either's range (pages of text are all nearly one grey). Among 900 emoji and 2,000 icons this marks
only identical drawings (LOG.md).

All pairs are found without comparing all: images are split at a number in which they differ, those
near the cut lie on both sides, and so on.

Letters: N all images, R some of them, C numbers of a thumbprint, A and B the first and the second
images of pairs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 8  # pixels of a thumbprint
NUM_BYTES = 3 * SIDE**2

MAX_DIFFERENCE = 24  # of 255
MAX_SHARE_OF_RANGE = 0.15
ROUNDING = 2  # difference that is always allowed

FIRSTS_AT_ONCE = 64  # images that are compared with the later ones
SECONDS_AT_ONCE = 8192  # bound on these: blank pages resemble each other in every number
SAMPLE = 256  # images by which a cut is chosen
MAX_PAIRS = 0.9  # share of all pairs that both sides of a cut may leave
ALL_NUMBERS = slice(None)
# numbers from all over the image, compared first: most pairs already differ in these
FEW_NUMBERS = slice(None, None, 7)


def thumbprint(pixels: Tensor) -> bytes:
    """Return the thumbprint, uint8 (C,), of an image, uint8 (3, H, W)."""
    return F.adaptive_avg_pool2d(pixels.float(), SIDE).round_().byte().numpy().tobytes()


def first_near_duplicates(prints_NC: np.ndarray, first_before_N: np.ndarray) -> np.ndarray:
    """Return each image's first near-duplicate, itself if there is none, int64 (N,).

    prints: uint8 (N, C). first_before: results of an earlier call for images compared with each
    other then, -1 for new images.
    """
    range_N = prints_NC.max(1, initial=0).astype(np.float32) - prints_NC.min(1, initial=255)
    limit_N = np.clip(MAX_SHARE_OF_RANGE * range_N, ROUNDING, MAX_DIFFERENCE)
    is_new_N = first_before_N < 0
    first_N = first_before_N.copy()
    first_N[is_new_N] = np.flatnonzero(is_new_N)
    groups = [np.arange(len(prints_NC))]
    while groups:
        rows_R = groups.pop()
        if not is_new_N[rows_R].any():
            continue
        sides = _cut(prints_NC, limit_N, rows_R)
        if sides is None:
            _compare(prints_NC, limit_N, rows_R, first_N)
        else:
            groups += sides
    return first_N


def _cut(
    prints_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return two groups of images, one of which has both of any near-duplicates.

    Return None if they would leave nearly as many pairs to compare. limit_N: how much each image
    may differ from another.
    """
    if len(rows_R) <= FIRSTS_AT_ONCE:
        return None
    stride = -(-len(rows_R) // SAMPLE)
    sample_R = rows_R[::stride]
    sample_RC = prints_NC[sample_R]
    reach_R1 = limit_N[sample_R, None] / 2
    mean_C = sample_RC.mean(0, dtype=np.float32)
    low_share_C = (sample_RC <= mean_C + reach_R1).mean(0)
    high_share_C = (sample_RC >= mean_C - reach_R1).mean(0)
    pairs_C = low_share_C**2 + high_share_C**2  # as a share of all

    column = int(pairs_C.argmin())
    cut = mean_C[column]
    values_R = prints_NC[rows_R, column]
    reach_R = limit_N[rows_R] / 2
    low_side = rows_R[values_R <= cut + reach_R]
    high_side = rows_R[values_R >= cut - reach_R]
    num_pairs = len(low_side) ** 2 + len(high_side) ** 2
    if num_pairs >= MAX_PAIRS * len(rows_R) ** 2:
        return None
    return low_side, high_side


def _compare(
    prints_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray, first_N: np.ndarray
) -> None:
    """Write the first near-duplicate of each of some ordered images into `first`."""
    unmarked = rows_R
    for start in range(0, len(rows_R), FIRSTS_AT_ONCE):
        first_A = rows_R[start : start + FIRSTS_AT_ONCE]
        unmarked = unmarked[unmarked > first_A[0]]
        marked = []
        for second_B in np.split(unmarked, range(SECONDS_AT_ONCE, len(unmarked), SECONDS_AT_ONCE)):
            is_similar_B = _is_near(prints_NC, limit_N, first_A, second_B, FEW_NUMBERS).any(0)
            similar_B = second_B[is_similar_B]
            is_near_AB = _is_near(prints_NC, limit_N, first_A, similar_B, ALL_NUMBERS)
            is_near_B = is_near_AB.any(0)
            marked_B = similar_B[is_near_B]
            np.minimum.at(first_N, marked_B, first_A[is_near_AB.argmax(0)[is_near_B]])
            marked.append(marked_B)
        unmarked = unmarked[~np.isin(unmarked, np.concatenate(marked))]


def _is_near(
    prints_NC: np.ndarray,
    limit_N: np.ndarray,
    first_A: np.ndarray,
    second_B: np.ndarray,
    numbers: slice,
) -> np.ndarray:
    """Return whether the second of each pair comes later and is a near-duplicate, bool (A, B).

    numbers: of the thumbprints, that are compared.
    """
    first_AC = torch.from_numpy(prints_NC[first_A, numbers]).float()
    second_BC = torch.from_numpy(prints_NC[second_B, numbers]).float()
    distance_AB = torch.cdist(first_AC, second_BC, p=torch.inf).numpy()
    limit_AB = np.minimum(limit_N[first_A, None], limit_N[second_B])
    return (distance_AB <= limit_AB) & (first_A[:, None] < second_B)
