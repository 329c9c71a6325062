"""Augmented captions: their distribution, what they depend on, and what stays whole."""

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from eve_vl.config import DataConfig
from eve_vl.data.caption_augmentation import augmented_caption
from eve_vl.data.kinds.captions import CaptionedImages, ImageText
from eve_vl.data.row_dataset import RowDataset
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, noise, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RETRIEVAL = RetrievalConfig(dedup_captions=True)
CONTRAST_MATCH = ContrastMatchConfig(itc_targets="same_text")


def frequencies(caption: str, how: str) -> dict[str, float]:
    """Return how often each text comes out."""
    rng = np.random.default_rng(0)
    times = 4000
    counts = Counter(augmented_caption(caption, how, rng) for _ in range(times))
    return {text: count / times for text, count in counts.items()}


def test_words_are_left_out_and_shuffled():
    whole = 0.8**2
    alone = 0.8 * 0.2 + 0.2**2 / 2  # of two lost words one stays
    expected = {
        "red cat": whole * 0.75,
        "cat red": whole * 0.25,
        "red": alone,
        "cat": alone,
    }
    assert frequencies("red cat", "words") == pytest.approx(expected, abs=0.03)
    assert frequencies("cat", "words") == {"cat": 1}

    num_words = 0
    share_in_order = 0
    for text, share in frequencies("a b c d e f", "words").items():
        words = text.split()
        num_words += share * len(words)
        share_in_order += share * (words == sorted(words))
    assert num_words == pytest.approx(6 * 0.8, abs=0.06)
    assert share_in_order == pytest.approx(0.5, abs=0.06)


def test_phrases_are_chosen_or_shuffled():
    expected = {
        "map": 1 / 6,
        "folded at 10:30": 1 / 6,
        "1,000 sheets": 1 / 6,
    }
    for order in permutations([*expected]):
        expected[", ".join(order)] = 1 / 12
    caption = "map: folded at 10:30;1,000 sheets, "
    assert frequencies(caption, "phrases") == pytest.approx(expected, abs=0.03)
    for caption in ("a red cat", "10:30", "1,000", ",;"):
        assert frequencies(caption, "phrases") == {caption: 1}


def dataset_of(
    task: Any,
    how: str,
    *,
    training: bool = True,
    seed: int = 0,
) -> RowDataset:
    """Return a dataset of two sources of four rows with one caption."""
    rows = []
    for row in range(4):
        image_text = ImageText(
            image=noise(row), captions=("red cat; on the mat",), where=f"row {row}"
        )
        rows.append(image_text)
    kind = CaptionedImages if isinstance(task, RetrievalConfig) else MaskedPairs
    config = tiny_config(
        task=task, data={"caption_augment": how}, train={"seed": seed}, input={"text_length": 40}
    )
    return kind([ListSource(rows), ListSource(rows)], config, TOKENIZER, training=training)


@pytest.mark.parametrize(
    ("task", "how"),
    [
        (RETRIEVAL, "words"),
        (CONTRAST_MATCH, "phrases"),
        (MaskedSignalConfig(), "words"),
    ],
)
def test_captions_depend_on_seed_epoch_source_and_row_only(task, how):
    def texts(seed: int, training: bool = True) -> list[str]:
        dataset = dataset_of(task, how, seed=seed, training=training)
        positions = np.ndindex(3, 2, 4)  # epochs, sources, rows
        samples = [RowDataset.load(dataset, *position) for position in positions]
        return [TOKENIZER.decode(sample.ids_T) for sample in samples]

    first = texts(0)
    assert texts(0) == first
    assert texts(1) != first
    for same_epoch_or_row_or_source in (first[:8], first[::8], first[:4] + first[8:12]):
        assert len(set(same_epoch_or_row_or_source)) > 1
    assert set(texts(0, training=False)) == {"red cat; on the mat"}


@pytest.mark.parametrize("task", [RETRIEVAL, CONTRAST_MATCH])
def test_equal_captions_stay_positives_whatever_is_shown(task):
    plain = dataset_of(task, "none")
    dataset = dataset_of(task, "words")
    samples = [dataset[epoch, 0, row] for epoch in range(4) for row in range(4)]
    assert {sample.caption for sample in samples} == {plain[0, 0, 0].caption}
    assert len({sample.ids_T.tobytes() for sample in samples}) > 5


def test_rows_of_one_modality_have_no_captions_to_augment():
    for modality in ("text", "image"):
        assert "caption_augment" in DataConfig(modality=modality).unused_fields()
    assert "caption_augment" not in DataConfig().unused_fields()
