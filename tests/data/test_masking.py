"""Masks: exact counts, no special token masked, uniform positions, whole words."""

import itertools

import numpy as np
import pytest

from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator


@pytest.mark.parametrize(
    ("num_patches", "ratio", "num_masked"),
    [
        (196, 0.75, 147),
        (36, 0.75, 27),
        (16, 0.5, 8),
        (9, 0.75, 7),
        (4, 0.01, 1),
        (4, 0.99, 3),
        (2, 0.5, 1),
        (4, 0.0, 0),
    ],
)
def test_patches_are_split_into_kept_and_masked(num_patches, ratio, num_masked):
    for seed in range(20):
        visible, masked = mask_patches(num_patches, ratio, generator(seed))
        assert len(masked) == num_masked
        assert visible.dtype == masked.dtype == np.int64
        assert sorted([*visible.tolist(), *masked.tolist()]) == list(range(num_patches))
        for patches in (visible.tolist(), masked.tolist()):
            assert patches == sorted(patches)


@pytest.mark.parametrize(
    ("length", "special", "ratio", "num_masked"),
    [
        (12, {0}, 0.5, 6),
        (11, {0, 10}, 0.5, 4),
        (2, {0}, 0.1, 1),
        (5, {0}, 0.99, 4),
        (1, {0}, 0.5, 0),
        (6, set(), 0.5, 3),
        (6, set(), 0.0, 0),
    ],
)
def test_tokens_are_masked_by_count_and_never_special_ones(length, special, ratio, num_masked):
    is_special = np.array([place in special for place in range(length)])
    for seed in range(20):
        is_masked = mask_tokens(is_special, ratio, generator(seed))
        assert is_masked.dtype == bool
        assert is_masked.sum() == num_masked
        assert not (is_masked & is_special).any()
    no_word_T = np.zeros(5, dtype=int)
    assert not mask_tokens(np.ones(5, dtype=bool), ratio, generator(0), no_word_T).any()


def test_every_position_is_as_likely_as_any_other():
    num_draws = 1500
    patch_counts = np.zeros(16)
    token_counts = np.zeros(9)
    for seed in range(num_draws):
        rng = generator(3, seed)
        patch_counts[mask_patches(16, 0.75, rng)[1]] += 1
        token_counts += mask_tokens(np.arange(9) == 0, 0.5, rng)
    margin = 5 * np.sqrt(0.25 / num_draws)
    np.testing.assert_allclose(patch_counts / num_draws, 0.75, atol=margin)
    assert token_counts[0] == 0
    np.testing.assert_allclose(token_counts[1:] / num_draws, 0.5, atol=margin)


# Whole words


def slow_shares(sizes: list[int], num_masked: int) -> tuple[int, list[float]]:
    """Return how many tokens are masked, and how often each word.

    Over all orders: of the sets of words that come nearest to the share, first from below and then
    from above, the one with the earliest words.
    """
    words = range(len(sizes))
    total_of = {}
    for num_words in range(1, len(sizes) + 1):
        for choice in itertools.combinations(words, num_words):
            total_of[choice] = sum(np.take(sizes, choice))
    totals_below = [total for total in total_of.values() if total <= num_masked]
    total = max(totals_below, default=min(total_of.values()))
    fitting = [choice for choice in total_of if total_of[choice] == total]

    counts = np.zeros(len(sizes))
    orders = list(itertools.permutations(words))
    for order in orders:
        earliest = min(fitting, key=lambda choice: sorted(map(order.index, choice)))
        counts[list(earliest)] += 1
    return total, (counts / len(orders)).tolist()


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        ([1, 1, 1, 1], 0.5),
        ([3, 1, 2, 1, 1], 0.15),
        ([3, 1, 2, 1, 1], 0.5),
        ([4, 4], 0.15),
        ([9], 0.5),
        ([2, 5, 1, 1, 1, 1], 0.5),
        ([2, 2, 2, 2, 2, 2], 0.15),
        ([3, 3, 3, 3, 4], 0.5),
    ],
)
def test_words_are_masked_as_a_whole_and_exactly_the_share(sizes, ratio):
    word_T = np.array([-1, *np.repeat(np.arange(len(sizes)), sizes), -1])
    share = max(1, round(ratio * sum(sizes)))
    total, expected = slow_shares(sizes, share)
    if 1 in sizes:
        assert total == share

    num_draws = 600
    counts = np.zeros(len(sizes))
    for seed in range(num_draws):
        is_masked = mask_tokens(word_T < 0, ratio, generator(seed), word_T)
        words = np.unique(word_T[is_masked])
        assert words.min() >= 0
        assert is_masked.tolist() == np.isin(word_T, words).tolist()
        assert is_masked.sum() == total
        counts[words] += 1
    margin = 5 * np.sqrt(0.25 / num_draws)
    np.testing.assert_allclose(counts / num_draws, expected, atol=margin)
