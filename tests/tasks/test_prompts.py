"""Prompts of zero-shot classification: files, combinations, classes of the data."""

import json
from pathlib import Path

import pytest

from eve_vl.systems.medical.phantoms.reports import class_prompts
from eve_vl.tasks.contrast.prompts import read_prompts
from eve_vl.tasks.contrast.zero_shot import prompts_of_classes
from eve_vl.utils.errors import UserError


def test_parts_are_combined_and_texts_taken_as_they_are():
    parts = {
        "severity": ["", "mild"],
        "what": ["edema", "congestion"],
    }
    prompts, _ = read_prompts({"edema": parts, "other": [" a  nodule "]})
    assert prompts["edema"] == ("edema", "congestion", "mild edema", "mild congestion")
    assert prompts["other"] == ("a nodule",)


NO_PROMPTS = "has no prompts, or more than 100,000; expected a list of texts"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "p.json"),
        ("[]", "p.json"),
        ('{"red": ["red"]}', "p.json: names 1 classes, expected at least 2"),
        ('{"red": [], "blue": ["blue"]}', f"p.json: the class 'red' {NO_PROMPTS}"),
        ('{"red": "red", "blue": ["blue"]}', f"p.json: the class 'red' {NO_PROMPTS}"),
        ('{"red": [""], "blue": ["blue"]}', "p.json: the class 'red' has an empty prompt"),
        ('{"red": ["red"], "blue": ["blue"]}', "the data has the class 'gray', "),
        (
            json.dumps({name: [name] for name in ("red", "blue", "gray", "pink")}),
            "p.json has the class 'pink', the data does not",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(text: str, problem: str, tmp_path: Path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError) as error:
        prompts_of_classes(tmp_path / "p.json", {"red", "blue", "gray"}, "the data")
    assert problem in str(error.value)


def test_built_in_prompts_are_those_of_the_classes_of_the_data():
    """Nobody in phantoms:test_novel is healthy."""
    expected = {name: class_prompts()[name] for name in ("edema", "nodule")}
    prompts = prompts_of_classes("phantoms", {"edema", "nodule"}, "the data")
    assert {name: tuple(texts) for name, texts in prompts.items()} == expected
    message = "the data has the class 'Cardiomegaly', prompts phantoms does not"
    with pytest.raises(UserError, match=message):
        prompts_of_classes("phantoms", {"Cardiomegaly", "Edema"}, "the data")
