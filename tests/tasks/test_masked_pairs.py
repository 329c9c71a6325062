"""The dataset of pre-training: masked rows, labels, wrong partners in evaluation."""

import hashlib
from collections import Counter
from collections.abc import Iterable
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
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, noise, pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def dataset_of(*sources: Any, training: bool = False, **task: Any) -> Any:
    config = tiny_config(task=ContrastMatchConfig(**task))
    return MaskedPairs(sources, config, TOKENIZER, training=training)


def hash_of(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


# Masked rows


def test_training_samples_captions_evenly_and_evaluation_takes_the_first():
    source = pairs(1, captions=3)
    training = MaskedPairs([source], tiny_config(), TOKENIZER, training=True)
    texts = Counter(TOKENIZER.decode(training[(epoch, 0, 0)].ids_T) for epoch in range(300))
    assert len(texts) == 3
    assert min(texts.values()) > 60
    for length in (12, 100):
        config = tiny_config(input={"text_length": length})
        evaluation = MaskedPairs([source], config, TOKENIZER, training=False)
        ids_T, _ = TOKENIZER.encode(source[0].captions[0], length)
        assert RowDataset.load(evaluation, 0, 0, 0).ids_T.tolist() == ids_T.tolist()


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
    row = pairs(2)[1]
    dataset = dataset_of(pairs(2))
    rng = generator(5)
    sample = dataset.sample(row, rng)
    assert sample.image_id == hash_of(row.where)
    assert sample.caption == hash_of(row.captions[0])
    assert sample.draw.dtype == np.float32
    numbers = set(sample.draw.tolist())
    assert len(numbers) == 3
    assert 0 <= min(numbers) < max(numbers) < 1
    assert numbers.isdisjoint(dataset.sample(row, rng).draw.tolist())


# Rows of one modality


def test_images_only_are_masked():
    config = tiny_config(task={"mlm_weight": 0.0}, data={"modality": "image"})
    assert MaskedPairs.kind_of(config) == "images"
    rows = ListSource([ImageOnly(image=noise(1, row), where=f"alone:{row}") for row in range(7)])
    dataset = MaskedPairs([rows], config, TOKENIZER, training=False)
    names = []
    for batch in eval_loader(
        dataset,
        batch_size=4,
        rank=0,
        world=1,
    ):
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
    rows = []
    for row, words in enumerate(("a red circle", "two small blue squares on gray", "a star")):
        rows.append(TextOnly(text=f"{words} {row}", where=f"alone:{row}"))
    dataset = MaskedPairs([ListSource(rows)], config, TOKENIZER, training=True)
    batch = next(
        iter(
            train_loader(
                dataset,
                consumed=0,
                rank=0,
                world=1,
            )
        )
    )
    assert type(batch) is MaskedTexts
    for b, where in enumerate(batch.where):
        row = int(where.removeprefix("alone:"))
        ids = TOKENIZER.encode(rows[row].text, 12)[0].tolist()
        num_ids = len(ids)
        is_masked_T = batch.is_masked_BT[b]
        assert batch.ids_BT[b, :num_ids].tolist() == ids
        assert batch.is_padding_BT[b].sum() == batch.ids_BT.shape[1] - num_ids
        assert is_masked_T.sum() == max(1, round((num_ids - 1) / 2))
        assert not is_masked_T[num_ids:].any()
        assert not is_masked_T[0]


# Labels


def labelled(labels: tuple[str, ...], absent: tuple[str, ...] = ()) -> ImageText:
    return replace(pairs(1)[0], labels=labels, absent=absent)


def test_labels_are_62_bits_of_their_hash_and_negative_if_absent():
    hashes = label_hashes(labelled(("edema", "nodule"), ("fracture",)))
    assert hashes.dtype == np.int64
    edema, nodule, fracture = (hash_of(name) % 2**62 for name in ("edema", "nodule", "fracture"))
    assert hashes.tolist() == [edema, nodule, -fracture] + [0] * (MAX_LABELS - 3)

    names = tuple(f"label {number}" for number in range(MAX_LABELS))
    hashes = label_hashes(labelled(names[:1], names[1:]))
    expected = [-(hash_of(name) % 2**62) for name in names]
    expected[0] *= -1
    assert hashes.tolist() == expected


@pytest.mark.parametrize("num", [0, MAX_LABELS + 1])
def test_no_or_too_many_labels_make_a_row_unusable(num):
    labels = tuple(f"label {number}" for number in range(num))
    message = rf"list:0.*{num or 'no'} labels, but .* semantic needs 1 to {MAX_LABELS}$"
    with pytest.raises(BadSampleError, match=message):
        label_hashes(labelled(labels))


@pytest.mark.parametrize(
    ("training", "targets", "has_labels"),
    [
        (True, "semantic", True),
        (True, "image", False),
        (False, "semantic", False),
    ],
)
def test_labels_are_read_for_semantic_targets_in_training_only(training, targets, has_labels):
    source = ListSource([labelled(("edema",))])
    dataset = dataset_of(source, training=training, itc_targets=targets)
    assert (dataset.sample(source[0], generator(0)).label_L is not None) == has_labels


# Wrong partners


def partners_of(*sources: Any, epoch: int = 0) -> list[str]:
    """Return the names of the wrong partners of the first source's rows."""
    dataset = dataset_of(*sources)
    return [dataset[(epoch, 0, row)].wrong.where for row in range(len(sources[0]))]


def with_caption(rows: Iterable[ImageText], caption: str) -> ListSource[ImageText]:
    return ListSource([replace(row, captions=(caption,)) for row in rows])


def test_the_usual_partner_is_half_the_data_away():
    assert partners_of(pairs(11)) == [f"list:{(row + 5) % 11}" for row in range(11)]


def test_else_the_partner_is_the_first_fitting_row_of_a_stream_of_its_own():
    sources = [with_caption(pairs(12), "one"), pairs(40, name="other")]
    expected = []
    for row in range(12):
        rng = np.random.default_rng((0, 4, 0, row))  # seed, purpose, source, row
        for source in rng.integers(2, size=200).tolist():
            number = int(rng.integers(len(sources[source])))
            if source == 1:
                expected.append(f"other:{number}")
                break
    assert partners_of(*sources) == expected
    assert partners_of(*sources, epoch=3) == expected


def test_a_partner_is_usable_and_shares_no_caption_at_all():
    rows = list(pairs(4))
    rows[2] = replace(rows[2], captions=("new", rows[0].captions[1]))
    assert partners_of(ListSource(rows))[0] in ("list:1", "list:3")
    with_unusable = dataset_of(pairs(4, bad=[2]))
    assert with_unusable[(0, 0, 0)].wrong.where in ("list:1", "list:3")


@pytest.mark.parametrize(
    "source",
    [
        with_caption(pairs(2), "twins"),
        pairs(2, bad=[1]),
    ],
)
def test_a_set_without_a_wrong_partner_is_refused_before_training(source):
    message = "list:0: none of the 2 validation pairs is usable and has another caption"
    with pytest.raises(UserError, match=message):
        eval_loader(dataset_of(source), rank=0, world=1)
