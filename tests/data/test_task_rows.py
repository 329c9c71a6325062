"""Datasets of the fine-tuning tasks: search sets, mirroring, augmentation."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from eve_vl.config import Config
from eve_vl.data.batches import Sample
from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.captions import CaptionBatch, CaptionedImages, ImageText
from eve_vl.data.kinds.questions import ImageQuestion, QuestionRows
from eve_vl.data.kinds.statements import ImagesStatement, StatementRows
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import RowDataset, eval_positions
from eve_vl.run.startup_summary import data_lines
from eve_vl.synthetic.scenes.captions import all_captions
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.search_set import SearchBatch, SearchImages, SearchSet, SearchTexts
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.color_cards import encoded_card
from helpers.twins import (
    ListSource,
    noise,
    pairs,
    questions,
    statements,
    tiny_config,
    tiny_tokenizer,
)

TOKENIZER = tiny_tokenizer()
PLAIN = {"crop_scale": (1.0, 1.0), "flip": False}


def config_of(task: RetrievalConfig | None = None, **data: object) -> Config:
    return tiny_config(task=task or RetrievalConfig(), data=data)


def captioned(color: str, *captions: str, where: str) -> ImageText:
    return ImageText(image=ImageBytes(data=encoded_card(color)), captions=captions, where=where)


# What is searched among


ROWS = [
    captioned("red", "a red card", "nothing but red", where="a:0"),
    captioned("blue", "a blue card", "a card", where="a:1"),
    captioned("red", "the colour of blood", "a card", where="a:2"),  # the first image again
    captioned("lime", "a card", "lime", where="a:3"),
]
OTHER = [
    captioned("gold", "a gold card", "a red card", where="b:0"),
    captioned("blue", "the sky", where="b:1"),
]


def search_set(
    *sources: Source[ImageText], captions_per_image: int = 0, merge: bool = False, **data: object
) -> SearchSet:
    task = RetrievalConfig(captions_per_image=captions_per_image, dedup_captions=merge)
    return SearchSet(sources, config_of(task, **data), TOKENIZER)


def rows_of(dataset: SearchSet) -> list[tuple[int, int]]:
    """Return the source (0: ROWS, 1: OTHER) and the row of each candidate image."""
    rows = []
    for image in dataset.images:
        assert isinstance(image.source, ListSource)
        rows.append((int(image.source.rows is OTHER), image.row))
    return rows


def test_people_are_told_how_many_of_their_captions_are_searched():
    """Of generated ones, which are as many as one likes, they are not."""
    scenes, own = (
        ScenePairs(split="val", image_size=16, num_rows=5),
        (ListSource(ROWS), ListSource(OTHER)),
    )
    for limit, num, first in ((1, 4, "caption"), (2, 8, "2 captions"), (3, 10, "3 captions")):
        (note,) = search_set(*own, scenes, captions_per_image=limit).notes()
        assert note.startswith(
            f"searches are among the first {first} of each image, {num} of 11; eve evaluate … --captions-per"
        )
    for limit in (0, 4):
        assert search_set(*own, scenes, captions_per_image=limit).notes() == []


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_each_caption_belongs_to_one_image(limit):
    """As COCO and Flickr30K are scored; five captions of an image are five, on whichever rows they stand."""
    found = search_set(ListSource(ROWS), ListSource(OTHER), captions_per_image=limit)
    captions = {
        (0, 0): ["a red card", "nothing but red", "the colour of blood", "a card"],
        (0, 1): ["a blue card", "a card", "the sky"],
        (0, 3): ["a card", "lime"],
        (1, 0): ["a gold card", "a red card"],
    }
    expected = [given[: limit or None] for given in captions.values()]
    assert rows_of(found) == list(captions)
    assert found.captions == list(itertools.chain(*expected))
    assert [[found.captions[each] for each in true] for true in found.captions_of] == expected
    assert sorted(itertools.chain(*found.captions_of)) == list(range(len(found.captions)))
    assert [{found.captions[each] for each in same} for same in found.captions_in] == [
        {text} for text in found.texts
    ]
    assert sorted(itertools.chain(*found.captions_in)) == list(range(len(found.captions)))
    assert len(found.texts) == len(set(found.texts))


def test_rows_of_one_image_and_images_of_one_text_are_put_together():
    found = search_set(ListSource(ROWS), ListSource(OTHER), merge=True)
    assert rows_of(found) == [(0, 0), (0, 1), (0, 3), (1, 0)]
    assert found.captions == [
        *(
            "a red card",
            "nothing but red",
            "the colour of blood",
            "a card",
            "a blue card",
            "the sky",
            "lime",
            "a gold card",
        )
    ]
    assert [[found.captions[each] for each in true] for true in found.captions_of] == [
        ["a red card", "nothing but red", "the colour of blood", "a card"],
        ["a card", "a blue card", "the sky"],
        ["a card", "lime"],
        ["a red card", "a gold card"],
    ]


def test_first_captions_are_searched_among_but_all_captions_count_as_true():
    found = search_set(ListSource(ROWS), ListSource(OTHER), captions_per_image=1, merge=True)
    assert found.captions == ["a red card", "a blue card", "a card", "a gold card"]
    assert [[found.captions[each] for each in true] for true in found.captions_of] == [
        ["a red card", "a card"],
        ["a blue card", "a card"],
        ["a card"],
        ["a red card", "a gold card"],
    ]


@pytest.mark.parametrize("captions_per_image", [0, 1])
def test_a_text_about_a_scene_is_true_of_every_scene_that_it_fits(captions_per_image):
    found = search_set(
        ScenePairs(split="test", image_size=16, num_rows=60),
        captions_per_image=captions_per_image,
        merge=True,
    )
    assert len(found.images) == 60
    assert len(found.captions) == len(set(found.captions))
    shared = 0
    for index, image in enumerate(found.images):
        scene = sample_scene("test", 0, image.row)
        expected = tuple(
            text for text, words in enumerate(found.captions) if words in all_captions(scene)
        )
        assert found.captions_of[index] == expected
        shared += len(expected)
    assert shared > len(found.captions)  # some fit several scenes


def test_only_some_rows_are_searched_among():
    found = search_set(pairs(10), val_samples=4)
    rows = [row for _, _, row in eval_positions([10], 4)]
    assert [image.row for image in found.images] == rows
    assert len(found.captions) == 8


def batches(dataset: SearchSet, size: int, rank: int = 0, world: int = 1) -> list[SearchBatch]:
    return list(eval_loader(dataset, batch_size=size, rank=rank, world=world))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_and_text_comes_once_whoever_loads_it(world):
    dataset = search_set(pairs(7, captions=3))
    images: list[int] = []
    texts: list[int] = []
    for rank in range(world):
        lengths: list[int] = []
        for batch in batches(dataset, 4, rank, world):
            assert len(batch.index_B) <= 4
            if isinstance(batch, SearchImages):
                assert batch.images_BCHW.shape[1:] == (3, 16, 16)
                assert [dataset.captions_of[index] for index in batch.index_B] == list(
                    batch.captions
                )
                images += batch.index_B.tolist()
            else:
                assert isinstance(batch, SearchTexts)
                texts += batch.index_B.tolist()
                for row, index in enumerate(batch.index_B.tolist()):
                    ids = batch.ids_BT[row][~batch.is_padding_BT[row]].tolist()
                    assert ids == TOKENIZER.encode(dataset.texts[index], 12)[0].tolist()
                    assert {dataset.captions[each] for each in batch.captions[row]} == {
                        dataset.texts[index]
                    }
                    lengths.append(len(ids))
        assert lengths == sorted(lengths, reverse=True)
    assert sorted(images) == list(range(7))
    assert sorted(texts) == list(range(21))


def test_rows_that_cannot_be_used_are_named():
    with pytest.raises(
        UserError,
        match=r"^a row to evaluate on cannot be used, list:3: made to be broken; .* --skip-invalid in eve evaluate",
    ):
        search_set(pairs(5, bad=[3]))
    broken = replace(ROWS[1], image=ImageBytes(data=b"no image"))
    dataset = search_set(ListSource([ROWS[0], broken]))
    skipped = [error for batch in batches(dataset, 3) for error in batch.skipped]
    assert [error.where for error in skipped] == ["a:1"]


def test_images_to_search_among_are_as_they_are():
    dataset = search_set(pairs(3), augment="rand", flip=True)
    plain = search_set(pairs(3), **PLAIN)
    num_images = 0
    for one, other in zip(batches(dataset, 8), batches(plain, 8), strict=True):
        if isinstance(one, SearchImages):
            assert isinstance(other, SearchImages)
            assert torch.equal(one.images_BCHW, other.images_BCHW)
            num_images += len(one.where)
    assert num_images == 3


# Mirroring


def variants(kind: type[RowDataset], row: object, *, side: int = 16) -> set[str]:
    """What becomes of the first image over the epochs: "as it is", "mirrored", or both."""
    dataset = kind(
        [ListSource([row])], tiny_config(data=PLAIN | {"flip": True}), TOKENIZER, training=True
    )  # pyright: ignore
    dataset.config = replace(dataset.config, input=replace(dataset.config.input, image_size=side))
    image = getattr(row, "left", None) or getattr(row, "image", None)
    assert image is not None
    original = torch.from_numpy(image.pixels).permute(2, 0, 1)
    found = set()
    for epoch in range(24):
        sample = dataset[(epoch, 0, 0)].image
        is_same, is_mirrored = torch.equal(sample, original), torch.equal(sample, original.flip(2))
        assert is_same != is_mirrored
        found.add("as it is" if is_same else "mirrored")
    return found


def caption(text: str) -> ImageText:
    return ImageText(image=noise(1, height=16, width=16), captions=(text,), where="x:0")


def question(text: str, answer: str) -> ImageQuestion:
    return ImageQuestion(
        image=noise(1, height=16, width=16),
        question=text,
        answers=("no", answer),
        question_id=0,
        answer_type="",
        where="x:0",
    )


def statement(text: str) -> ImagesStatement:
    left, right = (noise(number, height=16, width=16) for number in range(2))
    return ImagesStatement(
        left=left, right=right, statement=text, label=True, identifier="0", group="0", where="x:0"
    )


NAMES_NO_SIDE = (
    "a bright ring",
    "an upright man",
    "copyright 1999",
    "what clock is it",
    "a cleft",
    "Brightness",
)
NAMES_A_SIDE = (
    *(
        "a ring left of a cross",
        "the RIGHT one",
        "on the left-hand side",
        "a right-handed man",
        "the leftmost ring",
        "right?",
    ),
    *(
        "it turns clockwise",
        "anticlockwise",
        "Counter-clockwise",
        "counterclockwise",
        "bottom-right",
        "left, then up",
    ),
    *("chevron_left", "icon_right_arrow"),
    "leftover pizza",  # a word that begins like one is not looked at more closely: it only costs a mirror image
)


@pytest.mark.parametrize("words", NAMES_NO_SIDE)
def test_images_are_mirrored_in_half_of_the_epochs(words):
    both = {"as it is", "mirrored"}
    assert variants(CaptionedImages, caption(words)) == both
    assert variants(MaskedPairs, caption(words)) == both
    assert variants(QuestionRows, question(words, words)) == both
    assert variants(StatementRows, statement(words)) == both


@pytest.mark.parametrize("words", NAMES_A_SIDE)
def test_images_are_not_mirrored_where_a_text_names_a_side(words):
    assert variants(CaptionedImages, caption(words)) == {"as it is"}
    assert variants(MaskedPairs, caption(words)) == {"as it is"}
    assert variants(QuestionRows, question(words, "yes")) == {"as it is"}
    assert variants(QuestionRows, question("where is it", words)) == {"as it is"}
    assert variants(StatementRows, statement(words)) == {"as it is"}


def test_a_caption_that_names_a_side_stops_only_its_own_epochs():
    row = replace(caption("x"), captions=("a ring", "a ring on the left"))
    dataset = CaptionedImages(
        [ListSource([row])], tiny_config(data=PLAIN | {"flip": True}), TOKENIZER, training=True
    )
    original = (
        CaptionedImages([ListSource([row])], tiny_config(), TOKENIZER, training=False)
        .load(0, 0, 0)
        .image
    )
    seen = set()
    for epoch in range(60):
        sample = dataset.load(epoch, 0, 0)
        seen.add((TOKENIZER.decode(sample.ids_T), torch.equal(sample.image, original)))
    assert seen == {("a ring", True), ("a ring", False), ("a ring on the left", True)}


def test_the_two_images_of_a_statement_are_mirrored_each_on_its_own():
    row = statement("two rings")
    dataset = StatementRows(
        [ListSource([row])], tiny_config(data=PLAIN | {"flip": True}), TOKENIZER, training=True
    )
    seen = set()
    plain = StatementRows([ListSource([row])], tiny_config(), TOKENIZER, training=False).load(
        0, 0, 0
    )
    for epoch in range(40):
        sample = dataset.load(epoch, 0, 0)
        seen.add((torch.equal(sample.image, plain.image), torch.equal(sample.right, plain.right)))
    assert len(seen) == 4


# Augmentation


SETS: dict[str, tuple[type[RowDataset], Callable[[], Source]]] = {
    "captions": (CaptionedImages, lambda: pairs(3)),
    "masked": (MaskedPairs, lambda: pairs(3)),
    "questions": (QuestionRows, lambda: questions(3)),
    "statements": (StatementRows, lambda: statements(3)),
}


def dataset_of(
    name: str, *, seed: int = 0, training: bool = True, num_sources: int = 2, **data: object
) -> RowDataset:
    kind, source = SETS[name]
    config = tiny_config(data=PLAIN | data, train={"seed": seed})
    return kind([source() for _ in range(num_sources)], config, TOKENIZER, training=training)


def pixels(sample: Sample) -> list[Tensor]:
    return [
        value
        for name in ("image", "right")
        if isinstance(value := getattr(sample, name, None), Tensor)
    ]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("augment", ["color", "rand", "random_ink", "strokes", "ink_strokes"])
@pytest.mark.parametrize("name", SETS)
def test_augmentation_depends_only_on_seed_epoch_source_and_row(name, augment):
    torch.manual_seed(1)
    first = dataset_of(name, augment=augment)
    positions = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (7, 1, 2)]
    expected = [pixels(first[position]) for position in positions]
    torch.manual_seed(2)
    again = dataset_of(name, augment=augment)
    for position, images in reversed(list(zip(positions, expected, strict=True))):
        assert same(pixels(again[position]), images)
    plain, other = dataset_of(name), dataset_of(name, seed=1, augment=augment)
    least = 8 if augment != "random_ink" else 3  # which leaves half of the images as they are
    drawn = [pixels(first[(epoch, source, 0)]) for epoch in range(8) for source in range(2)]
    assert sum(not same(images, pixels(plain[(0, 0, 0)])) for images in drawn) > least
    assert len({b"".join(image.numpy().tobytes() for image in images) for images in drawn}) > least
    assert any(
        not same(pixels(first[(epoch, 0, 0)]), pixels(other[(epoch, 0, 0)])) for epoch in range(3)
    )
    assert all(
        image.dtype == torch.uint8 and image.shape == (3, 16, 16)
        for images in drawn
        for image in images
    )


@pytest.mark.parametrize("augment", ["color", "rand", "random_ink", "strokes", "ink_strokes"])
def test_augmentation_leaves_every_generator_of_training_alone(augment, monkeypatch):
    """Dropout draws from torch's generators, on a GPU from the GPU's."""
    monkeypatch.setattr(
        torch.cuda, "manual_seed_all", lambda seed: pytest.fail(f"the GPU was seeded with {seed}")
    )
    monkeypatch.setattr(
        torch.cuda, "manual_seed", lambda seed: pytest.fail(f"the GPU was seeded with {seed}")
    )
    torch.default_generator.manual_seed(3)
    before = torch.get_rng_state()
    for name in SETS:
        dataset = dataset_of(name, augment=augment)
        for row in range(3):
            dataset[(0, 0, row)]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SETS)
def test_evaluation_augments_nothing(name):
    augmented = dataset_of(name, training=False, augment="rand", flip=True, crop_scale=(0.5, 1.0))
    plain = dataset_of(name, training=False)
    for row in range(3):
        assert same(pixels(augmented[(0, 0, row)]), pixels(plain[(5, 0, row)]))


@pytest.mark.parametrize("name", SETS)
def test_workers_load_the_same(name):
    def seen(workers: int) -> list[tuple]:
        dataset = dataset_of(name, augment="color", flip=True, num_workers=workers)
        loader = iter(train_loader(dataset, consumed=2, rank=0, world=1))
        found = [next(loader) for _ in range(2)]
        return [
            (batch.where, batch.ids_BT.tolist(), batch.images_BCHW.numpy().tobytes())
            for batch in found
        ]

    assert seen(0) == seen(1)


# Rows and batches


def test_captions_of_one_image_are_known_as_such():
    dataset = CaptionedImages(
        [ListSource(ROWS), ListSource(OTHER)], tiny_config(), TOKENIZER, training=True
    )
    batch = dataset.collate(
        [dataset[(0, 0, row)] for row in range(4)] + [dataset[(0, 1, row)] for row in range(2)]
    )
    assert isinstance(batch, CaptionBatch)
    is_same = batch.image_id_B[:, None] == batch.image_id_B
    colors = ["red", "blue", "red", "lime", "gold", "blue"]
    assert is_same.tolist() == [[one == other for other in colors] for one in colors]


def test_questions_keep_what_evaluation_needs():
    dataset = QuestionRows([questions(8)], tiny_config(), TOKENIZER, training=False)
    batch = next(iter(eval_loader(dataset, batch_size=8, rank=0, world=1)))
    rows = questions(8)
    assert batch.question_ids == tuple(range(8))
    assert batch.answers == tuple(rows[row].answers for row in range(8))
    assert batch.answers[6] == ()
    assert batch.answer_types == tuple(rows[row].answer_type for row in range(8))
    assert batch.where == tuple(f"asked:{row}" for row in range(8))
    ids = [batch.ids_BT[row][~batch.is_padding_BT[row]].tolist() for row in range(8)]
    assert ids == [TOKENIZER.encode(rows[row].question, 12)[0].tolist() for row in range(8)]


def test_statements_without_a_label_are_evaluated_but_not_trained_on():
    rows = statements(8)
    dataset = StatementRows([rows], tiny_config(), TOKENIZER, training=False)
    batch = next(iter(eval_loader(dataset, batch_size=8, rank=0, world=1)))
    assert batch.labels == tuple(rows[row].label for row in range(8))
    assert batch.labels[6] is None
    assert batch.identifiers == tuple(rows[row].identifier for row in range(8))
    assert batch.groups == tuple(rows[row].group for row in range(8))
    assert not torch.equal(batch.images_BCHW, batch.right_BCHW)
    training = StatementRows([rows], tiny_config(), TOKENIZER, training=True)
    with pytest.raises(BadSampleError, match="said:6: no label to train on"):
        training.load(0, 0, 6)
    sample = training[(0, 0, 6)]
    assert sample.where == "said:7"
    assert [error.where for error in sample.skipped] == ["said:6"]


@pytest.mark.parametrize(
    ("kind", "dataset"),
    [("captions", CaptionedImages), ("questions", QuestionRows), ("statements", StatementRows)],
)
def test_scenes_open_as_what_a_task_needs(kind, dataset):
    assert dataset.kind == kind
    sources = open_sources(["scenes:val", "scenes:test"], config_of().data, 16, kind)
    loaded = dataset(sources, tiny_config(), TOKENIZER, training=False)
    batch = next(iter(eval_loader(loaded, batch_size=3, rank=0, world=1)))
    assert batch.images_BCHW.shape == (3, 3, 16, 16)
    assert batch.where[0].startswith("scenes:val[")


def test_images_held_out_are_in_no_row_of_training(tmp_path: Path):
    """Two questions about each image, some rows apart."""
    lines = []
    for number in range(60):
        color = (number * 4, 255 - number * 4, 100)
        (tmp_path / f"{number}.png").write_bytes(encoded_card(color))  # pyright: ignore[reportArgumentType]
        lines.append(
            {"image": f"{number}.png", "question": f"what is number {number}", "answer": "a colour"}
        )
    more = [line | {"question": "is it red"} for line in lines]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines + more[::-1])
    )
    config = config_of(train=(str(tmp_path / "rows.jsonl"),), val=("held-out",))
    (train,), (val,) = open_train_and_val(config, "questions")
    assert (len(train), len(val)) == (116, 4)
    images = [{source[row].image.path for row in range(len(source))} for source in (train, val)]
    assert (len(images[0]), len(images[1])) == (58, 2)
    assert not images[0] & images[1]


def test_images_held_out_are_on_neither_side_of_a_statement_in_training(tmp_path: Path):
    """Images come in sets of four; each statement shows two of a set, as in NLVR2."""
    lines = []
    for first in range(0, 120, 4):
        for number in range(first, first + 4):
            (tmp_path / f"{number}.png").write_bytes(encoded_card((number, 255 - number, 100)))  # pyright: ignore[reportArgumentType]
        for left, right in ((0, 1), (2, 3), (1, 2)):
            images = [f"{first + left}.png", f"{first + right}.png"]
            lines.append({"images": images, "statement": "they differ", "label": True})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_of(train=(str(tmp_path / "rows.jsonl"),), val=("held-out",))
    (train,), (val,) = open_train_and_val(config, "statements")
    shown = [
        {image.path for row in range(len(part)) for image in (part[row].left, part[row].right)}
        for part in (train, val)
    ]
    assert not shown[0] & shown[1]
    assert 2 <= len(val) <= 6  # of 90 first images
    num_left = 90 - len(train) - len(val)
    assert 1 <= num_left <= 2 * len(val)  # rows that share an image with validation
    left = f"; left out: {num_left} row"
    assert left in data_lines(config, [train], [val])[1]


def test_an_image_held_out_of_one_source_is_in_no_other(tmp_path: Path):
    for number in range(80):
        (tmp_path / f"{number}.png").write_bytes(encoded_card((number * 3, 255 - number, 100)))  # pyright: ignore[reportArgumentType]
    for name, numbers in (("a", range(60)), ("b", range(80))):
        lines = [
            {"image": f"{number}.png", "question": "what", "answer": "a colour"}
            for number in numbers
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_of(
        train=tuple(str(tmp_path / f"{name}.jsonl") for name in "ab"), val=("held-out",)
    )
    parts = open_train_and_val(config, "questions")
    images = [
        {source[row].image.path for source in part for row in range(len(source))} for part in parts
    ]
    assert not images[0] & images[1]
    assert [len(source) for source in parts[1]] == [2, 2]
    assert len(images[0] | images[1]) == 80


def test_groups_of_statements_are_known_only_as_a_whole(tmp_path: Path):
    rows = statements(12)

    def groups(source: Source[ImagesStatement], limit: int) -> set[str]:
        dataset = StatementRows(
            [source], tiny_config(data={"val_samples": limit}), TOKENIZER, training=False
        )
        return {
            group
            for batch in eval_loader(dataset, batch_size=5, rank=0, world=1)
            for group in batch.groups
        }

    assert groups(rows, 12) == {rows[row].group for row in range(12)}
    assert groups(rows, 11) == {""}
    part: Any = rows
    assert groups(Subset(part, range(10)), 12) == {""}  # pyright: ignore[reportArgumentType]
