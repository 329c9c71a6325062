"""The page about a folder of runs: one pre-trained run, and each task fine-tuned from it and from random weights."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.report.charts import bar_chart, constant, line_chart
from eve_vl.report.curves import Curves
from eve_vl.report.page import command_line, write_page
from eve_vl.report.routing import routing_charts
from eve_vl.report.task import Measured, task_report
from eve_vl.report.templating import Section, document, draw, percent
from eve_vl.run.loading import load_run, read_config
from eve_vl.train.log import read_log, read_numbers
from eve_vl.utils.errors import UserError

PRETRAIN = "pretrain"
TASKS = ("vqa", "nlvr2", "retrieval")  # the shortest first
SCRATCH = "_scratch"
SPLITS = {"test": "", "test_novel": "_novel"}
"""Test splits of the scenes, and what the names of their numbers end in."""
GAINS = {"vqa": {"vqa_acc": ""}, "nlvr2": {"nlvr2_acc": ""}, "retrieval": {"retrieval_tr1": "tr1 ", "retrieval_ir1": "ir1 "}}
"""Of each task the numbers that both arms are compared in row by row, as `…_gain`, and how the names of its rows begin."""
SPLIT_TITLES = ("Test scenes", "Test scenes with pairs of kind and colour that training never showed")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the story: its key in metrics.json, and what it is."""

    key: str
    title: str
    what: str
    short: str = ""
    """Name under its bars; "": no bars."""
    guess: str | float
    """The score that needs no model, or its name in metrics.json."""


TRUE = "first hit is true"
ROWS = (
    Row(key="vqa_acc", title="Questions", short="questions", what="answered right", guess="vqa_acc_blind"),
    Row(key="nlvr2_acc", title="Statements", short="statements", what="about two images, judged right", guess=0.5),
    Row(key="retrieval_tr1", title="Image → caption", short="→ caption", what=TRUE, guess="retrieval_tr1_chance"),
    Row(key="retrieval_ir1", title="Caption → image", short="→ image", what=TRUE, guess="retrieval_ir1_chance"),
)
CURVES = (  # run, title, numbers of validation with their names, what guessing gets where it is the same for all rows
    ("vqa", "Questions: accuracy", {"vqa_acc": ""}, None),
    ("nlvr2", "Statements: accuracy", {"nlvr2_acc": ""}, 0.5),
    ("retrieval", "Search: first hit is true", {"tr1": "→ caption, ", "ir1": "→ image, "}, None),
)


def write_story(folder: Path, out: Path | None = None) -> Path:
    """Write the page about a folder that holds `pretrain`, `TASK` and `TASK_scratch` runs and their numbers, metrics.json.

    Returns its path; default: report.html in the folder. What is not there is left out with a sentence. The page holds
    everything that it shows and refers to nothing outside. Raises UserError if `folder` holds none of the runs.
    """
    return write_page(out or folder / "report.html", story_page(folder))


def story_page(folder: Path) -> str:
    """Return the HTML of the page."""
    metrics = folder / "metrics.json"
    numbers = read_numbers(metrics) if metrics.is_file() else {}
    names = [PRETRAIN, *TASKS, *(name + SCRATCH for name in TASKS)]
    configs = {name: read_config(folder / name) for name in names if (folder / name / "config.json").is_file()}
    if not configs:
        raise UserError(f"{folder}: holds none of the runs {', '.join(names)}")
    sections, routing = [results_section(numbers), _learning_section(folder)], {}
    for name in (PRETRAIN, *TASKS):
        try:
            report = task_report(load_run(folder / name))
            task = report.run.config.task.name
            if name in TASKS and name != task:
                raise UserError(f"{folder / name}: a {task} run, expected {name}")
            if name == PRETRAIN:
                cards = report.numbers(Measured(values=numbers, step=report.run.step, where="", num_samples=0))
                sections.append(_section(PRETRAIN, "Pre-training", numbers=cards))
            sections += report.evidence(3 * report.num_each // 4)
            routing[report.title] = routing_charts(report.routing())
        except UserError as error:
            sections.append(Section(name=name, title=name, body=draw("story_sections.html", "left_out", error=error)))
    commands = []
    for config in configs.values():
        with suppress(UserError):  # the recipe of another version
            commands.append(command_line(dataclasses.replace(config, train=dataclasses.replace(config.train, threads=0))))
    sections += [_section("routing", "Routing", charts=routing), _section("commands", "Commands", commands=commands)]
    learnt = {name: config.train for name, config in configs.items() if not name.endswith(SCRATCH)}
    return document("story.html", sections, config=next(iter(configs.values())), learnt=learnt)


def _section(name: str, title: str, **values: Any) -> Section:
    return Section(name=name, title=title, body=draw("story_sections.html", name, **values))


def results_section(numbers: Mapping[str, float]) -> Section:
    """Return pre-trained against from scratch, a table and bars for each test split. numbers: metrics.json."""
    splits = []
    for suffix, title in zip(SPLITS.values(), SPLIT_TITLES, strict=True):
        splits.append((title, [(row, *arms(row, numbers, suffix)) for row in ROWS if row.key + suffix in numbers]))
    return _section("results", "Results", splits=splits, bar_chart=bar_chart)


def arms(row: Row, numbers: Mapping[str, float], suffix: str) -> tuple[float, float, float, MeasuredValue | None]:
    """Return a number from the pre-trained weights, from random ones, and without a model, NaN where it is not known; and what
    pre-training is worth, where that was measured row by row."""
    guess = numbers.get(row.guess + suffix, math.nan) if isinstance(row.guess, str) else row.guess
    ours, scratch, gain = (numbers.get(row.key + arm + suffix, math.nan) for arm in ("", SCRATCH, "_gain"))
    return ours, scratch, guess, gain if isinstance(gain, MeasuredValue) else None


def _learning_section(folder: Path) -> Section:
    """Return the validation curves of both arms of each task in one chart."""
    charts, absent = [], []
    for name, title, keys, guess in CURVES:
        runs = {"pre-trained": folder / name, "from scratch": folder / (name + SCRATCH)}
        absent += [run.name for run in runs.values() if not run.is_dir()]
        logs = {arm: Curves(log=read_log(run), step=0) for arm, run in runs.items()}
        series = [log.val(key, way + arm) for arm, log in logs.items() for key, way in keys.items()]
        last = max((x for each in series for x, _ in each.points), default=0)
        chance = [constant("chance", guess, int(last))] if guess is not None else []
        note = "Validation; higher is better."
        charts.append(line_chart(title, [*series, *chance], note=note, show=percent, from_zero=True))
    return _section("learning", "Learning curves", charts=charts, absent=absent)
