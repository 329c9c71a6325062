"""Masks: which patches and tokens are hidden.

Letters: P patches, K kept patches, M masked patches, T text tokens.
"""

import numpy as np


def num_masked_patches(num_patches: int, ratio: float) -> int:
    """Return the number of patches to mask: at least one unless ratio is 0, never all."""
    if not ratio:
        return 0
    return min(max(round(num_patches * ratio), 1), num_patches - 1)


def mask_patches(
    num_patches: int, ratio: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the patches to mask; return sorted positions, kept and masked, int64 (K,) and (M,).

    There is at least one of each, unless ratio is 0.
    """
    order_P = rng.permutation(num_patches)
    M = num_masked_patches(num_patches, ratio)
    return np.sort(order_P[M:]), np.sort(order_P[:M])


def mask_tokens(
    is_special_T: np.ndarray,
    ratio: float,
    rng: np.random.Generator,
    word_T: np.ndarray | None = None,
) -> np.ndarray:
    """Sample the tokens to mask: bool (T,), True = masked; no special token.

    At least one is masked, unless ratio is 0. word_T: the word of each token, int; words are then
    masked whole, in random order, so that the masked tokens are exactly the share (VLMo skips words
    that no longer fit, and often masks fewer). If no set of words reaches the share, the largest
    sum below it is masked; if every word is longer, the shortest one.
    """
    candidates = np.flatnonzero(~is_special_T)
    is_masked_T = np.zeros(len(is_special_T), dtype=bool)
    if not len(candidates) or not ratio:
        return is_masked_T

    num_masked = max(1, round(len(candidates) * ratio))
    if word_T is None:
        is_masked_T[rng.permutation(candidates)[:num_masked]] = True
    else:
        words, sizes = np.unique(word_T[candidates], return_counts=True)
        order = rng.permutation(len(words))
        chosen = order[_choose_sizes(sizes[order].tolist(), num_masked)]
        is_masked_T[candidates] = np.isin(word_T[candidates], words[chosen])
    return is_masked_T


def _choose_sizes(sizes: list[int], total: int) -> list[int]:
    """Return positions of sizes that sum to total, early ones first.

    If none do, they sum to the nearest number below, else to the least above.
    """
    # possible_sums[i] has bit n set if some of the sizes from place i on sum to n
    possible_sums = [1]
    for size in reversed(sizes):
        possible_sums.append(possible_sums[-1] | possible_sums[-1] << size)
    possible_sums.reverse()

    reachable = [number for number in range(1, sum(sizes) + 1) if possible_sums[0] >> number & 1]
    remaining = max((number for number in reachable if number <= total), default=reachable[0])
    chosen = []
    for position, size in enumerate(sizes):
        can_complete = size <= remaining and possible_sums[position + 1] >> (remaining - size) & 1
        if can_complete:
            chosen.append(position)
            remaining -= size
    return chosen
