"""The dataset of pre-training: masked rows, labels, wrong partners in evaluation."""

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.data.masked_batches import MaskedImages, MaskedTexts, PairBatch
from eve_vl.data.masking import mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.data.row_dataset import RowDataset
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.dataset import MAX_LABELS, MaskedPairs, label_hashes
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.twins import ListSource, noise, pairs, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def dataset_of(*sources: ListSource, training: bool = False, **task: Any) -> MaskedPairs:
    config = tiny_config(task=ContrastMatchConfig(**task))
    return MaskedPairs(sources, config, TOKENIZER, training=training)  # pyright: ignore[reportArgumentType]


def hash_of(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


# Masked rows


def test_training_samples_captions_evenly_and_evaluation_takes_the_first():
    training = MaskedPairs([pairs(1, captions=3)], tiny_config(), TOKENIZER, training=True)
    texts = Counter(TOKENIZER.decode(training[(epoch, 0, 0)].ids_T) for epoch in range(300))
    assert len(texts) == 3
    assert min(texts.values()) > 60
    first_caption = pairs(2)[0].captions[0]
    for length in (12, 100):
        config = tiny_config(input={"text_length": length})
        evaluation = MaskedPairs([pairs(2, captions=3)], config, TOKENIZER, training=False)
        expected = TOKENIZER.encode(first_caption, length)[0].tolist()
        assert RowDataset.load(evaluation, 0, 0, 0).ids_T.tolist() == expected


@pytest.mark.parametrize("masks_whole_words", [False, True])
def test_a_part_of_a_row_may_be_left_out(masks_whole_words):
    row = pairs(1)[0]
    config = tiny_config(task={"whole_word_masking": masks_whole_words})
    dataset = MaskedPairs([pairs(1)], config, TOKENIZER, training=False)
    image = dataset.masked(row, "image", 0.5, 0.5, generator(3))
    text = dataset.masked(row, "text", 0.5, 0.5, generator(3))
    pair = dataset.masked(row, "image_text", 0.5, 0.5, generator(3))
    assert (image.batch, text.batch, pair.batch) == (MaskedImages, MaskedTexts, PairBatch)
    assert not hasattr(image, "ids_T")
    assert not hasattr(text, "image")
    ids_T, is_special_T = TOKENIZER.encode(row.captions[0], 12)
    word_T = TOKENIZER.words(row.captions[0], 12) if masks_whole_words else None
    assert text.ids_T.tolist() == pair.ids_T.tolist() == ids_T.tolist()
    expected = mask_tokens(is_special_T, 0.5, generator(3), word_T)
    assert text.is_masked_T.tolist() == expected.tolist()


def test_a_pair_is_identified_by_image_and_caption_and_has_three_numbers():
    source = pairs(2)
    rng = generator(5)
    sample = dataset_of(source).sample(source[1], rng)
    assert sample.image_id == hash_of(source[1].where)
    assert sample.caption == hash_of(source[1].captions[0])
    assert sample.draw is not None
    assert sample.draw.dtype == np.float32
    assert len(set(sample.draw.tolist())) == 3
    assert (sample.draw >= 0).all()
    assert (sample.draw < 1).all()
    assert (sample.draw != dataset_of(source).sample(source[1], rng).draw).all()


# Rows of one modality


def test_images_only_are_masked():
    config = tiny_config(task={"mlm_weight": 0.0}, data={"modality": "image"})
    assert MaskedPairs.kind_of(config) == "images"
    rows = ListSource([ImageOnly(image=noise(1, row), where=f"alone:{row}") for row in range(7)])
    dataset = MaskedPairs([rows], config, TOKENIZER, training=False)
    names = []
    for batch in eval_loader(dataset, batch_size=4, rank=0, world=1):
        assert type(batch) is MaskedImages
        assert batch.images_BCHW.shape[1:] == (3, 16, 16)
        assert batch.hidden_BM.shape[1] == 12
        patches = torch.cat([batch.keep_BK, batch.hidden_BM], dim=1).sort(dim=1).values
        assert patches.tolist() == [list(range(16))] * len(batch.where)
        names += batch.where
    assert names == [f"alone:{row}" for row in range(7)]
    training = MaskedPairs([rows], config, TOKENIZER, training=True)
    assert len({training[(epoch, 0, 0)].keep_K.tobytes() for epoch in range(20)}) > 10


def test_texts_only_are_masked():
    config = tiny_config(task={"mim_weight": 0.0}, data={"modality": "text"})
    assert MaskedPairs.kind_of(config) == "texts"
    words = ("a red circle", "two small blue squares on gray", "a star")
    rows = [TextOnly(text=f"{words[row % 3]} {row}", where=f"alone:{row}") for row in range(7)]
    dataset = MaskedPairs([ListSource(rows)], config, TOKENIZER, training=True)
    batch = next(iter(train_loader(dataset, consumed=0, rank=0, world=1)))
    assert type(batch) is MaskedTexts
    for b, where in enumerate(batch.where):
        ids = TOKENIZER.encode(rows[int(where.split(":")[1])].text, 12)[0].tolist()
        assert batch.ids_BT[b, : len(ids)].tolist() == ids
        assert batch.is_padding_BT[b].sum() == batch.ids_BT.shape[1] - len(ids)
        assert batch.is_masked_BT[b].sum() == max(1, round((len(ids) - 1) / 2))
        assert not batch.is_masked_BT[b, len(ids) :].any()
        assert not batch.is_masked_BT[b, 0]


# Labels


def labelled(labels: tuple[str, ...], absent: tuple[str, ...] = ()) -> ImageText:
    return replace(pairs(1)[0], labels=labels, absent=absent)


def label_bits(name: str) -> int:
    return hash_of(name) % 2**62


def test_labels_are_62_bits_of_their_hash_and_negative_if_absent():
    hashes = label_hashes(labelled(("edema", "nodule"), ("fracture",)))
    assert hashes.dtype == np.int64
    expected = [label_bits("edema"), label_bits("nodule"), -label_bits("fracture")]
    assert hashes.tolist() == expected + [0] * (MAX_LABELS - 3)

    names = tuple(f"label {number}" for number in range(MAX_LABELS))
    hashes = label_hashes(labelled(names[:1], names[1:])).tolist()
    assert hashes == [label_bits(names[0]), *(-label_bits(name) for name in names[1:])]


@pytest.mark.parametrize("num", [0, MAX_LABELS + 1])
def test_no_or_too_many_labels_make_a_row_unusable(num):
    labels = tuple(f"label {number}" for number in range(num))
    message = rf"list:0.*{num or 'no'} labels, but .* semantic needs 1 to {MAX_LABELS}$"
    with pytest.raises(BadSampleError, match=message):
        label_hashes(labelled(labels))


@pytest.mark.parametrize(
    ("training", "targets", "has_labels"),
    [(True, "semantic", True), (True, "image", False), (False, "semantic", False)],
)
def test_labels_are_read_for_semantic_targets_in_training_only(training, targets, has_labels):
    source = ListSource([labelled(("edema",))])
    dataset = dataset_of(source, training=training, itc_targets=targets)
    assert (dataset.sample(source[0], generator(0)).label_L is not None) == has_labels


# Wrong partners


def partners_of(*sources: ListSource, epoch: int = 0) -> list[str]:
    """Return the names of the wrong partners of the first source's rows."""
    dataset = dataset_of(*sources)
    partners = []
    for row in range(len(sources[0])):
        wrong = dataset[(epoch, 0, row)].wrong
        assert wrong is not None
        partners.append(wrong.where)
    return partners


def test_the_usual_partner_is_half_the_data_away():
    assert partners_of(pairs(11)) == [f"list:{(row + 5) % 11}" for row in range(11)]


def with_caption(num: int, caption: str) -> ListSource[ImageText]:
    return ListSource([replace(pairs(num)[row], captions=(caption,)) for row in range(num)])


def test_else_the_partner_is_the_first_fitting_row_of_a_stream_of_its_own():
    sources = [with_caption(12, "one"), pairs(40, name="other")]
    partners = partners_of(*sources)
    for row in range(12):
        rng = np.random.default_rng((0, 4, 0, row))  # seed, purpose, source, row
        candidates = []
        for source in rng.integers(2, size=200).tolist():
            candidates.append((source, int(rng.integers(len(sources[source])))))
        number = next(number for source, number in candidates if source == 1)
        assert partners[row] == f"other:{number}"
    assert partners_of(*sources, epoch=3) == partners


def test_a_partner_is_usable_and_shares_no_caption_at_all():
    rows = [pairs(4)[row] for row in range(4)]
    rows[2] = replace(rows[2], captions=("new", rows[0].captions[1]))
    assert partners_of(ListSource(rows))[0] in ("list:1", "list:3")
    dataset = dataset_of(pairs(4, bad=[2]))
    wrong = dataset[(0, 0, 0)].wrong
    assert wrong is not None
    assert wrong.where in ("list:1", "list:3")


@pytest.mark.parametrize("source", [with_caption(2, "twins"), pairs(2, bad=[1])])
def test_a_set_without_a_wrong_partner_is_refused_before_training(source):
    message = "list:0: none of the 2 validation pairs is usable and has another caption"
    with pytest.raises(UserError, match=message):
        eval_loader(dataset_of(source), rank=0, world=1)
