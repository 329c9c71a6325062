"""Files of COCO, VQA, Karpathy and Flickr find their images in the usual trees, without a flag."""

from pathlib import Path

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import encoded_card
from helpers.source_files import write_json

CAPTIONS = {
    "images": [{"id": 9, "file_name": "9.png"}],
    "annotations": [{"image_id": 9, "caption": "a card"}],
}


def write_card(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(encoded_card("red"))
    return path


def image_of(spec: Path | str) -> ImageFile:
    (row,) = open_source(spec)
    return row.image


@pytest.mark.parametrize("subset", ["train2014", "val2014", "train2017", "val2017"])
@pytest.mark.parametrize("parent", ["", "images/"])
def test_captions_next_to_the_folder_of_the_images(tmp_path: Path, subset: str, parent: str):
    image = write_card(tmp_path / f"{parent}{subset}/9.png")
    (tmp_path / "annotations").mkdir()
    path = write_json(tmp_path / f"annotations/captions_{subset}.json", CAPTIONS)
    assert image_of(path) == ImageFile(path=image)


def test_folder_next_to_the_file_comes_before_that_above(tmp_path: Path):
    write_card(tmp_path / "val2017/9.png")
    image = write_card(tmp_path / "annotations/val2017/9.png")
    path = write_json(tmp_path / "annotations/captions_val2017.json", CAPTIONS)
    assert image_of(path) == ImageFile(path=image)


@pytest.mark.parametrize(
    ("questions", "annotations", "images"),
    [
        ("annotations", "annotations", "train2014"),
        ("Questions", "Annotations", "Images/mscoco/train2014"),
        ("questions", "annotations", "images/train2014"),
    ],
)
def test_questions_in_the_trees_of_coco_and_vqa(tmp_path, questions, annotations, images):
    image = write_card(tmp_path / images / "COCO_train2014_000000000009.jpg")
    question = {"image_id": 9, "question": "What is it?", "question_id": 9000}
    answers = [{"answer": "a card", "answer_id": number} for number in range(10)]
    annotation = {"question_id": 9000, "answers": answers, "answer_type": "other"}
    for folder in {questions, annotations}:
        (tmp_path / folder).mkdir()
    path = write_json(
        tmp_path / questions / "v2_OpenEnded_mscoco_train2014_questions.json",
        {"data_subtype": "train2014", "questions": [question]},
    )
    write_json(
        tmp_path / annotations / "v2_mscoco_train2014_annotations.json",
        {"annotations": [annotation]},
    )
    (row,) = open_source(path, kind="questions")
    assert row.image == ImageFile(path=image)
    assert row.answers == ("a card",) * 10


@pytest.mark.parametrize(
    ("filepath", "images"),
    [
        ("val2014", "val2014"),
        ("", "flickr30k-images"),
        ("", "Flicker8k_Dataset"),
        ("", "Images"),
    ],
)
@pytest.mark.parametrize("folder", ["", "annotations"])
def test_karpathy_files_next_to_the_images_or_below(tmp_path, filepath, images, folder):
    image = write_card(tmp_path / images / "9.png")
    (tmp_path / folder).mkdir(exist_ok=True)
    row = {
        "filename": "9.png",
        "split": "test",
        "sentences": [{"raw": "a card"}],
    }
    if filepath:
        row["filepath"] = filepath
    path = write_json(tmp_path / folder / "dataset.json", {"images": [row]})
    assert image_of(f"{path}#test") == ImageFile(path=image)
