"""Pictures that are almost the same: another size, another compression, a small mark.

A picture's look is its difference hash (Krawetz 2013): whether each of 8 × 8 fields is brighter than the one to the left.
Looks that differ in at most MAX_BITS are found by sorting them four times, each time by another quarter first, and comparing
neighbours; what is found must have nearly the same features as well, for flat pictures all look alike.

Letters: B pictures of a batch, N all, P pairs, d width of features.
"""

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

MAX_BITS, WINDOW, QUARTERS = 4, 4, (0, 16, 32, 48)
MIN_COSINE = 0.97
BRIGHTER = 2.0  # of 255; less is noise
BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)


def looks(pixels: Tensor) -> list[int]:
    """Return the look of each picture, uint8 (B, 3, H, W), as a number of 64 bits with a sign."""
    small_B89 = F.interpolate(pixels.float().mean(1, keepdim=True), (8, 9), mode="area")[:, 0]
    bits = (small_B89[:, :, 1:] - small_B89[:, :, :-1] > BRIGHTER).flatten(1).numpy()
    return np.packbits(bits, axis=1).view(">i8")[:, 0].tolist()


def near(looks_N: np.ndarray, take: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return of each picture the number of the first that it is almost the same as, its own if there is none before it.

    looks: int64 (N,). take: returns the features, float32 (P, d) of length 1, of some.
    """
    looks_N = looks_N.view(np.uint64)
    first_N, pairs = np.arange(len(looks_N)), []
    for shift in QUARTERS:
        turned_N = (looks_N << np.uint64(shift)) | (looks_N >> np.uint64((64 - shift) % 64)) if shift else looks_N
        order_N = np.argsort(turned_N, kind="stable")
        for step in range(1, min(WINDOW, len(order_N) - 1) + 1):
            one_P, other_P = order_N[:-step], order_N[step:]
            is_near_P = _num_bits(looks_N[one_P] ^ looks_N[other_P]) <= MAX_BITS
            pairs.append(np.sort(np.stack([one_P[is_near_P], other_P[is_near_P]], 1), 1))
    if not pairs:
        return first_N
    for some in np.array_split(found := np.unique(np.concatenate(pairs), axis=0), len(found) // 10_000 + 1):
        alike = some[(take(some[:, 0]) * take(some[:, 1])).sum(1) >= MIN_COSINE]
        while (first_N[alike[:, 0]] != first_N[alike[:, 1]]).any():  # until all of a group know its first
            smaller_P = first_N[alike].min(1)
            np.minimum.at(first_N, first_N[alike[:, 0]], smaller_P)
            np.minimum.at(first_N, first_N[alike[:, 1]], smaller_P)
            np.minimum.at(first_N, alike[:, 0], smaller_P)
            np.minimum.at(first_N, alike[:, 1], smaller_P)
    while (first_N != first_N[first_N]).any():
        first_N = first_N[first_N]
    return first_N


def _num_bits(words_P: np.ndarray) -> np.ndarray:
    return BITS_OF_BYTE[words_P.view(np.uint8).reshape(-1, 8)].sum(1)
