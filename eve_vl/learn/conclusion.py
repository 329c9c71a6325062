"""The end of `eve learn`: the best run, its numbers on the test rows, an index and a report."""

import re
import shutil
import statistics
from collections.abc import Mapping

from eve_vl.builtin.names import folder_of
from eve_vl.config import HELD_OUT_TEST
from eve_vl.data.opening import open_sources, open_splits
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.eve import Eve
from eve_vl.learn import settings
from eve_vl.learn.clock import time_text
from eve_vl.learn.commands import INDEX_FOLDER, SCRIPT_FILE, commands, page_command, write_script
from eve_vl.learn.decisions import Result
from eve_vl.learn.pilots import difference, difference_text, may_be_chance
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_config import stage_config
from eve_vl.learn.stage_run import reached_step, row_scores, score_stage
from eve_vl.metrics.intervals import to_json
from eve_vl.metrics.names import meaning
from eve_vl.pages.rendering import Section, draw
from eve_vl.report.page import run_page, write_page
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.run.results import result_of
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.train import devices, processes
from eve_vl.train.best_folder import read_best
from eve_vl.utils.console import is_main, pluralize

REPORT_FILE = "report.html"


def conclude(plan: Plan) -> bool:
    """Evaluate the best run so far on the test rows, index all images, write report and commands.

    Returns False if no run can be used yet.
    """
    _score_interrupted(plan)
    best = _best_run(plan)
    if not best:
        return False
    run, evaluation, notes = _evaluate(plan, best)
    comparison = run.evaluator.comparison(evaluation.numbers)
    notes = [*_kept_note(plan, best), *notes]
    plan.decisions.result = Result(best, to_json(evaluation.numbers), comparison, notes)
    processes.shutdown()  # only the main process continues
    if not is_main():
        return True

    if plan.is_search:
        _index(plan, best, run)
    plan.write()
    lines = [*plan.decisions.lines, *notes]
    write_script(plan, lines)
    _write_report(plan, run, evaluation, lines)
    return True


def _score_interrupted(plan: Plan) -> None:
    """Score the stages that are not done but have weights."""
    for name, stage in plan.stages.items():
        if stage.is_done or stage.start is None:
            continue
        if reached_step(plan, name) or read_best(plan.folder(name)):
            score_stage(plan, name)


def _best_run(plan: Plan) -> str:
    """Return the stage with the best score; "" if none has one."""
    final = plan.stages.get(settings.FINAL)
    averaged = []
    if final is not None and final.is_done:
        averaged = final.runs  # the best of several seeds is best by luck
    scores = {
        name: stage.score
        for name, stage in plan.stages.items()
        if stage.score is not None and name not in averaged
    }
    return max(scores, key=lambda name: (scores[name], name == settings.FINAL), default="")


def _kept_note(plan: Plan, best: str) -> list[str]:
    """Return a sentence about a run that is better than the final one, if there is one."""
    final = plan.stages.get(settings.FINAL)
    if final is None or not final.is_done or best == settings.FINAL:
        return []
    gain = difference(row_scores(plan, best), row_scores(plan, settings.FINAL))
    note = f"kept: {best}, {difference_text(gain)} over the final run on the validation rows"
    if may_be_chance(gain):
        note += ", which may be chance"
    return [note]


def _evaluate(plan: Plan, best: str) -> tuple[LoadedRun, Evaluated, list[str]]:
    """Measure the best run on the test rows, and the bundled one next to it.

    Returns the best run, its evaluation and a sentence that compares both.
    """
    config = stage_config(plan, best)
    names = [best]
    as_it_is = plan.stages.get(settings.AS_IT_IS)
    if best != settings.AS_IT_IS and as_it_is is not None and as_it_is.score is not None:
        names.append(settings.AS_IT_IS)
    runs = {}
    evaluations = {}
    with plan.output_to_log("."):
        size = config.input.image_size
        tests = open_sources(plan.request.test, plan.request.data, size, plan.learn_task.rows)
        tests = tests or open_splits(config, plan.learn_task.rows).test
        num_rows = sum(map(len, tests))
        for name in names:
            device = devices.pick_device(plan.request.device)
            runs[name] = load_run(folder_of(plan.run_name(name)), device)
        for name, run in runs.items():
            evaluations[name] = evaluated(run, num_rows, tests, ablations=False, skip_invalid=True)
    notes = []
    if settings.AS_IT_IS in names[1:]:
        before = evaluations[settings.AS_IT_IS].row_scores
        notes.append(before_and_after(best, evaluations[best].row_scores, before))
    return runs[best], evaluations[best], notes


def before_and_after(best: str, trained: Mapping[str, float], bundled: Mapping[str, float]) -> str:
    """Return a sentence that compares the best run with the bundled one.

    trained, bundled: their scores by test query, 1 if the first hit is right.
    """
    queries = pluralize(len(trained), "test query", "test queries")
    recall = statistics.fmean(trained.values())
    recall_before = statistics.fmean(bundled.values())
    gain = difference(trained, bundled)
    sentence = (
        f"{best}, on {queries}: R@1 {recall:.3f}, {recall_before:.3f} before training: "
        f"{difference_text(gain)}"
    )
    if may_be_chance(gain):
        sentence += ", which may be chance"
    return sentence


def _index(plan: Plan, best: str, run: LoadedRun) -> None:
    """Index all images. An index belongs to the weights of one run."""
    folder = plan.out / INDEX_FOLDER
    weights = f"{best} {run.step}"
    if plan.decisions.indexed != weights:
        shutil.rmtree(folder, ignore_errors=True)
    plan.decisions.indexed = weights
    with plan.output_to_log("."):
        Eve(run).index(plan.request.data.train, folder, **plan.request.reading())


def _write_report(plan: Plan, run: LoadedRun, evaluation: Evaluated, lines: list[str]) -> None:
    """Write the page of the best run, with the decisions above."""
    assert plan.decisions.result is not None
    best = plan.decisions.result.run
    body = draw(
        "run_sections.html",
        "learned",
        lines=lines,
        commands=commands(plan),
        app=page_command(plan),
        result=result_of(run, evaluation, plan.request.test or [HELD_OUT_TEST], {}),
    )
    data = None
    if best == settings.AS_IT_IS:  # the bundled run's own data are not here
        data = stage_config(plan, best).data
    with plan.output_to_log("."):
        page = run_page(run, [Section("decisions", "Decisions", body)], data)
        write_page(plan.out / REPORT_FILE, page)


def result_lines(plan: Plan) -> list[str]:
    """Return the numbers of the best run so far and what to do with it."""
    result = plan.decisions.result
    assert result is not None
    heading = f"{result.run}, on {pluralize(plan.facts.test, 'test row')} that no decision used"
    if plan.is_search:
        heading += " (R@1: the share of searches whose first hit is right)"
    comparison = re.sub(r"[a-z]\w+", lambda name: meaning(name[0]) or name[0], result.comparison)
    files = f"report: {plan.out / REPORT_FILE}; commands: {plan.out / SCRIPT_FILE}"
    return [
        f"{heading}:",
        *(f"  {part}" for part in comparison.split("; ")),
        *result.notes,
        f"{files}; time: {time_text(plan.elapsed())}",
        f"open the page: {page_command(plan)}",
    ]
