"""The page that compares runs: numbers with their intervals, cost, what differs in their configs, curves, the same rows."""

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eve_vl import builtin
from eve_vl.config import HELD_OUT, Config, flat, to_dict
from eve_vl.data.loader import OPTIONS
from eve_vl.metrics import intervals
from eve_vl.report.charts import line_chart
from eve_vl.report.curves import Curves, Loss, over
from eve_vl.report.page import run_facts, run_folder, write_page
from eve_vl.report.task import Example, Measured, task_report
from eve_vl.report.templating import Section, document, draw
from eve_vl.run.loading import load_run
from eve_vl.synthetic.phantoms import source_note
from eve_vl.train.checkpoint import BEST, CHECKPOINTS
from eve_vl.train.log import LOG, read_log
from eve_vl.utils.console import progress, warn
from eve_vl.utils.errors import UserError

NUM_EXAMPLES = 6
ALIKE = (
    "data.val",
    "data.val_fraction",
    "data.val_samples",
    "data.skip_invalid_val",
    "data.modality",
    *(f"data.{o}" for o in OPTIONS),
)
ALIKE += tuple(
    f"task.{name}"
    for name in ("image_mask_ratio", "text_mask_ratio", "joint_masking", "inputs", "captions_per_image", "dedup_captions")
)
"""What is the same in runs on the same rows that are asked the same; data.train too, where some of it is held out."""
BESIDE = ("config", "rows")  # parts that only say something of one run beside another
AXES = ("step", "pairs", "minutes")


@dataclass(kw_only=True)
class Arm:
    """What a run brings to a comparison."""

    name: str
    config: Config
    facts: Mapping[str, Any]
    log: Sequence[dict]
    losses: Sequence[Loss]
    scored: str | None
    """What `scores` are of."""
    measured: Measured | None = None
    verdict: str = ""
    examples: Sequence[Example] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    """How well each row of validation is done, by its name."""
    problem: str = ""
    """Why there is no more to show."""


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the runs that are named or lie in folders that are named, up to two levels down. Raises UserError."""
    found: list[Path] = []
    for path in map(builtin.located, paths):
        below = [folder for pattern in ("*", "*/*") for folder in sorted(path.glob(pattern)) if _is_run(folder)]
        if not _is_run(path) and not below:
            raise UserError(f"{path}: no such run folder, or folder of runs")
        found += [path] if _is_run(path) else below
    return list(dict.fromkeys(found))


def _is_run(folder: Path) -> bool:
    return (folder / LOG).is_file() or any((folder / name).is_dir() for name in (BEST, CHECKPOINTS))


def write_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page that compares runs and return its path; default: comparison.html in the folder that they all lie in.

    A run that cannot be read is named on the page and on stderr. Raises UserError if none can be read.
    """
    folder = Path(os.path.commonpath([run.resolve().parent for run in runs]))
    arms, unreadable = [], {}
    for run in progress(runs, "reading runs", len(runs)):
        name = str(run.resolve().relative_to(folder))
        try:
            arms.append(read_arm(run, name))
        except (UserError, OSError) as error:
            unreadable[name] = str(error)
            warn(f"warning: left out: {error}")
    if not arms:
        raise UserError(f"none of the {len(runs)} runs can be read; the first: {next(iter(unreadable.values()))}")
    return write_page(out or folder / "comparison.html", comparison_page(folder.name, arms, unreadable))


def read_arm(folder: Path, name: str) -> Arm:
    """Return what a run brings to a comparison; its weights are not kept. Raises UserError if it cannot be read."""
    run = load_run(folder)
    log, report = read_log(run_folder(run)), task_report(run)
    arm = Arm(
        name=name,
        config=run.config,
        facts=run_facts(run, log),
        log=log,
        losses=report.losses,
        scored=run.evaluator.score_name or run.evaluator.main_metric,
    )
    if run.config.task.has_numbers:
        try:
            arm.measured = report.measured(log)
            arm.verdict = run.evaluator.comparison(arm.measured.values)
            arm.examples = report.compared(NUM_EXAMPLES)
            arm.scores = report.evaluated(arm.measured.num_samples).row_scores
        except UserError as error:  # its data may be out of reach here
            arm.problem = str(error)
    return arm


def comparison_page(name: str, arms: Sequence[Arm], unreadable: Mapping[str, str]) -> str:
    """Return the HTML of the page; runs of different tasks are compared in groups."""
    groups: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        groups[arm.config.task.name].append(arm)
    sections = []
    for task, group in groups.items():
        are_alike = len({json.dumps(asked(arm)) for arm in group}) == 1
        parts = {
            "numbers": (paired(group), are_alike),
            "config": differences(group),
            "curves": curves(group),
            "rows": same_rows(group),
        }
        for part, found in parts.items():
            if len(group) == 1 and part in BESIDE:
                continue
            title = f"{task}: {part}" if len(groups) > 1 else part.capitalize()
            body = draw("compare_sections.html", part, arms=group, found=found)
            sections.append(Section(name=f"{task}-{part}", title=title, body=body))
    said = source_note(source for arm in arms for source in (*arm.config.data.train, *arm.config.data.val))
    return document("compare.html", sections, name=name, groups=groups, unreadable=unreadable, source_note=said)


def paired(arms: Sequence[Arm]) -> list[tuple[str, str, intervals.MeasuredValue]]:
    """Return, of each two runs on the same rows, by how much the first does a row better."""
    pairs = [(a, b) for a, b in itertools.combinations(arms, 2) if asked(a) == asked(b) and a.scores.keys() & b.scores.keys()]
    found = [(a.name, b.name, intervals.paired(a.scores, b.scores)) for a, b in pairs]
    return [(a, b, difference) for a, b, difference in found if isinstance(difference, intervals.MeasuredValue)]


def asked(arm: Arm) -> dict[str, Any]:
    """Return what says which rows a run was measured on, and what it was asked of them."""
    values, held_out = flat(to_dict(arm.config)), ("data.train",) * (arm.config.data.val == (HELD_OUT,))
    found = {name: values.get(name) for name in (*ALIKE, *held_out)}
    return found | {"num_samples": arm.measured and arm.measured.num_samples}


def differences(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """Return the fields of the configs that differ, but the folder, each with the values of all runs; None: it has no such."""
    values = [flat(to_dict(arm.config)) for arm in arms]
    fields = {name: [each.get(name) for each in values] for name in dict.fromkeys(itertools.chain(*values)) if name != "out"}
    return {name: each for name, each in fields.items() if len({json.dumps(value) for value in each}) > 1}


def curves(arms: Sequence[Arm]) -> dict[str, list[Markup]]:
    """Return the charts of all runs' losses, and of the numbers of validation that change, over each axis."""
    keys = {(loss.title, "train", loss.term): loss.note for arm in arms for loss in arm.losses}
    for arm in arms:
        rows = [row for row in arm.log if row["kind"] == "val"]
        changing = {name for row in rows for name in row if name != "step" and row[name] != rows[0].get(name)}
        keys |= {(name, "val", name): "Validation." for name in rows[0] if name in changing} if rows else {}
    drawn = {}
    for axis in AXES:
        logs = {arm.name: Curves(log=over(arm.log, arm.config.train.batch_size, axis), step=0) for arm in arms}
        lines = {key: [getattr(log, key[1])(key[2], name) for name, log in logs.items()] for key in keys}
        drawn[axis] = [line_chart(key[0], lines[key], note=note, axis=axis) for key, note in keys.items()]
    return drawn


def same_rows(arms: Sequence[Arm]) -> list[dict[str, Example]]:
    """Return, of rows that several runs have seen, what each run makes of them, by its name."""
    seen: dict[str, dict[str, Example]] = defaultdict(dict)
    for arm in arms:
        for number, example in enumerate(arm.examples):
            seen[json.dumps([asked(arm), number, example.where])][arm.name] = example
    return [of_runs for of_runs in seen.values() if len(of_runs) > 1]
