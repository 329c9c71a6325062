"""The page about a folder of runs: one pre-trained run, and each task fine-tuned from it and from random weights."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eve_vl.config import Config
from eve_vl.errors import UserError
from eve_vl.loading import load_run, read_config
from eve_vl.report.charts import Series, bar_chart, constant, line_chart
from eve_vl.report.curves import points_of
from eve_vl.report.html import document, esc, header, missing, percent, points, section
from eve_vl.report.page import command_line, write_page
from eve_vl.report.routing import routing_charts
from eve_vl.report.task import Measured, TaskReport, task_report
from eve_vl.train.log import read_log

PRETRAIN = "pretrain"
TASKS = ("vqa", "nlvr2", "retrieval")  # the shortest first
SCRATCH = "_scratch"
SPLITS = {"test": "", "test_novel": "_novel"}
"""Test splits of the scenes, and what the names of their numbers end in."""
SPLIT_TITLES = ("Test scenes", "Test scenes with pairs of kind and colour that training never showed")
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the story: its key in metrics.json, and what it is."""

    key: str
    title: str
    what: str
    short: str = ""
    """Name under its bars; "": no bars."""
    guess: Callable[[Callable[[str], float]], float]
    """What can be had without the model, of a function that returns numbers of the same split by name."""


def _blind(number: Callable[[str], float]) -> float:
    return number("vqa_acc_blind")


def _first_by_chance(way: str) -> Callable[[Callable[[str], float]], float]:
    """Return the chance of a true first hit: linear in the number of matches, so that their average is enough."""
    matches, others = {"tr": ("texts_per_image", "num_texts"), "ir": ("images_per_text", "num_images")}[way]
    return lambda number: number(f"retrieval_{matches}") / number(f"retrieval_{others}")


TRUE, ALONE = "first hit is true", "by contrast alone, without re-ranking"
ROWS = (
    Row(key="vqa_acc", title="Questions", short="questions", what="answered right", guess=_blind),
    Row(key="nlvr2_acc", title="Statements", short="statements", what="about two pictures, judged right", guess=lambda _: 0.5),
    Row(key="retrieval_tr1", title="Picture → caption", short="→ caption", what=TRUE, guess=_first_by_chance("tr")),
    Row(key="retrieval_ir1", title="Caption → picture", short="→ picture", what=TRUE, guess=_first_by_chance("ir")),
    Row(key="retrieval_tr1_itc_only", title="Picture → caption", what=ALONE, guess=_first_by_chance("tr")),
    Row(key="retrieval_ir1_itc_only", title="Caption → picture", what=ALONE, guess=_first_by_chance("ir")),
)
CURVES = (  # run, title, numbers of validation with their names
    ("vqa", "Questions: accuracy", {"vqa_acc": ""}),
    ("nlvr2", "Statements: accuracy", {"nlvr2_acc": ""}),
    ("retrieval", "Search: first hit is true", {"tr1": "→ caption, ", "ir1": "→ picture, "}),
)


def write_story(folder: Path, out: Path | None = None) -> Path:
    """Write the page about a folder that holds `pretrain`, `TASK` and `TASK_scratch` runs and their numbers, metrics.json.

    Returns its path; default: report.html in the folder. What is not there is left out with a sentence. The page holds
    everything that it shows and refers to nothing outside. Raises UserError if `folder` holds none of the runs.
    """
    return write_page(out or folder / "report.html", story_page(folder))


def story_page(folder: Path) -> str:
    """Return the HTML of the page."""
    numbers = _numbers(folder)
    names = [PRETRAIN, *TASKS, *(name + SCRATCH for name in TASKS)]
    configs = {name: read_config(folder / name) for name in names if (folder / name / "config.json").is_file()}
    if not configs:
        raise UserError(f"{folder}: holds none of the runs {', '.join(names)}")
    sections, routing = [results_section(numbers), _learning_section(folder)], ""
    for name in (PRETRAIN, *TASKS):
        try:
            report = task_report(load_run(folder / name))
            task = report.run.config.task.name
            if name in TASKS and name != task:
                raise UserError(f"{folder / name}: a {task} run, expected {name}")
            if name == PRETRAIN:
                sections.append(_pretraining_section(report, numbers))
            sections += report.evidence(3 * report.num_each // 4)
            if (chosen := report.routing()).shares_ME:
                routing += f"<h3>{report.title}</h3>{routing_charts(chosen, report.run.config)}"
        except UserError as error:
            sections.append(section(name, name, "", missing(f"Left out: {esc(error)}.")))
    intro = (
        "In the last blocks each token chooses its experts. Bars: how the choices of all image tokens, and of all text "
        "tokens, of some validation rows spread over them; each modality sums to 100 %. No expert is told which to serve."
    )
    routing = routing or missing("No run with a <code>moe</code> block is there.")
    sections += [section("routing", "Routing", intro, routing), _commands_section(configs)]
    head = header("EVE · the whole story", "One pre-training, three tasks", _facts(configs))
    return document("the whole story", head, sections)


def _numbers(folder: Path) -> dict[str, float]:
    """Return metrics.json; empty if it is not there. Raises UserError if it cannot be read."""
    path = folder / "metrics.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _facts(configs: Mapping[str, Config]) -> dict[str, str]:
    first = configs.get(PRETRAIN) or next(iter(configs.values()))
    training = ", ".join(
        f"{name} {config.train.steps:,} steps × {config.train.batch_size}"
        for name, config in configs.items()
        if not name.endswith(SCRATCH)
    )
    return {
        "encoder": f"{first.model}; {first.input.image_size}² pixels in {first.input.num_patches} patches",
        "training": training,
        "training data": esc(", ".join(first.data.train)),
    }


def results_section(numbers: Mapping[str, float]) -> str:
    """Return pre-trained against from scratch, a table and bars for each test split. numbers: metrics.json."""
    body = ""
    for suffix, title in zip(SPLITS.values(), SPLIT_TITLES, strict=True):
        rows = [row for row in ROWS if row.key + suffix in numbers]
        if not rows:
            body += f"<h3>{title}</h3>" + missing("There are no numbers of this split.")
            continue
        values = [arms(row, numbers, suffix) for row in rows]
        lines = "".join(
            f"<tr><th>{row.title} <small>{row.what}</small></th><td><b>{percent(ours)}</b></td><td>{percent(scratch)}</td>"
            f"<td><b>{points(ours - scratch)}</b></td><td>{percent(guess)}</td></tr>"
            for row, (ours, scratch, guess) in zip(rows, values, strict=True)
        )
        heads = "".join(f"<td>{head}</td>" for head in ("pre-trained", "from scratch", "gain, points", "blind or chance"))
        table = f'<table class="numbers"><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        labels = [row.short for row in rows if row.short]
        drawn = zip(*(each for row, each in zip(rows, values, strict=True) if row.short), strict=True)
        bars = list(zip(("pre-trained", "from scratch", "blind or chance"), drawn, strict=True))
        chart = bar_chart("Pre-trained against from scratch", labels, bars, show=percent, axis="task")
        body += f'<h3>{title}</h3><div class="results"><div class="card">{table}</div>{chart}</div>'
    intro = (
        "Each task is learnt twice in the same way: from the pre-trained weights and from random ones. Blind: the most "
        "frequent training answer to the same words, without the picture; chance: a coin, or a search in random order."
    )
    return section("results", "Results", intro, body)


def arms(row: Row, numbers: Mapping[str, float], suffix: str) -> tuple[float, float, float]:
    """Return a number from the pre-trained weights, from random ones, and without a model; what is not known is NaN."""

    def number(name: str) -> float:
        return numbers.get(name + suffix, NAN)

    return number(row.key), number(row.key + SCRATCH), row.guess(number)


def _learning_section(folder: Path) -> str:
    """Return the validation curves of both arms of each task in one chart."""
    charts, absent = "", []
    for name, title, keys in CURVES:
        runs = [(folder / name, "pre-trained"), (folder / (name + SCRATCH), "from scratch")]
        absent += [run.name for run, _ in runs if not run.is_dir()]
        logs = [(read_log(run), arm) for run, arm in runs]
        series = [
            Series(name=f"{way}{arm}", points=points_of(log, "val", key)) for log, arm in logs for key, way in keys.items()
        ]
        last = max((x for each in series for x, _ in each.points), default=0)
        chance = [constant("chance", 0.5, int(last))] if name == "nlvr2" else []
        charts += line_chart(title, [*series, *chance], note="Validation; higher is better.", show=percent, from_zero=True)
    body = f'<div class="charts">{charts}</div>' if charts else missing("No run holds a log.")
    if absent:
        body += missing(f"Left out, for there is no such run: {', '.join(absent)}.")
    intro = "What pre-training is worth from the first steps on: the same recipe, from the pre-trained and from random weights."
    return section("learning", "Learning curves", intro, body)


def _pretraining_section(report: TaskReport, numbers: Mapping[str, float]) -> str:
    intro = (
        "Before it saw a question, the model learnt one thing: to fill in what is hidden, patches of a picture with the "
        "help of its caption, and words of a caption with the help of its picture."
    )
    cards = report.numbers(Measured(values=numbers, step=report.run.step, where="", num_samples=0))
    return section(PRETRAIN, "Pre-training", intro, cards)


def _commands_section(configs: Mapping[str, Config]) -> str:
    lines: list[str] = []
    for config in configs.values():
        try:
            lines.append(command_line(dataclasses.replace(config, train=dataclasses.replace(config.train, threads=0))))
        except UserError:  # the recipe of another version
            continue
    commands = "\n".join(map(esc, lines))
    return section("commands", "Commands", "What makes each run.", f"<pre><code>{commands}</code></pre>")
