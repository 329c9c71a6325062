"""The verb runs: a table of runs with their data, steps, cost and numbers."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from eve_vl.cli.flags import JsonArgs
from eve_vl.cli.output_files import write_json
from eve_vl.cli.run_tables import COST, number_text, print_table
from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

if TYPE_CHECKING:
    from eve_vl.run.loading import LoadedRun


class RunsArgs(JsonArgs):
    """Flags of `eve runs`."""

    folders: Positional[tuple[Path, ...]] = (Path("runs"),)
    """Folders of runs, or run folders; runs are found three levels down."""


class NamedResult(Frozen):
    """A number of a run on data that `eve evaluate --data` named."""

    number: str
    value: float
    data: str
    fingerprint: str


class RunFacts(Frozen):
    """A run's row of the table; the fields are those of --json."""

    run: str
    task: str
    train: list[str]
    step: int
    steps: int
    is_best: bool
    core_seconds: dict[str, float | None]
    validation: dict[str, float]
    """Main numbers on the validation split, the one to compare by first."""
    validation_data: str
    named_data: list[NamedResult]
    saved: str


class OrderedRun(Frozen):
    """A run and its place in the table: by task and validation data, best first."""

    facts: RunFacts
    score: float
    """Lower is better."""

    def place(self) -> tuple[str, str, float]:
        """Return the key to sort by."""
        return self.facts.task, self.facts.validation_data, self.score


def run_runs(args: RunsArgs) -> None:
    """List runs with data, steps, cost and numbers: eve runs [FOLDER …]."""
    from eve_vl.interop.run_names import path_of
    from eve_vl.metrics.intervals import to_json
    from eve_vl.report.find_runs import find_runs

    paths = find_runs([path_of(folder) for folder in args.folders])
    runs: list[OrderedRun] = []
    broken = {}
    for path in progress(paths, "reading runs", len(paths)):
        try:
            runs.append(_read_facts(path))
        except (UserError, OSError) as error:
            broken[str(path)] = str(error)
    runs.sort(key=OrderedRun.place)

    if runs:
        print_table([_table_row(run.facts) for run in runs])
    print_line(*(f"not listed: {reason}" for reason in broken.values()))
    values = []
    for run in runs:
        facts = dataclasses.asdict(run.facts)
        facts["validation"] = to_json(run.facts.validation)
        values.append(facts)
    write_json(args.json, {"runs": values, "broken": broken})


def _table_row(facts: RunFacts) -> dict[str, str]:
    """Return the cells of a run by column."""
    from eve_vl.run.run_costs import cost_text

    steps = f"{facts.step:,} of {facts.steps:,}"
    if facts.is_best:
        steps += ", best"
    numbers = [f"{name} {number_text(value)}" for name, value in facts.validation.items()]
    named_numbers = []
    for result in facts.named_data:
        named_numbers.append(f"{result.number} {number_text(result.value)} on {result.data}")
    return {
        "run": facts.run,
        "task": facts.task,
        "training data": " ".join(facts.train),
        "weights of step": steps,
        COST: cost_text(facts.core_seconds),
        "validation": "\n".join(numbers),
        "named data (eve evaluate --data)": "\n".join(named_numbers),
        "saved": facts.saved[:16].replace("T", " "),
    }


def _read_facts(path: Path) -> OrderedRun:
    """Return the facts of a run. Raises UserError or OSError if it cannot be read."""
    from eve_vl.data import fingerprint
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.loading import load_run
    from eve_vl.run.results import main_numbers
    from eve_vl.run.run_costs import cost_chain
    from eve_vl.train.checkpoint_folders import BEST

    run = load_run(run_path(path))
    last_validation = _last_validation(run)
    main, is_lower_better = main_numbers(run.evaluator, last_validation)
    numbers = {name: last_validation[name] for name in main}
    score = 0.0
    if main:
        score = numbers[main[0]] if is_lower_better else -numbers[main[0]]
    seconds = (run.folder / "state.json").stat().st_mtime
    facts = RunFacts(
        run=str(path),
        task=run.config.task.name,
        train=[*run.config.data.train],
        step=run.step,
        steps=run.config.train.steps,
        is_best=run.folder.name == BEST,
        core_seconds=cost_chain(path),
        validation=numbers,
        validation_data=fingerprint.short(fingerprint.read(run.folder, fingerprint.VALIDATION)),
        named_data=_named_results(run.folder),
        saved=datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds"),
    )
    return OrderedRun(facts=facts, score=score)


def _last_validation(run: "LoadedRun") -> dict[str, Any]:
    """Return the last row of the log with validation numbers, up to the run's step."""
    from eve_vl.run.loading import root_of
    from eve_vl.train.run_log import read_log

    last_row: dict[str, Any] = {}
    for row in read_log(root_of(run.folder)):
        if row["kind"] == "val" and row["step"] <= run.step:
            last_row = row
    return last_row


def _named_results(folder: Path) -> list[NamedResult]:
    """Return the main number of each stored result of a run."""
    from eve_vl.run.results import read_results

    results = []
    for result in read_results(folder):
        if result.main:
            number = result.main[0]
            named = NamedResult(
                number=number,
                value=result.numbers[number],
                data=" ".join(result.sources),
                fingerprint=result.data,
            )
            results.append(named)
    return results
