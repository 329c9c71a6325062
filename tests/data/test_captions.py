"""Augmented captions: their distribution, what they depend on, and what stays whole."""

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from eve_vl.config import DataConfig, TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.data.caption_augmentation import augmented_caption
from eve_vl.data.caption_tags import common_tags
from eve_vl.data.kinds.captions import CaptionedImages, ImageText
from eve_vl.data.row_dataset import RowDataset
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.errors import UserError
from helpers.twins import ListSource, noise, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TASKS = [
    RetrievalConfig(dedup_captions=True),
    ContrastMatchConfig(itc_targets="same_text"),
    MaskedSignalConfig(),
]
CAPTION = "red cat; on the mat"


def frequencies(caption: str, how: str, times: int = 6000) -> Counter[str]:
    rng = np.random.default_rng(0)
    counts = Counter(augmented_caption(caption, how, rng) for _ in range(times))
    return Counter({text: count / times for text, count in counts.items()})


def close_to(expected: dict[str, float]) -> Any:
    return pytest.approx(expected, abs=0.025)


def test_words_are_left_out_and_shuffled():
    both, one = 0.8**2, 0.8 * 0.2 + 0.2**2 / 2  # of two lost words one is kept
    assert frequencies("red cat", "words") == close_to(
        {"red cat": both * 0.75, "cat red": both * 0.25, "red": one, "cat": one}
    )
    shares = frequencies("a b c d e f", "words")
    assert sum(share * len(text.split()) for text, share in shares.items()) == pytest.approx(
        6 * 0.8, abs=0.05
    )
    assert sum(
        share for text, share in shares.items() if sorted(text.split()) == text.split()
    ) == pytest.approx(0.5, abs=0.05)
    assert frequencies("cat", "words") == {"cat": 1}


def test_phrases_are_chosen_or_shuffled():
    one = dict.fromkeys(("map", "folded at 10:30", "1,000 sheets"), 1 / 6)
    whole = {", ".join(order): 1 / 12 for order in permutations(one)}
    assert frequencies("map: folded at 10:30;1,000 sheets, ", "phrases") == close_to(one | whole)
    for caption in ("a red cat", "10:30", "1,000", ",;"):
        assert frequencies(caption, "phrases") == {caption: 1}


def dataset_of(
    task: Any, how: str, *, training: bool = True, seed: int = 0, caption: str = CAPTION
) -> CaptionedImages | MaskedPairs:
    rows = [
        ImageText(image=noise(row), captions=(caption,), where=f"row {row}") for row in range(4)
    ]
    kind = CaptionedImages if isinstance(task, RetrievalConfig) else MaskedPairs
    config = tiny_config(
        task=task, data={"caption_augment": how}, train={"seed": seed}, input={"text_length": 40}
    )
    return kind([ListSource(rows), ListSource(rows)], config, TOKENIZER, training=training)


@pytest.mark.parametrize("how", ["words", "phrases"])
@pytest.mark.parametrize("task", TASKS)
def test_captions_depend_on_seed_epoch_source_and_row_only(task, how):
    positions = [
        (epoch, source, row) for epoch in range(3) for source in range(2) for row in range(4)
    ]

    def texts(seed: int = 0) -> list[str]:
        dataset = dataset_of(task, how, seed=seed)
        return [TOKENIZER.decode(dataset[position].ids_T) for position in positions]

    first = texts()
    assert texts() == first != texts(seed=1)
    for parts in (first[:8], first[::8], first[:4] + first[8:12]):  # of epochs, rows and sources
        assert len({*parts}) > 1


@pytest.mark.parametrize("task", TASKS[:2])
def test_equal_captions_stay_positives_whatever_is_shown(task):
    plain, dataset = dataset_of(task, "none"), dataset_of(task, "words")
    samples = [dataset[epoch, 0, row] for epoch in range(4) for row in range(4)]
    assert {sample.caption for sample in samples} == {plain[0, 0, 0].caption}
    assert len({sample.ids_T.tobytes() for sample in samples}) > 5


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_shows_whole_captions(task):
    for how in ("words", "phrases"):
        dataset = dataset_of(task, how, training=False, caption="cat; red")
        for row in range(4):
            sample = RowDataset.load(dataset, 0, 0, row)
            assert sample.ids_T.tolist() == TOKENIZER.encode("cat; red", 40)[0].tolist()


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "pair", "classification"])
def test_questions_statements_and_labelled_texts_stay_whole(name):
    task = all_kinds(TaskConfig, "tasks")[name]()
    with pytest.raises(UserError, match=f"data.caption_augment has no effect with task {name}"):
        tiny_config(task=task, data={"caption_augment": "words"})


def test_rows_without_pairs_have_no_captions():
    for modality in ("text", "image"):
        assert "caption_augment" in DataConfig(modality=modality).unused_fields()
    assert "caption_augment" not in DataConfig().unused_fields()


def test_common_tags_are_the_words_and_phrases_of_some_captions():
    captions = [[f"red cat, animal; no {row}"] for row in range(4)] + [
        ["a Cat on a mat"],
        ["cats"],
        ["the red car"],
    ]
    captions += [[f"the thing {row}", "plain"] for row in range(33)]
    assert common_tags(captions) == {
        **dict.fromkeys(("animal", "no", "red cat"), (0, 1, 2, 3)),
        "cat": (0, 1, 2, 3, 4),
        "red": (0, 1, 2, 3, 6),
    }
    assert common_tags(captions[:7]) == {}  # a tag of four of seven images tells little
    many = [[f"word{row % 150:03}"] for row in range(900)]
    assert len(found := common_tags(many)) == 100
    assert {len(images) for images in found.values()} == {6}
    assert (min(found), max(found)) == ("word000", "word149")
