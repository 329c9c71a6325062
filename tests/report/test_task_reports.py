"""Which report a task has, and what reports of all tasks share."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.report.page import task_report, write_report
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.masked_signal.caption_pieces import caption_pieces
from eve_vl.tasks.report import TaskReport
from helpers.report_page import Page, assert_self_contained
from helpers.tiny_runs import tiny_run, write_run


def run_of(section: type[TaskConfig]) -> Any:
    """Return a run of a task, of which only the section is known."""
    data = SimpleNamespace(modality="image_text")
    config = SimpleNamespace(task=object.__new__(section), data=data)
    return SimpleNamespace(config=config, task=None)


def test_report_of_a_task_has_its_name():
    for name, section in all_kinds(TaskConfig, "tasks").items():
        report = type(task_report(run_of(section)))
        if section.has_numbers:
            assert report is not TaskReport
            assert report.name == name
        else:
            assert report is TaskReport


def test_own_task_has_its_report_or_the_general_one():
    class OwnSection(TaskConfig):
        name = "own"
        title = "a task with a report"

    class OwnReport(TaskReport):
        name = "own"

    class SectionWithoutReport(TaskConfig):
        name = "nothing"
        title = "a task without a report"

    assert type(task_report(run_of(OwnSection))) is OwnReport
    assert type(task_report(run_of(SectionWithoutReport))) is TaskReport


def test_numbers_of_the_log_keep_their_intervals():
    estimate = MeasuredValue(
        0.5,
        n=1200,
        low=0.47,
        high=0.53,
        method="wilson",
    )
    log = [
        {
            "kind": "val",
            "step": 1,
            "acc": estimate,
            "text": "unknown",
        }
    ]
    config = SimpleNamespace(data=SimpleNamespace(val_samples=9))
    run: Any = SimpleNamespace(
        config=config,
        step=1,
        task=None,
    )
    values = TaskReport(run, evaluated).measured(log).values
    assert set(values) == {"acc"}
    assert isinstance(values["acc"], MeasuredValue)


def test_encoder_without_heads_has_a_page_without_numbers(tmp_path: Path):
    folder = tmp_path / "mine"
    write_run(tiny_run("masked", task=HeadlessConfig()), folder / "checkpoints/step_00000001")
    page = Page(write_report(folder))
    assert_self_contained(folder / "report.html")
    assert page.ids == ["config"]
    assert "has no numbers and no examples" in page.text
    assert "an encoder without headsminerecipe" in page.text


def test_caption_pieces_read_as_the_caption():
    captions = ["a dog's café, in 東京 – at 3.5 km/h!", "naïve façade", "x"]
    tokenizer = Tokenizer.train([*captions, "a dog in a café"], 300)
    for caption in captions:
        ids = tokenizer.encode(caption, 200)[0].tolist()
        text = ""
        for piece in caption_pieces(tokenizer, ids, [False] * len(ids)):
            if piece.starts_word:
                text += " "
            text += piece.text
        if caption.isascii():
            assert text.strip() == caption

        is_masked = [False] + [True] * (len(ids) - 1)
        masked_pieces = caption_pieces(tokenizer, ids, is_masked)
        assert len(masked_pieces) == len(ids) - 1
        assert all(piece.is_masked and piece.text for piece in masked_pieces)
