"""Masks as pure functions of shape, ratio and generator.

Letters: P patches, K kept, M hidden, T text tokens.
"""

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """Return a random stream that depends on the key alone, as (seed, epoch, sample, purpose)."""
    return np.random.default_rng(key)


def mask_patches(num_patches: int, ratio: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose the patches to hide: sorted int64 positions, kept (K,) and hidden (M,), at least one of each."""
    num_hidden = min(max(round(num_patches * ratio), 1), num_patches - 1)
    order = rng.permutation(num_patches)
    return np.sort(order[num_hidden:]), np.sort(order[:num_hidden])


def mask_tokens(is_special_T: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Choose the tokens to hide: bool (T,), True = hidden; never a special one, at least one where there is any."""
    candidates = np.flatnonzero(~is_special_T)
    is_masked_T = np.zeros(len(is_special_T), dtype=bool)
    if len(candidates):
        num_masked = max(1, round(len(candidates) * ratio))
        is_masked_T[rng.permutation(candidates)[:num_masked]] = True
    return is_masked_T
