"""Masks as pure functions of shape, ratio and generator.

Letters: P patches, K kept, M hidden, T text tokens.
"""

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """Return a random stream that depends on the key alone, as (seed, epoch, sample, purpose)."""
    return np.random.default_rng(key)


def num_hidden(num_patches: int, ratio: float) -> int:
    """Return how many patches are hidden: at least one, unless the share is 0, but not all."""
    return min(max(round(num_patches * ratio), 1), num_patches - 1) if ratio else 0


def mask_patches(num_patches: int, ratio: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose the patches to hide: sorted int64 positions, kept (K,) and hidden (M,), at least one of each unless ratio is 0."""
    order, num = rng.permutation(num_patches), num_hidden(num_patches, ratio)
    return np.sort(order[num:]), np.sort(order[:num])


def mask_tokens(
    is_special_T: np.ndarray, ratio: float, rng: np.random.Generator, word_T: np.ndarray | None = None
) -> np.ndarray:
    """Choose the tokens to hide: bool (T,), True = hidden; no special one; at least one, if there is any, unless ratio is 0.

    word_T: the word that each token is of, int; with it, words are hidden as a whole, in random order, each that the rest can
    fill up to exactly the share (VLMo skips what no longer fits, and then often hides fewer). Where no whole words come to the
    share, the most that do below it, and of longer words the shortest: at least one is hidden.
    """
    candidates = np.flatnonzero(~is_special_T)
    is_masked_T = np.zeros(len(is_special_T), dtype=bool)
    if len(candidates) and ratio:
        num_masked = max(1, round(len(candidates) * ratio))
        if word_T is None:
            is_masked_T[rng.permutation(candidates)[:num_masked]] = True
        else:
            words, sizes = np.unique(word_T[candidates], return_counts=True)
            order = rng.permutation(len(words))
            chosen = order[_subset(sizes[order].tolist(), num_masked)]
            is_masked_T[candidates] = np.isin(word_T[candidates], words[chosen])
    return is_masked_T


def _subset(sizes: list[int], total: int) -> list[int]:
    """Return positions of sizes that sum to total, early ones first; to the nearest possible below, or else the least above."""
    sums = [1]  # from the end, of the sizes from here on: bit n says whether some of them sum to n
    for size in reversed(sizes):
        sums.append(sums[-1] | sums[-1] << size)
    possible = [number for number in range(1, sum(sizes) + 1) if sums[-1] >> number & 1]
    left = max((number for number in possible if number <= total), default=possible[0])
    chosen = []
    for position, (size, rest) in enumerate(zip(sizes, reversed(sums[:-1]), strict=True)):
        if size <= left and rest >> left - size & 1:
            chosen.append(position)
            left -= size
    return chosen
