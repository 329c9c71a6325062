"""Masks, and the samples and batches of pre-training.

Rows are image–text pairs, images only or texts only. Letters: B batch, P patches, K kept patches, M masked patches or
tokens, T text tokens, L labels.
"""

import numpy as np


def num_masked_patches(num_patches: int, ratio: float) -> int:
    """Return the number of patches to mask: at least one unless ratio is 0, never all."""
    return min(max(round(num_patches * ratio), 1), num_patches - 1) if ratio else 0


def mask_patches(
    num_patches: int, ratio: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the patches to mask; return sorted positions, kept and masked, int64.

    There is at least one of each, unless ratio is 0.
    """
    order, num = rng.permutation(num_patches), num_masked_patches(num_patches, ratio)
    return np.sort(order[num:]), np.sort(order[:num])


def mask_tokens(
    is_special_T: np.ndarray,
    ratio: float,
    rng: np.random.Generator,
    word_T: np.ndarray | None = None,
) -> np.ndarray:
    """Sample the tokens to mask: bool (T,), True = masked; no special token.

    At least one is masked, unless ratio is 0. word_T: the word of each token, int; words are then masked whole, in random
    order, so that the masked tokens are exactly the share (VLMo skips words that no longer fit, and often masks fewer).
    If no set of words reaches the share, the largest sum below it is masked; if every word is longer, the shortest one.
    """
    candidates = np.flatnonzero(~is_special_T)
    is_masked_T = np.zeros(len(is_special_T), dtype=bool)
    if len(candidates) and ratio:
        num = max(1, round(len(candidates) * ratio))
        if word_T is None:
            is_masked_T[rng.permutation(candidates)[:num]] = True
        else:
            words, sizes = np.unique(word_T[candidates], return_counts=True)
            order = rng.permutation(len(words))
            chosen = order[_subset(sizes[order].tolist(), num)]
            is_masked_T[candidates] = np.isin(word_T[candidates], words[chosen])
    return is_masked_T


def _subset(sizes: list[int], total: int) -> list[int]:
    """Return positions of sizes that sum to total, early ones first.

    If none do, they sum to the nearest number below, else to the least above.
    """
    sums = [1]  # from the end, of the sizes from here on: bit n is set if some of them sum to n
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
