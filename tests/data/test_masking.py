"""Masks: exact counts, no special token masked, uniform positions, keyed random streams."""

import hashlib
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.masked_batches import MaskedImages, MaskedTexts, PairBatch
from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.systems.mlim.task import BatchByMask
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.dataset import MAX_LABELS, MaskedPairs, label_hashes
from eve_vl.utils.errors import BadSampleError
from helpers.twins import ListSource, pairs, tiny_config, tiny_tokenizer


@pytest.mark.parametrize(
    ("num_patches", "ratio", "num_hidden"),
    [
        (196, 0.75, 147),
        (36, 0.75, 27),
        (16, 0.5, 8),
        (9, 0.75, 7),
        (4, 0.01, 1),
        (4, 0.99, 3),
        (2, 0.5, 1),
    ],
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
    [
        (12, {0}, 0.5, 6),
        (11, {0, 10}, 0.5, 4),
        (2, {0}, 0.1, 1),
        (5, {0}, 0.99, 4),
        (1, {0}, 0.5, 0),
        (6, set(), 0.5, 3),
    ],
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


def test_streams_depend_only_on_the_key():
    keys = [
        (0, 1),
        (1, 0),
        (0, 1, 0, 1),
        (0, 1, 1, 0),
        (5,),
        (0, 3, 2, 0, 7),
        (0, 3, 2, 1, 7),
        (2**40, 1),
        (1, 2**40),
    ]
    draws = [generator(*key).integers(2**62, size=4).tolist() for key in keys]
    assert draws == [generator(*key).integers(2**62, size=4).tolist() for key in keys]
    assert len({tuple(draw) for draw in draws}) == len(keys)
    expected = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence((0, 3, 2, 0, 7)))
    ).integers(2**62, size=4)
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
    "sizes",
    [
        [1, 1, 1, 1],
        [3, 1, 2, 1, 1],
        [4, 4],
        [9],
        [2, 5, 1, 1, 1, 1, 1],
        [2, 2, 2, 2, 2, 2],
        [3, 3, 3, 3, 4],
    ],
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


def test_a_ratio_of_zero_masks_nothing():
    keep, hidden = mask_patches(4, 0.0, generator(0))
    assert (keep.tolist(), hidden.tolist()) == ([0, 1, 2, 3], [])
    assert not mask_tokens(np.zeros(5, dtype=bool), 0.0, generator(0)).any()
    assert not mask_tokens(np.ones(5, dtype=bool), 0.5, generator(0), np.zeros(5, dtype=int)).any()


# Samples and batches


def dataset_of(*sources: ListSource, training: bool = False, **task: object) -> Any:
    return MaskedPairs(
        sources, tiny_config(task=ContrastMatchConfig(**task)), tiny_tokenizer(), training=training
    )  # pyright: ignore


def labelled(labels: tuple[str, ...], absent: tuple[str, ...] = ()) -> ImageText:
    return replace(pairs(1)[0], labels=labels, absent=absent)


def test_labels_are_62_bits_of_their_hash_negative_if_absent():
    def bits(name: str) -> int:
        return (
            int.from_bytes(
                hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True
            )
            % 2**62
        )

    found = label_hashes(labelled(("edema", "nodule"), ("fracture",)))
    assert found.dtype == np.int64
    assert found.tolist() == [
        bits("edema"),
        bits("nodule"),
        -bits("fracture"),
        *[0] * (MAX_LABELS - 3),
    ]
    names = tuple(f"label {number}" for number in range(MAX_LABELS + 1))
    assert label_hashes(labelled(names[:1], names[1:-1])).tolist() == [
        bits(names[0]),
        *(-bits(each) for each in names[1:-1]),
    ]
    for labels, words in (((), "no labels"), (names, f"{MAX_LABELS + 1} labels")):
        with pytest.raises(
            BadSampleError,
            match=rf"list:0.*{words}, but task.itc_targets semantic needs 1 to {MAX_LABELS}$",
        ):
            label_hashes(labelled(labels))


@pytest.mark.parametrize(
    ("training", "targets"), [(True, "semantic"), (True, "image"), (False, "semantic")]
)
def test_labels_are_read_for_semantic_targets_in_training_only(training, targets):
    source = ListSource([labelled(("edema",))])
    sample = dataset_of(source, training=training, itc_targets=targets).sample(
        source[0], generator(0)
    )
    assert (sample.label_L is not None) == (training and targets == "semantic")


def test_a_pair_is_known_by_its_image_and_its_caption_and_has_three_numbers_of_its_own():
    source, rng = pairs(2), generator(5)
    sample = dataset_of(source).sample(source[1], rng)
    hashes = [
        hashlib.blake2b(text.encode(), digest_size=8).digest()
        for text in (source[1].where, source[1].captions[0])
    ]
    assert [sample.image_id, sample.caption] == [
        int.from_bytes(each, "big", signed=True) for each in hashes
    ]
    assert sample.draw is not None and sample.draw.dtype == np.float32 and sample.draw.shape == (3,)
    assert (
        len(set(sample.draw.tolist())) == 3 and (sample.draw >= 0).all() and (sample.draw < 1).all()
    )
    assert (sample.draw != dataset_of(source).sample(source[1], rng).draw).all()


def test_the_wrong_partner_is_half_the_data_away_or_else_a_random_row_of_any_source():
    dataset = dataset_of(pairs(11))
    assert [dataset[(0, 0, row)].wrong.where for row in range(11)] == [
        f"list:{(row + 5) % 11}" for row in range(11)
    ]
    same = ListSource([replace(pairs(12)[row], captions=("a red circle",)) for row in range(12)])
    other = pairs(40, name="other")
    partners = [dataset_of(same, other)[(0, 0, row)].wrong.where for row in range(12)]
    assert {where.split(":")[0] for where in partners} == {"other"} and len(set(partners)) > 6
    assert max(int(where.split(":")[1]) for where in partners) > 20
    assert partners == [
        dataset_of(same, other)[(3, 0, row)].wrong.where for row in range(12)
    ]  # in every epoch


def test_a_random_partner_is_the_first_that_fits_of_a_stream_of_its_own():
    sources = (
        ListSource([replace(pairs(2)[row], captions=("one",)) for row in range(2)]),
        pairs(30, name="other"),
    )
    for row in range(2):
        rng = np.random.default_rng((0, 4, 0, row))  # seed, purpose, source, row
        picks = rng.integers(2, size=200).tolist()
        drawn = [(source, int(rng.integers(len(sources[source])))) for source in picks]
        number = next(number for source, number in drawn if source == 1)
        assert dataset_of(*sources)[(0, 0, row)].wrong.where == f"other:{number}"


def test_a_part_of_a_row_may_be_left_out_and_words_be_masked_whole():
    row, tokenizer = pairs(1)[0], tiny_tokenizer()
    for is_whole in (False, True):
        config = tiny_config(task={"whole_word_masking": is_whole})
        dataset = MaskedPairs([pairs(1)], config, tokenizer, training=False)
        image, text, both = (
            dataset.masked(row, shown, 0.5, 0.5, generator(3))
            for shown in ("image", "text", "image_text")
        )
        assert not hasattr(image, "ids_T") and not hasattr(text, "image")
        assert (image.batch, text.batch, both.batch) == (MaskedImages, MaskedTexts, PairBatch)
        ids_T, is_special_T = tokenizer.encode(row.captions[0], 12)
        word_T = tokenizer.words(row.captions[0], 12) if is_whole else None
        assert text.ids_T.tolist() == both.ids_T.tolist() == ids_T.tolist()
        assert (
            text.is_masked_T.tolist()
            == mask_tokens(is_special_T, 0.5, generator(3), word_T).tolist()
        )


def test_a_broken_partner_is_passed_over_and_no_caption_at_all_is_shared():
    rows = [pairs(4)[row] for row in range(4)]
    rows[2] = replace(rows[2], captions=("new", rows[0].captions[1]))
    assert dataset_of(ListSource(rows))[(0, 0, 0)].wrong.where in ("list:1", "list:3")
    assert dataset_of(pairs(4, bad=[2]))[(0, 0, 0)].wrong.where in ("list:1", "list:3")


def test_wrong_partners_make_a_batch_of_their_own_and_can_lend_their_texts():
    dataset = dataset_of(pairs(4))
    samples = [dataset[(0, 0, row)] for row in range(4)]
    batch = PairBatch.collate(samples, 0)
    assert batch.wrong is not None and batch.wrong.wrong is None
    assert batch.wrong.where == ("list:2", "list:3", "list:0", "list:1")
    assert batch.draw_B3 is not None and batch.draw_B3.shape == (4, 3)
    assert batch.places() is batch.masked_M
    swapped = batch.with_text_of(batch.wrong)
    for name in ("ids_BT", "is_padding_BT", "num_real", "is_masked_BT", "masked_M"):
        assert getattr(swapped, name) is getattr(batch.wrong, name)
    assert swapped.images_BCHW is batch.images_BCHW and swapped.keep_BK is batch.keep_BK
    assert torch.equal(swapped.targets(), batch.wrong.ids_BT[batch.wrong.is_masked_BT])
    assert BatchByMask(where=(), image=None, text=batch, both=swapped).parts == [batch, swapped]
