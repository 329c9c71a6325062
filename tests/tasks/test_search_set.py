"""The images and captions that a retrieval run is evaluated among."""

import itertools
from dataclasses import replace

import pytest
import torch

from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.loader import eval_loader
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import eval_positions
from eve_vl.synthetic.scenes.captions import all_captions
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.search_set import SearchBatch, SearchImages, SearchSet, SearchTexts
from eve_vl.utils.errors import UserError
from helpers.color_cards import encoded_card
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def captioned(color: str, *captions: str, where: str) -> ImageText:
    return ImageText(
        image=ImageBytes(data=encoded_card(color)),
        captions=captions,
        where=where,
    )


FIRST = ListSource(
    [
        captioned("red", "a red card", "nothing but red", where="a:0"),
        captioned("blue", "a blue card", "a card", where="a:1"),
        captioned("red", "the colour of blood", "a card", where="a:2"),  # the first image again
        captioned("lime", "a card", "lime", where="a:3"),
    ]
)
SECOND = ListSource(
    [
        captioned("gold", "a gold card", "a red card", where="b:0"),
        captioned("blue", "the sky", where="b:1"),
    ]
)
PLACES = [
    (FIRST, 0),
    (FIRST, 1),
    (FIRST, 3),
    (SECOND, 0),
]
"""Source and row of each image."""
CAPTIONS = [
    ["a red card", "nothing but red", "the colour of blood", "a card"],
    ["a blue card", "a card", "the sky"],
    ["a card", "lime"],
    ["a gold card", "a red card"],
]
"""Of each image; the rows of one image count together."""


def search_set(
    *sources: Source[ImageText], captions_per_image: int = 0, merge: bool = False, **data: object
) -> SearchSet:
    task = RetrievalConfig(captions_per_image=captions_per_image, dedup_captions=merge)
    return SearchSet(sources, tiny_config(task=task, data=data), TOKENIZER)


def true_captions(candidates: SearchSet) -> list[list[str]]:
    """Return the captions that are true of each image."""
    captions = []
    for numbers in candidates.captions_of:
        captions.append([candidates.captions[number] for number in numbers])
    return captions


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_each_caption_belongs_to_one_image(limit):
    """As COCO and Flickr30K are scored."""
    candidates = search_set(FIRST, SECOND, captions_per_image=limit)
    expected = [captions[: limit or None] for captions in CAPTIONS]
    assert [(image.source, image.row) for image in candidates.images] == PLACES
    assert candidates.captions == list(itertools.chain(*expected))
    assert true_captions(candidates) == expected

    # equal captions are one text
    assert len(candidates.texts) == len(set(candidates.texts))
    every_caption = []
    for text, numbers in zip(candidates.texts, candidates.captions_in, strict=True):
        assert {candidates.captions[number] for number in numbers} == {text}
        every_caption += numbers
    assert sorted(every_caption) == list(range(len(candidates.captions)))


@pytest.mark.parametrize("limit", [0, 1])
def test_merged_captions_are_true_of_all_their_images(limit):
    candidates = search_set(FIRST, SECOND, captions_per_image=limit, merge=True)
    first_captions = [captions[: limit or None] for captions in CAPTIONS]
    searched = list(dict.fromkeys(itertools.chain(*first_captions)))
    assert [(image.source, image.row) for image in candidates.images] == PLACES
    assert candidates.captions == searched
    for captions, expected in zip(true_captions(candidates), CAPTIONS, strict=True):
        assert set(captions) == set(expected) & set(searched)


@pytest.mark.parametrize("limit", [0, 1])
def test_a_caption_is_true_of_every_scene_that_it_fits(limit):
    scenes = ScenePairs(split="test", image_size=16, num_rows=60)
    candidates = search_set(scenes, captions_per_image=limit, merge=True)
    assert len(candidates.images) == 60
    assert len(candidates.captions) == len(set(candidates.captions))
    num_true = 0
    for image, captions in zip(candidates.images, true_captions(candidates), strict=True):
        fitting = all_captions(sample_scene("test", 0, image.row))
        assert captions == [caption for caption in candidates.captions if caption in fitting]
        num_true += len(captions)
    assert num_true > len(candidates.captions)  # some fit several scenes


def test_a_note_says_how_many_captions_of_people_are_searched():
    """Of generated ones, which are as many as one likes, it says nothing."""
    sources = (
        FIRST,
        SECOND,
        ScenePairs(
            split="val",
            image_size=16,
            num_rows=5,
        ),
    )
    for limit, num, captions in (
        (1, 4, "caption"),
        (3, 10, "3 captions"),
    ):
        (note,) = search_set(*sources, captions_per_image=limit).notes()
        start = f"searches are among the first {captions} of each image, {num} of 11; eve evaluate"
        assert note.startswith(start)
    for limit in (0, 4):
        assert search_set(*sources, captions_per_image=limit).notes() == []


def test_at_most_val_samples_rows_are_searched():
    candidates = search_set(pairs(10), val_samples=4)
    expected = [row for _, _, row in eval_positions([10], 4)]
    assert [image.row for image in candidates.images] == expected
    assert len(candidates.captions) == 8


# Batches


def batches(
    dataset: SearchSet,
    size: int,
    rank: int = 0,
    world: int = 1,
) -> list[SearchBatch]:
    return list(
        eval_loader(
            dataset,
            batch_size=size,
            rank=rank,
            world=world,
        )
    )


@pytest.mark.parametrize("world", [1, 3])
def test_every_image_and_text_comes_once_whoever_loads_it(world):
    dataset = search_set(pairs(7, captions=3))
    images: list[int] = []
    texts: list[int] = []
    for rank in range(world):
        lengths: list[int] = []
        for batch in batches(dataset, 4, rank, world):
            indices = batch.index_B.tolist()
            assert len(indices) <= 4
            if isinstance(batch, SearchImages):
                assert batch.images_BCHW.shape[1:] == (3, 16, 16)
                assert list(batch.captions) == [dataset.captions_of[index] for index in indices]
                images += indices
                continue
            assert isinstance(batch, SearchTexts)
            texts += indices
            for row, index in enumerate(indices):
                ids = batch.ids_BT[row][~batch.is_padding_BT[row]].tolist()
                assert ids == TOKENIZER.encode(dataset.texts[index], 12)[0].tolist()
                captions = {dataset.captions[number] for number in batch.captions[row]}
                assert captions == {dataset.texts[index]}
                lengths.append(len(ids))
        assert lengths == sorted(lengths, reverse=True)
    assert sorted(images) == list(range(7))
    assert sorted(texts) == list(range(21))


def test_unusable_rows_are_named():
    message = r"^a row to evaluate on cannot be used, list:3: made to be broken; .* --skip-invalid"
    with pytest.raises(UserError, match=message):
        search_set(pairs(5, bad=[3]))
    broken = replace(FIRST[1], image=ImageBytes(data=b"no image"))
    dataset = search_set(ListSource([FIRST[0], broken]))
    skipped = [error.where for batch in batches(dataset, 3) for error in batch.skipped]
    assert skipped == ["a:1"]


def test_candidate_images_are_not_augmented():
    *_, augmented = batches(search_set(pairs(3), augment="rand", flip=True), 8)
    *_, plain = batches(
        search_set(
            pairs(3),
            crop_scale=(1.0, 1.0),
            flip=False,
        ),
        8,
    )
    assert isinstance(augmented, SearchImages)
    assert isinstance(plain, SearchImages)
    assert torch.equal(augmented.images_BCHW, plain.images_BCHW)
