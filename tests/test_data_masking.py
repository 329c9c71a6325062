"""Masks: exact counts, no special token masked, uniform positions, keyed random streams."""

import itertools

import numpy as np
import pytest

from eve_vl.data.dataset import generator
from eve_vl.data.masking import mask_patches, mask_tokens


@pytest.mark.parametrize(
    ("num_patches", "ratio", "num_hidden"),
    [(196, 0.75, 147), (36, 0.75, 27), (16, 0.5, 8), (9, 0.75, 7), (4, 0.01, 1), (4, 0.99, 3), (2, 0.5, 1)],
)
def test_patches_are_split_into_kept_and_hidden(num_patches, ratio, num_hidden):
    for seed in range(20):
        keep, hidden = mask_patches(num_patches, ratio, generator(seed))
        assert len(hidden) == num_hidden
        assert keep.dtype == hidden.dtype == np.int64
        assert sorted([*keep.tolist(), *hidden.tolist()]) == list(range(num_patches))
        assert keep.tolist() == sorted(keep.tolist())
        assert hidden.tolist() == sorted(hidden.tolist())


@pytest.mark.parametrize(
    ("length", "special", "ratio", "num_masked"),
    [(12, {0}, 0.5, 6), (11, {0, 10}, 0.5, 4), (2, {0}, 0.1, 1), (5, {0}, 0.99, 4), (1, {0}, 0.5, 0), (6, set(), 0.5, 3)],
)
def test_tokens_are_hidden_by_count_and_never_special_ones(length, special, ratio, num_masked):
    is_special = np.array([place in special for place in range(length)])
    for seed in range(20):
        is_masked = mask_tokens(is_special, ratio, generator(seed))
        assert is_masked.dtype == bool
        assert is_masked.sum() == num_masked
        assert not (is_masked & is_special).any()


def test_every_position_is_as_likely_as_any_other():
    draws = 4000
    hidden_counts, masked_counts = np.zeros(16), np.zeros(9)
    for seed in range(draws):
        rng = generator(3, seed)
        hidden_counts[mask_patches(16, 0.75, rng)[1]] += 1
        masked_counts += mask_tokens(np.arange(9) == 0, 0.5, rng)
    margin = 5 * np.sqrt(0.25 / draws)
    np.testing.assert_allclose(hidden_counts / draws, 0.75, atol=margin)
    assert masked_counts[0] == 0
    np.testing.assert_allclose(masked_counts[1:] / draws, 0.5, atol=margin)


def test_streams_depend_on_the_key_alone():
    keys = [(0, 1), (1, 0), (0, 1, 0, 1), (0, 1, 1, 0), (5,), (0, 3, 2, 0, 7), (0, 3, 2, 1, 7), (2**40, 1), (1, 2**40)]
    draws = [generator(*key).integers(2**62, size=4).tolist() for key in keys]
    assert draws == [generator(*key).integers(2**62, size=4).tolist() for key in keys]
    assert len({tuple(draw) for draw in draws}) == len(keys)
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence((0, 3, 2, 0, 7)))).integers(2**62, size=4)
    assert draws[5] == expected.tolist()


def slow_shares(sizes: list[int], num_masked: int) -> tuple[int, list[float]]:
    """How many tokens are hidden, and how often each word: over all orders, of the choices of words that come nearest to the
    share, first from below and then from above, the one with the earliest words."""
    words = range(len(sizes))
    choices = [choice for number in words for choice in itertools.combinations(words, number + 1)]
    totals = {sum(sizes[word] for word in choice) for choice in choices}
    total = max((each for each in totals if each <= num_masked), default=min(totals))
    fitting = [choice for choice in choices if sum(sizes[word] for word in choice) == total]
    orders = list(itertools.permutations(words))
    counts = np.zeros(len(sizes))
    for order in orders:
        counts[[*min(fitting, key=lambda choice: sorted(map(order.index, choice)))]] += 1
    return total, (counts / len(orders)).tolist()


@pytest.mark.parametrize(
    "sizes", [[1, 1, 1, 1], [3, 1, 2, 1, 1], [4, 4], [9], [2, 5, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2], [3, 3, 3, 3, 4]]
)
@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_words_are_hidden_as_a_whole_and_exactly_the_share(sizes, ratio):
    word = np.array([-1, *(number for number, size in enumerate(sizes) for _ in range(size)), -1])
    share, draws, counts = max(1, round(ratio * sum(sizes))), 2000, np.zeros(len(sizes))
    total, expected = slow_shares(sizes, share)
    for seed in range(draws):
        hidden = mask_tokens(word < 0, ratio, generator(seed), word)
        words = {*word[hidden].tolist()}
        assert words and -1 not in words and all(hidden[word == each].all() for each in words)
        assert hidden.sum() == total
        counts[[*words]] += 1
    np.testing.assert_allclose(counts / draws, expected, atol=5 * np.sqrt(0.25 / draws))
    if 1 in sizes:
        assert total == share


def test_every_word_is_as_likely_as_any_other():
    word, draws, counts = np.array([-1, 0, 0, 1, 1, 2, 2, 3, 3]), 4000, np.zeros(9)
    for seed in range(draws):
        counts += mask_tokens(word < 0, 0.5, generator(4, seed), word)
    np.testing.assert_allclose(counts[1:] / draws, 0.5, atol=5 * np.sqrt(0.25 / draws))
