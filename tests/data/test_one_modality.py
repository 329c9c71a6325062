"""Image-only and text-only rows and labels, from sources to batches; the held-out split."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.config import Config
from eve_vl.data.batches import Batch, ImageBatch, TextBatch
from eve_vl.data.check_lines import report_lines
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.kinds.labels import (
    LabelBatch,
    LabeledExample,
    LabeledImages,
    LabeledPairs,
    LabeledRows,
    LabeledTexts,
)
from eve_vl.data.kinds.questions import QuestionRows
from eve_vl.data.kinds.statements import ImagesStatement, StatementRows
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.data.masked_batches import MaskedImages, MaskedTexts, PairBatch
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.row_hashes import row_keys
from eve_vl.data.source_check import check_source
from eve_vl.synthetic.scenes.generator import SCENES
from eve_vl.synthetic.scenes.rows import SceneLabels
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.synthetic.scenes.world import KINDS
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.twins import ListSource, noise, pairs, questions, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PLAIN = {"crop_scale": (1.0, 1.0), "flip": False}


def images(count: int) -> ListSource[ImageOnly]:
    return ListSource(
        [ImageOnly(image=noise(1, row), where=f"alone:{row}") for row in range(count)]
    )


def texts(count: int) -> ListSource[TextOnly]:
    words = ("a red circle", "two small blue squares on gray", "a star")
    return ListSource(
        [TextOnly(text=f"{words[row % 3]} {row}", where=f"alone:{row}") for row in range(count)]
    )


def labelled(
    count: int, *, image: bool = True, text: bool = False, name: str = "labelled"
) -> ListSource[LabeledExample]:
    """Every third row has no label, every other two."""
    labels = [("red", "ring"), ("blue",), ()]
    rows = [
        LabeledExample(
            image=noise(2, row, height=16, width=16) if image else None,
            text=f"number {row}" if text else None,
            labels=labels[row % 3],
            where=f"{name}:{row}",
        )
        for row in range(count)
    ]
    return ListSource(rows)


def config_of(rows: str = "image_text", **data: object) -> Config:
    """Of pre-training on such rows, with the loss that they allow."""
    task = {"image_text": {}, "image": {"mlm_weight": 0.0}, "text": {"mim_weight": 0.0}}[rows]
    return tiny_config(task=task, data={"modality": rows, **data})


def config_of_labels(reads: Any = "image", **data: object) -> Config:
    return tiny_config(task=ClassificationConfig(inputs=reads), data=data)


def names(batch: object) -> set[str]:
    return {field.name for field in fields(batch)}  # pyright: ignore[reportArgumentType]


# What rows hold


def test_every_record_tells_its_images_and_texts():
    pair, question = pairs(1)[0], questions(1)[0]
    left, right = noise(1), noise(2)
    statement = ImagesStatement(
        left=left, right=right, statement="x", label=True, identifier="0", group="g", where="w"
    )
    assert (pair.images, pair.texts) == ((pair.image,), pair.captions)
    assert (question.images, question.texts) == ((question.image,), (question.question,))
    assert (statement.images, statement.texts) == ((left, right), ("x",))
    assert (ImageOnly(image=left, where="w").images, ImageOnly(image=left, where="w").texts) == (
        (left,),
        (),
    )
    assert (TextOnly(text="t", where="w").images, TextOnly(text="t", where="w").texts) == (
        (),
        ("t",),
    )
    both = LabeledExample(image=left, text="t", labels=("l",), where="w")
    assert (both.images, both.texts) == ((left,), ("t",))
    assert (replace(both, image=None).images, replace(both, text=None).texts) == ((), ())


# What batches hold


def test_batches_hold_what_they_say_and_no_more():
    seen = {
        MaskedImages: {"images_BCHW", "keep_BK", "hidden_BM"},
        MaskedTexts: {
            "ids_BT",
            "is_padding_BT",
            "num_real",
            "token_counts",
            "is_masked_BT",
            "masked_M",
            "num_targets",
        },
        LabeledImages: {"images_BCHW", "labels"},
        LabeledTexts: {"ids_BT", "is_padding_BT", "num_real", "token_counts", "labels"},
        LabeledPairs: {
            "images_BCHW",
            "ids_BT",
            "is_padding_BT",
            "num_real",
            "token_counts",
            "labels",
        },
    }
    for kind, expected in seen.items():
        assert names(kind) == expected | {"where", "names", "positions", "skipped"}
    for kind, has_images, has_texts in [
        *(
            (ImageBatch, True, False),
            (TextBatch, False, True),
            (Batch, True, True),
            (PairBatch, True, True),
        ),
        *((MaskedImages, True, False), (MaskedTexts, False, True)),
    ]:
        assert (issubclass(kind, ImageBatch), issubclass(kind, TextBatch)) == (
            has_images,
            has_texts,
        )


def test_rows_of_images_only_are_masked():
    config = config_of("image")
    assert MaskedPairs.kind_of(config) == "images"
    dataset = MaskedPairs([images(7)], config, TOKENIZER, training=False)
    batches = list(eval_loader(dataset, batch_size=4, rank=0, world=1))
    assert [type(batch) for batch in batches] == [MaskedImages] * 2
    assert [where for batch in batches for where in batch.where] == [
        f"alone:{row}" for row in range(7)
    ]
    for batch in batches:
        assert batch.images_BCHW.shape[1:] == (3, 16, 16)
        together = torch.cat([batch.keep_BK, batch.hidden_BM], dim=1).sort(dim=1).values
        assert together.tolist() == [list(range(16))] * len(batch.where)
        assert batch.hidden_BM.shape[1] == 12
    training = MaskedPairs(
        [images(7)], config_of("image", **PLAIN | {"flip": True}), TOKENIZER, training=True
    )
    assert (
        len({training[(epoch, 0, 0)].image.numpy().tobytes() for epoch in range(20)}) == 2
    )  # mirrored half of the time
    assert len({training[(epoch, 0, 0)].keep_K.tobytes() for epoch in range(20)}) > 10


def test_rows_of_texts_only_are_masked():
    config = config_of("text")
    assert MaskedPairs.kind_of(config) == "texts"
    dataset = MaskedPairs([texts(7)], config, TOKENIZER, training=True)
    batch = next(iter(train_loader(dataset, consumed=0, rank=0, world=1)))
    assert type(batch) is MaskedTexts
    for row, where in enumerate(batch.where):
        ids = TOKENIZER.encode(texts(7)[int(where.split(":")[1])].text, 12)[0].tolist()
        length = len(ids)
        assert batch.ids_BT[row].tolist() == ids + [TOKENIZER.pad_id] * (
            batch.ids_BT.shape[1] - length
        )
        assert batch.is_padding_BT[row].tolist() == [
            column >= length for column in range(batch.ids_BT.shape[1])
        ]
        assert batch.is_masked_BT[row].sum() == max(1, round((length - 1) / 2))
        assert not batch.is_masked_BT[row, length:].any()
        assert not batch.is_masked_BT[row, 0]
    evaluation = MaskedPairs([texts(7)], config, TOKENIZER, training=False)
    (batch,) = eval_loader(evaluation, batch_size=9, rank=0, world=1)
    assert batch.where == tuple(f"alone:{row}" for row in range(7))


def test_pairs_are_pairs_as_before():
    assert MaskedPairs.kind_of(config_of()) == "captions"
    (batch,) = eval_loader(
        MaskedPairs([pairs(4)], config_of(), TOKENIZER, training=False),
        batch_size=4,
        rank=0,
        world=1,
    )
    assert type(batch) is PairBatch
    assert type(batch.wrong) is PairBatch
    assert [
        dataset.kind_of(config_of("text"))
        for dataset in (CaptionedImages, QuestionRows, StatementRows, LabeledRows)
    ] == [*("captions", "questions", "statements", "labels")]


def test_batches_move_as_a_whole():
    (batch,) = eval_loader(
        MaskedPairs([pairs(3)], config_of(), TOKENIZER, training=False),
        batch_size=3,
        rank=0,
        world=1,
    )
    moved = batch.to(torch.device("meta"))
    for one in (moved, moved.wrong):
        tensors = [
            value
            for field in fields(one)
            if isinstance(value := getattr(one, field.name), torch.Tensor)
        ]
        assert len(tensors) == 10
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.where == batch.where


# Labels


@pytest.mark.parametrize(
    ("reads", "kind"), [("image", LabeledImages), ("text", LabeledTexts), ("both", LabeledPairs)]
)
@pytest.mark.parametrize("has_more", [False, True])
def test_labelled_rows_hold_what_is_read_off_them(
    reads: str, kind: type[LabelBatch], has_more: bool
):
    image, text = reads != "text", reads != "image"
    rows = labelled(5, image=image or has_more, text=text or has_more)
    dataset = LabeledRows([rows], config_of_labels(reads), TOKENIZER, training=False)
    (batch,) = eval_loader(dataset, batch_size=5, rank=0, world=1)
    assert type(batch) is kind
    assert batch.labels == (("red", "ring"), ("blue",), (), ("red", "ring"), ("blue",))
    assert batch.where == tuple(f"labelled:{row}" for row in range(5))
    if image:
        expected = torch.stack(
            [torch.from_numpy(row.image.pixels).permute(2, 0, 1) for row in rows.rows]
        )  # pyright: ignore
        assert isinstance(batch, ImageBatch)
        assert torch.equal(batch.images_BCHW, expected)
    if text:
        assert isinstance(batch, TextBatch)
        ids = [batch.ids_BT[row][~batch.is_padding_BT[row]].tolist() for row in range(5)]
        assert ids == [TOKENIZER.encode(f"number {row}", 12)[0].tolist() for row in range(5)]


def test_rows_without_a_label_are_evaluated_but_not_trained_on():
    training = LabeledRows([labelled(6)], config_of_labels(), TOKENIZER, training=True)
    with pytest.raises(BadSampleError, match="labelled:2: no label to train on"):
        training.load(0, 0, 2)
    sample = training[(0, 0, 2)]
    assert (sample.where, [error.where for error in sample.skipped]) == (
        "labelled:3",
        ["labelled:2"],
    )
    assert (
        LabeledRows([labelled(6)], config_of_labels(), TOKENIZER, training=False)[(0, 0, 2)].labels
        == ()
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("reads", "lacking"),
    [("image", "image"), ("text", "text"), ("both", "image"), ("both", "text")],
)
def test_rows_that_lack_what_is_read_are_replaced(reads: str, lacking: str, training: bool):
    lacks = labelled(3, image=lacking != "image", text=lacking != "text", name="lacks").rows
    rows = ListSource([lacks[0], *labelled(3, text=True).rows])
    dataset = LabeledRows([rows], config_of_labels(reads), TOKENIZER, training=training)
    with pytest.raises(BadSampleError, match=f"lacks:0: no {lacking}, but task.inputs is {reads}"):
        dataset.load(0, 0, 0)
    sample = dataset[(0, 0, 0)]
    stands_in = "labelled:0" if training else "lacks:0"  # in evaluation nothing does
    assert (sample.where, [error.where for error in sample.skipped]) == (stands_in, ["lacks:0"])
    assert dataset.collate([sample, dataset[(0, 0, 1)]]).where == ("labelled:0",) * (1 + training)


@pytest.mark.parametrize("reads", ["image", "both"])
@pytest.mark.parametrize(
    ("text", "label", "is_mirrored"),
    [("x", "ring", True), ("x", "turn left", False), ("right", "x", False)],
)
def test_images_are_not_mirrored_where_a_label_or_text_names_a_side(
    reads: str, text: str, label: str, is_mirrored: bool
):
    row = LabeledExample(
        image=noise(5, height=16, width=16), text=text, labels=("a", label), where="x:0"
    )
    dataset = LabeledRows(
        [ListSource([row])],
        config_of_labels(reads, **PLAIN | {"flip": True}),
        TOKENIZER,
        training=True,
    )
    seen = {dataset.load(epoch, 0, 0).image.numpy().tobytes() for epoch in range(24)}  # pyright: ignore
    assert len(seen) == 1 + is_mirrored


# Scenes


def test_labels_of_scenes_are_the_kinds_of_their_shapes():
    (source,) = open_sources(["scenes:test"], tiny_config().data, 16, "labels")
    assert isinstance(source, SceneLabels)
    counts = []
    for index in range(40):
        shown = {shape.kind for shape in sample_scene("test", 0, index).shapes}
        assert set(source[index].labels) == shown
        assert len(source[index].labels) == len(shown)
        assert source[index].where == f"scenes:test[{index}]"
        counts.append(len(shown))
    assert min(counts) == 1
    assert max(counts) > 2
    assert set(KINDS) == {label for index in range(40) for label in source[index].labels}


def test_scenes_give_every_kind_the_same_images_and_texts():
    rows = {kind: source(split="val", image_size=16) for kind, source in SCENES.rows.items()}
    pair: Any = rows["captions"][3]
    for kind in ("images", "labels"):
        image: Any = rows[kind][3].images[0]
        np.testing.assert_array_equal(image.pixels, pair.image.pixels)
    assert rows["texts"][3] == TextOnly(text=pair.captions[0], where="scenes:val[3]")
    with pytest.raises(
        UserError, match=r"scenes:val: the generated scenes hold no boxes, but captions, questions"
    ):
        open_sources(["scenes:val"], tiny_config().data, 16, "boxes")


# Held out


def test_about_one_text_in_fifty_is_held_out_by_its_words(tmp_path: Path):
    lines = [f"text number {number}" for number in range(500)]
    (tmp_path / "a.txt").write_text("\n".join(lines + lines[:100]))  # some twice
    (tmp_path / "b.txt").write_text("\n".join(lines[::-1]))
    config = config_of(
        "text", train=(str(tmp_path / "a.txt"), str(tmp_path / "b.txt")), val=("held-out",)
    )
    train, val = open_train_and_val(config, MaskedPairs.kind_of(config))
    kept, held = (
        {source[row].text for source in part for row in range(len(source))} for part in (train, val)
    )
    assert not kept & held
    assert 3 <= len(held) <= 20  # 10 are expected
    assert kept | held == set(lines)
    assert sum(map(len, train)) + sum(map(len, val)) == 1100
    (tmp_path / "a.txt").write_text("one\none\n")
    with pytest.raises(
        UserError, match="has too few images or texts for a held-out split; name other data"
    ):
        open_train_and_val(config, "texts")


def test_keys_are_the_images_or_else_the_texts():
    pair = pairs(1)[0]
    assert row_keys(pair) == row_keys(ImageOnly(image=pair.image, where=pair.where))
    assert row_keys(TextOnly(text="a", where="x")) == row_keys(
        LabeledExample(image=None, text="a", labels=(), where="y")
    )
    assert row_keys(TextOnly(text="a", where="x")) != row_keys(TextOnly(text="b", where="x"))


# The check


def test_checks_of_one_modality_and_of_labels(tmp_path: Path):
    (tmp_path / "t.txt").write_text("one two\none two\nthree\nb\xfcd\n", encoding="latin-1")
    report = check_source(open_source(tmp_path / "t.txt", kind="texts"))
    numbers = ("kind", "rows", "usable", "texts", "duplicate_texts")
    assert [getattr(report, name) for name in numbers] == ["texts", 4, 3, 3, 1]
    lines = report_lines(report)
    assert {
        "texts               3",
        "words per text      1 / 2 / 2",
        "repeated texts      1",
    } <= set(lines)
    assert lines[-1].startswith("broken: t.txt:4: not UTF-8 text")
    assert not any(
        word in line for line in lines for word in ("pixels", "images", "labels", "answers")
    )
    report = check_source(images(3))
    assert (report.kind, report.usable, report.texts) == ("images", 3, 0)
    assert not any("text" in line or "words" in line for line in report_lines(report))
    report = check_source(labelled(8, text=True))
    assert report.labels == {"red": 3, "ring": 3, "blue": 3, "kept back": 2}
    assert {
        "labels              red 3, ring 3, blue 3, kept back 2",
        "texts               8",
    } <= set(report_lines(report))
    many = [{"text": str(number), "label": number % 12} for number in range(24)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    report = check_source(open_source(tmp_path / "t.jsonl", kind="labels"))
    assert len(report.labels) == 12
    assert any(
        line.startswith("labels              0 2, 1 2") and line.endswith("9 2, … (12 in all)")
        for line in report_lines(report)
    )
