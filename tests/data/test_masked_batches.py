"""Batches of masked pairs: padding, masked positions, first rows, texts of another batch."""

from dataclasses import replace

import torch

from eve_vl.data.batches import Sample
from eve_vl.data.masked_batches import PairBatch
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def samples_of(num: int, *, training: bool = True) -> list[Sample]:
    dataset = MaskedPairs([pairs(num)], tiny_config(), TOKENIZER, training=training)
    return [dataset.load(0, 0, row) for row in range(num)]


def test_batches_are_padded_to_their_longest_caption():
    samples = samples_of(6)
    lengths = [len(sample.ids_T) for sample in samples]
    longest = max(lengths)
    assert len(set(lengths)) > 1
    batch = PairBatch.collate(samples, TOKENIZER.pad_id)
    for b, sample in enumerate(samples):
        num_padding = longest - lengths[b]
        assert batch.ids_BT[b].tolist() == sample.ids_T.tolist() + [TOKENIZER.pad_id] * num_padding
        assert batch.is_padding_BT[b].tolist() == [t >= lengths[b] for t in range(longest)]
        assert batch.is_masked_BT[b].tolist() == sample.is_masked_T.tolist() + [False] * num_padding
        assert torch.equal(batch.images_BCHW[b], sample.image)
    assert batch.num_real == sum(lengths)
    assert batch.token_counts == tuple(lengths)

    shortest = min(samples, key=lambda sample: len(sample.ids_T))
    short = PairBatch.collate([shortest], TOKENIZER.pad_id)
    assert short.ids_BT.shape == (1, min(lengths))
    assert not short.is_padding_BT.any()


def test_masked_positions_are_those_of_the_mask():
    batch = PairBatch.collate(samples_of(6), TOKENIZER.pad_id)
    assert batch.masked_M is not None
    assert batch.places() is batch.masked_M
    assert batch.places().tolist() == batch.is_masked_BT.flatten().nonzero().squeeze(1).tolist()
    assert torch.equal(batch.targets(), batch.ids_BT[batch.is_masked_BT])
    assert torch.equal(replace(batch, masked_M=None).places(), batch.masked_M)


def test_the_first_rows_know_the_number_of_their_tokens_if_the_batch_does():
    samples = samples_of(6)
    batch = PairBatch.collate(samples, TOKENIZER.pad_id)
    for num_rows in (1, 3, 6):
        first = batch.first(num_rows)
        assert len(first.images_BCHW) == len(first.keep_BK) == len(first.ids_BT) == num_rows
        assert torch.equal(first.hidden_BM, batch.hidden_BM[:num_rows])
        assert first.num_real == sum(len(sample.ids_T) for sample in samples[:num_rows])
        assert first.num_real == int((~first.is_padding_BT).sum())
        assert first.first(1).num_real == len(samples[0].ids_T)
    assert replace(batch, token_counts=()).first(2).num_real is None


def test_wrong_partners_make_a_batch_whose_texts_can_be_lent():
    samples = samples_of(4, training=False)
    batch = PairBatch.collate(samples, 0)
    assert batch.wrong is not None
    assert batch.wrong.wrong is None
    assert batch.wrong.where == ("list:2", "list:3", "list:0", "list:1")
    assert batch.draw_B3 is not None
    assert batch.draw_B3.shape == (4, 3)

    swapped = batch.with_text_of(batch.wrong)
    for name in ("ids_BT", "is_padding_BT", "num_real", "token_counts", "is_masked_BT", "masked_M"):
        assert getattr(swapped, name) is getattr(batch.wrong, name)
    assert swapped.images_BCHW is batch.images_BCHW
    assert swapped.keep_BK is batch.keep_BK
    assert torch.equal(swapped.targets(), batch.wrong.ids_BT[batch.wrong.is_masked_BT])
