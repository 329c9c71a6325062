"""Pre-trained against from scratch: the table, the bars and the learning curves of a folder of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eve_vl.report.baselines import chance_recall
from eve_vl.report.charts import Series, bar_chart, constant, line_chart
from eve_vl.report.curves import points_of
from eve_vl.report.markup import missing, percent, points, section
from eve_vl.train.log import read_log

SCRATCH = "_scratch"
SPLITS = {"": "Test scenes", "_novel": "Test scenes with pairs of kind and colour that training never showed"}
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the story: its key in metrics.json, and what it is."""

    key: str
    title: str
    short: str
    what: str


ROWS = (
    Row(key="vqa_acc", title="Questions", short="questions", what="answered right"),
    Row(key="nlvr2_acc", title="Statements about two pictures", short="statements", what="judged right"),
    Row(key="retrieval_tr1", title="Picture → caption", short="→ caption", what="first found is true"),
    Row(key="retrieval_ir1", title="Caption → picture", short="→ picture", what="first found is true"),
    Row(key="retrieval_tr1_itc_only", title="Picture → caption", short="", what="by contrast alone, without re-ranking"),
    Row(key="retrieval_ir1_itc_only", title="Caption → picture", short="", what="by contrast alone, without re-ranking"),
)
CURVES = (  # run, title, numbers of validation with their names
    ("vqa", "Questions: accuracy", {"vqa_acc": ""}),
    ("nlvr2", "Statements: accuracy", {"nlvr2_acc": ""}),
    ("retrieval", "Search: first found is true", {"tr1": "→ caption, ", "ir1": "→ picture, "}),
)


def results_section(numbers: Mapping[str, float]) -> str:
    """Return table and bars, one of each per test split. numbers: metrics.json."""
    body = ""
    for suffix, title in SPLITS.items():
        rows = [row for row in ROWS if row.key + suffix in numbers]
        if not rows:
            body += f"<h3>{title}</h3>" + missing("There are no numbers of this split.")
            continue
        body += f'<h3>{title}</h3><div class="results"><div class="card">{_table(rows, numbers, suffix)}</div>'
        body += f"{_bars([row for row in rows if row.short], numbers, suffix)}</div>"
    intro = (
        "Each task is learnt twice in the same way: from the pre-trained weights and from random ones. Blind: the most "
        "frequent training answer to the same words, without the picture; chance: a coin, or a search in random order."
    )
    return section("results", "Results", intro, body)


def _table(rows: Sequence[Row], numbers: Mapping[str, float], suffix: str) -> str:
    lines = ""
    for row in rows:
        ours, scratch = numbers[row.key + suffix], numbers.get(f"{row.key}{SCRATCH}{suffix}", NAN)
        gain = points(ours - scratch) if scratch == scratch else "–"
        cells = (f"<b>{_share(ours)}</b>", _share(scratch), f"<b>{gain}</b>", _share(_blind(row.key, numbers, suffix)))
        lines += f"<tr><th>{row.title} <small>{row.what}</small></th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    heads = "".join(f"<td>{head}</td>" for head in ("pre-trained", "from scratch", "gain, points", "blind or chance"))
    return f'<table class="numbers"><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table>'


def _bars(rows: Sequence[Row], numbers: Mapping[str, float], suffix: str) -> str:
    return bar_chart(
        "Pre-trained against from scratch",
        [row.short for row in rows],
        [
            ("pre-trained", [numbers[row.key + suffix] for row in rows]),
            ("from scratch", [numbers.get(f"{row.key}{SCRATCH}{suffix}", NAN) for row in rows]),
            ("blind or chance", [_blind(row.key, numbers, suffix) for row in rows]),
        ],
        show=percent,
        axis="task",
    )


def _blind(key: str, numbers: Mapping[str, float], suffix: str) -> float:
    """Return what can be had without the model; not a number if that is not known."""
    if key == "nlvr2_acc":
        return 0.5
    if key == "vqa_acc":
        return numbers.get(f"vqa_acc_blind{suffix}", NAN)
    matches, others = ("texts_per_image", "num_texts") if "_tr" in key else ("images_per_text", "num_images")
    try:
        return chance_recall(1, numbers[f"retrieval_{matches}{suffix}"], numbers[f"retrieval_{others}{suffix}"])
    except KeyError:
        return NAN


def _share(value: float) -> str:
    return percent(value) if value == value else "–"


def learning_section(folder: Path) -> str:
    """Return the validation curves of both arms of each task in one chart."""
    charts, absent = "", []
    for name, title, keys in CURVES:
        arms = [(folder / name, "pre-trained"), (folder / (name + SCRATCH), "from scratch")]
        absent += [run.name for run, _ in arms if not run.is_dir()]
        logs = [(read_log(run), arm) for run, arm in arms]
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
