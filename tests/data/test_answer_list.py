"""Answer lists: their forms, their errors, and questions outside the list."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.data.answer_list import (
    closed_vocabulary,
    drop_unanswerable,
    read_answers,
)
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.metrics.answer_form import normalize
from eve_vl.synthetic.scenes.questions import answers_of
from eve_vl.synthetic.scenes.rows import SceneQuestions
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.tasks.vqa.task import VQA
from eve_vl.utils.errors import UserError
from helpers.source_files import write_jsonl
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, questions

ANSWERS = answers_of("train")
LIST = ["yes", "two dogs", "café au lait"]
ORDERED_LABELS = "".join(
    f'{{"answer": "{answer}", "label": {label}}}\n' for label, answer in enumerate(LIST)
)
REVERSED_LABELS = "".join(reversed(ORDERED_LABELS.splitlines(keepends=True)))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(LIST),
        "\n " + json.dumps(LIST, ensure_ascii=False, indent=1),
        "yes\ntwo dogs\n\ncafé au lait\n",
        "\ufeffyes\r\n  two dogs \r\ncafé au lait",
        ORDERED_LABELS,
        REVERSED_LABELS,
    ],
)
def test_answers_are_read_in_order_from_every_form(tmp_path, text):
    path = tmp_path / "answers"
    path.write_text(text, encoding="utf-8")
    assert read_answers(path) == LIST


NOT_TEXTS = "holds at least one text and nothing else"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", NOT_TEXTS),
        (b'["yes", 2]', NOT_TEXTS),
        (b'["yes", "\\ud800"]', NOT_TEXTS),
        (b'["yes", "no", "yes"]', "the answer 'yes' is listed 2 times"),
        (b'["yes", ', "not an answer list (ValueError: not valid JSON (Expecting value"),
        (b'{"answer": "yes"}\n', "not an answer list (KeyError: 'label')"),
        (b"\xff\xfe\x00", "cannot be read (not UTF-8 text"),
        (None, "cannot be read (No such file"),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path, content, problem):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_answers(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message


def test_a_command_writes_the_answers_of_several_sources(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    question = {"image": "x.png", "question": "what"}
    sources = []
    for name, answers in (
        ("a", ["No", "yes", "yes!"]),
        ("b", ["yes", "two dogs", "no"]),
    ):
        rows = [question | {"answer": answer} for answer in answers]
        sources.append(str(write_jsonl(tmp_path / f"{name}.jsonl", rows)))
    out = tmp_path / "answers.json"
    main(["data", "answers", *sources, "--out", str(out)])
    assert json.loads(out.read_text()) == ["yes", "no", "2 dogs"]
    assert capsys.readouterr().out.endswith("answers.json: 3 answers\n")

    without = write_jsonl(tmp_path / "without.jsonl", [question])
    with pytest.raises(SystemExit):
        main(["data", "answers", str(without), "--out", str(out)])
    assert "no question has an answer" in capsys.readouterr().err
    assert read_answers(out) == ["yes", "no", "2 dogs"]


# Questions that a list cannot answer


def asked(answers_of_rows: Sequence[Sequence[str] | None]) -> ListSource[ImageQuestion]:
    """Return questions with these answers; None is an unusable row."""
    rows = list(questions(len(answers_of_rows), name="q").rows)
    for row, answers in enumerate(answers_of_rows):
        question = rows[row]
        if question is not None and answers is not None:
            rows[row] = replace(question, answers=tuple(answers))
        else:
            rows[row] = None
    return ListSource(rows, "q")


def test_scenes_have_a_closed_list_and_no_row_is_read(monkeypatch):
    monkeypatch.setattr(SceneQuestions, "__getitem__", None)
    scenes = [SceneQuestions(split="val"), SceneQuestions(split="train")]
    assert closed_vocabulary(scenes) == list(ANSWERS)
    hard_answers = [answer for answer in answers_of("hard_val") if answer not in ANSWERS]
    with_hard = closed_vocabulary([*scenes, SceneQuestions(split="hard_val")])
    assert with_hard == [*ANSWERS, *hard_answers]
    assert {"eight", "brown", "bar"} <= set(hard_answers)
    assert closed_vocabulary([scenes[0], questions(3)]) is None

    (val, train), notes = drop_unanswerable(scenes, ANSWERS, normalize)
    assert notes == ()
    assert val is scenes[0]
    assert train is scenes[1]


def test_a_list_that_lacks_an_answer_of_scenes_drops_questions():
    scenes = SceneQuestions(split="val", num_rows=60)
    without_yes = [answer for answer in ANSWERS if answer != "yes"]
    (source,), (note,) = drop_unanswerable([scenes], without_yes, normalize)
    expected = [row for row in range(60) if scenes[row].answers != ("yes",)]
    ids = [source[row].question_id for row in range(len(source))]
    assert ids == expected
    assert type(ids[0]) is int  # as files of predictions need it
    num_dropped = 60 - len(expected)
    assert num_dropped > 0
    start = f"the answer list lacks the answers of {num_dropped} of 60 training questions ("
    assert note.startswith(start)
    assert note.endswith("; first 1: yes")


def test_questions_stay_if_any_answer_is_listed_in_normal_form_and_unusable_rows_stay():
    first = asked(
        [
            ["Yes!"],
            ["no", "a dog"],
            ["cat"],
            [],
            None,
            ["no"],
        ]
    )
    second = asked([["two"], ["2"], ["yes"]])
    (subset, whole), notes = drop_unanswerable(
        [first, second],
        ["yes", "dog", "2"],
        normalize,
    )
    assert subset.indices.tolist() == [0, 1, 4]  # pyright: ignore[reportAttributeAccessIssue]
    assert whole is second
    assert notes == (
        "the answer list lacks the answers of 3 of 9 training questions (33.3%), which are left "
        "out; first 2: cat, no",
    )


def test_the_ten_most_frequent_missing_answers_are_named():
    rows = [["yes"]]
    for number in range(13):
        rows += [[f"answer {number}"]] * (number + 1)
    _, (note,) = drop_unanswerable([asked(rows)], ["yes"], normalize)
    names = ", ".join(f"answer {number}" for number in range(12, 2, -1))
    assert note.endswith(f"; first 10: {names}")
    assert " of 91 of 92 " in note


@pytest.mark.parametrize(
    ("sources", "first"),
    [
        ([[["cat"], ["dog"]]], 0),
        # weights of sources, --data.train-weights, would no longer belong to them
        ([[["yes"]], [["cat"], ["dog"]]], 0),
        # unusable rows answer nothing either
        ([[None, ["cat"], None, ["dog"]]], 1),
    ],
)
def test_a_source_without_an_answerable_question_is_refused(sources, first):
    problem = f"q:{first} and all after it: .* none of these 2 training questions"
    with pytest.raises(UserError, match=problem):
        drop_unanswerable([asked(rows) for rows in sources], ["yes", "no"], normalize)


def test_only_the_note_on_a_built_list_says_what_would_have_kept_all(tmp_path):
    rows = asked([["yes"]] * 9 + [["no"]] * 8)
    advice = " (--task.min-answer-count 1 keeps all)"
    prepared = VQA.prepare(tiny_config(task=VQAConfig()), [rows], None)
    assert prepared.labels == ("yes",)
    assert prepared.notes[0].endswith(f"; first 1: no{advice}")
    (tmp_path / "answers.txt").write_text("yes\n")
    config = tiny_config(task=VQAConfig(answers=tmp_path / "answers.txt"))
    assert VQA.prepare(config, [rows], None).notes[0].endswith("; first 1: no")
    config = tiny_config(task=VQAConfig(min_answer_count=1))
    prepared = VQA.prepare(config, [rows], None)
    assert prepared.notes == ()
    assert len(prepared.sources[0]) == 17

    # no count keeps an answer that is empty in its normal form
    empty = asked([["yes"], ["no"], ["?!"]])
    _, (note,) = drop_unanswerable([empty], ["yes"], normalize, advice)
    assert note.endswith("first 2: no, ?!")
