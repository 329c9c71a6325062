"""Masks as pure functions of shape, ratio and generator.

Letters: P patches, K kept, M hidden, T text tokens.
"""

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """Return a random stream that depends on the key alone, as (seed, epoch, sample, purpose)."""
    return np.random.default_rng(key)


def num_hidden(num_patches: int, ratio: float) -> int:
    """Return how many patches are hidden: at least one, but not all."""
    return min(max(round(num_patches * ratio), 1), num_patches - 1)


def mask_patches(num_patches: int, ratio: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose the patches to hide: sorted int64 positions, kept (K,) and hidden (M,), at least one of each."""
    order, num = rng.permutation(num_patches), num_hidden(num_patches, ratio)
    return np.sort(order[num:]), np.sort(order[:num])


def mask_tokens(
    is_special_T: np.ndarray, ratio: float, rng: np.random.Generator, word_T: np.ndarray | None = None
) -> np.ndarray:
    """Choose the tokens to hide: bool (T,), True = hidden; never a special one, at least one where there is any.

    word_T: the word that each token is of, int; with it, words are hidden as a whole, in random order until the share is full,
    at least one. The last of them, which may be too long, is hidden as often as the share has room for it, so that the share is
    met on average, whatever the words' lengths.
    """
    candidates = np.flatnonzero(~is_special_T)
    is_masked_T = np.zeros(len(is_special_T), dtype=bool)
    if len(candidates):
        num_masked = max(1, round(len(candidates) * ratio))
        if word_T is None:
            is_masked_T[rng.permutation(candidates)[:num_masked]] = True
        else:
            words, sizes = np.unique(word_T[candidates], return_counts=True)
            order = rng.permutation(len(words))
            ends = np.cumsum(sizes[order])
            num = int(np.searchsorted(ends, num_masked, side="right"))  # words that fit
            left = num_masked - (ends[num - 1] if num else 0)
            num += num < len(order) and rng.random() * sizes[order[num]] < left
            fitting = order[sizes[order] <= num_masked]
            chosen = order[:num] if num else (fitting if len(fitting) else order)[:1]
            is_masked_T[candidates] = np.isin(word_T[candidates], words[chosen])
    return is_masked_T
