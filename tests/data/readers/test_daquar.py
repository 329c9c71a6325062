"""DAQUAR's text files, as their authors publish them."""

from pathlib import Path

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import encoded_card, guess_kind, reason
from helpers.source_files import assert_refused, values_of

LINES = """\
what is on the desk in the image3 ?
printer, computer
what is the largest brown objects in this image3 ?
carton
how many dark blue armchairs are in this picture in the image6 ?
8
what is on the floor on the right side of the image10 behind the door frame in the image6 ?
garbage_bin
"""
NAME = "qa.894.raw.train.txt"


def write_daquar(folder: Path, images: str = "nyu_depth_images", lines: str = LINES) -> Path:
    """Write questions and answers, and the two images that they are about; return their path."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    for number in (3, 6):
        (folder / images / f"image{number}.png").write_bytes(encoded_card("red"))
    path = folder / NAME
    path.write_text(lines)
    return path


def test_questions_lose_their_ending_and_answers_are_sets(tmp_path):
    path = write_daquar(tmp_path)
    source = open_source(path, kind="questions")
    assert source[0] == ImageQuestion(
        image=ImageFile(path=tmp_path / "nyu_depth_images" / "image3.png"),
        question="what is on the desk",
        answers=("computer & printer",),
        question_id=0,
        answer_type="",
        is_answer_set=True,
        where=f"{NAME}:1",
    )
    assert values_of(source, "question")[1:] == [
        "what is the largest brown objects",
        "how many dark blue armchairs are in this picture",
        "what is on the floor on the right side of the image10 behind the door frame",
    ]
    assert values_of(source, "answers")[1:] == [("carton",), ("8",), ("garbage_bin",)]
    assert source[3].image == ImageFile(path=tmp_path / "nyu_depth_images" / "image6.png")
    assert guess_kind(path) == "questions"


@pytest.mark.parametrize("images", ["", "images"])
def test_images_lie_next_to_the_file_or_below_the_image_root(tmp_path, images):
    path = write_daquar(tmp_path, images)
    image = ImageFile(path=tmp_path / images / "image3.png")
    assert open_source(path, kind="questions")[0].image == image
    moved = path.rename((tmp_path / "text").with_suffix(".txt"))
    assert open_source(moved, kind="questions", image_root=tmp_path)[0].image == image
    image.path.unlink()
    assert "text.txt:1: no image image3.png" in reason(open_source(moved, kind="questions"), 0)


def test_mistakes_are_refused(tmp_path):
    turns = "lines of questions and answers must alternate"
    path = write_daquar(tmp_path, lines=LINES.replace("carton\n", "\n"))
    no_answer = rf"{NAME}:5: expected the answer to the question of {NAME}:3, found 'how many.*"
    assert_refused(no_answer + turns, path, kind="questions")
    write_daquar(tmp_path, lines=LINES.replace("8\n", "8\nnine\n"))
    no_question = rf"{NAME}:7: expected a question that ends in 'in the image3 \?', found 'nine'; "
    assert_refused(no_question + turns, path, kind="questions")
    write_daquar(tmp_path, lines=LINES.removesuffix("garbage_bin\n"))
    last = f"{NAME}:7: this last question has no line with its answer"
    assert_refused(last, path, kind="questions")
    write_daquar(tmp_path)
    looks = "looks like questions about images .*, expected captions"
    assert_refused(looks, path, kind="captions")
    assert open_source(path, kind="texts", format="text")[1].text == "printer, computer"
