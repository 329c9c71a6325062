"""Rows of scenes, in memory and as files."""

import numpy as np
import pytest
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.readers.open_source import open_source
from eve_vl.synthetic.scenes.captions import captions
from eve_vl.synthetic.scenes.drawing import render
from eve_vl.synthetic.scenes.questions import sample_question
from eve_vl.synthetic.scenes.rows import ScenePairs, SceneQuestions, SceneStatements
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.synthetic.scenes.statements import sample_statement
from eve_vl.synthetic.scenes.world import SPLITS
from eve_vl.utils.errors import UserError

OPTIONS = {
    "split": "test",
    "image_size": 40,
    "seed": 5,
    "num_rows": 7,
}


def assert_shows(image, scene):
    assert isinstance(image, ImageDrawing)
    np.testing.assert_array_equal(image.pixels, render(scene, 40))


def test_pairs_show_a_scene_and_its_captions():
    row = ScenePairs(**OPTIONS)[3]
    scene = sample_scene("test", 5, 3)
    assert_shows(row.image, scene)
    assert row.captions == captions(scene)
    assert row.where == "scenes:test[3]"


def test_questions_show_the_scene_they_ask_about():
    row = SceneQuestions(**OPTIONS)[4]
    sample = sample_question("test", 5, 4)
    assert_shows(row.image, sample.scene)
    assert row.question == sample.question
    assert row.answers == (sample.answer,)
    assert row.answer_type == sample.kind
    assert row.question_id == 4
    assert row.where == "scenes:test[4]"


def test_statements_show_both_scenes():
    row = SceneStatements(**OPTIONS)[4]
    sample = sample_statement("test", 5, 4)
    assert_shows(row.left, sample.left)
    assert_shows(row.right, sample.right)
    assert (row.statement, row.label, row.identifier) == (sample.statement, sample.label, "4")
    assert row.group == row.statement  # the same words about other images are one group
    assert row.where == "scenes:test[4]"


@pytest.mark.parametrize("source", [ScenePairs, SceneQuestions, SceneStatements])
def test_sources_end_at_their_number_of_rows(source):
    rows = source(**OPTIONS)
    assert len(rows) == len(list(rows)) == 7
    for index in (-1, 7):
        with pytest.raises(IndexError):
            rows[index]
    assert len(source(split="hard_train")) == 100_000
    assert len(source(split="test")) == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "trian"}, f"split is 'trian', expected one of {', '.join(SPLITS)}"),
        ({"image_size": 15}, "image_size is 15, expected at least 16"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ScenePairs(**settings)


@pytest.mark.parametrize(
    ("layout", "table", "source", "image_fields", "label_fields"),
    [
        ("captions", "", ScenePairs, ["image"], []),
        ("questions", "questions.jsonl", SceneQuestions, ["image"], ["answers"]),
        ("statements", "statements.jsonl", SceneStatements, ["left", "right"], ["label"]),
    ],
)
def test_written_scenes_are_read_as_those_that_were_drawn(
    layout, table, source, image_fields, label_fields, tmp_path, capsys
):
    main(["data", "write", "scenes", layout, str(tmp_path / "out"), "--rows", "7"])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: scenes as {layout}\n"
    file_rows = open_source(str(tmp_path / "out" / table), kind=layout)
    drawn_rows = source(split="test", image_size=64, num_rows=7)
    assert len(file_rows) == len(drawn_rows)
    for row in range(7):
        file_row = file_rows[row]
        drawn_row = drawn_rows[row]
        for name in image_fields:
            with Image.open(getattr(file_row, name).path) as image:
                np.testing.assert_array_equal(np.asarray(image), getattr(drawn_row, name).pixels)
        for name in ("texts", *label_fields):
            assert getattr(file_row, name) == getattr(drawn_row, name)


def test_no_scenes_are_written_for_no_rows(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["data", "write", "scenes", "captions", str(tmp_path / "new"), "--rows", "0"])
    assert "rows is 0, expected at least 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
