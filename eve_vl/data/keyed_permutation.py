"""Random permutations in O(1) memory: a key and a place give the element there."""

from functools import lru_cache

import numpy as np

from eve_vl.data.random_streams import generator

NUM_ROUNDS = 6  # four are the least for a pseudo-random permutation (Luby and Rackoff, 1988)
MASK = 2**64 - 1


def permuted(place: int, length: int, *key: int) -> int:
    """Return the element at a place of a random permutation of range(length).

    A Feistel network permutes the next power of four. What lies beyond `length` is permuted again
    (Black and Rogaway, 2002).
    """
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    round_keys = _round_keys(key)

    while True:
        left = place >> half_bits
        right = place & half_mask
        for round_key in round_keys:
            # the mixing function of splitmix64
            mixed = (right ^ round_key) * 0xBF58476D1CE4E5B9 & MASK
            mixed = (mixed ^ mixed >> 29) * 0x94D049BB133111EB & MASK
            new_right = left ^ mixed >> (64 - half_bits)
            left = right
            right = new_right
        place = left << half_bits | right
        if place < length:
            return place


@lru_cache(maxsize=256)  # an order by shards uses a key per lane
def _round_keys(key: tuple[int, ...]) -> list[int]:
    return generator(*key).integers(2**64, size=NUM_ROUNDS, dtype=np.uint64).tolist()
