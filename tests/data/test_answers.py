"""Answer lists: their forms, their errors, and questions outside the list."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.cli import main
from eve_vl.data.answer_list import NUM_SHOWN, closed_vocabulary, drop_unanswerable, read_answers
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.records import usable_rows
from eve_vl.metrics.answer_form import normalize
from eve_vl.synthetic.scenes.questions import answers_of
from eve_vl.synthetic.scenes.rows import SceneQuestions
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.tasks.vqa.task import VQA
from eve_vl.utils.errors import UserError
from helpers.twins import ListSource, noise, questions, tiny_config

ANSWERS = answers_of("train")
LIST = ["yes", "two dogs", "café au lait"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("answers.json", json.dumps(LIST)),
        ("answers.json", "\n " + json.dumps(LIST, ensure_ascii=False, indent=1)),
        ("answers.txt", "yes\ntwo dogs\n\ncafé au lait\n"),
        ("answers.txt", "\ufeffyes\r\n  two dogs \r\ncafé au lait"),
        (
            "answer2label.txt",
            "".join(
                f'{{"answer": "{answer}", "label": {label}}}\n' for label, answer in enumerate(LIST)
            ),
        ),
        (
            "answer2label.txt",
            "".join(f'{{"label": {2 - at}, "answer": "{LIST[2 - at]}"}}\n' for at in range(3)),
        ),
    ],
)
def test_answers_are_read_in_order_from_every_form(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_answers(tmp_path / name) == LIST


def test_a_command_writes_the_answers_of_several_sources(tmp_path: Path, capsys):
    rows = {"a.jsonl": ["No", "yes", "yes!"], "b.jsonl": ["yes", "two dogs", "no"]}
    for name, answers in rows.items():
        lines = (
            json.dumps({"image": "x.png", "question": "what", "answer": answer})
            for answer in answers
        )
        (tmp_path / name).write_text("\n".join(lines))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    sources, out = [str(tmp_path / name) for name in rows], tmp_path / "answers.json"
    main(["data", "answers", *sources, "--out", str(out)])
    assert json.loads(out.read_text()) == read_answers(out) == ["yes", "no", "2 dogs"]
    assert capsys.readouterr().out.endswith("answers.json: 3 answers\n")
    (tmp_path / "without.jsonl").write_text('{"image": "x.png", "question": "what"}')
    with pytest.raises(SystemExit):
        main(["data", "answers", str(tmp_path / "without.jsonl"), "--out", str(out)])
    assert "no question has an answer" in capsys.readouterr().err
    assert read_answers(out) == ["yes", "no", "2 dogs"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds at least one text and nothing else"),
        (b"\n \n", "holds at least one text and nothing else"),
        (b"[]", "holds at least one text and nothing else"),
        (b'["yes", 2]', "holds at least one text and nothing else"),
        (b'["yes", null]', "holds at least one text and nothing else"),
        (b'["yes", "no", "yes"]', "the answer 'yes' is listed 2 times"),
        (b"yes\nno\nno\nno\n", "the answer 'no' is listed 3 times"),
        (b'["yes", ', "not an answer list (ValueError: not valid JSON (Expecting value"),
        (b'{"answer": "yes"}\n', "not an answer list (KeyError: 'label')"),
        (b'{"answer": "yes", "label": 0}\n[1]\n', "not an answer list (TypeError"),
        (b'{"answer": 3, "label": 0}\n', "holds at least one text and nothing else"),
        (b'["yes", "\\ud800"]', "holds at least one text and nothing else"),
        (b"[" * 99_999, "not valid JSON (nested too deeply)"),
        (b"\xff\xfe\x00", "cannot be read (not UTF-8 text"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_answers(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_list(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing.json: cannot be read \(No such file"):
        read_answers(tmp_path / "nothing.json")


def asked(rows: Sequence[Sequence[str] | None]) -> ListSource[ImageQuestion]:
    return ListSource(
        [
            answers
            if answers is None
            else ImageQuestion(
                image=noise(row),
                question="what",
                answers=tuple(answers),
                question_id=row,
                answer_type="",
                where=f"q:{row}",
            )
            for row, answers in enumerate(rows)
        ],
        "q",
    )


def test_scenes_have_a_closed_list_and_nothing_is_dropped(monkeypatch):
    scenes = [SceneQuestions(split="val"), SceneQuestions(split="train")]
    answers = closed_vocabulary(scenes)
    assert answers is not None
    assert answers == list(ANSWERS)
    hard = answers_of("hard_val")
    assert closed_vocabulary([*scenes, SceneQuestions(split="hard_val")]) == [
        *ANSWERS,
        *(each for each in hard if each not in ANSWERS),
    ]
    assert {"eight", "brown", "bar"} <= {*hard} - {*ANSWERS}
    monkeypatch.setattr(SceneQuestions, "__getitem__", None)  # and no row is looked at
    sources, notes = drop_unanswerable(scenes, answers, normalize)
    assert not notes
    assert all(a is b for a, b in zip(sources, scenes, strict=True))
    assert closed_vocabulary([scenes[0], questions(3)]) is None


def test_a_list_that_lacks_an_answer_of_scenes_drops_questions():
    scenes = SceneQuestions(split="val", num_rows=60)
    few = [answer for answer in ANSWERS if answer != "yes"]
    (source,), (note,) = drop_unanswerable([scenes], few, normalize)
    expected = [row for row in range(60) if scenes[row].answers != ("yes",)]
    assert [source[row].question_id for row in range(len(source))] == expected
    assert all(
        type(source[row].question_id) is int for row in range(len(source))
    )  # as files of predictions need it
    assert len(expected) < 60
    assert note.startswith(
        f"the answer list lacks the answers of {60 - len(expected)} of 60 training questions ("
    )
    assert note.endswith("; first 1: yes")


def test_questions_are_kept_if_any_answer_is_listed_in_normal_form():
    first = asked([["Yes!"], ["no", "a dog"], ["cat"], [], None, ["no"]])
    second = asked([["two"], ["2"], ["yes"]])
    (kept, whole), notes = drop_unanswerable([first, second], ["yes", "dog", "2"], normalize)
    assert [kept.indices.tolist(), len(whole)] == [[0, 1, 4], 3]  # pyright: ignore[reportAttributeAccessIssue]
    assert notes == (
        "the answer list lacks the answers of 3 of 9 training questions (33.3%), which are left out; first 2: cat, no",
    )
    assert [index for index, _ in usable_rows(first)] == [
        0,
        1,
        2,
        3,
        5,
    ]  # a row that cannot be read stays and is counted later
    sources, nothing = drop_unanswerable([second], ["yes", "2", "other"], normalize)
    assert sources == [second] and nothing == ()


def test_the_ten_most_frequent_missing_answers_are_named():
    rows = [["yes"]] + [[f"answer {number}"] for number in range(13) for _ in range(number + 1)]
    _, (note,) = drop_unanswerable([asked(rows)], ["yes"], normalize)
    assert note.endswith(
        f"; first {NUM_SHOWN}: {', '.join(f'answer {number}' for number in range(12, 12 - NUM_SHOWN, -1))}"
    )
    assert f" of {len(rows) - 1} of {len(rows)} " in note


def test_a_list_that_answers_nothing_is_a_mistake():
    with pytest.raises(
        UserError, match=r"the answer list, a, b …, answers none of these 2 training questions$"
    ):
        drop_unanswerable([asked([["yes"], ["no"]])], ["a", "b"], normalize)


def test_a_source_without_an_answerable_question_is_a_mistake():
    """Weights of sources, --data.train-weights, would no longer belong to them."""
    said = (
        r"^q:0 and all after it: the answer list, .*, answers none of these 2 training questions$"
    )
    with pytest.raises(UserError, match=said):
        drop_unanswerable([asked([["yes"]]), asked([["cat"], ["dog"]])], ["yes"], normalize)


def test_a_list_that_was_built_says_what_would_have_kept_all(tmp_path: Path):
    """A given list does not: the flag is refused with it."""
    rows = asked([["yes"]] * 9 + [["no"]] * 8)
    (tmp_path / "answers.txt").write_text("yes\n")
    for task, is_built in (
        (VQAConfig(), True),
        (VQAConfig(answers=tmp_path / "answers.txt"), False),
    ):
        prepared = VQA.prepare(tiny_config(task=task), [rows], None)
        assert prepared.labels == ("yes",)
        assert [
            note.endswith(" (--task.min-answer-count 1 keeps all)") for note in prepared.notes
        ] == [is_built]
    kept_all = VQA.prepare(tiny_config(task=VQAConfig(min_answer_count=1)), [rows], None)
    assert kept_all.notes == () and len(kept_all.sources[0]) == 17
