"""Results of `eve learn`: numbers on the test rows, index, report, commands."""

import shlex
import shutil

from eve_vl.config import HELD_OUT_TEST
from eve_vl.data.loader import open_sources, open_splits
from eve_vl.evaluation.runner import evaluated
from eve_vl.eve import Eve
from eve_vl.learn.plan import COLUMNS, FINAL, INDEX, REPORT, SCRIPT, shown
from eve_vl.learn.stages import Learner, certain
from eve_vl.metrics.intervals import from_json, paired, to_json
from eve_vl.report.drawing import Section, document, draw
from eve_vl.report.page import command_line, write_page, write_report
from eve_vl.run.loading import load_run
from eve_vl.train import processes
from eve_vl.train.checkpoint import read_best
from eve_vl.utils.console import is_main, pluralize
from eve_vl.utils.file_io import write_file


def conclude(learner: Learner) -> str:
    """Evaluate the best run so far on the test rows, index all images, write report and commands; return its name.

    Returns "" if no run can be used yet.
    """
    stages = learner.values.get("stages", {})
    for name in stages:
        is_usable = "start" in stages[name] and (learner.reached(name) or read_best(learner.folder(name)))
        if is_usable and not stages[name].get("is_done"):
            stages[name] |= learner.score(name)
    scored = {name: stage["score"] for name, stage in stages.items() if "score" in stage}
    if not scored:
        return ""
    best = max(scored, key=lambda name: scored[name])
    if stages.get(FINAL, {}).get("is_done") and certain(paired(learner.rows(best), learner.rows(FINAL)))[1] <= 0:
        best = FINAL  # a pilot must be better beyond chance
    config, index = learner.config(best), learner.out / INDEX
    with learner.output("."):
        run = load_run(config.out, processes.pick_device(learner.device))
        tests = open_sources(learner.test, learner.data, config.input.image_size, learner.job.rows)
        tests = tests or open_splits(config, learner.job.rows)[2]
        found = evaluated(run, sum(map(len, tests)), tests, ablations=False, skip_invalid=True)
    comparison = run.evaluator.comparison(found.numbers)
    learner.values["result"] = {"run": best, "numbers": to_json(found.numbers), "comparison": comparison}
    processes.shutdown()
    if not is_main():
        return best
    with learner.output("."):
        if learner.name == "search":
            if learner.values.get("indexed") != (weights := f"{best} {run.step}"):  # an index belongs to one run's weights
                shutil.rmtree(index, ignore_errors=True)
            learner.values["indexed"] = weights
            reading = {key: getattr(learner.data, key) for key in ("format", "image_root", *COLUMNS)}
            Eve(run).index(learner.data.train, index, **reading)
        write_report(config.out)
    learner.write()
    _write_script(learner)
    write_page(learner.out / REPORT, page(learner))
    return best


def result_lines(learner: Learner) -> list[str]:
    """Return the numbers of the best run so far and what to do with it."""
    result, files = learner.values["result"], f"report: {learner.out / REPORT}; commands: {learner.out / SCRIPT}"
    where = f"{result['run']}, on {pluralize(learner.values['data']['test'], 'test row')} that nothing was chosen by"
    return [f"{where}: {result['comparison']}", f"{files}; time: {shown(learner.elapsed())}", f"open the page: {app(learner)}"]


def commands(learner: Learner) -> list[str]:
    """Return the commands that repeat the stages, evaluation and index."""
    best, stages = learner.values["result"]["run"], learner.values["stages"]
    lines = [command_line(learner.config(name)) for name in stages if (learner.folder(name) / "config.json").is_file()]
    folder = learner.folder(best)
    lines.append(shlex.join(["eve", "evaluate", learner.job.task, str(folder), "--data", *(learner.test or (HELD_OUT_TEST,))]))
    if learner.name == "search":
        lines.append(shlex.join(["eve", "index", *learner.data.train, "--run", str(folder), "--out", str(learner.out / INDEX)]))
    return lines


def app(learner: Learner) -> str:
    """Return the command that opens the page."""
    index = ["--index", str(learner.out / INDEX)] * (learner.name == "search")
    return shlex.join(["eve", "app", str(learner.folder(learner.values["result"]["run"])), *index])


def _write_script(learner: Learner) -> None:
    text = "\n".join(["#!/bin/sh", "set -e", *(f"# {line}" for line in learner.values["lines"]), *commands(learner), ""])
    write_file(learner.out / SCRIPT, text)


def page(learner: Learner) -> str:
    """Return the HTML of the report."""
    result, stages = learner.values["result"], learner.values["stages"]
    scored = {name: from_json(stage["numbers"]) | stage for name, stage in stages.items() if "score" in stage}
    known = {"plan": learner.values, "commands": commands(learner), "app": app(learner), "scored": scored}
    known |= {"result": from_json(result["numbers"]), "run": result["run"]}
    parts = {"numbers": "Numbers", "decisions": "Decisions", "pilots": "Runs", "commands": "Commands"}
    sections = [Section(part, title, draw("learn_sections.html", part, **known)) for part, title in parts.items()]
    return document("learn.html", sections, name=learner.out.name, job=learner.name, plan=learner.values, source_note="")
